import contextlib
import os
import resource
import signal
from types import SimpleNamespace

import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.checkpoints import MovingAverage, WholeFiles, between_steps, delete_all, latest


@contextlib.contextmanager
def files_of_at_most(size):
    """What a full disk does: a file cannot grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_on_a_full_disk_the_last_good_checkpoint_stays(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 1, "weight": torch.zeros(10)}, path)
    with (
        files_of_at_most(100_000),
        pytest.raises(LandmarkRetrievalError, match=r"last\.ckpt could not be written \(.*\); the checkpoint before"),
    ):
        WholeFiles().save_checkpoint({"step": 2, "weight": torch.zeros(1_000_000)}, path)
    assert WholeFiles().load_checkpoint(path, weights_only=True)["step"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"weight": torch.zeros(1000)}, path)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"nonsense"):
        path.write_bytes(damaged)
        with pytest.raises(LandmarkRetrievalError, match=r"last\.ckpt cannot be read .*delete it, and the same"):
            WholeFiles().load_checkpoint(path, weights_only=True)


def test_the_newest_is_taken_up_and_what_is_half_written_is_not(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert latest(tmp_path) is None
    for name in ("last.ckpt", "best.ckpt", "within.ckpt", ".within.ckpt.abc.partial"):
        (folder / name).write_text("")
    for age, name in enumerate(("best.ckpt", "last.ckpt", "within.ckpt")):
        os.utime(folder / name, (1000 - age, 1000 - age))
    assert latest(tmp_path).name == "last.ckpt"
    os.utime(folder / "within.ckpt", (2000, 2000))
    assert latest(tmp_path).name == "within.ckpt"
    delete_all(tmp_path)
    assert not list(folder.iterdir())


def test_a_step_ends_where_its_last_batch_does():
    def trainer(ready, last=False, accumulated=3):
        progress = SimpleNamespace(current=SimpleNamespace(ready=ready))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        return SimpleNamespace(fit_loop=loop, is_last_batch=last, accumulate_grad_batches=accumulated)

    assert [between_steps(trainer(ready)) for ready in range(1, 7)] == [False, False, True] * 2
    assert not between_steps(trainer(6, last=True))


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_an_average_keeps_some_but_not_all(decay):
    with pytest.raises(ValueError, match=r"stage\.ema is in \(0, 1\)"):
        MovingAverage(decay)
