"""Query expansion and database augmentation: descriptors are moved towards their neighbours, then searched again."""

from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.inputs import as_kind_of, check_comparable
from landmark_retrieval.retrieval.reranking.neighbors import Rows
from landmark_retrieval.retrieval.reranking.ranked import RankedLists, checked, given_back, require_at_least_one
from landmark_retrieval.retrieval.search import CHUNK, exact_search

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def alpha_query_expansion(
    ranked: tuple[Any, Any],
    query: Array,
    index: Any,
    *,
    n: int = 10,
    alpha: float = 3.0,
    rounds: int = 1,
    include_query: bool = True,
    top: int | None = None,
    chunk: tuple[int, int] = CHUNK,
) -> RankedLists[Array]:
    """Add to each query the first rows of its list, weighted by cosine ** alpha, and search the whole index again.

    The new query is q + sum over the first n rows x of max(cos(q, x), 0) ** alpha * x, L2-normalised. With alpha = 0
    every row counts as much as the query: average query expansion.

    Args:
        ranked: lists to start from, see `Reranker` for this and what is not named here.
        query: (n_q, d).
        index: (n_i, d).
        n: rows added; the whole list if that is shorter. The paper takes 50 where hundreds of photos show a landmark.
        alpha: at least 0.
        rounds: expansions one after the other, each from the query and the list of the one before.
        include_query: False leaves the query itself out of the sum.
        top: length of the new lists.
        chunk: queries and index rows at once.

    Returns:
        Lists whose scores are the cosines of the expanded query.

    Raises:
        LandmarkRetrievalError: see `Reranker`.

    Source: Radenovic et al. 2019 (arXiv 1711.02512, TPAMI), section 3.4; average: Chum et al. 2007 (ICCV).

    Example:
        >>> index = np.array([[0.8, 0.6], [0.6, -0.8], [0.28, 0.96]], dtype=np.float32)
        >>> query = np.array([[1.0, 0.0]], dtype=np.float32)
        >>> found = exact_search(query, index, 3)
        >>> found[0].tolist(), alpha_query_expansion(found, query, index, n=1).indices.tolist()
        ([[0, 1, 2]], [[0, 2, 1]])
    """
    lists, rows, top = checked(ranked, query, index, top, chunk, n=n, rounds=rounds)
    _check_alpha(alpha)
    scores = torch.empty(lists.shape)
    fetched = Rows({"index": index}, rows.device)
    with torch.inference_mode():
        for number in range(rounds):
            rows = _expanded(rows, lists[:, :n].cpu().numpy(), fetched, alpha, include_query, chunk[0])
            lists, scores = exact_search(rows, index, top if number == rounds - 1 else n, chunk)
    return given_back(lists, scores, query)


def database_augmentation(
    ranked: tuple[Any, Any],
    query: Array,
    index: Any,
    *,
    n: int = 10,
    alpha: float = 3.0,
    top: int | None = None,
    chunk: tuple[int, int] = CHUNK,
) -> RankedLists[Array]:
    """Add to each index row its nearest other rows, weighted by cosine ** alpha, and search among these.

    To search more than once, keep what `augment` gives and use `exact_search`: that is all this does. The augmented
    index is held in memory.

    Args:
        ranked: only the length of these lists counts; see `Reranker` for this and what is not named here.
        query: (n_q, d).
        index: (n_i, d).
        n: see `augment`.
        alpha: see `augment`.
        top: length of the new lists.
        chunk: rows compared at once.

    Returns:
        Lists whose scores are the cosines of the queries with augmented rows.

    Raises:
        LandmarkRetrievalError: see `Reranker`.

    Source: Arandjelovic & Zisserman 2012 (CVPR), section 4.2; Gordo et al. 2017 (arXiv 1610.07940), section 5.4; the
    weights are those of Radenovic et al. 2019.
    """
    _, rows, top = checked(ranked, query, index, top, chunk, n=n)
    augmented = augment(index, n, alpha, chunk, device=rows.device)
    return given_back(*exact_search(rows, augmented, top, chunk), query)


def augment(
    index: Array,
    n: int = 10,
    alpha: float = 3.0,
    chunk: tuple[int, int] = CHUNK,
    out: Any = None,
    device: str | torch.device | None = None,
) -> Array:
    """Each row plus its n nearest other rows x, weighted by max(cos, 0) ** alpha, L2-normalised.

    Compares each row with each other one: for many rows, do it once, on a GPU, and keep the result.

    Args:
        index: (n_i, d), rows L2-normalised; an array, a memory-mapped file or a tensor.
        n: neighbours; all others if there are fewer.
        alpha: at least 0.
        chunk: rows compared at once.
        out: array or tensor (n_i, d) to write to, such as a memory-mapped file; not the index itself.
        device: where to compute; by default where the index is.

    Returns:
        (n_i, d), `out` or new, of the kind of the index; float16 if the index is, otherwise float32.

    Raises:
        LandmarkRetrievalError: n below 1, alpha below 0, an empty index, `out` of another shape, or a row with NaN or
            infinity.
    """
    check_comparable(index, index, 1, chunk)
    require_at_least_one(n=n)
    _check_alpha(alpha)
    place = index.device if isinstance(index, torch.Tensor) else torch.device("cpu")
    if out is None:
        half = str(index.dtype).endswith("float16")
        out = as_kind_of(index, torch.empty(index.shape, dtype=torch.float16 if half else torch.float32, device=place))
    elif tuple(out.shape) != tuple(index.shape):
        raise LandmarkRetrievalError(f"`out` must have the shape {tuple(index.shape)}, not {tuple(out.shape)}.")
    rows = Rows({"index": index}, torch.device(device or place))
    with (
        torch.inference_mode(),
        tqdm(total=len(rows), desc="augment", unit="row", disable=len(rows) <= chunk[0]) as bar,
    ):
        for start in range(0, len(rows), chunk[0]):
            block = np.arange(start, min(start + chunk[0], len(rows)))
            neighbors, _ = rows.neighbors(block, n, chunk)
            moved = _expanded(rows.take(block), neighbors, rows, alpha, True, chunk[0])
            out[start : start + len(block)] = as_kind_of(out, moved)
            bar.update(len(block))
    return out


def _expanded(
    query: torch.Tensor, lists: np.ndarray, index: Rows, alpha: float, include_query: bool, chunk: int
) -> torch.Tensor:
    """Queries (n_q, d) plus the weighted rows of lists (n_q, n); -1 is no row."""
    expanded = query.clone() if include_query else torch.zeros_like(query)
    for start in range(0, len(query), chunk):
        block = slice(start, start + chunk)
        for column in lists[block].T:
            rows = index.take(np.maximum(column, 0))
            weights = (rows * query[block]).sum(dim=1).clamp(min=0) ** alpha
            weights *= torch.from_numpy(column >= 0).to(weights.device)
            expanded[block] += weights.unsqueeze(1) * rows
    lengths = expanded.norm(dim=1, keepdim=True)
    # where nothing was added, or what was added cancels out, the query stays as it is
    return torch.where(lengths > 1e-6, expanded / lengths.clamp(min=1e-6), query)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < float("inf"):
        raise LandmarkRetrievalError(f"alpha must be 0 or more, not {alpha}.")
