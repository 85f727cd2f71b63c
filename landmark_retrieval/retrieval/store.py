"""Descriptors on disk: a folder of numpy parts, the photo ids beside them, and the card of the model that made them.

What is in the folder: see `store_files`.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.parts import Parts
from landmark_retrieval.retrieval.store_files import (
    FINISHED,
    REMAKE,
    UNFINISHED,
    card_difference,
    checked_rows,
    open_part,
    read_description,
)

__all__ = ["DescriptorStore", "DescriptorWriter", "card_difference"]


class DescriptorWriter:
    """Write a descriptor store batch by batch; an interrupted run goes on where the last finished part ends.

    For descriptors that one process makes in its own order; `extract` writes parts in several processes. Parts are
    written whole as they fill, `store.json` when the `with` block ends without an error. On a folder with an
    unfinished or finished store of the same model, `done` holds the ids that are already there, for the caller to skip.
    One writer at a time has a store: it is locked until the block ends, or `finish`.

    Args:
        folder: the store; made where it does not exist.
        card: what made the descriptors, for example `{"model": ..., "weights_sha256": ..., "image_size": ...}`; any
            mapping that JSON can hold.
        dim: length of a descriptor; by default that of the first batch.
        dtype: "float32" or "float16", in which the descriptors are kept.
        part_size: photos per part.

    Raises:
        LandmarkRetrievalError: the folder holds descriptors of another card, dim or dtype, one of its parts is
            damaged, or another writer is at work on it.

    Example:
        with DescriptorWriter("store", card={"model": "dolg_efficientnet_b5"}) as writer:
            for ids, photos in batches_without(writer.done):
                writer.append(ids, net(photos))
    """

    def __init__(
        self,
        folder: str | Path,
        card: Mapping[str, Any],
        dim: int | None = None,
        dtype: str = "float32",
        part_size: int = 10_000,
    ) -> None:
        self._parts = Parts(folder, card, dtype, part_size)
        self.folder, self.card, self.dtype = self._parts.folder, self._parts.card, dtype
        self.part_size = part_size
        if not self._parts.lock_writer():
            raise LandmarkRetrievalError(
                f"Another writer is at work on the store {self.folder}: wait until it is done, or choose another "
                "folder."
            )
        try:
            self._read(dim)
        except BaseException:
            self._parts.unlock_writer()
            raise
        self._waiting_ids: list[str] = []
        self._waiting_rows: list[np.ndarray] = []

    def _read(self, dim: int | None) -> None:
        """Look at what is there."""
        records = self._parts.records()
        self.dim = self._parts.dim(records)
        if dim is not None and self.dim not in (None, dim):
            raise LandmarkRetrievalError(
                f"The store {self.folder} has dim {self.dim}, not {dim}: choose another folder or remove this one."
            )
        self.dim = self.dim or dim
        parts = [open_part(self.folder, number, part, self.dim or 0, self.dtype) for number, part in records.items()]
        self.done = frozenset(photo for ids, _ in parts for photo in ids)
        self._next = max(records, default=-1) + 1
        self._seen = set(self.done)

    def __enter__(self) -> "DescriptorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._parts.unlock_writer()

    def append(self, ids: Sequence[str], descriptors: Any) -> None:
        """Add a batch of photos.

        Args:
            ids: n photo ids, none of them in the store yet.
            descriptors: (n, dim) array or tensor, rows L2-normalised by the caller.

        Raises:
            LandmarkRetrievalError: the shapes do not fit, an id comes twice or holds a line break, or a descriptor
                holds NaN or infinity (in the store's dtype), or the writer has finished.
        """
        if not self._parts.writer_locked:
            raise LandmarkRetrievalError(
                f"This writer of the store {self.folder} has finished: open another one to add photos."
            )
        rows = checked_rows(self.folder, ids, descriptors, self.dtype, self.dim)
        batch = set()
        for photo in ids:
            if photo in self._seen or photo in batch:
                raise LandmarkRetrievalError(f"Photo {photo!r} is in the store {self.folder} already.")
            batch.add(photo)
        self.dim = rows.shape[1]
        self._seen |= batch
        self._waiting_ids.extend(ids)
        self._waiting_rows.append(rows)
        if len(self._waiting_ids) >= self.part_size:
            self._write(len(self._waiting_ids) - len(self._waiting_ids) % self.part_size)

    def finish(self) -> None:
        """Write the photos that still wait and `store.json`; the store can be opened from then on."""
        self._write(len(self._waiting_ids))
        if not self._parts.finished:
            with self._parts.alone():
                self._parts.finish()
        self._parts.unlock_writer()

    def _write(self, count: int) -> None:
        """Write the first `count` photos that wait, as parts."""
        if not count:
            return
        ids, rows = self._waiting_ids, np.concatenate(self._waiting_rows)
        for start in range(0, count, self.part_size):
            stop = min(start + self.part_size, count)
            self._parts.write(self._next, ids[start:stop], rows[start:stop])
            self._next += 1
        self._waiting_ids, self._waiting_rows = ids[count:], [rows[count:].copy()]


class DescriptorStore:
    """A finished descriptor store, opened with `DescriptorStore.open(folder)`.

    Attributes:
        folder: where it lies.
        ids: the photo ids, in the order of the rows.
        card: what made the descriptors.
        dim: length of a descriptor.
        dtype: "float32" or "float16", in which they are kept.
        fingerprint: says which descriptors of which photos these are: a sha256 over the checksums of the parts.
    """

    def __init__(
        self, folder: Path, description: Mapping[str, Any], parts: Sequence[tuple[list[str], np.ndarray]]
    ) -> None:
        self.folder = folder
        self.card: dict[str, Any] = dict(description["card"])
        self.dim: int = description["dim"]
        self.dtype: str = description["dtype"]
        self.fingerprint: str = description["fingerprint"]
        self.ids = [photo for ids, _ in parts for photo in ids]
        self._parts = parts

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> "DescriptorStore":
        """Open a store; counts, shapes and ids are checked, the descriptors are memory-mapped.

        Args:
            folder: the store.
            verify: read everything once and compare the checksums too.

        Raises:
            LandmarkRetrievalError: there is no finished store, a part is missing or damaged (it is named), or an id
                comes twice.
        """
        folder = Path(folder)
        if not (folder / FINISHED).exists() and (folder / UNFINISHED).exists():
            raise LandmarkRetrievalError(f"The store {folder} is not finished: run the extraction again, it goes on.")
        description = read_description(folder / FINISHED)
        parts = [
            open_part(folder, number, part, description["dim"], description["dtype"], verify)
            for number, part in enumerate(description["parts"])
        ]
        sums = "".join(f"{part['sha256']} {part['ids_sha256']}\n" for part in description["parts"])
        store = cls(folder, {**description, "fingerprint": _sha256(sums)}, parts)
        if len(store.ids) != description["count"]:
            raise LandmarkRetrievalError(
                f"The store {folder} has {len(store.ids)} descriptors where {FINISHED} says "
                f"{description['count']}: {REMAKE}."
            )
        seen: set[str] = set()
        for photo in store.ids:
            if photo in seen:
                raise LandmarkRetrievalError(f"Photo {photo!r} is in the store {folder} twice: {REMAKE}.")
            seen.add(photo)
        return store

    def __len__(self) -> int:
        return len(self.ids)

    def parts(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield each part as (ids, memory-mapped (n, dim) array in the store's dtype), for work that streams."""
        yield from self._parts

    def load(self) -> np.ndarray:
        """All descriptors as (count, dim) float32, the rows as stored: L2-normalised by whoever appended them."""
        rows = np.empty((len(self), self.dim), dtype=np.float32)
        start = 0
        for ids, part in self._parts:
            rows[start : start + len(ids)] = part
            start += len(ids)
        return rows

    def without(self, ids: Collection[str]) -> "DescriptorStore":
        """The same store, seen without some photos; nothing on disk changes.

        Parts that hold one of them are read into memory, in the store's dtype; the others stay on disk.

        Args:
            ids: photos to leave out; those that are not in the store are no mistake.

        Raises:
            LandmarkRetrievalError: no photo is left.
        """
        gone = set(ids)
        parts: list[tuple[list[str], np.ndarray]] = []
        for photos, rows in self._parts:
            kept = [row for row, photo in enumerate(photos) if photo not in gone]
            parts.append((photos, rows) if len(kept) == len(photos) else ([photos[row] for row in kept], rows[kept]))
        if not any(photos for photos, _ in parts):
            raise LandmarkRetrievalError(f"No photo of the store {self.folder} is left: leave out fewer.")
        left_out = "".join(f"{photo}\n" for photo in self.ids if photo in gone)
        fingerprint = _sha256(f"{self.fingerprint}\n{left_out}") if left_out else self.fingerprint
        description = {"card": self.card, "dim": self.dim, "dtype": self.dtype, "fingerprint": fingerprint}
        return DescriptorStore(self.folder, description, parts)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
