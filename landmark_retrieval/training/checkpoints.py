"""Checkpoints of a stage: files written whole or not at all, between the ends of epochs too, and on SIGTERM."""

import contextlib
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.optim.swa_utils import get_ema_multi_avg_fn

from landmark_retrieval.errors import LandmarkRetrievalError, Terminated
from landmark_retrieval.files import FULL, replacing

FOLDER, LAST, WITHIN = "checkpoints", "last", "within"

# steps after which several processes ask each other whether one of them is to stop
_AGREE_EVERY = 10


class WholeFiles(TorchCheckpointIO):
    """Written beside the old file and renamed: the trainer's own way copies, and a kill would leave half of each."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: D102
        path = Path(path)
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch wraps what the file raises
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if not isinstance(cause, OSError) or cause.errno not in FULL:
                raise
            kept = "the checkpoint before it is whole" if path.exists() else "there is none before it"
            raise LandmarkRetrievalError(
                f"The checkpoint {path} could not be written ({os.strerror(cause.errno or 0)}); {kept}: make room and "
                "run the same command again, which carries on there."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: D102
        try:
            return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
            raise LandmarkRetrievalError(
                f"The checkpoint {path} cannot be read ({type(error).__name__}: {_first_line(error)}): delete it, and "
                "the same command carries on after an older one, or from the start of the stage."
            ) from error


def checkpoints(folder: Path, best_of: str | None, every_n_steps: int | None) -> list[pl.Callback]:
    """The callbacks that write `last.ckpt` after each epoch, `best.ckpt` after the best, `within.ckpt` between them.

    Args:
        folder: of the run.
        best_of: the figure whose greatest value is the best; None: no epoch is.
        every_n_steps: None: after each epoch only.
    """
    where: dict[str, Any] = {"dirpath": folder / FOLDER, "enable_version_counter": False}
    # not `save_last` of the one for the best, which leaves out the epochs that are not
    found: list[pl.Callback] = [ModelCheckpoint(filename=LAST, save_on_train_epoch_end=True, **where)]
    if best_of:
        found.append(ModelCheckpoint(filename="best", monitor=best_of, mode="max", **where))
    if every_n_steps:
        found.append(_WithinEpochs(filename=WITHIN, every_n_train_steps=every_n_steps, **where))
    return found


def latest(folder: Path) -> Path | None:
    """The checkpoint to carry on with, in the folder of a run."""
    kept = [path for path in (folder / FOLDER).glob("*.ckpt") if path.stem in (LAST, WITHIN)]
    return max(kept, key=lambda path: path.stat().st_mtime_ns, default=None)


def delete_all(folder: Path) -> None:
    """Delete the checkpoints in the folder of a run, and what a killed run left half written."""
    for pattern in ("*.ckpt", ".*.partial"):
        for old in (folder / FOLDER).glob(pattern):
            old.unlink(missing_ok=True)


class _WithinEpochs(ModelCheckpoint):
    """Not after the last step of an epoch, whose validation a run taken up there would skip, and not between the
    batches of a step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if between_steps(trainer):
            super().on_train_batch_end(trainer, *arguments)


def between_steps(trainer: pl.Trainer) -> bool:
    """Whether a run can be taken up after this batch."""
    done: int = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return not trainer.is_last_batch and done % trainer.accumulate_grad_batches == 0


class StopOnSigterm(pl.Callback):
    """On SIGTERM (of Slurm before it takes a machine away, of a person): finish the step, write `within.ckpt`, end.
    In a job of Slurm on SIGUSR1 too, by which it says so earlier if asked to (`sbatch --signal`).

    In validation it is finished first. Of several processes it is enough that one gets the signal; they ask each other
    every few steps, where the trainer's own way would make the host wait for the device in each.

    Signals are heard within its `with` block.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FOLDER / f"{WITHIN}.ckpt"
        self.asked = False
        self._signals = [signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSigterm":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: D102
        # the trainer's handler talks to the other processes at whatever moment the signal comes
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: D102
        if self._agreed(trainer):
            _end(trainer, f"{trainer.current_epoch} epochs")

    def on_train_batch_end(  # noqa: D102
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not between_steps(trainer) or (trainer.world_size > 1 and trainer.global_step % _AGREE_EVERY):
            return
        if self._agreed(trainer):
            trainer.save_checkpoint(self.path)
            _end(trainer, f"step {trainer.global_step}")

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def _agreed(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.asked
        asked = torch.tensor(float(self.asked), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return bool(asked)


def _end(trainer: pl.Trainer, done: str) -> NoReturn:
    # one of several processes says so
    raise Terminated(f"stopped by SIGTERM after {done}" if trainer.is_global_zero else "")


class MovingAverage(WeightAveraging):
    """Exponential moving average of all weights and BatchNorm statistics, head included: validated and handed over.

    Args:
        decay: in (0, 1); what is kept of the average in each step.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"stage.ema is in (0, 1), not {decay}.")
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: D102
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        assert self._average_model is not None
        # torch looks at it in each step, for which the host would wait on a GPU
        self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: D102
        assert self._average_model is not None
        if trainer.world_size > 1:  # each process has seen statistics of its own
            for buffer in self._average_model.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: D102
        # a run that had only its hand-over left to write has not come by the end of a training
        self._copy_average_to_current(pl_module)


def _first_line(error: BaseException) -> str:
    with contextlib.suppress(IndexError):
        return str(error).strip().splitlines()[0]
    return ""
