"""Exact nearest-neighbour search by cosine, in chunks, on the CPU or on any number of GPUs."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError

Array = TypeVar("Array", np.ndarray, torch.Tensor)
# changes a block of scores (queries, rows [start, stop) of the index) in place
Adjust = Callable[[torch.Tensor, int, int], None]
# queries [first, last), compared on a device -> what changes their blocks
Adjusting = Callable[[int, int, torch.device], Adjust]
Devices = Sequence[str | torch.device]

CHUNK = (1024, 16384)
# columns of a block that are looked at together, and blocks whose best are kept apart before they are put together
_GROUP, _LISTS = 64, 8


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
    places = [_present(device) for device in devices] if devices else [home]
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


def merged(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k of several lists of (scores, rows), on a tie the lower row."""
    scores, rows = (torch.cat([part[side] for part in parts], dim=1) for side in (0, 1))
    return (scores, rows) if len(parts) == 1 else _best_of(scores, rows, min(k, scores.shape[1]))


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


def stable_topk(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `torch.topk(scores, k, dim=1)`, but among equal scores the lower column comes first; faster for small k.

    Args:
        scores: (n, m) without NaN.
        k: at most m.

    Returns:
        values (n, k) and columns (n, k) int64.
    """
    n, m = scores.shape
    # the columns in groups: no column of the answer lies outside the k groups with the largest maxima
    groups = m // _GROUP
    if groups < 4 * k:
        return _best_of(scores, None, k)
    whole = groups * _GROUP
    held = scores[:, :whole].unflatten(1, (groups, _GROUP))
    _, best = _best_of(held.amax(dim=2), None, k)
    candidates = held.gather(1, best.unsqueeze(2).expand(n, k, _GROUP)).flatten(1)
    columns = (best.unsqueeze(2) * _GROUP + torch.arange(_GROUP, device=scores.device)).flatten(1)
    if whole < m:
        candidates = torch.cat([candidates, scores[:, whole:]], dim=1)
        columns = torch.cat([columns, torch.arange(whole, m, device=scores.device).expand(n, m - whole)], dim=1)
    return _best_of(candidates, columns, k)


def _best_of(scores: torch.Tensor, rows: torch.Tensor | None, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k scores and their rows, on a tie the lower row; without `rows` the columns are the rows."""
    # one more than asked for tells whether a tie goes on behind the last
    values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    equal = values[:, 1:] == values[:, :-1]
    values, places = values[:, :k], places[:, :k]
    found = places if rows is None else rows.gather(1, places)
    # topk returns the right values, but in a tie the rows in any order
    tied = equal[:, : k - 1].any(dim=1).nonzero().squeeze(1)
    if len(tied):
        values[tied], found[tied] = _ordered(values[tied], found[tied])
    # and where the last value stands outside the k, too, it may have left out a lower row
    cut = equal[:, k - 1 :].any(dim=1).nonzero().squeeze(1)
    if len(cut):
        whole = scores[cut]
        numbers = torch.arange(whole.shape[1], device=whole.device).expand_as(whole) if rows is None else rows[cut]
        ordered = _ordered(whole, numbers)
        values[cut], found[cut] = ordered[0][:, :k], ordered[1][:, :k]
    return values, found


def _ordered(scores: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, by_row = rows.sort(dim=1)
    scores, by_score = scores.gather(1, by_row).sort(dim=1, descending=True, stable=True)
    return scores, rows.gather(1, by_score)


def rows_of(
    rows: Any, start: int, stop: int, device: torch.device, what: str, check: bool = True, shift: int = 0
) -> torch.Tensor:
    """Rows [start, stop) as float32 on the device; where they are a part of more, `shift` rows stand before them.

    Raises:
        LandmarkRetrievalError: `check`, and a row holds NaN or infinity (it is named).
    """
    block = rows[start:stop]
    if not isinstance(block, torch.Tensor):
        with warnings.catch_warnings():
            # of a read-only memory map, which is only read here
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            block = torch.from_numpy(np.ascontiguousarray(block))
    block = block.detach().to(device=device, dtype=torch.float32)
    # the sum of something not finite is not finite; a tenth of the cost of looking at each number
    if check and not torch.isfinite(block.sum()):
        finite = torch.isfinite(block).all(dim=1)
        if not finite.all():
            row = shift + start + int((~finite).nonzero()[0])
            raise LandmarkRetrievalError(
                f"Row {row} of the {what} holds NaN or infinity: remove it or compute it again."
            )
    return block


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products as they are: TF32, which training may have switched on, would reorder close scores."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def check_comparable(queries: Any, index: Any, k: int, chunk: tuple[int, int]) -> None:
    """LandmarkRetrievalError where `exact_search` would raise it for shapes, k or chunk."""
    if queries.ndim != 2 or index.ndim != 2 or queries.shape[1] != index.shape[1]:
        raise LandmarkRetrievalError(
            f"Queries of shape {tuple(queries.shape)} and an index of shape {tuple(index.shape)} cannot be compared: "
            "both must be (rows, d) with the same d."
        )
    if not len(index):
        raise LandmarkRetrievalError("The index holds no rows: there is nothing to search.")
    if k < 1 or min(chunk) < 1:
        raise LandmarkRetrievalError(f"k and both chunk sizes must be at least 1, not k={k}, chunk={chunk}.")


def as_kind_of(like: Any, values: torch.Tensor) -> Any:
    """A tensor where `like` is one, a numpy array otherwise."""
    return values if isinstance(like, torch.Tensor) else values.cpu().numpy()


def _present(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise LandmarkRetrievalError(f"There is no device {device!r} ({error}): name cpu, cuda or cuda:N.") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise LandmarkRetrievalError(
            f"There is no GPU {device} (torch sees {torch.cuda.device_count()}): leave out devices, or name cpu."
        )
    return place
