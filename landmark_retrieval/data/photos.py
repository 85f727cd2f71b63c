"""A table of photos: what importers make, and what shard writing and description read. Columns, not an object a row."""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, overload

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the upright photo


@dataclass(frozen=True)
class Photo:
    """One encoded photo: its id, class (None where it has none), the bytes of the file, and the part of it that counts
    (None: all of it)."""

    id: str
    label: int | None
    data: bytes
    box: Box | None = None


class Ids(Sequence[str]):
    """Ids of photos in a column of their own, at the bytes of the longest for each: a fifth of a list of strings."""

    def __init__(self, ids: Iterable[str] | np.ndarray) -> None:
        self.column = ids if isinstance(ids, np.ndarray) else _column(ids)

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> "Ids": ...
    def __getitem__(self, row: int | slice) -> "str | Ids":
        return Ids(self.column[row]) if isinstance(row, slice) else self.column[row].decode()

    def __iter__(self) -> Iterator[str]:
        for block in range(0, len(self), 65536):
            yield from (photo.decode() for photo in self.column[block : block + 65536].tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return np.array_equal(self.column, other.column)
        return isinstance(other, list) and list(self) == other

    def __hash__(self) -> int:
        return hash(self.column.tobytes())

    def take(self, rows: np.ndarray) -> "Ids":
        """The ids of these rows."""
        return Ids(self.column[rows])

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """int64: the row of each id, -1 where it is not here."""
        wanted = _column(ids)
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1)
        order = np.argsort(self.column, kind="stable")
        place = np.searchsorted(self.column, wanted, sorter=order)
        found = order[np.minimum(place, len(self) - 1)]
        return np.where(self.column[found] == wanted, found, -1)

    def first_twice(self) -> str | None:
        """An id that stands more than once, if there is one."""
        ordered = np.sort(self.column)
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
        return ordered[again[0]].decode() if len(again) else None


class PhotoFiles(Protocol):
    """Where the photos of a table are. `row` is the row in the table that holds these files, `photo` its id."""

    def read(self, row: int, photo: str) -> bytes:
        """The file's bytes. OSError where it cannot be read."""
        ...

    def where(self, row: int, photo: str) -> str:
        """The place of the file, for messages."""
        ...

    def stamp(self, row: int, photo: str) -> object:
        """Something that changes when the file changes; None if there is no such file."""
        ...

    def take(self, rows: np.ndarray) -> "PhotoFiles":
        """The files of these rows alone."""
        ...


@dataclass(frozen=True)
class FilesById:
    """One file a photo, at a path that follows from its id; `locate` has to be picklable, for worker processes."""

    locate: Callable[[str], Path]

    def read(self, row: int, photo: str) -> bytes:  # noqa: D102
        return self.locate(photo).read_bytes()

    def where(self, row: int, photo: str) -> str:  # noqa: D102
        return str(self.locate(photo))

    def stamp(self, row: int, photo: str) -> object:  # noqa: D102
        try:
            held = self.locate(photo).stat()
        except OSError:
            return None
        return held.st_size, held.st_mtime_ns

    def take(self, rows: np.ndarray) -> "FilesById":  # noqa: D102
        return self


@dataclass(frozen=True)
class PhotoTable:
    """Photos on disk, a row each.

    Attributes:
        ids: unique names.
        files: where they are.
        labels: int32 (n,), numbers in [0, len(classes)), or None for photos without labels (index and query photos).
        classes: name of each class, in the order of the labels.
        boxes: int32 (n, 4), the part of each upright photo that counts, as left, top, right, bottom in pixels; or None.
    """

    ids: Ids
    files: PhotoFiles
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = field(default=(), repr=False)
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def photos(self, start: int = 0, stop: int | None = None) -> Iterator[Photo]:
        """Read the photos of rows [start, stop) in order; one whose file cannot be read comes without bytes."""
        for row in range(start, len(self) if stop is None else min(stop, len(self))):
            try:
                yield self.photo(row)
            except OSError:
                # without bytes it counts as broken wherever photos are decoded
                yield self._photo(row, b"")

    def photo(self, row: int) -> Photo:
        """Read one photo. OSError where its file cannot be read."""
        return self._photo(row, self.files.read(row, self.ids[row]))

    def where(self, row: int) -> str:
        """The place of a photo's file, for messages."""
        return self.files.where(row, self.ids[row])

    def find(self, ids: Collection[str]) -> dict[str, bytes]:
        """The encoded photos of these ids, as far as they are here and their files can be read."""
        found: dict[str, bytes] = {}
        for photo, row in zip(ids, self.ids.rows(ids).tolist(), strict=True):
            if row >= 0:
                with contextlib.suppress(OSError):
                    found[photo] = self.photo(row).data
        return found

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Nothing to do: the files are here."""

    @property
    def fingerprint(self) -> str:
        """Says which photos these are, in which order: a sha256 over ids, sizes and times of change, and boxes."""
        digest = hashlib.sha256()
        for row, photo in enumerate(self.ids):
            digest.update(f"{photo}\0{self.files.stamp(row, photo)}\n".encode())
        if self.boxes is not None:
            digest.update(self.boxes.astype("<i8").tobytes())
        return digest.hexdigest()

    def take(self, rows: np.ndarray) -> "PhotoTable":
        """The table of these rows, in this order, with the same classes."""
        labels, boxes = (None if column is None else column[rows] for column in (self.labels, self.boxes))
        return PhotoTable(self.ids.take(rows), self.files.take(rows), labels, self.classes, boxes)

    def _photo(self, row: int, data: bytes) -> Photo:
        label = None if self.labels is None else int(self.labels[row])
        return Photo(self.ids[row], label, data, None if self.boxes is None else _box(self.boxes[row]))


def _box(row: np.ndarray) -> Box:
    left, top, right, bottom = row.tolist()
    return left, top, right, bottom


def _column(ids: Iterable[str]) -> np.ndarray:
    """Bytes of fixed width; made in blocks, so that no list of millions of strings is needed."""
    source, blocks = iter(ids), []
    while block := list(islice(source, 65536)):
        blocks.append(np.array([photo.encode() for photo in block]))
    return np.concatenate(blocks) if blocks else np.empty(0, "S1")
