"""Ranked lists: what re-rankers take and give, how they are checked, and how they are put in order."""

from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.inputs import as_kind_of, as_tensor, check_comparable, rows_of

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class RankedLists(NamedTuple, Generic[Array]):
    """For each query the index rows it found, best first. A plain tuple of the two will do wherever one is taken.

    Attributes:
        indices: (n_q, K) int64 rows of the index. Places behind the end of a shorter list hold -1.
        scores: (n_q, K) float32, falling along each row; -inf behind the end.
    """

    indices: Array
    scores: Array


class Reranker(Protocol):
    """The shape that all unsupervised re-rankers share; each has options of its own besides."""

    def __call__(
        self,
        ranked: tuple[Any, Any],
        query: Array,
        index: Any,
        *,
        top: int | None = None,
        chunk: tuple[int, int] = ...,
    ) -> RankedLists[Array]:
        """Give new lists for old ones.

        Args:
            ranked: (indices (n_q, K), scores (n_q, K)), numpy or torch. The order of the list counts, not its scores:
                cosines are taken from the descriptors, so lists of any method will do.
            query: (n_q, d), rows L2-normalised. The work is done on its device.
            index: (n_i, d), rows L2-normalised; may lie elsewhere (a memory-mapped file, float16), see `exact_search`.
            top: length of the lists that come out; K if None.
            chunk: queries and index rows compared at once; memory, not the result, depends on it.

        Returns:
            Lists of the kind (numpy or torch) of `query`. On a tie the lower row comes first.

        Raises:
            LandmarkRetrievalError: the shapes do not fit, a list is empty or names rows that the index does not have,
                an option is out of its range, or a descriptor holds NaN or infinity (the row is named).
        """


class Checked(NamedTuple):
    """What a re-ranker was given, after the checks.

    Attributes:
        lists: (n_q, K) int64, on the device of the queries; -1 behind the end of a list.
        query: (n_q, d) float32.
        top: how long the new lists are to be; not yet cut to what there is.
    """

    lists: torch.Tensor
    query: torch.Tensor
    top: int


def checked(
    ranked: tuple[Any, Any], query: Any, index: Any, top: int | None, chunk: tuple[int, int], **at_least_one: int
) -> Checked:
    """Check the arguments that all re-rankers have, and those options that must be at least 1.

    Raises:
        LandmarkRetrievalError: see `Reranker`.
    """
    check_comparable(query, index, 1, chunk)
    require_at_least_one(**at_least_one, **({} if top is None else {"top": top}))
    device = query.device if isinstance(query, torch.Tensor) else torch.device("cpu")
    rows = rows_of(query, 0, len(query), device, "queries")
    lists, scores = (as_tensor(part) for part in ranked)
    if lists.ndim != 2 or lists.shape != scores.shape or len(lists) != len(query):
        raise LandmarkRetrievalError(
            f"{len(query)} queries need lists of {len(query)} rows, with a score for each index row: found indices of "
            f"shape {tuple(lists.shape)} and scores of shape {tuple(scores.shape)}."
        )
    if lists.is_floating_point() or lists.is_complex() or lists.dtype == torch.bool:
        raise LandmarkRetrievalError(f"The indices of ranked lists must be integers, not {lists.dtype}.")
    if not lists.shape[1]:
        raise LandmarkRetrievalError("The ranked lists are empty: search for at least one row per query.")
    lists = lists.to(device=device, dtype=torch.int64)
    _check_rows(lists, len(index))
    return Checked(lists, rows, lists.shape[1] if top is None else top)


def require_at_least_one(**options: int) -> None:
    """LandmarkRetrievalError if an option is below 1."""
    for name, value in options.items():
        if value < 1:
            raise LandmarkRetrievalError(f"{name} must be at least 1, not {value}.")


def _check_rows(lists: torch.Tensor, count: int) -> None:
    def first(wrong: torch.Tensor) -> tuple[int, int]:
        query, place = (int(part) for part in wrong.nonzero()[0])
        return query, place

    outside = (lists >= count) | (lists < -1)
    # -1 stands for no row, but only behind the end of a list
    outside[:, :-1] |= (lists[:, :-1] < 0) & (lists[:, 1:] >= 0)
    if outside.any():
        query, place = first(outside)
        raise LandmarkRetrievalError(
            f"The list of query {query} names row {int(lists[query, place])} at place {place}, outside the index of "
            f"{count} rows: were the lists made with another index?"
        )
    empty = (lists[:, :1] < 0).any(dim=1, keepdim=True)
    if empty.any():
        raise LandmarkRetrievalError(f"The list of query {first(empty)[0]} is empty: it must name at least one row.")
    ordered = lists.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        query, place = first(twice)
        raise LandmarkRetrievalError(f"The list of query {query} names row {int(ordered[query, place])} twice.")


def in_order(lists: torch.Tensor, scores: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top` best of each list, by falling score, on a tie the lower row first; both (n_q, K)."""
    lists, by_row = lists.sort(dim=1)
    scores, by_score = scores.gather(1, by_row).sort(dim=1, descending=True, stable=True)
    return lists.gather(1, by_score)[:, :top], scores[:, :top]


def given_back(lists: torch.Tensor, scores: torch.Tensor, like: Array) -> RankedLists[Array]:
    """Lists as the caller wants them: of the kind and on the device of its queries."""
    device = like.device if isinstance(like, torch.Tensor) else "cpu"
    # a copy of what inference mode made, which autograd and in-place work of the caller may not touch
    lists, scores = lists.to(device, torch.int64).clone(), scores.to(device, torch.float32).clone()
    return RankedLists(as_kind_of(like, lists), as_kind_of(like, scores))
