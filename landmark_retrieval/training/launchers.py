"""How the process of a stage is started, and stopped: on this machine, or as a job of a cluster."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from landmark_retrieval.errors import LandmarkRetrievalError

GRACE = 60.0
"""Seconds that a stage has to save its checkpoint once it was asked to stop."""

_GUARD = Path(__file__).with_name("guard.py")
# seconds for the other processes of a stage to end after its first one
_AFTERWARDS = 10.0


class Launcher(Protocol):
    """Runs stages."""

    def run(
        self,
        overrides: Sequence[str],
        config: dict[str, Any],
        environment: Mapping[str, str],
        say: Callable[[str], None],
        following: Sequence[str] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> int:
        """Run a stage to its end.

        Args:
            overrides: that compose its config.
            config: composed.
            environment: variables for its processes, beside those of this one.
            say: receives sentences.
            following: overrides of the stage that will be run next, if any.
            meanwhile: called once the stage has started.

        Returns:
            Its exit code, as of a shell: 0, 130 after Ctrl-C, 143 after SIGTERM.
        """
        ...

    def close(self) -> None:
        """Let go of what was prepared for later stages."""
        ...


class StopSignals:
    """Notes SIGTERM, Ctrl-C and a lost terminal while a stage runs, and what else is to be passed on to it.

    Outside the main thread nothing is noted.

    Attributes:
        received: numbers of the signals that ask for an end, in order.
        passing: numbers of signals that are the stage's alone.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.passing: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        wanted: dict[int, list[int]] = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self.received)
        if "SLURM_JOB_ID" in os.environ:  # by which Slurm announces the end of a job, if asked to
            wanted[signal.SIGUSR1] = self.passing
        if threading.current_thread() is threading.main_thread():
            for number, notes in wanted.items():
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                    self._before[number] = signal.signal(number, _noting(notes))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def insisted(self) -> bool:
        """Whether a person pressed Ctrl-C again."""
        return self.received.count(signal.SIGINT) > 1

    @property
    def code(self) -> int | None:
        """The exit code that the first signal stands for."""
        return None if not self.received else 130 if self.received[0] == signal.SIGINT else 143


def _noting(notes: list[int]) -> Callable[[int, Any], None]:
    def note(number: int, frame: Any) -> None:
        notes.append(number)

    return note


class LocalLauncher:
    """Runs each stage as a process group of its own on this machine.

    SIGTERM and Ctrl-C are passed on to the stage as SIGTERM, and its end is waited for, at most `GRACE` seconds; Ctrl-C
    once more kills it. If this process is killed, a guard ends the stage (see `guard`). While a stage runs, the process
    of the following one gets its imports done (see `standby`); that takes a few hundred MB of memory.
    """

    def __init__(self) -> None:
        if os.name == "nt":
            raise LandmarkRetrievalError(
                "Chains need process groups, which Windows does not have: run each stage with python -m "
                "landmark_retrieval.train +stage=NAME, or use WSL."
            )
        self._waiting: tuple[tuple[str, ...], subprocess.Popen[str]] | None = None
        self._running: subprocess.Popen[str] | None = None

    def run(  # noqa: D102
        self,
        overrides: Sequence[str],
        config: dict[str, Any],
        environment: Mapping[str, str],
        say: Callable[[str], None],
        following: Sequence[str] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> int:
        with StopSignals() as signals:
            process = self._running = self._take(overrides)
            assert process.stdin is not None
            command = [sys.executable, "-I", "-S", str(_GUARD), str(process.pid), str(GRACE)]
            # in a session of its own, so that what ends the chain's does not end it, and silent, so that nobody who
            # reads what the chain says waits for it
            null = subprocess.DEVNULL
            guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)
            assert guard.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # it died; its exit code tells
                    process.stdin.write(json.dumps(dict(environment)) + "\n")
                    process.stdin.close()
                if meanwhile:
                    meanwhile()
                if following is not None:
                    self._prepare(following)
                code = _wait(process, signals)
            except BaseException:
                send_signal(process.pid, signal.SIGKILL, group=True)
                process.wait()
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):
                    guard.stdin.write(b".")
                    guard.stdin.close()
                guard.wait()
                self._running = None
        # also of a stage that happened to be finished when the signal came: the chain is to stop
        return signals.code or (code if code >= 0 else 128 - code)

    def close(self) -> None:  # noqa: D102
        if self._waiting:
            process = self._waiting[1]
            process.kill()  # it has done nothing yet
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
            self._waiting = None

    def stop(self) -> None:
        """Ask the stage that runs to stop, and wait for its end; for a signal handler, while `run` waits."""
        if not self._running:
            return
        deadline = time.monotonic() + GRACE
        send_signal(self._running.pid, signal.SIGTERM)
        while self._running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        send_signal(self._running.pid, signal.SIGKILL, group=True)

    def _take(self, overrides: Sequence[str]) -> "subprocess.Popen[str]":
        """The process that waits for this stage, or a new one."""
        if self._waiting and (self._waiting[0] != tuple(overrides) or self._waiting[1].poll() is not None):
            self.close()
        if not self._waiting:
            self._prepare(overrides)
        assert self._waiting is not None
        process, self._waiting = self._waiting[1], None
        return process

    def _prepare(self, overrides: Sequence[str]) -> None:
        command = [sys.executable, "-m", "landmark_retrieval.training.standby", *overrides]
        # a group of its own: Ctrl-C in the terminal reaches the chain alone, which then asks the stage to stop
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, process_group=0)
        self._waiting = (tuple(overrides), process)


def _wait(process: "subprocess.Popen[str]", signals: StopSignals) -> int:
    deadline = float("inf")
    asked = False
    while (code := process.poll()) is None:
        while signals.passing:
            send_signal(process.pid, signals.passing.pop(0))
        if signals.received and not asked:
            # not the group: decoding processes that ended now would make the stage fail before it has saved
            send_signal(process.pid, signal.SIGTERM)
            asked, deadline = True, time.monotonic() + GRACE
        if signals.insisted or time.monotonic() > deadline:
            send_signal(process.pid, signal.SIGKILL, group=True)
        time.sleep(0.05)
    # of a stage that failed, other processes may wait for it for ever
    patience = time.monotonic() + (0 if code else _AFTERWARDS)
    while send_signal(process.pid, 0, group=True) and time.monotonic() < patience:
        time.sleep(0.05)
    send_signal(process.pid, signal.SIGKILL, group=True)
    return code


def send_signal(pid: int, number: int, group: bool = False) -> bool:
    """Send a signal, 0 for none, to a process or to all of its group; whether there was such a process."""
    try:
        (os.killpg if group else os.kill)(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
