"""Retrieval: a ranked list of ids for each query, judged by mAP@k, precision, recall and the rank of the first hit."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional.inputs import Ranked, Truth, plain_values

# query id -> which of its first k ranks hold a new relevant id, and how many ids are relevant
Hits = Mapping[Any, tuple[Sequence[bool], int]]


def average_precisions(predictions: Ranked, solution: Truth, k: int = 100) -> dict[Any, float]:
    """Average precision at k of each query.

    `AP = 1 / min(n_relevant, k) * sum over i <= min(len(ranked), k) of new_hit(i) * hits(i) / i`. An id that comes
    again uses up its rank and never scores again. A query without a prediction, or with an empty one, has AP 0.

    Args:
        predictions: query id -> ranked ids, best first.
        solution: query id -> relevant ids; `n_relevant` is the length of the list.
        k: ranks beyond k are not looked at.

    Returns:
        query id -> AP in [0, 1], in the order of the solution.

    Raises:
        LandmarkRetrievalError: the solution is empty, a predicted query is not in it or has no relevant id, or k < 1.

    Source: Weyand et al. 2020 (arXiv 2004.01804), section 5.2.

    Example:
        >>> average_precisions({"a": ["x", "no", "y"]}, {"a": ["x", "y"], "b": ["z"]})
        {'a': 0.8333333333333333, 'b': 0.0}
    """
    return average_precisions_of_hits(hits_of_queries(predictions, solution, k), k)


def mean_average_precision(predictions: Ranked, solution: Truth, k: int = 100) -> float:
    """Mean average precision at k (mAP@100 of the Google Landmarks retrieval challenges).

    The mean of `average_precisions` over *all* queries of the solution, predicted or not.

    Args:
        predictions: query id -> ranked ids, best first.
        solution: query id -> relevant ids.
        k: ranks beyond k are not looked at.

    Returns:
        The mAP in [0, 1].

    Raises:
        LandmarkRetrievalError: the solution is empty, a predicted query is not in it or has no relevant id, or k < 1.

    Source: Weyand et al. 2020 (arXiv 2004.01804), section 5.2.

    Example:
        >>> mean_average_precision({"a": ["x", "no", "y"]}, {"a": ["x", "y"], "b": ["z"]})
        0.41666666666666663
    """
    return mean_average_precision_of_hits(hits_of_queries(predictions, solution, k), k)


def mean_precisions(predictions: Ranked, solution: Truth, k: int = 100) -> list[float]:
    """Mean precision at 1, 2, ..., k over all queries of the solution.

    Precision at j is the number of distinct relevant ids among the first j ranks, divided by j, even where the list is
    shorter than j. A query without a prediction counts as 0.

    Args:
        predictions: query id -> ranked ids, best first.
        solution: query id -> relevant ids.
        k: the largest cut.

    Returns:
        k values in [0, 1]; item j - 1 is the mean precision at j.

    Raises:
        LandmarkRetrievalError: the solution is empty, a predicted query is not in it, or k < 1.

    Source: the evaluation code published with Weyand et al. 2020 (arXiv 2004.01804).

    Example:
        >>> mean_precisions({"a": ["x", "no", "y"]}, {"a": ["x", "y"], "b": ["z"]}, k=4)
        [0.5, 0.25, 0.3333333333333333, 0.25]
    """
    return mean_precisions_of_hits(hits_of_queries(predictions, solution, k), k)


def first_correct_ranks(predictions: Ranked, solution: Truth, k: int = 100) -> dict[Any, int]:
    """The 1-based rank of each query's first relevant id; k + 1 where none is among the first k.

    Args:
        predictions: query id -> ranked ids, best first.
        solution: query id -> relevant ids.
        k: ranks beyond k are not looked at.

    Returns:
        query id -> rank in 1 .. k + 1, in the order of the solution.

    Raises:
        LandmarkRetrievalError: the solution is empty, a predicted query is not in it, or k < 1.

    Source: the evaluation code published with Weyand et al. 2020 (arXiv 2004.01804).

    Example:
        >>> first_correct_ranks({"a": ["no", "x", "y"]}, {"a": ["x", "y"], "b": ["z"]})
        {'a': 2, 'b': 101}
    """
    return first_correct_ranks_of_hits(hits_of_queries(predictions, solution, k), k)


def mean_median_position(predictions: Ranked, solution: Truth, k: int = 100) -> tuple[float, float]:
    """Mean and median of `first_correct_ranks` over all queries of the solution.

    Args:
        predictions: query id -> ranked ids, best first.
        solution: query id -> relevant ids.
        k: ranks beyond k are not looked at; a query without a hit counts as k + 1.

    Returns:
        (mean, median), each in [1, k + 1].

    Raises:
        LandmarkRetrievalError: the solution is empty, a predicted query is not in it, or k < 1.

    Source: the evaluation code published with Weyand et al. 2020 (arXiv 2004.01804).

    Example:
        >>> mean_median_position({"a": ["no", "x", "y"]}, {"a": ["x", "y"], "b": ["z"]})
        (51.5, 51.5)
    """
    return mean_median_position_of_hits(hits_of_queries(predictions, solution, k), k)


def recall_at_k(predictions: Ranked, solution: Truth, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Recall@k as place recognition uses it: the share of queries with a relevant id among the first k.

    Args:
        predictions: query id -> ranked ids, best first.
        solution: query id -> relevant ids.
        ks: the cuts, each >= 1.

    Returns:
        k -> share in [0, 1] of all queries of the solution, predicted or not.

    Raises:
        LandmarkRetrievalError: the solution is empty, a predicted query is not in it, or a k is below 1.

    Source: Arandjelovic et al. 2016 (NetVLAD, arXiv 1511.07247), section 5.1.

    Example:
        >>> recall_at_k({"a": ["no", "x", "y"]}, {"a": ["x", "y"], "b": ["z"]}, ks=[1, 5])
        {1: 0.0, 5: 0.5}
    """
    if not ks or min(ks) < 1:
        raise LandmarkRetrievalError(f"Every k of recall@k must be at least 1, not {list(ks)}.")
    return recall_of_hits(hits_of_queries(predictions, solution, max(ks)), ks)


