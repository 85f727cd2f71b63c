import subprocess
import sys
import time

import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training import run_folder
from landmark_retrieval.training.run_folder import begin, changed_keys, locked, to_carry_on, wandb_id

HOLD = """
import sys, time
from pathlib import Path
from landmark_retrieval.training.run_folder import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch):
    """And a run that was killed does not keep the next one out."""
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.5)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    said = []
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(
                LandmarkRetrievalError,
                match=rf"Another run is at work in .* \(process {other.pid} on .*\): wait for its end, stop it",
            ),
            locked(tmp_path, said.append),
        ):
            pass
        assert len(said) == 1
    finally:
        other.kill()
        other.wait()
    began = time.monotonic()
    with locked(tmp_path, said.append):
        assert time.monotonic() - began < 5
    # and once more after an orderly end
    with locked(tmp_path, said.append):
        pass


def test_what_was_begun_is_taken_up_only_with_the_same_config(tmp_path):
    said = []

    def found(config, resume=True):
        return to_carry_on(tmp_path, config, resume, said.append)

    config = {"optimizer": {"lr": 1.0, "kind": "adam"}, "processes": 2}
    assert found(config) is None
    begin(tmp_path, config, False)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_text("")
    assert found(config) == str(last)
    assert found(config, resume=False) is None
    other = {"optimizer": {"lr": 2.0, "kind": "adam"}, "processes": 2}
    assert found(other) is None
    assert said[-1].endswith("in this folder (optimizer.lr): starting again.")
    assert found(config | {"processes": 3}) is None
    assert said[-1] == "The run in this folder had 2 processes, not 3: starting again."
    # to look changes nothing; to begin another run does
    assert last.exists()
    begin(tmp_path, config, True)
    assert last.exists()
    begin(tmp_path, other, False)
    assert not last.exists()


def test_changed_keys():
    assert changed_keys({"a": {"b": 1, "c": [2]}, "d": 1}, {"a": {"b": 1, "c": [3], "e": 0}}) == ["a.c", "a.e", "d"]
    assert changed_keys({"a": 1}, {"a": 1}) == []


def test_the_id_of_a_run_lasts_as_long_as_the_run(tmp_path):
    begin(tmp_path, {"processes": 1}, False)
    first = wandb_id(tmp_path)
    begin(tmp_path, {"processes": 1}, True)
    assert first == wandb_id(tmp_path)
    begin(tmp_path, {"processes": 1, "lr": 3}, False)
    assert wandb_id(tmp_path) != first
