"""Discriminative re-ranking: a labelled training set says which index photos show the query's landmark.

Soft: Henkel 2021 (arXiv 2110.03786), section 2.4.1. Hard: its ancestor, Ozaki & Yokoo 2019 (arXiv 1906.04087), 3.3.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.ensemble import ensemble
from landmark_retrieval.retrieval.inputs import Devices, as_kind_of, as_labels, as_tensor, check_comparable
from landmark_retrieval.retrieval.reranking.neighbors import Rows
from landmark_retrieval.retrieval.search import CHUNK, Adjust, adjusted_search, exact_search

__all__ = ["CONFIDENCES", "ensemble", "hard_rerank", "hard_rerank_voted", "rerank_voted", "soft_rerank", "soft_vote"]

Array = TypeVar("Array", np.ndarray, torch.Tensor)

CONFIDENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    # from the similarities (n, k) of the neighbours, and which of them voted for the winning label
    "sum_over_k": lambda similarity, voted: (similarity * voted).sum(dim=1) / similarity.shape[1],
    "sum": lambda similarity, voted: (similarity * voted).sum(dim=1),
    "mean_topk": lambda similarity, voted: similarity.mean(dim=1),
    "top1": lambda similarity, voted: similarity[:, 0],
}


def soft_vote(
    images: Array,
    train: Any,
    train_labels: Any,
    k: int = 3,
    confidence: str = "sum_over_k",
    chunk: tuple[int, int] = CHUNK,
    devices: Devices | None = None,
) -> tuple[Array, Array]:
    """The landmark of each photo, and how sure that is, by a vote of its nearest training photos.

    Each of the k most similar training photos votes for its label with its cosine. The label with the largest sum wins;
    on a tie, the one that the nearer neighbour has.

    Args:
        images: (n, d), rows L2-normalised.
        train: (n_t, d), rows L2-normalised; may lie elsewhere, see `exact_search`.
        train_labels: (n_t,) integers.
        k: neighbours; n_t where that is less.
        confidence: "sum_over_k": the winning sum divided by k (neighbours for other labels count as 0); "sum": not
            divided; "mean_topk": mean cosine of the k, whatever their labels; "top1": cosine of the nearest.
        chunk: photos and training photos compared at once.
        devices: where to compute, see `exact_search`.

    Returns:
        labels (n,) int64 and confidences (n,) float32, of the kind (numpy or torch) of `images`. "sum" lies in [-k, k],
        the others in [-1, 1].

    Raises:
        LandmarkRetrievalError: no training photos, labels that do not fit them, an unknown confidence; see also
            `exact_search`.

    Source: Henkel 2021 (arXiv 2110.03786), section 2.4.1.

    Example:
        >>> train = np.eye(3, dtype=np.float32)
        >>> labels, confidences = soft_vote(np.array([[0.75, 0.5, 0.0]]), train, [7, 9, 9], k=2)
        >>> labels.tolist(), confidences.tolist()
        ([7], [0.375])
    """
    if confidence not in CONFIDENCES:
        raise LandmarkRetrievalError(f"There is no confidence {confidence!r}: choose from {', '.join(CONFIDENCES)}.")
    if not len(train):
        raise LandmarkRetrievalError("The training set is empty: labels are voted for by training photos.")
    labels = as_labels(train_labels, len(train), "training photos")
    rows, cosines = (torch.as_tensor(part) for part in exact_search(images, train, k, chunk, devices))
    found = labels[rows.cpu()].to(cosines.device)
    # in float64, so that sums of the same cosines are the same
    similarity = cosines.double()
    same = found.unsqueeze(2) == found.unsqueeze(1)
    votes = (same * similarity.unsqueeze(1)).sum(dim=2)
    # of equal votes the first
    winner = votes.argmax(dim=1, keepdim=True)
    voted = found == found.gather(1, winner)
    sure = CONFIDENCES[confidence](similarity, voted).float()
    return as_kind_of(images, found.gather(1, winner).squeeze(1)), as_kind_of(images, sure)


def soft_rerank(
    query: Array,
    index: Any,
    train: Any,
    train_labels: Any,
    k: int = 3,
    up: float = 1.0,
    down: float = 0.1,
    top: int = 750,
    confidence: str = "sum_over_k",
    exclude: Any = None,
    chunk: tuple[int, int] = CHUNK,
    devices: Devices | None = None,
) -> tuple[Array, Array]:
    """Soft discriminative re-ranking: the whole index, ordered by cosine and by agreement with the query's landmark.

    The adjusted score is `cos + up * conf` for index photos of the query's landmark and `cos - down * conf` for the
    others; landmark and confidence are those of `soft_vote`, and the confidence is the index photo's. Every index photo
    is scored, so one far down the list can still come up.

    Args:
        query: (n_q, d), rows L2-normalised.
        index: (n_i, d), rows L2-normalised; like `train` it may lie elsewhere, see `exact_search`.
        train: (n_t, d), rows L2-normalised.
        train_labels: (n_t,) integers.
        k: neighbours that vote.
        up: of the confidence, for photos of the same landmark.
        down: of the confidence, for the others.
        top: length of the lists; the index where that is smaller.
        confidence: see `soft_vote`.
        exclude: (n_q,) for each query a row of the index that it may not find, itself; -1 for none. A list of the whole
            index ends with row -1 and score -inf in its place.
        chunk: rows compared at once.
        devices: where to compute, see `exact_search`.

    Returns:
        indices (n_q, min(top, n_i)) int64 and adjusted scores, float32, best first, on a tie the lower row; of the kind
        of `query`.

    Raises:
        LandmarkRetrievalError: see `soft_vote`.

    Source: Henkel 2021 (arXiv 2110.03786), section 2.4.1.

    Example:
        >>> photos = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], dtype=np.float32)
        >>> rows, scores = soft_rerank(photos[:1], photos, photos[1:], [5, 6], k=1, exclude=[0])
        >>> rows.tolist(), [f"{score:.2f}" for score in scores[0]]
        ([[1, 2, -1]], ['1.80', '0.50', '-inf'])
    """
    votes = {"train": train, "train_labels": train_labels, "k": k, "confidence": confidence}
    votes |= {"chunk": chunk, "devices": devices}
    check_comparable(query, index, top, chunk)
    query_labels, _ = soft_vote(query, **votes)
    index_labels, index_confidences = soft_vote(index, **votes)
    return rerank_voted(
        query, query_labels, index, index_labels, index_confidences, up, down, top, exclude, chunk, devices
    )


def rerank_voted(
    query: Array,
    query_labels: Any,
    index: Any,
    index_labels: Any,
    index_confidences: Any,
    up: float = 1.0,
    down: float = 0.1,
    top: int = 750,
    exclude: Any = None,
    chunk: tuple[int, int] = CHUNK,
    devices: Devices | None = None,
) -> tuple[Array, Array]:
    """`soft_rerank` where the votes are known already: those of the index serve any number of queries.

    Args:
        query: (n_q, d), rows L2-normalised.
        query_labels: (n_q,) as `soft_vote` gives them.
        index: (n_i, d), rows L2-normalised.
        index_labels: (n_i,).
        index_confidences: (n_i,).
        up: see `soft_rerank`, also for the others.
        down: of the confidence, for photos of another landmark.
        top: length of the lists.
        exclude: rows of the index that queries may not find.
        chunk: rows compared at once.
        devices: where to compute, see `exact_search`.

    Returns:
        See `soft_rerank`.

    Raises:
        LandmarkRetrievalError: labels or confidences that do not fit; see also `exact_search`.
    """
    check_comparable(query, index, top, chunk)
    of_query = as_labels(query_labels, len(query), "queries")
    of_index = as_labels(index_labels, len(index), "index photos")
    confidences = as_tensor(index_confidences).float()
    if confidences.shape != of_index.shape:
        raise LandmarkRetrievalError(f"{len(index)} index photos need as many confidences, not {len(confidences)}.")
    own = _excluded(exclude, len(query), len(index))

    def adjusting(first: int, last: int, device: torch.device) -> Adjust:
        labels = of_query[first:last, None].to(device)
        raised, lowered, others = (part.to(device) for part in (up * confidences, -down * confidences, of_index))
        excluded = None if own is None else own[first:last].to(device)

        def adjust(scores: torch.Tensor, start: int, stop: int) -> None:
            scores += torch.where(labels == others[start:stop], raised[start:stop], lowered[start:stop])
            if excluded is not None:
                held = ((excluded >= start) & (excluded < stop)).nonzero().squeeze(1)
                scores[held, excluded[held] - start] = -torch.inf

        return adjust

    rows, scores = adjusted_search(query, index, top, adjusting, chunk, devices)
    if own is not None:
        rows[scores == -np.inf] = -1
    return rows, scores


def hard_rerank(
    query: Array,
    index: Any,
    train: Any,
    train_labels: Any,
    k: int = 3,
    top: int = 100,
    threshold: float = 0.6,
    confidence: str = "sum_over_k",
    chunk: tuple[int, int] = CHUNK,
    devices: Devices | None = None,
) -> tuple[Array, Array]:
    """Hard discriminative re-ranking: photos of the query's landmark first, those that the search missed inserted.

    Of the `top` nearest index photos those with the query's label come first, in their order. After them every other
    index photo with that label and `conf(query) + conf(photo) > threshold`, by falling confidence, and then the rest.

    Args:
        query: (n_q, d), rows L2-normalised.
        index: (n_i, d), rows L2-normalised.
        train: (n_t, d), rows L2-normalised.
        train_labels: (n_t,) integers.
        k: neighbours that vote.
        top: length of the lists.
        threshold: of the two confidences together, for a photo to be inserted.
        confidence: see `soft_vote`.
        chunk: rows compared at once.
        devices: where to compute, see `exact_search`.

    Returns:
        indices (n_q, min(top, n_i)) int64 and cosines (n_q, min(top, n_i)) float32 in the new order, which is not that
        of the cosines; of the kind of `query`.

    Raises:
        LandmarkRetrievalError: see `soft_vote`.

    Source: Ozaki & Yokoo 2019 (arXiv 1906.04087), section 3.3.
    """
    votes = {"train": train, "train_labels": train_labels, "k": k, "confidence": confidence}
    votes |= {"chunk": chunk, "devices": devices}
    check_comparable(query, index, top, chunk)
    of_query, of_index = soft_vote(query, **votes), soft_vote(index, **votes)
    return hard_rerank_voted(query, *of_query, index, *of_index, top, threshold, chunk, devices)


def hard_rerank_voted(
    query: Array,
    query_labels: Any,
    query_confidences: Any,
    index: Any,
    index_labels: Any,
    index_confidences: Any,
    top: int = 100,
    threshold: float = 0.6,
    chunk: tuple[int, int] = CHUNK,
    devices: Devices | None = None,
) -> tuple[Array, Array]:
    """`hard_rerank` where the votes are known already.

    Args:
        query: (n_q, d), rows L2-normalised.
        query_labels: (n_q,) as `soft_vote` gives them.
        query_confidences: (n_q,).
        index: (n_i, d), rows L2-normalised; where it lies elsewhere it takes arrays of row numbers, too.
        index_labels: (n_i,).
        index_confidences: (n_i,).
        top: see `hard_rerank`, also for the others.
        threshold: of the two confidences together.
        chunk: rows compared at once.
        devices: where to compute, see `exact_search`.

    Returns:
        See `hard_rerank`.

    Raises:
        LandmarkRetrievalError: labels that do not fit; see also `exact_search`.
    """
    query_labels = as_labels(query_labels, len(query), "queries").cpu().numpy()
    index_labels = as_labels(index_labels, len(index), "index photos").cpu().numpy()
    query_confidences, index_confidences = (
        as_tensor(part).cpu().numpy() for part in (query_confidences, index_confidences)
    )
    nearest = torch.as_tensor(exact_search(query, index, top, chunk, devices)[0]).cpu().numpy()
    # index photos by label, in a label by falling confidence, on a tie the lower row
    order = np.lexsort((-index_confidences, index_labels))
    ordered = index_labels[order]
    rows = np.empty_like(nearest)
    for number, (found, label, sure) in enumerate(zip(nearest, query_labels, query_confidences, strict=True)):
        agrees = index_labels[found] == label
        alike = order[np.searchsorted(ordered, label) : np.searchsorted(ordered, label, side="right")]
        alike = alike[sure + index_confidences[alike] > threshold]
        inserted = alike[~np.isin(alike, found)]
        rows[number] = np.concatenate([found[agrees], inserted, found[~agrees]])[: len(found)]
    numbers = np.arange(len(query)).repeat(rows.shape[1]) + len(index)
    pairs = Rows({"index": index, "queries": query}, torch.device("cpu"))
    cosines = torch.from_numpy(pairs.cosines(numbers, rows.ravel()).reshape(rows.shape))
    device = query.device if isinstance(query, torch.Tensor) else "cpu"
    return as_kind_of(query, torch.from_numpy(rows).to(device)), as_kind_of(query, cosines.to(device))


def _excluded(exclude: Any, queries: int, index: int) -> torch.Tensor | None:
    if exclude is None:
        return None
    rows = as_labels(exclude, queries, "queries", "rows to exclude")
    if len(rows) and not -1 <= int(rows.min()) <= int(rows.max()) < index:
        raise LandmarkRetrievalError(f"Rows to exclude lie between -1 (none) and {index - 1}, the last of the index.")
    return rows
