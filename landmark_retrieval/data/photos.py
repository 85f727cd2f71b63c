"""A table of photos on disk: what importers make and shard writing reads."""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Photo:
    """One encoded photo: its id, class (None where it has none) and the bytes of the file."""

    id: str
    label: int | None
    data: bytes


@dataclass(frozen=True)
class PhotoTable:
    """Photos on disk, a row each.

    Attributes:
        ids: unique names.
        locate: id -> file.
        labels: int64 (n,), numbers in [0, len(classes)), or None for photos without labels (index and query photos).
        classes: name of each class, in the order of the labels.
    """

    ids: list[str]
    locate: Callable[[str], Path]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def photos(self, start: int = 0, stop: int | None = None) -> Iterator[Photo]:
        """Read the photos of rows [start, stop) in order; one whose file cannot be read comes without bytes."""
        for row in range(start, len(self) if stop is None else min(stop, len(self))):
            try:
                yield self.photo(row)
            except OSError:
                # without bytes it counts as broken wherever photos are decoded
                yield Photo(self.ids[row], None if self.labels is None else int(self.labels[row]), b"")

    def photo(self, row: int) -> Photo:
        """Read one photo. OSError where its file cannot be read."""
        label = None if self.labels is None else int(self.labels[row])
        return Photo(self.ids[row], label, self.locate(self.ids[row]).read_bytes())

    def find(self, ids: Collection[str]) -> dict[str, bytes]:
        """The encoded photos of these ids, as far as they are here and their files can be read."""
        known = set(self.ids)
        found: dict[str, bytes] = {}
        for photo in ids:
            if photo in known:
                with contextlib.suppress(OSError):
                    found[photo] = self.locate(photo).read_bytes()
        return found

    @property
    def fingerprint(self) -> str:
        """Says which photos these are, in which order: a sha256 over ids, sizes and times of change."""
        digest = hashlib.sha256()
        for photo in self.ids:
            path = self.locate(photo)
            held = path.stat() if path.exists() else None
            digest.update(f"{photo}\0{held and (held.st_size, held.st_mtime_ns)}\n".encode())
        return digest.hexdigest()

    def take(self, rows: np.ndarray) -> "PhotoTable":
        """The table of these rows, in this order, with the same classes."""
        ids = [self.ids[row] for row in rows]
        return PhotoTable(ids, self.locate, None if self.labels is None else self.labels[rows], self.classes)
