"""The parts of a descriptor store that is being written, and which of several processes writes which of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json, sha256_of, write_json
from landmark_retrieval.retrieval.store_files import (
    DTYPES,
    FINISHED,
    RECORD,
    REMAKE,
    UNFINISHED,
    Record,
    as_stored,
    card_difference,
    part_paths,
    read_description,
    stem,
)

_LOCK = "store.lock"
_WRITER = "writer.lock"


class Parts:
    """The parts of a store that is being written, each of them whole or not at all, by any number of processes.

    Args:
        folder: the store; made when the first part is written.
        card: what made the descriptors.
        dtype: "float32" or "float16".
        part_size: photos per part; that of an unfinished store in the folder takes its place.

    Raises:
        LandmarkRetrievalError: the folder holds descriptors of another card or dtype.
    """

    def __init__(self, folder: str | Path, card: Mapping[str, Any], dtype: str, part_size: int) -> None:
        if dtype not in DTYPES:
            raise LandmarkRetrievalError(f"Descriptors are stored as float32 or float16, not as {dtype!r}.")
        if part_size < 1:
            raise LandmarkRetrievalError(f"A part must hold at least 1 photo, not {part_size}.")
        self.folder = Path(folder)
        self.card = as_stored(card)
        self.dtype = dtype
        self.part_size = part_size
        self._held: dict[int, FileLock] = {}
        self._lock = FileLock(self.folder / _LOCK)
        # may be given back by another thread than took it
        self._writing = FileLock(self.folder / _WRITER, thread_local=False)
        self._begun = False
        self._compare()

    @property
    def finished(self) -> bool:
        """Whether store.json says all there is to say."""
        return (self.folder / FINISHED).exists() and not (self.folder / UNFINISHED).exists()

    @property
    def readable(self) -> bool:
        """Whether there is a store.json: all parts were there once, though more may be on their way."""
        return (self.folder / FINISHED).exists()

    def begin(self) -> None:
        """Note what the store will be, before its first part; of several processes each may."""
        with self.alone():
            if not (self.folder / UNFINISHED).exists():
                about = {"card": self.card, "dtype": self.dtype, "part_size": self.part_size}
                write_json(self.folder / UNFINISHED, about)
            self._compare()
        self._begun = True

    def done(self) -> set[int]:
        """Numbers of the parts that are there."""
        names = (re.fullmatch(r"part-(\d{5,})\.json", path.name) for path in self.folder.glob("part-*.json"))
        return {int(name[1]) for name in names if name} | set(range(len(self._old())))

    def records(self) -> dict[int, Record]:
        """What is known of each part that is there, by its number."""
        records = dict(enumerate(self._old()))
        for number in sorted(self.done() - records.keys()):
            path = self.folder / f"{stem(number)}.json"
            records[number] = read_json(path, "note on a part", REMAKE)
            if not isinstance(records[number], dict) or not set(RECORD) <= records[number].keys():
                raise LandmarkRetrievalError(f"The note on a part {path} is damaged: {REMAKE}.")
        return dict(sorted(records.items()))

    def claim(self, number: int) -> bool:
        """Take a part for this process, until it is released or the process ends.

        False if it is there already, or another process is at work on it. Works between nodes where their common file
        system has locks.
        """
        if self._there(number):
            return False
        lock = FileLock(self.folder / f"{stem(number)}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        if self._there(number):  # since the process that held the lock has written it
            lock.release()
            return False
        self._held[number] = lock
        return True

    def release(self, number: int | None = None) -> None:
        """Give a claimed part back, or all of them."""
        for held in list(self._held) if number is None else [number]:
            self._held.pop(held).release()

    def write(self, number: int, ids: Sequence[str], rows: np.ndarray, **notes: Any) -> None:
        """Write a part; it counts when its note is there, which comes last."""
        if not self._begun:
            self.begin()
        record: Record = {"count": len(ids), **dict.fromkeys(("sha256", "ids_sha256"))}
        if len(ids):
            array, names = part_paths(self.folder, number)
            with open_replacing(array, "wb") as file:
                np.save(file, rows, allow_pickle=False)
            with open_replacing(names) as file:
                file.writelines(f"{photo}\n" for photo in ids)
            record |= {"sha256": sha256_of(array), "ids_sha256": sha256_of(names)}
        dim = rows.shape[1] if len(ids) else None
        write_json(self.folder / f"{stem(number)}.json", {**record, "dim": dim, **notes})

    def finish(self) -> None:
        """Write store.json over all parts, and remove the notes.

        Raises:
            LandmarkRetrievalError: a part is missing, all are empty, or their descriptors differ in length.
        """
        records = self.records()
        if list(records) != list(range(len(records))):
            raise LandmarkRetrievalError(f"A part of the store {self.folder} is missing: {REMAKE}.")
        dim = self.dim(records)
        if dim is None:
            raise LandmarkRetrievalError(f"No photo was added to the store {self.folder}: there is nothing to finish.")
        parts = [{key: record[key] for key in RECORD} for record in records.values()]
        count = sum(part["count"] for part in parts)
        description = {"dim": dim, "dtype": self.dtype, "count": count, "card": self.card, "parts": parts}
        write_json(self.folder / FINISHED, description)
        self._remove_notes()

    def tidy(self) -> None:
        """Remove the notes that are left where a process was killed between writing store.json and removing them.

        Nothing is removed where the store is being extended, or the extension that was interrupted has parts.
        """
        if not self.readable or self.finished or not self.lock_writer():
            return
        try:
            with self.alone():
                if len(self.records()) == len(self._old()):
                    self._remove_notes()
        finally:
            self.unlock_writer()

    def dim(self, records: Mapping[int, Record]) -> int | None:
        """The length of the descriptors, None if there are none.

        Raises:
            LandmarkRetrievalError: parts differ in it.
        """
        finished = self.folder / FINISHED
        dims = {read_description(finished)["dim"]} if finished.exists() else set()
        dims |= {record["dim"] for record in records.values() if record.get("dim") is not None}
        if len(dims) > 1:
            raise LandmarkRetrievalError(
                f"The parts of {self.folder} hold descriptors of different lengths, {sorted(dims)}: {REMAKE}."
            )
        return dims.pop() if dims else None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process begin or finish the store at the same time; may be nested."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            try:
                yield
            finally:
                if self._lock.lock_counter == 1:
                    (self.folder / _LOCK).unlink(missing_ok=True)

    def lock_writer(self) -> bool:
        """Let nobody else append to the store, until `unlock_writer` or the end of the process; False if one does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._writing.acquire(timeout=0)
        except Timeout:
            return False
        return True

    @property
    def writer_locked(self) -> bool:
        """Whether `lock_writer` holds."""
        return self._writing.is_locked

    def unlock_writer(self) -> None:
        """Let others append."""
        if self._writing.is_locked:
            (self.folder / _WRITER).unlink(missing_ok=True)
            self._writing.release()

    def _remove_notes(self) -> None:
        for number in range(len(self._old())):
            for suffix in ("json", "lock"):
                (self.folder / f"{stem(number)}.{suffix}").unlink(missing_ok=True)
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def _there(self, number: int) -> bool:
        # in this order: the notes are removed once store.json is there
        return (self.folder / f"{stem(number)}.json").exists() or self.readable

    def _old(self) -> list[Record]:
        """The parts that store.json describes, also while the store is extended."""
        path = self.folder / FINISHED
        return read_description(path)["parts"] if path.exists() else []

    def _compare(self) -> None:
        path = next((p for p in (self.folder / UNFINISHED, self.folder / FINISHED) if p.exists()), None)
        if path is None:
            return
        advice = "choose another folder or remove this one"
        if path.name == FINISHED:
            found = read_description(path)
        else:
            found = read_json(path, "note on a store", REMAKE)
            if not isinstance(found, dict) or not {"card", "dtype", "part_size"} <= found.keys():
                raise LandmarkRetrievalError(f"{path} was not written by this version: {REMAKE}.")
            self.part_size = found["part_size"]
        if found["card"] != self.card:
            raise LandmarkRetrievalError(
                f"The store {self.folder} holds descriptors of another model or of other views "
                f"({card_difference(found['card'], self.card)}): {advice}."
            )
        if found["dtype"] != self.dtype:
            raise LandmarkRetrievalError(
                f"The store {self.folder} has dtype {found['dtype']}, not {self.dtype}: {advice}."
            )
