"""Exact nearest-neighbour search by cosine, in chunks."""

from typing import Any, TypeVar

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def exact_search(queries: Array, index: Array, k: int, chunk: tuple[int, int] = (1024, 16384)) -> tuple[Array, Array]:
    """Find the k index rows with the largest dot product for each query.

    Larger scores come first, on a tie the lower row number. The work is done in float32 on the device of `queries`,
    in blocks of `chunk` scores, so memory does not grow with n_q * n_i; an index that lies elsewhere (host memory, a
    memory-mapped file, float16) is brought over block by block.

    Args:
        queries: (n_q, d), rows L2-normalised by the caller, so that the dot product is the cosine.
        index: (n_i, d), rows L2-normalised by the caller.
        k: how many rows per query, at least 1; more than n_i means n_i.
        chunk: how many queries and how many index rows to compare at once.

    Returns:
        indices (n_q, min(k, n_i)) int64 and scores (n_q, min(k, n_i)) float32, of the same kind (numpy or torch) as
        `queries`. Scores of unit rows lie in [-1, 1] up to rounding.

    Raises:
        LandmarkRetrievalError: the shapes do not fit, the index is empty, k or a chunk is below 1, or a row holds NaN
            or infinity (the row is named).

    Example:
        >>> indices, scores = exact_search(np.eye(2), np.array([[0.6, 0.8], [1.0, 0.0], [0.6, 0.8]]), k=2)
        >>> indices.tolist()
        [[1, 0], [0, 2]]
    """
    _check(queries, index, k, chunk)
    k = min(k, len(index))
    device = queries.device if isinstance(queries, torch.Tensor) else torch.device("cpu")
    indices = torch.empty((len(queries), k), dtype=torch.int64, device=device)
    scores = torch.empty((len(queries), k), dtype=torch.float32, device=device)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(
        "highest"
    )  # TF32, which training may have switched on, would reorder close scores
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for start in range(0, len(queries), chunk[0]):
                stop = start + chunk[0]
                block = _block(queries, start, stop, device, "queries")
                indices[start:stop], scores[start:stop] = _search_block(block, index, k, chunk[1])
    finally:
        torch.set_float32_matmul_precision(precision)
    if isinstance(queries, torch.Tensor):
        return indices, scores
    return indices.numpy(), scores.numpy()


def _search_block(queries: torch.Tensor, index: Any, k: int, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    best_scores = queries.new_empty((len(queries), 0))
    best_rows = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(index), chunk):
        rows = _block(index, start, start + chunk, queries.device, "index")
        found_scores, found_rows = stable_topk(queries @ rows.T, min(k, len(rows)))
        # the rows kept so far are all lower than the new ones, so a stable sort keeps ties in order
        best_scores, order = torch.cat([best_scores, found_scores], dim=1).sort(dim=1, descending=True, stable=True)
        best_scores = best_scores[:, :k]
        best_rows = torch.cat([best_rows, found_rows + start], dim=1).gather(1, order[:, :k])
    return best_rows, best_scores


def stable_topk(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `torch.topk(scores, k, dim=1)`, but among equal scores the lower column comes first.

    Args:
        scores: (n, m) without NaN.
        k: at most m.

    Returns:
        values (n, k) and columns (n, k) int64.
    """
    values, columns = scores.topk(k, dim=1)
    # topk returns the right values, but in a tie any of the columns
    columns, by_column = columns.sort(dim=1)
    values, by_value = values.gather(1, by_column).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, by_value)
    # where the last value also stands outside the k, topk may have left out a lower column
    cut = ((scores >= values[:, -1:]).sum(dim=1) > k).nonzero().squeeze(1)
    if len(cut):
        ordered, order = scores[cut].sort(dim=1, descending=True, stable=True)
        values[cut], columns[cut] = ordered[:, :k], order[:, :k]
    return values, columns


def _block(rows: Any, start: int, stop: int, device: torch.device, what: str) -> torch.Tensor:
    block = rows[start:stop]
    if not isinstance(block, torch.Tensor):
        # a copy, because torch does not take read-only memory maps
        block = torch.from_numpy(np.array(block, dtype=np.float32))
    block = block.detach().to(device=device, dtype=torch.float32)
    finite = torch.isfinite(block).all(dim=1)
    if not finite.all():
        row = start + int((~finite).nonzero()[0])
        raise LandmarkRetrievalError(f"Row {row} of the {what} holds NaN or infinity: remove it or compute it again.")
    return block


def _check(queries: Any, index: Any, k: int, chunk: tuple[int, int]) -> None:
    if queries.ndim != 2 or index.ndim != 2 or queries.shape[1] != index.shape[1]:
        raise LandmarkRetrievalError(
            f"Queries of shape {tuple(queries.shape)} and an index of shape {tuple(index.shape)} cannot be compared: "
            "both must be (rows, d) with the same d."
        )
    if not len(index):
        raise LandmarkRetrievalError("The index holds no rows: there is nothing to search.")
    if k < 1 or min(chunk) < 1:
        raise LandmarkRetrievalError(f"k and both chunk sizes must be at least 1, not k={k}, chunk={chunk}.")
