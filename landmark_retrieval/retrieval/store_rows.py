"""The descriptors of a store as one array that stays on disk, and the exact scores of candidates that it gives."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from landmark_retrieval.data.photos import Ids
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.topk import stable_topk

_BLOCK = 8


class StoreRows:
    """All or some rows of a descriptor store; only what is asked for is read, from the memory-mapped parts.

    Enough of an array for searches: `ndim`, `shape`, `dtype`, `len`, slices, and arrays of row numbers.

    Args:
        store: the descriptors.
        numbers: int64 (n,), which rows, in which order; all of them if None.
    """

    ndim = 2

    def __init__(self, store: DescriptorStore, numbers: np.ndarray | None = None) -> None:
        # not the store itself: its list of ids would stay in memory
        self.folder, self.card, self.dim, self.dtype = store.folder, store.card, store.dim, store.dtype
        self.numbers = numbers
        self._parts = [part for _, part in store.parts()]
        self._starts = np.cumsum([0, *map(len, self._parts)])

    @classmethod
    def of(cls, store: DescriptorStore, ids: Ids) -> "StoreRows":
        """The rows of these photos, in this order.

        Raises:
            LandmarkRetrievalError: a photo is not in the store; it is named.
        """
        if len(ids) == len(store) and all(map(str.__eq__, ids, store.ids)):
            return cls(store)
        numbers = Ids(store.ids).rows(ids)
        if (numbers < 0).any():
            raise LandmarkRetrievalError(
                f"Photo {ids[int(np.argmin(numbers))]!r} of the index is not in the store {store.folder}: add its "
                "descriptor to the store first."
            )
        return cls(store, numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and length of a descriptor."""
        return len(self), self.dim

    def __len__(self) -> int:
        return int(self._starts[-1]) if self.numbers is None else len(self.numbers)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """These rows, in the store's dtype."""
        if not isinstance(rows, slice):
            return self.take(rows)
        start, stop, _ = rows.indices(len(self))
        if self.numbers is not None:
            return self.take(np.arange(start, stop))
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        parts = [
            self._parts[part][max(0, start - self._starts[part]) : stop - self._starts[part]]
            for part in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.dim), self.dtype), *parts])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Any rows (n,) int64 as (n, dim) in the store's dtype; best sorted, so that the disk is read in order."""
        numbers = rows if self.numbers is None else self.numbers[rows]
        out = np.empty((len(numbers), self.dim), self.dtype)
        order = None
        if (np.diff(numbers) < 0).any():
            order = np.argsort(numbers)
            numbers = numbers[order]
        bounds = np.searchsorted(numbers, self._starts)
        for part, first, start, stop in zip(self._parts, self._starts, bounds, bounds[1:], strict=False):
            if start < stop:
                # with another mode than "raise", numpy writes straight into `out`
                np.take(part, numbers[start:stop] - first, axis=0, out=out[start:stop], mode="clip")
        if order is not None:
            out[order] = out.copy()
        return out


def rescored(queries: np.ndarray, rows: np.ndarray, stored: StoreRows, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of some candidates for each query, by their exact scores.

    Args:
        queries: (n, dim) float32.
        rows: (n, m) candidates, numbers of rows of `stored`, -1 where there is none.
        stored: the descriptors; each block of queries reads its candidates once, in the order of the disk.
        k: at most m.

    Returns:
        rows (n, k), -1 where there is none, and scores (n, k) float32, -inf there; best first, on a tie the lower row.
    """
    best, scores = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)

    def work(start: int) -> None:
        here = slice(start, start + _BLOCK)
        candidates = np.sort(rows[here], axis=1)
        unique, places = np.unique(np.maximum(candidates, 0), return_inverse=True)
        descriptors = torch.from_numpy(stored.take(unique)).float()
        products = torch.from_numpy(queries[here]) @ descriptors.T
        exact = products.gather(1, torch.from_numpy(places.reshape(candidates.shape)))
        exact[torch.from_numpy(candidates < 0)] = -torch.inf
        values, columns = stable_topk(exact, k)
        best[here], scores[here] = np.take_along_axis(candidates, columns.numpy(), 1), values.numpy()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, len(rows), _BLOCK)))
    return best, scores