def hits_of_queries(predictions: Ranked, solution: Truth, k: int) -> dict[Any, tuple[list[bool], int]]:
    """Per query of the solution: which of its first k ranks hold a new relevant id, and how many ids are relevant."""
    if k < 1:
        raise LandmarkRetrievalError(f"k must be at least 1, not {k}.")
    if not solution:
        raise LandmarkRetrievalError("The solution holds no query.")
    for query in predictions:
        if query not in solution:
            raise LandmarkRetrievalError(f"Query {query!r} is predicted but is not in the solution.")
    result = {}
    for query in solution:
        relevant = plain_values(query, solution[query], "relevant ids in the solution")
        ranked = plain_values(query, predictions.get(query, ()), "predicted ids")[:k]
        waiting = set(relevant)
        hits = []
        for value in ranked:
            hits.append(value in waiting)
            waiting.discard(value)
        result[query] = hits, len(relevant)
    return result


def average_precisions_of_hits(hits: Hits, k: int) -> dict[Any, float]:
    """See `average_precisions`."""
    result = {}
    for query, (row, n_relevant) in hits.items():
        if row and not n_relevant:
            raise LandmarkRetrievalError(
                f"Query {query!r} is predicted but has no relevant id in the solution: its AP is undefined."
            )
        found, total = 0, 0.0
        for rank, hit in enumerate(row, start=1):
            if hit:
                found += 1
                total += found / rank
        result[query] = total / min(n_relevant, k) if row else 0.0
    return result


def mean_average_precision_of_hits(hits: Hits, k: int) -> float:
    """See `mean_average_precision`."""
    values = average_precisions_of_hits(hits, k)
    return math.fsum(values.values()) / len(values)


def mean_precisions_of_hits(hits: Hits, k: int) -> list[float]:
    """See `mean_precisions`."""
    at_rank = np.zeros(k, dtype=np.int64)
    for row, _ in hits.values():
        at_rank[: len(row)] += np.asarray(row, dtype=np.int64)
    return [int(total) / (rank * len(hits)) for rank, total in enumerate(at_rank.cumsum(), start=1)]


def first_correct_ranks_of_hits(hits: Hits, k: int) -> dict[Any, int]:
    """See `first_correct_ranks`."""
    return {query: row.index(True) + 1 if True in row else k + 1 for query, (row, _) in hits.items()}


def mean_median_position_of_hits(hits: Hits, k: int) -> tuple[float, float]:
    """See `mean_median_position`."""
    ranks = list(first_correct_ranks_of_hits(hits, k).values())
    return statistics.fmean(ranks), float(statistics.median(ranks))


def recall_of_hits(hits: Hits, ks: Sequence[int]) -> dict[int, float]:
    """See `recall_at_k`."""
    ranks = list(first_correct_ranks_of_hits(hits, max(ks)).values())
    return {k: sum(rank <= k for rank in ranks) / len(ranks) for k in ks}
