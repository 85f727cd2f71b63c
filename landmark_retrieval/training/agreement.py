"""What the first of several processes does for all, told to the others."""

import signal
from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment

T = TypeVar("T")


def first_decides(trainer: pl.Trainer, decide: Callable[[], T]) -> T:
    """What the first process decides, in all, before a training begins.

    If it cannot, its error ends the first process, and the others end with exit code 2. Processes that the trainer
    starts by itself begin when the first one has decided, and decide alike.
    """
    if trainer.world_size == 1 or isinstance(_environment(trainer), LightningEnvironment):
        return decide()
    trainer.strategy.setup_environment()
    return _told(trainer, decide)


def first_does(trainer: pl.Trainer, act: Callable[[], None]) -> None:
    """Let the first process do something after a training, while the others wait; errors as in `first_decides`."""
    _told(trainer, act)


def started_by_trainer(trainer: pl.Trainer) -> bool:
    """Whether the trainer in another process has started this one."""
    return isinstance(_environment(trainer), LightningEnvironment) and not trainer.is_global_zero


def stop_others(trainer: pl.Trainer) -> None:
    """End the processes that this trainer has started: they may wait for this one for ever."""
    launcher = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))


def _told(trainer: pl.Trainer, act: Callable[[], T]) -> T:
    if trainer.world_size == 1:
        return act()
    answer: Any = None
    error: BaseException | None = None
    if trainer.is_global_zero:
        try:
            answer = act()
        except BaseException as raised:
            error = raised
    answer, failed = trainer.strategy.broadcast((answer, error is not None), 0)
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)  # the first one says why
    return answer


def _environment(trainer: pl.Trainer) -> Any:
    return trainer._accelerator_connector.cluster_environment
