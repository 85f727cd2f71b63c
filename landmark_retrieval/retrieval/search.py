"""Exact nearest-neighbour search by cosine, in chunks, on the CPU or on any number of GPUs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from landmark_retrieval.retrieval.inputs import (
    Devices,
    as_kind_of,
    check_comparable,
    full_precision,
    present_devices,
    rows_of,
)
from landmark_retrieval.retrieval.topk import merged, stable_topk

Array = TypeVar("Array", np.ndarray, torch.Tensor)
# changes a block of scores (queries, rows [start, stop) of the index) in place
Adjust = Callable[[torch.Tensor, int, int], None]
# queries [first, last), compared on a device -> what changes their blocks
Adjusting = Callable[[int, int, torch.device], Adjust]

CHUNK = (1024, 16384)
# blocks whose best are kept apart before they are put together
_LISTS = 8


def exact_search(
    queries: Array,
    index: Any,
    k: int,
    chunk: tuple[int, int] = CHUNK,
    devices: Devices | None = None,
) -> tuple[Array, Array]:
    """Find the k index rows with the largest dot product for each query.

    Larger scores come first, on a tie the lower row number. The work is done in float32, in blocks of `chunk` scores,
    so memory does not grow with n_q * n_i; an index that lies elsewhere (host memory, a memory-mapped file, float16) is
    brought over block by block.

    Args:
        queries: (n_q, d), rows L2-normalised by the caller, so that the dot product is the cosine.
        index: (n_i, d), rows L2-normalised by the caller; an array, a tensor, or anything with `ndim`, `shape`, `len`
            and slices that are arrays.
        k: how many rows per query, at least 1; more than n_i means n_i.
        chunk: how many queries and how many index rows to compare at once.
        devices: where to compute; the index is split among them, side by side. By default the device of `queries`.

    Returns:
        indices (n_q, min(k, n_i)) int64 and scores (n_q, min(k, n_i)) float32, of the same kind (numpy or torch) as
        `queries`. Scores of unit rows lie in [-1, 1] up to rounding.

    Raises:
        LandmarkRetrievalError: the shapes do not fit, the index is empty, k or a chunk is below 1, a device is not
            there, or a row holds NaN or infinity (the row is named).

    Example:
        >>> indices, scores = exact_search(np.eye(2), np.array([[0.6, 0.8], [1.0, 0.0], [0.6, 0.8]]), k=2)
        >>> indices.tolist()
        [[1, 0], [0, 2]]
    """
    return adjusted_search(queries, index, k, None, chunk, devices)


def adjusted_search(
    queries: Array,
    index: Any,
    k: int,
    adjusting: Adjusting | None,
    chunk: tuple[int, int] = CHUNK,
    devices: Devices | None = None,
) -> tuple[Array, Array]:
    """`exact_search` by scores that are changed before the best are taken.

    Args:
        queries: see `exact_search`.
        index: see `exact_search`.
        k: see `exact_search`.
        adjusting: called with a range of queries and the device where they are compared, gives a function of (scores,
            start, stop) that changes their cosines with index rows [start, stop) in place, to anything but NaN.
        chunk: see `exact_search`.
        devices: see `exact_search`.

    Returns:
        See `exact_search`, with the changed scores.

    Raises:
        LandmarkRetrievalError: see `exact_search`.
    """
    check_comparable(queries, index, k, chunk)
    k = min(k, len(index))
    home = queries.device if isinstance(queries, torch.Tensor) else torch.device("cpu")
    places = present_devices(devices) if devices else [home]
    with full_precision():
        if len(places) == 1:
            indices, scores = _best_rows(queries, index, k, chunk, places[0], adjusting)
        else:
            indices, scores = _side_by_side(queries, index, k, chunk, places, home, adjusting)
    return as_kind_of(queries, indices.to(home)), as_kind_of(queries, scores.to(home))


def _best_rows(
    queries: Any,
    index: Any,
    k: int,
    chunk: tuple[int, int],
    device: torch.device,
    adjusting: Adjusting | None,
    shift: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """On one device; the index is rows [shift, ...) of the whole."""
    indices = torch.empty((len(queries), k), dtype=torch.int64, device=device)
    scores = torch.empty((len(queries), k), dtype=torch.float32, device=device)
    buffer = torch.empty(min(chunk[0], len(queries)) * min(chunk[1], len(index)), device=device)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for start in range(0, len(queries), chunk[0]):
            stop = min(start + chunk[0], len(queries))
            block = rows_of(queries, start, stop, device, "queries")
            change = adjusting(start, stop, device) if adjusting else None
            # what the first queries have found finite need not be looked at again
            best = _search_block(block, index, k, chunk[1], buffer, change, shift, check=start == 0)
            indices[start:stop], scores[start:stop] = best
    return indices, scores


def _search_block(
    queries: torch.Tensor,
    index: Any,
    k: int,
    chunk: int,
    buffer: torch.Tensor,
    change: Adjust | None,
    shift: int,
    check: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, len(index), chunk):
        stop = min(start + chunk, len(index))
        rows = rows_of(index, start, stop, queries.device, "index", check, shift)
        # one buffer for all blocks: memory that is given back and taken again costs as much as the search in it
        scores = buffer[: len(queries) * len(rows)].view(len(queries), len(rows))
        torch.mm(queries, rows.T, out=scores)
        if change is not None:
            change(scores, shift + start, shift + stop)
        best, columns = stable_topk(scores, min(k, len(rows)))
        found.append((best, columns + (shift + start)))
        if len(found) == _LISTS:
            found = [merged(found, k)]
    best, found_rows = merged(found, k)
    return found_rows, best


def _side_by_side(
    queries: Any,
    index: Any,
    k: int,
    chunk: tuple[int, int],
    devices: list[torch.device],
    home: torch.device,
    adjusting: Adjusting | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    edges = np.linspace(0, len(index), len(devices) + 1).astype(int).tolist()
    shares = [(a, b, device) for a, b, device in zip(edges[:-1], edges[1:], devices, strict=True) if b > a]

    def work(share: tuple[int, int, torch.device]) -> tuple[torch.Tensor, torch.Tensor]:
        first, end, device = share
        part = _Share(index, first, end)
        rows, scores = _best_rows(queries, part, min(k, end - first), chunk, device, adjusting, first)
        return scores.to(home), rows.to(home)

    with ThreadPoolExecutor(len(shares)) as pool:
        scores, rows = merged(list(pool.map(work, shares)), k)
    return rows, scores


class _Share:
    """Rows [first, end) of something large, without touching them."""

    def __init__(self, rows: Any, first: int, end: int) -> None:
        self.rows, self.first, self.end = rows, first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, part: slice) -> Any:
        start, stop, _ = part.indices(len(self))
        return self.rows[self.first + start : self.first + stop]
