"""Photos inside tar archives, read where they lie: nothing is ever extracted. `archive_scan` finds them."""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from landmark_retrieval.data.photos import Ids, PhotoFiles
from landmark_retrieval.files import open_replacing

_NONE = 2**16 - 1  # in the column of archives: no archive holds the photo
MAX_ARCHIVES = _NONE
MAX_BYTES = 2**32 - 1


@dataclass(frozen=True)
class Skipped:
    """What of an archive is not used, and why; `member` is empty for damage, which has one entry an archive. The
    directories of an archive share an entry, which names the first."""

    archive: str
    member: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class ArchivedFiles:
    """`PhotoFiles` in archives: 14 bytes a row.

    Attributes:
        folder: of the archives.
        archives: name, size in bytes and time of change (ns) of each archive.
        archive: uint16 (n,), number of the archive; 65535 where none holds the photo.
        offset: int64 (n,), first byte in the archive.
        size: uint32 (n,), bytes.
    """

    folder: Path
    archives: tuple[tuple[str, int, int], ...]
    archive: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def read(self, row: int, photo: str) -> bytes:  # noqa: D102
        number = int(self.archive[row])
        if number == _NONE:
            raise FileNotFoundError(f"no archive in {self.folder} holds {photo}")
        name, *stamp = self.archives[number]
        size = int(self.size[row])
        data = os.pread(_opened(self.folder / name, *stamp).number, size, int(self.offset[row]))
        if len(data) < size:
            raise OSError(f"{self.folder / name} ends within {photo}")
        return data

    def where(self, row: int, photo: str) -> str:  # noqa: D102
        number = int(self.archive[row])
        return f"{photo} in {self.folder if number == _NONE else self.folder / self.archives[number][0]}"

    def stamp(self, row: int, photo: str) -> object:  # noqa: D102
        number = int(self.archive[row])
        return None if number == _NONE else (*self.archives[number], int(self.offset[row]), int(self.size[row]))

    def take(self, rows: np.ndarray) -> PhotoFiles:  # noqa: D102
        return ArchivedFiles(self.folder, self.archives, self.archive[rows], self.offset[rows], self.size[rows])


@dataclass(frozen=True)
class Archives:
    """The photos that the archives of a folder hold, sorted by id, and what of them is not used."""

    ids: Ids
    located: ArchivedFiles
    skipped: tuple[Skipped, ...]

    def files(self, ids: Ids) -> ArchivedFiles:
        """Where these photos are, a row each; those that no archive holds raise FileNotFoundError when they are
        read."""
        held = self.located
        archive, offset, size = (
            np.full(len(ids), _NONE, np.uint16),
            np.zeros(len(ids), np.int64),
            np.zeros(len(ids), np.uint32),
        )
        if len(self.ids):
            place = np.minimum(np.searchsorted(self.ids.column, ids.column), len(self.ids) - 1)
            found = np.flatnonzero(self.ids.column[place] == ids.column)
            place = place[found]
            archive[found], offset[found], size[found] = held.archive[place], held.offset[place], held.size[place]
        return ArchivedFiles(held.folder, held.archives, archive, offset, size)


def write_skipped(path: str | Path, skipped: Iterable[Skipped]) -> int:
    """Write what was not used of archives as CSV (archive, member, reason, count), whole or not at all; without any,
    remove the file.

    Returns:
        How many members and damaged archives it lists.
    """
    rows = list(skipped)
    Path(path).unlink(missing_ok=True)
    if rows:
        with open_replacing(path, errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("archive", "member", "reason", "count"))
            writer.writerows((row.archive, row.member, row.reason, row.count) for row in rows)
    return sum(row.count for row in rows)


class _Descriptor:
    """An open archive, closed with its last reference: a reader in another thread may still hold one."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=64)
def _opened(path: Path, size: int, changed: int) -> _Descriptor:
    opened = _Descriptor(path)
    held = os.fstat(opened.number)
    if (held.st_size, held.st_mtime_ns) != (size, changed):
        raise OSError(f"{path} has changed since it was scanned: run the command again")
    return opened
