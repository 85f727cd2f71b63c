"""The graph of mutual nearest neighbours in an index, that diffusion walks on."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.inputs import check_comparable
from landmark_retrieval.retrieval.reranking.neighbors import NeighborTable, Rows
from landmark_retrieval.retrieval.reranking.ranked import require_at_least_one
from landmark_retrieval.retrieval.search import CHUNK

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# numbers looked up at once
_NUMBERS = 2**22


def neighbor_graph(
    index: Any,
    k: int = 50,
    gamma: float = 3.0,
    chunk: tuple[int, int] = CHUNK,
    device: str | torch.device | None = None,
) -> "csr_matrix":
    """The graph of mutual neighbours that `diffusion` walks on: D^-1/2 A D^-1/2, symmetric.

    A is max(cosine, 0) ** gamma where two rows are among each other's k nearest others, 0 elsewhere; D its row sums.
    Compares each row with each other one: for many rows, do it once, on a GPU. `scipy.sparse.save_npz` keeps it.

    Args:
        index: (n_i, d), rows L2-normalised.
        k: neighbours of each row; all others if there are fewer.
        gamma: above 0.
        chunk: rows compared at once.
        device: where to compare; by default where the index is.

    Returns:
        (n_i, n_i) float32 sparse, at most k numbers per row; rows without mutual neighbours hold none.

    Raises:
        LandmarkRetrievalError: k below 1, gamma not above 0, an empty index, or a row with NaN or infinity.

    Source: Iscen et al. 2017 (arXiv 1611.05113, CVPR), section 3.
    """
    check_comparable(index, index, 1, chunk)
    require_at_least_one(k=k)
    check_gamma(gamma)
    place = torch.device(device or (index.device if isinstance(index, torch.Tensor) else "cpu"))
    return mutual_graph(NeighborTable(Rows({"index": index}, place), k, chunk), np.arange(len(index)), gamma)


def mutual_graph(table: NeighborTable, rows: np.ndarray, gamma: float) -> "csr_matrix":
    """The part of `neighbor_graph` between rows (n,), which rise: normalised as the whole one, then cut."""
    from scipy.sparse import coo_matrix

    table.fill(rows)
    step = max(1, _NUMBERS // (table.k + 1) ** 2)
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    table.fill(np.unique(np.concatenate([rows, *(table.of(block)[0].ravel() for block in blocks)])))
    degrees, edges = np.zeros(len(rows)), []
    for number, block in enumerate(blocks):
        near, cosines = table.of(block)
        theirs = table.of(near.ravel())[0].reshape(*near.shape, near.shape[1])
        row, place = np.nonzero((theirs == block[:, None, None]).any(axis=2) & (cosines > 0))
        other, weight = near[row, place], cosines[row, place].astype(np.float64) ** gamma
        row += number * step
        degrees += np.bincount(row, weight, len(rows))
        # each edge from its lower end, since the two cosines of a pair may differ in the last digit
        column = np.searchsorted(rows, other)
        kept = (rows[np.minimum(column, len(rows) - 1)] == other) & (rows[row] < other)
        edges.append((row[kept], column[kept], weight[kept]))
    row, column, weight = (np.concatenate(part) for part in zip(*edges, strict=True))
    weight = (weight / np.sqrt(degrees[row] * degrees[column])).astype(np.float32)
    upper = coo_matrix((weight, (row, column)), shape=(len(rows), len(rows))).tocsr()
    return (upper + upper.T).tocsr()


def check_gamma(gamma: float) -> None:
    """LandmarkRetrievalError unless gamma is above 0."""
    if not 0 < gamma < float("inf"):
        raise LandmarkRetrievalError(f"gamma must be above 0, not {gamma}.")
