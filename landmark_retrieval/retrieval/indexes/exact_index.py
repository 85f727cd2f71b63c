"""Photos in the descriptor store itself: each search reads it through, nothing is copied."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landmark_retrieval.data.photos import Ids
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.indexes.faiss_kinds import recipe
from landmark_retrieval.retrieval.indexes.index_checks import (
    check_card,
    check_new,
    checked_queries,
    checked_rows,
    joined,
    named,
    rows_to_remove,
)
from landmark_retrieval.retrieval.indexes.index_files import (
    IDS,
    REBUILD,
    check_files,
    open_store,
    place_of_store,
    read_description,
    read_ids,
    write_folder,
    write_ids,
)
from landmark_retrieval.retrieval.inputs import present_device
from landmark_retrieval.retrieval.search import exact_search
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter
from landmark_retrieval.retrieval.store_rows import StoreRows

# float16 keeps three digits
_SAME = 2e-3


def check_torch_device(device: str) -> None:
    """Refuse devices that are not there, and those that are neither CPU nor GPU."""
    if present_device(device).type not in ("cpu", "cuda"):
        raise LandmarkRetrievalError(f"An index is searched on the device cpu or cuda, not on {device!r}.")


class ExactIndex:
    """Photos of a descriptor store to search in, exactly, block by block; see `index.Index`.

    Among equal scores the photo that was stored first comes first.

    Attributes:
        kind: "exact".
        why: why it is of that kind, a sentence.
        ids: the photo ids.
        card: what made the descriptors.
        dim: length of a descriptor.
    """

    kind = "exact"

    def __init__(self, rows: StoreRows, ids: Ids, device: str = "cpu", why: str = "") -> None:
        check_torch_device(device)
        self._rows = rows
        # all GPUs, each with its share of the photos
        self._devices = [f"cuda:{gpu}" for gpu in range(torch.cuda.device_count())] if device == "cuda" else [device]
        self.ids = ids
        self.card = dict(rows.card)
        self.dim = rows.dim
        self.why = why

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def build(cls, store: DescriptorStore, device: str = "cpu") -> "ExactIndex":
        """Take all photos of a store; descriptors that are not of unit length are refused (the photo is named)."""
        check_torch_device(device)
        for ids, part in store.parts():
            checked_rows(ids, part, store.dim, f" in {store.folder}")
        return cls(StoreRows(store), Ids(store.ids), device, recipe("exact", len(store), store.dim).why)

    def save(self, folder: str | Path) -> None:
        """Write which photos of which store these are; see `index.Index.save`."""
        description = {
            "kind": self.kind,
            "why": self.why,
            "dim": self.dim,
            "count": len(self),
            "card": self.card,
            "store": place_of_store(self._rows.folder, folder),
        }
        write_folder(folder, description, {IDS: write_ids(self.ids)})

    @classmethod
    def open(cls, folder: str | Path, device: str = "cpu") -> "ExactIndex":
        """Open a saved index.

        Raises:
            LandmarkRetrievalError: there is no index, a file is damaged, or the store is not where it was.
        """
        description = read_description(folder)
        check_files(folder, description, (IDS,))
        ids = read_ids(folder)
        if len(ids) != description["count"] or "store" not in description:
            raise LandmarkRetrievalError(f"{folder} does not hold what its index.json says: {REBUILD}.")
        store = open_store(description["store"], folder, description["card"])
        return cls(StoreRows.of(store, ids), ids, device, description.get("why", ""))

    def search(
        self, descriptors: np.ndarray, k: int, card: Mapping[str, Any] | None = None
    ) -> tuple[list[list[str]], np.ndarray]:
        """Find the k photos with the largest dot product for each descriptor; see `index.Index.search`."""
        queries = checked_queries(descriptors, k, self.dim, self.card, card)
        if not len(queries):
            return [], np.empty((0, min(k, len(self))), np.float32)
        rows, scores = exact_search(queries, self._rows, k, devices=self._devices)
        return named(self.ids, rows), scores

    def add(self, ids: Sequence[str], descriptors: Any, card: Mapping[str, Any] | None = None) -> None:
        """Add photos; see `index.Index.add`. Descriptors that the store does not hold are written to it at once.

        Raises:
            LandmarkRetrievalError: as in `index.Index.add`, or the store holds another descriptor for a photo.
        """
        check_card(self.card, card, "the photos to add")
        rows = checked_rows(ids, descriptors, self.dim)
        check_new(self.ids, ids)
        store = DescriptorStore.open(self._rows.folder)
        _check_same(store, ids, rows)
        if (Ids(store.ids).rows(ids) < 0).any():
            with DescriptorWriter(store.folder, store.card, dtype=store.dtype) as writer:
                # more than the store shows are done where a run was interrupted while it grew
                new = [row for row, photo in enumerate(ids) if photo not in writer.done]
                if new:
                    writer.append([ids[row] for row in new], rows[new])
            store = DescriptorStore.open(store.folder)
            _check_same(store, ids, rows)
        self.ids = joined(self.ids, ids)
        self._rows = StoreRows.of(store, self.ids)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove photos from the index; their descriptors stay in the store. See `index.Index.remove`."""
        left = np.delete(np.arange(len(self)), rows_to_remove(self.ids, ids))
        if not len(left):
            raise LandmarkRetrievalError("All photos of the index were to be removed: delete its folder instead.")
        self.ids = self.ids.take(left)
        self._rows = StoreRows.of(DescriptorStore.open(self._rows.folder), self.ids)


def _check_same(store: DescriptorStore, ids: Sequence[str], rows: np.ndarray) -> None:
    """Refuse descriptors (n, dim) of photos for which the store holds others."""
    held = Ids(store.ids).rows(ids)
    old = np.flatnonzero(held >= 0)
    if not len(old):
        return
    other = np.abs(StoreRows(store).take(held[old]) - rows[old]).max(axis=1) > _SAME
    if other.any():
        photo = ids[int(old[np.argmax(other)])]
        raise LandmarkRetrievalError(
            f"The store {store.folder} holds another descriptor for photo {photo!r}: give the photo a new id."
        )
