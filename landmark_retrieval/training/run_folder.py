"""The folder of a run: who may write into it, what was begun there, and whether it can be carried on."""

import contextlib
import itertools
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_only

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json, write_json
from landmark_retrieval.training import checkpoints

# s; the decoding processes of a run that was killed hold its lock until they notice, within 5, and a run whose chain
# was killed may take 60 to save what it did
_PATIENCE = 75.0


def first_process() -> bool:
    """Whether this is the first of the processes of a run, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other runs out of a folder. Of several processes of one run the first one does it for all.

    Raises:
        LandmarkRetrievalError: another run is at work there.
    """
    if not first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            say(f"Another run is at work in {folder} ({_holder(folder)}); waiting {_PATIENCE:.0f} s for its end.")
            lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise LandmarkRetrievalError(
            f"Another run is at work in {folder} ({_holder(folder)}): wait for its end, stop it, or choose another "
            "run_dir."
        ) from None
    try:
        write_json(folder / ".holder.json", {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        (folder / ".holder.json").unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / ".holder.json").read_text())
        return f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, KeyError):
        return "which does not say where"


def to_carry_on(folder: Path, wanted: dict[str, Any], resume: bool, say: Callable[[str], None]) -> str | None:
    """The checkpoint to carry on with, if the folder holds an unfinished run with these decisive parts of the config.

    Changes nothing.
    """
    record = folder / "config.json"
    last = checkpoints.latest(folder)
    if not (resume and last and record.exists()):
        return None
    before = read_json(record, "record of the run", f"delete {folder}")
    if before == wanted:
        say(f"Carrying on from {last}.")
        return str(last)
    if before | {"processes": wanted.get("processes")} == wanted:
        had = before.get("processes")
        say(f"The run in this folder had {had} processes, not {wanted['processes']}: starting again.")
    else:
        say(
            "The config has changed since the last run in this folder "
            f"({', '.join(changed_keys(before, wanted)[:5])}): starting again."
        )
    return None


def begin(folder: Path, wanted: dict[str, Any], carry_on: bool) -> None:
    """Make the folder ready for a run; of several processes, the first one does.

    The log of the run that is carried on is moved aside. Otherwise what is there of another run is deleted, and this
    one is put on record.
    """
    if carry_on:
        _keep_log(folder / "logs" / "csv" / "metrics.csv")
        return
    checkpoints.delete_all(folder)
    (folder / "wandb_id.txt").unlink(missing_ok=True)
    write_json(folder / "config.json", wanted)


def changed_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys in which two configs differ, with dots."""
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        first, second = before.get(key), now.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            found += changed_keys(first, second, f"{prefix}{key}.")
        elif first != second:
            found.append(f"{prefix}{key}")
    return found


def wandb_id(folder: Path) -> str:
    """The id under which Weights & Biases shows this run, also after it was taken up again, on line or off."""
    path = folder / "wandb_id.txt"
    if not path.exists():
        with open_replacing(path) as file:
            file.write(secrets.token_hex(4))
    return path.read_text()


def _keep_log(path: Path) -> None:
    """Move the log of the interrupted run aside, which the logger would delete."""
    numbers = (number for number in itertools.count(1) if not path.with_stem(f"metrics-{number}").exists())
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_stem(f"metrics-{next(numbers)}"))
