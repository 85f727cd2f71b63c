"""`python -m landmark_retrieval.ablate`: runs, measurements and tables from the command line, on drawn photos."""

import json
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from landmark_retrieval import ablate, cli, submit
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.training import cleaning, launchers
from landmark_retrieval.training.handoff import Handoff

SCOPE = ["reranking", "ensemble", "recognition", "neck"]  # of which base and pooling_gem are trained


@pytest.fixture(scope="module")
def small(tiny):
    return [*tiny, "stage.epochs=1", "stage.freeze=[]", "data.validation_image_size=48", "model.embedding_dim=16"]


@pytest.fixture(scope="module")
def study(small, shards, tmp_path_factory):
    """A finished call: its folder, and its words."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    more = ["--out", str(out), "--seeds", "1", "--non-landmark", str(shards / "index")]
    command = [sys.executable, "-m", "landmark_retrieval.ablate", *small, *more, "--only", *SCOPE]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "=== 2 of 2: pooling_gem, seed 0 ===" in ended.stdout
    return out, [*small, *more]


@pytest.fixture
def call(monkeypatch, capfd):
    """Call it here: exit code, what it printed, what it said on stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["ablate", *words])
        code = 0
        try:
            ablate.main()
        except SystemExit as ended:
            code = ended.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a stage was started")

    monkeypatch.setattr(launchers.LocalLauncher, "run", refuse)


def read(out):
    return json.loads((out / "ablation.json").read_text())


def percent(text):
    return float(text.partition(" ")[0])


