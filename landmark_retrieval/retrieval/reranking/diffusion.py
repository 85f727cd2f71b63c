"""Diffusion: similarity spreads from a query's nearest rows over the graph of mutual neighbours of the index."""

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking.neighbor_graph import check_gamma, mutual_graph
from landmark_retrieval.retrieval.reranking.neighbors import NeighborTable, Rows
from landmark_retrieval.retrieval.reranking.ranked import RankedLists, checked, given_back, require_at_least_one
from landmark_retrieval.retrieval.search import CHUNK, exact_search
from landmark_retrieval.retrieval.topk import stable_topk

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = TypeVar("Array", np.ndarray, torch.Tensor)
_TOLERANCE = 1e-6


def diffusion(
    ranked: tuple[Any, Any],
    query: Array,
    index: Any,
    *,
    k: int = 50,
    gamma: float = 3.0,
    alpha: float = 0.99,
    query_k: int = 10,
    truncate: int | None = None,
    iterations: int = 20,
    graph: "csr_matrix | None" = None,
    top: int | None = None,
    chunk: tuple[int, int] = CHUNK,
) -> RankedLists[Array]:
    """Rank index rows by a random walk from the query over the neighbour graph of the index.

    For each query, conjugate gradients solve (I - alpha * S) f = (1 - alpha) * y. S is `neighbor_graph`, y holds
    max(cosine, 0) ** gamma of the first `query_k` rows of the query's list, and f the new scores.

    The graph needs the neighbours of all index rows, or with `truncate` those of the rows in the lists and of their
    neighbours. To search more than once, make it with `neighbor_graph` and keep it. Memory grows with n_i * k.

    Args:
        ranked: lists to start from, see `Reranker` for this and what is not named here.
        query: (n_q, d).
        index: (n_i, d).
        k: neighbours of each index row in the graph; all other rows if there are fewer.
        gamma: above 0; larger values count near neighbours more.
        alpha: in [0, 1); larger values let similarity spread farther.
        query_k: rows of the list that the walk starts from.
        truncate: the walk stays among the first `truncate` rows of the list, which is faster; the graph is normalised
            as a whole and then cut (late truncation). Give lists of 1000 and more. None: the whole index.
        iterations: of conjugate gradients, at most; ended before at a relative residual of 1e-6. The papers take 20,
            the exact solution may take 100.
        graph: made before by `neighbor_graph`, with its own k; gamma is then only that of the query.
        top: length of the new lists.
        chunk: rows compared at once.

    Returns:
        Lists with f as the scores. Rows that the walk does not reach follow by cosine, their score is the cosine - 1.

    Raises:
        LandmarkRetrievalError: a graph of another index; see also `Reranker`.

    Source: Iscen et al. 2017 (arXiv 1611.05113, CVPR), sections 3 and 4; late truncation: Yang et al. 2019 (arXiv
    1811.10907, AAAI), section 3.
    """
    lists, rows, top = checked(ranked, query, index, top, chunk, k=k, query_k=query_k, iterations=iterations)
    check_gamma(gamma)
    if not 0 <= alpha < 1:
        raise LandmarkRetrievalError(f"alpha must lie in [0, 1), not {alpha}.")
    if truncate is not None:
        require_at_least_one(truncate=truncate)
    if graph is not None and graph.shape != (len(index), len(index)):
        raise LandmarkRetrievalError(
            f"A graph of shape {graph.shape} is not of this index of {len(index)} rows: make it again."
        )
    top = min(top, len(index))
    if not len(rows):
        return given_back(lists[:, :1].expand(0, top), lists[:, :1].expand(0, top), query)
    found = lists.cpu().numpy()
    # what fills the new lists where the walk reaches too few rows
    enough = lists.shape[1] >= top and (found[:, top - 1] >= 0).all()
    spare = found if enough else exact_search(rows, index, top, chunk)[0].cpu().numpy()
    if graph is None:
        walked = np.arange(len(index)) if truncate is None else _members(found[:, :truncate])
        graph = mutual_graph(NeighborTable(Rows({"index": index}, rows.device), k, chunk), walked, gamma)
    else:
        walked = np.arange(len(index))
    walk = _Walk(graph, walked, alpha, iterations)
    nodes = Rows({"queries": rows, "index": index}, rows.device)
    new, scores = np.empty((len(rows), top), np.int64), np.empty((len(rows), top), np.float32)

    def cosines(number: int, listed: np.ndarray) -> np.ndarray:
        return nodes.cosines(np.full(len(listed), number), listed + len(rows))

    for number in tqdm(range(len(rows)), desc="diffusion", unit="query", disable=len(rows) <= chunk[0]):
        listed = found[number][found[number] >= 0]
        first = listed[: query_k if truncate is None else min(query_k, truncate)]
        among = None if truncate is None else np.sort(listed[:truncate])
        reached, values = walk.best(first, np.maximum(cosines(number, first), 0) ** gamma, among, top)
        if len(reached) < top:
            rest = np.setdiff1d(spare[number][spare[number] >= 0], reached)
            behind = np.minimum(cosines(number, rest) - 1, 0)
            order = np.argsort(-behind, kind="stable")[: top - len(reached)]
            reached, values = np.concatenate([reached, rest[order]]), np.concatenate([values, behind[order]])
        new[number], scores[number] = reached, values
    return given_back(torch.from_numpy(new), torch.from_numpy(scores), query)


class _Walk:
    """(I - alpha * S) f = (1 - alpha) * y for one query after the other, where S joins the rows (n,), which rise."""

    def __init__(self, graph: "csr_matrix", rows: np.ndarray, alpha: float, iterations: int) -> None:
        from scipy.sparse import identity
        from scipy.sparse.csgraph import connected_components

        self.rows, self.alpha, self.iterations = rows, alpha, iterations
        self.system = (identity(len(rows), np.float32, "csr") - np.float32(alpha) * graph).tocsr()
        self.component = connected_components(graph, directed=False)[1]

    def best(
        self, first: np.ndarray, weights: np.ndarray, among: np.ndarray | None, top: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `top` rows at most with the largest scores above 0, and these; y holds weights at rows `first`."""
        from scipy.sparse.linalg import cg

        if among is None:
            # nothing spreads from one component to another
            own = self.component[np.searchsorted(self.rows, first)]
            here = np.flatnonzero(np.isin(self.component, own))
        else:
            here = np.searchsorted(self.rows, among)
        # to copy most of the graph takes longer than to walk over all of it
        large = among is None and 2 * len(here) > len(self.rows)
        system, rows = (self.system, self.rows) if large else (self.system[here][:, here], self.rows[here])
        start = np.zeros(len(rows), np.float32)
        start[np.searchsorted(rows, first)] = (1 - self.alpha) * weights
        scores, _ = cg(system, start, rtol=_TOLERANCE, maxiter=self.iterations)
        values, place = stable_topk(torch.from_numpy(scores.astype(np.float32))[None], min(top, len(rows)))
        positive = (values[0] > 0).numpy()
        return rows[place[0].numpy()[positive]], values[0].numpy()[positive]


def _members(lists: np.ndarray) -> np.ndarray:
    """The rows that lists name, rising."""
    return np.unique(lists[lists >= 0])
