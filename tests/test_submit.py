"""`python -m landmark_retrieval.submit`: CSVs in the challenges' format, from models on disk."""

import csv
import subprocess
import sys

import pytest
import torch

from landmark_retrieval import GeMNet, submit
from landmark_retrieval.data.solutions import read_recognition_predictions, read_retrieval_predictions
from landmark_retrieval.data.sources import open_photos
from landmark_retrieval.zoo.saved_model import save_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = GeMNet("mobilenetv3_small_050", embedding_dim=16)
        arguments = {"backbone": "mobilenetv3_small_050", "embedding_dim": 16}
        card = {"architecture": "GeMNet", "arguments": arguments, "image_size": 48}
        save_model(folder / f"model{seed}", model, card)
    return [str(folder / f"model{seed}") for seed in (1, 2)]


@pytest.fixture
def call(shards, tmp_path, monkeypatch, capsys):
    def run(*arguments, fails=False):
        out = tmp_path / "out"
        words = ["submit", f"data.root={shards}", f"out={out}", "extraction.workers=0", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        if fails:
            with pytest.raises(SystemExit) as ended:
                submit.main()
            assert ended.value.code == 2
        else:
            submit.main()
        return out, capsys.readouterr()

    return run


def test_retrieval(call, runs, shards):
    out, said = call("track=retrieval", f"models=[{','.join(runs)}]", "retrieval.top=5")
    found = read_retrieval_predictions(out / "predictions.csv")
    test, index = open_photos(shards, "test"), open_photos(shards, "index")
    assert list(found) == list(test.ids)
    assert all(len(set(ranked)) == 5 and set(ranked) <= set(index.ids) for ranked in found.values())
    assert "9 of 9 photos by 2 model(s)" in said.out
    first = (out / "predictions.csv").read_bytes()
    _, said = call("track=retrieval", f"models=[{','.join(runs)}]", "retrieval.top=5")
    assert (out / "predictions.csv").read_bytes() == first


def test_recognition(call, runs, shards):
    out, _ = call(
        "track=recognition", f"models=[{{model: {runs[0]}, image_size: 40, flip: true}},{runs[1]}]",
        f"recognition.non_landmark={shards / 'index'}", "data.train_set=full",
    )  # fmt: skip
    found = read_recognition_predictions(out / "predictions.csv")
    assert list(found) == list(open_photos(shards, "test").ids)
    landmarks = {int(name) for name in open_photos(shards, "train_full").manifest.classes}
    assert {label for label, _ in found.values()} <= landmarks
    assert len({score for _, score in found.values()}) > 5


def test_a_plan_makes_nothing(call, runs):
    out, said = call("track=retrieval", f"models=[{runs[0]}]", "--plan")
    assert "fits into 12 h" in said.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models=[{0}]"], "track=retrieval or track=recognition"),
        (["track=retrieval"], "Name at least one model"),
        (["track=retrieval", "models=[{{modell: x}}]"], "not {'modell': 'x'}"),
        (["track=retrieval", "models=[nowhere]"], "nowhere"),
        (["track=retrieval", "models=[{0}]", "retrieval.rerank=sofd"], "no re-ranker called 'sofd'"),
        (["track=retrieval", "models=[{0}]", "retrieval.upp=2"], "did you mean retrieval.up"),
        (["track=retrieval", "models=[{0}]", "data.train_set=z"], "'z'"),
        (["track=recognition", "models=[{{model: {0}, weight: 2.0}}]"], "weight is for track=retrieval"),
    ],
)
def test_errors(call, runs, words, message):
    _, said = call(*(word.format(runs[0]) for word in words), fails=True)
    assert message in said.err
    assert "Traceback" not in said.err


def test_as_a_command_and_photos_that_cannot_be_decoded(runs, tmp_path, photos):
    import shutil

    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    broken = sorted((data / "test").rglob("*.jpg"))[0]
    broken.write_bytes(b"no photo")
    command = [sys.executable, "-m", "landmark_retrieval.submit", "track=retrieval", f"models=[{runs[0]}]"]
    command += [f"data.root={data}", f"out={tmp_path / 'out'}", "retrieval.rerank=none", "extraction.workers=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 of 9 photos by 1 model(s); 1 could not be decoded" in done.stdout
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        cells = {row["id"]: row["images"] for row in csv.DictReader(file)}
    assert [query for query, cell in cells.items() if not cell] == [broken.stem]