def lines(out, title):
    part = (out / "ablation.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in ([cell.strip() for cell in line[1:-1].split("|")] for line in rows[2:])}


@pytest.mark.slow
def test_the_figures_are_those_that_other_commands_find(study, tmp_path, monkeypatch, shards):
    out, _ = study
    held = read(out)["measurements"]
    run = out / "runs" / "base" / "seed0" / "train_from_imagenet"
    cli.main(["evaluate", str(shards), "--model", str(run), "--bank", "full", "--out", str(tmp_path / "evaluation")])
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    wanted = {
        "map_at_100": found["map_at_100"],
        "precision_at_1": found["precision_at_1"],
        "gap": found["recognition"]["gap"],
    }
    assert held["base"]["0"]["figures"] == pytest.approx(wanted, abs=1e-9)
    assert held["base"]["0"]["image_size"] == 48
    assert held["base"]["0"]["photos_seen"] == 48
    # the others: by the commands that are written beside them
    for name in ("rerank_soft", "rerank_alpha_query_expansion", "recognition", "recognition_non_landmark", "ensemble"):
        words = shlex.split(held[name]["0"]["commands"][-1])
        assert words[:3] == ["python", "-m", "landmark_retrieval.submit"]
        folder = tmp_path / name
        monkeypatch.setattr(sys, "argv", [*words[2:], f"out={folder}", "extraction.workers=0"])
        submit.main()
        judged = ["evaluate", str(shards), "--predictions", str(folder / "predictions.csv"), "--out", str(folder / "j")]
        cli.main(judged)
        found = json.loads((folder / "j" / "metrics.json").read_text())
        figures = held[name]["0"]["figures"]
        if name.startswith("recognition"):
            assert figures == pytest.approx({"gap": found["recognition"]["gap"]}, abs=1e-9)
        else:
            assert figures["map_at_100"] == pytest.approx(found["map_at_100"], abs=1e-9)
            assert figures["precision_at_1"] == pytest.approx(found["precision_at_1"], abs=1e-9)
    packing, judging = (shlex.split(command) for command in held["neck_whitened"]["0"]["commands"][-2:])
    assert packing[:3] == ["landmark-retrieval", "zoo", "pack"]
    cli.main([*packing[1:], "--out", str(tmp_path / "packed")])
    where = ["--model", str(tmp_path / "packed"), "--out", str(tmp_path / "packed-evaluation")]
    cli.main([*judging[1:], *where])
    found = json.loads((tmp_path / "packed-evaluation" / "metrics.json").read_text())
    assert held["neck_whitened"]["0"]["figures"]["map_at_100"] == pytest.approx(found["map_at_100"], abs=1e-9)
    assert held["neck_whitened"]["0"]["figures"]["gap"] == pytest.approx(found["recognition"]["gap"], abs=1e-9)
    table = lines(out, "Ensemble of two")
    both, base = (held[name]["0"]["figures"]["map_at_100"] for name in ("ensemble", "base"))
    row = table["both: lists added up, descriptors side by side for GAP"]
    assert percent(row[3]) == pytest.approx(100 * both, abs=0.0051)
    assert percent(row[7]) == pytest.approx(100 * (both - base), abs=0.0051)
    assert row[8].startswith("one seed")


@pytest.mark.slow
def test_again_nothing_is_trained_or_measured(study, call, nothing_runs):
    out, words = study
    before, table = read(out), (out / "ablation.md").read_text()
    made = {path: path.stat().st_mtime_ns for path in (out / "measured").rglob("*") if path.is_file()}
    code, said, _ = call(*words, "--only", *SCOPE)
    assert code == 0
    assert said.count("  finished") == 2
    assert said.count("is finished: ") == 2
    assert read(out)["measurements"] == before["measurements"]
    assert {path: path.stat().st_mtime_ns for path in (out / "measured").rglob("*") if path.is_file()} == made
    # one that was not finished is made again, and comes out the same
    (lost,) = (out / "measured" / "base").rglob("rerank_soft-*.json")
    lost.unlink()
    (out / "ablation.md").unlink()
    assert call(*words, "--only", "reranking")[0] == 0
    assert lost.exists()
    assert read(out)["measurements"] == before["measurements"]
    # the first line is the command
    assert (out / "ablation.md").read_text().splitlines()[4:] == table.splitlines()[4:]
    # figures of weights that are no longer those of the run are dropped, also where they are not asked for
    changed = read(out)
    changed["measurements"]["ensemble"]["0"]["weights"]["pooling_gem"] = "of an earlier run"
    (out / "ablation.json").write_text(json.dumps(changed))
    assert "ensemble, seed 0: the figures of an earlier pooling_gem" in call(*words, "--only", "pooling_gem")[1]
    assert "ensemble" not in read(out)["measurements"]
    assert call(*words, "--only", "ensemble")[0] == 0
    assert read(out)["measurements"] == before["measurements"]
    # figures of another size do not mix with these
    code, _, error = call(*words, "data.validation_image_size=40", "--only", "base")
    assert code == 2
    assert "holds the figures of other photos, or of base with other settings" in error


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(study, call, monkeypatch):
    out, words = study
    started = []

    def fails(self, overrides, config, *_, **__):
        started.append(config["run_dir"])
        return 2

    monkeypatch.setattr(launchers.LocalLauncher, "run", fails)
    code, _, error = call(*words, "--only", "data_clean", "pooling_gem", "loss_softmax")
    assert code == 2
    assert [Path(folder).parts[-3] for folder in started] == ["loss_softmax", "data_clean"]
    assert "2 failed: data_clean, seed 0; loss_softmax, seed 0" in error
    held = read(out)
    assert "ended with exit code 2" in held["failed"]["data_clean, seed 0"]
    assert set(held["measurements"]) >= {"base", "pooling_gem", "ensemble"}
    assert "- data_clean, seed 0: Stage train_from_imagenet ended" in (out / "ablation.md").read_text()


@pytest.mark.slow
def test_the_set_that_base_cleans(study, call, monkeypatch, shards):
    out, words = study
    # so little training leaves most photos beyond the usual angle
    monkeypatch.setattr(cleaning, "clean", partial(cleaning.clean, angle=89.0))
    code, said, error = call(*words, "--only", "data_cleaned")
    assert code == 0, error
    (folder,) = (out / "cleaned").iterdir()
    kept = {row.split(",")[0] for row in (folder / "angles.csv").read_text().splitlines()[1:] if row.endswith(",1")}
    photos = ShardedPhotos.open(folder / "train_cleaned")
    assert set(photos.ids) == kept
    assert 0 < len(kept) < len(ShardedPhotos.open(shards / "train_full"))
    run = Handoff.read(out / "runs" / "data_cleaned" / "seed0" / "train_from_imagenet", "")
    assert run.card["photos"] == len(kept)
    assert run.card["classes"] == len(photos.manifest.classes)
    held = read(out)["measurements"]["data_cleaned"]["0"]
    assert f"{len(kept)} of 48 photos are kept" in said
    # as many photos as base, but for what does not fill a batch in each round
    assert held["photos_seen"] == run.config["stage"]["epochs"] * 8 * run.config["trainer"]["limit_train_batches"]
    assert abs(held["photos_seen"] - 48) <= 8 * run.config["stage"]["epochs"] / 2


def test_a_plan_writes_nothing(call, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said, _ = call(*small, "--dry-run", "--seeds", "2", "--only", "loss", "data.batch_size=4")
    assert code == 0
    assert "all: 8 runs" in said and "loss_sub_center, seed 1" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "bass"], "no question or variant 'bass': did you mean base"),
        (["--seeds", "0"], "--seeds 0 is too few: take at least 1"),
        (["data.root=/nowhere", "--only", "base"], "There is no data at /nowhere"),
        (["seed=1"], "seed=1: the ablations set seed themselves"),
        (["data.image_sise=3"], "did you mean data.image_size"),
        (["data.train_set=[c,full]", "--only", "base"], "one training set whose photos vote"),
        (["--non-landmark", "/nowhere", "--only", "base"], "There are no photos at /nowhere"),
    ],
)
def test_mistakes(call, small, tmp_path, words, message, nothing_runs):
    code, _, error = call(*small, "--out", str(tmp_path / "out"), *words)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_under_torchrun_it_says_so(call, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    code, _, error = call("--dry-run")
    assert code == 2
    assert "call them once, without torchrun" in error
