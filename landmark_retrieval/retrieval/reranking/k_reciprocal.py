"""Re-ranking with k-reciprocal encoding: rows that are among each other's nearest are compared by what they share."""

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking.neighbors import NeighborTable, Rows
from landmark_retrieval.retrieval.reranking.ranked import RankedLists, checked, given_back, in_order
from landmark_retrieval.retrieval.search import CHUNK

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = TypeVar("Array", np.ndarray, torch.Tensor)
# pairs compared at once, and numbers looked up at once
_PAIRS, _NUMBERS = 16384, 2**24


def k_reciprocal(
    ranked: tuple[Any, Any],
    query: Array,
    index: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    top: int | None = None,
    chunk: tuple[int, int] = CHUNK,
) -> RankedLists[Array]:
    """Put each list into the order of (1 - lambda) * (Jaccard distance of k-reciprocal encodings) + lambda * distance.

    Rows that have each other among their k1 nearest are k-reciprocal neighbours. That set, extended by the k1 / 2 sets
    of its members which overlap with it by more than two thirds, encodes a row; encodings are averaged over the k2
    nearest rows. What the paper leaves open is as in the authors' code: a row is its own nearest neighbour, and queries
    asked together are neighbours of one another like index rows (ask one at a time where that is not wanted). The
    distance is half the squared Euclidean one, 1 - cosine; the authors' code divides each row of distances by its
    largest, which would take a look at the farthest row of everything.

    Only lists are re-ordered: give long ones. Neighbours are searched for the rows that count, which for many lists are
    nearly all; memory grows with (n_q + n_i) * k1.

    Args:
        ranked: lists to re-order, see `Reranker` for this and what is not named here.
        query: (n_q, d).
        index: (n_i, d).
        k1: neighbours that make a set; all other rows if there are fewer.
        k2: rows whose encodings are averaged; 1 is none but the row itself.
        lambda_value: share of the original distance, in [0, 1].
        top: length of the new lists, at most that of the old ones.
        chunk: rows compared at once.

    Returns:
        Lists whose scores are 1 - the final distance, in [-lambda_value, 1].

    Raises:
        LandmarkRetrievalError: see `Reranker`.

    Source: Zhong et al. 2017 (arXiv 1701.08398, CVPR), section 3; defaults of section 4.
    """
    lists, rows, top = checked(ranked, query, index, top, chunk, k1=k1, k2=k2)
    if not 0 <= lambda_value <= 1:
        raise LandmarkRetrievalError(f"lambda_value must lie in [0, 1], not {lambda_value}.")
    scores = torch.full(lists.shape, -torch.inf)
    if not len(rows):
        return given_back(lists[:, :top], scores[:, :top], query)
    nodes = Rows({"queries": rows, "index": index}, rows.device)
    table = NeighborTable(nodes, max(k1, k2 - 1), chunk)
    found = lists.cpu().numpy()
    asked, place = np.nonzero(found >= 0)
    # queries are the first nodes
    listed = found[asked, place] + len(rows)
    with torch.inference_mode():
        averaged = table.with_itself(np.union1d(np.arange(len(rows)), listed), k2 - 1)
        encoded = np.unique(averaged)
        encodings = _encodings(table, encoded, k1)
        for start in range(0, len(asked), _PAIRS):
            pairs = slice(start, start + _PAIRS)
            similar = _jaccard(table, encodings, encoded, k2, asked[pairs], listed[pairs])
            mixed = (1 - lambda_value) * similar + lambda_value * nodes.cosines(asked[pairs], listed[pairs])
            scores[asked[pairs], place[pairs]] = torch.from_numpy(mixed.astype(np.float32))
    return given_back(*in_order(lists.cpu(), scores, top), query)


def _reciprocal(table: NeighborTable, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row (n,) and its k nearest (n, 1 + k), and which of these have the row among their own k nearest."""
    near = table.with_itself(numbers, k)
    theirs = table.with_itself(near.ravel(), k).reshape(*near.shape, near.shape[1])
    return near, (theirs == numbers[:, None, None]).any(axis=2)


def _encodings(table: NeighborTable, numbers: np.ndarray, k1: int) -> "csr_matrix":
    """The encodings (n, all rows) of rows (n,), sparse; each adds up to 1."""
    from scipy.sparse import csr_matrix, vstack

    k, half = min(k1, table.k), min(round(k1 / 2), table.k)
    step = max(1, _NUMBERS // (k + 1) ** 3)
    blocks = [numbers[start : start + step] for start in range(0, len(numbers), step)]
    # the searches first, each for all rows together
    table.fill(np.unique(table.with_itself(numbers, k)))
    members = [near[mutual] for near, mutual in (_reciprocal(table, block, k) for block in blocks)]
    table.fill(np.unique(table.with_itself(np.unique(np.concatenate(members)), half)))

    encodings, total = [], np.int64(len(table.rows))
    for block in blocks:
        near, mutual = _reciprocal(table, block, k)
        owner, place = np.nonzero(mutual)
        member = near[owner, place]
        halves, in_half = _reciprocal(table, member, half)
        # an owner and a member as one number
        own, theirs = owner * total + member, owner[:, None] * total + halves
        shared = np.isin(theirs, own) & in_half
        extends = (3 * shared.sum(axis=1) > 2 * in_half.sum(axis=1))[:, None] & in_half
        row, column = np.divmod(np.union1d(own, theirs[extends]), total)
        weights = np.exp(table.rows.cosines(block[row], column) - 1.0)
        weights /= np.bincount(row, weights, len(block))[row]
        encodings.append(csr_matrix((weights, (row, column)), shape=(len(block), total), dtype=np.float32))
    return vstack(encodings, format="csr")


def _jaccard(
    table: NeighborTable, encodings: "csr_matrix", encoded: np.ndarray, k2: int, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Jaccard similarity (n,) of pairs of rows (n,) and (n,), after the encodings are averaged over k2 neighbours."""
    from scipy.sparse import csr_matrix

    numbers = np.union1d(first, second)
    near = table.with_itself(numbers, k2 - 1)
    row = np.repeat(np.arange(len(numbers)), near.shape[1])
    mean = np.full(near.size, 1 / near.shape[1], np.float32)
    shape = (len(numbers), len(encoded))
    averaged = csr_matrix((mean, (row, np.searchsorted(encoded, near.ravel()))), shape=shape) @ encodings
    one, other = averaged[np.searchsorted(numbers, first)], averaged[np.searchsorted(numbers, second)]
    # each adds up to 1, so the larger parts add up to 2 less the smaller ones
    smaller = np.asarray(one.minimum(other).sum(axis=1)).ravel()
    return smaller / (2 - smaller)
