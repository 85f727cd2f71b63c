"""Revisited Oxford and Paris: Easy, Medium and Hard, judged by mAP under trapezoids and mP@k."""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from landmark_retrieval.errors import LandmarkRetrievalError

SETUPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (lists that count as positive, lists that are dropped from the ranking)
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def revisited_average_precision(
    ranks: Sequence[npt.ArrayLike],
    gnd: Sequence[Mapping[str, Any]],
    ks: Sequence[int] = (1, 5, 10),
    setups: Sequence[str] = ("easy", "medium", "hard"),
) -> dict[str, dict[str, Any]]:
    """MAP and mP@k of Revisited Oxford and Paris in the setups Easy, Medium and Hard.

    Easy: positives are `easy`; `junk` and `hard` images are dropped from the ranking before it is judged. Medium:
    positives `easy` and `hard`, `junk` dropped. Hard: positives `hard`, `junk` and `easy` dropped. With
    p_0 < p_1 < ... the 0-based ranks of the positives that are left, AP is the area under the trapezoids:
    `AP = 1/n_pos * sum over j of ((j / p_j, or 1 if p_j = 0) + (j + 1) / (p_j + 1)) / 2`.
    `P@k` looks at the first min(k, rank of the last positive) images.

    Args:
        ranks: per query the database rows (integers), best first: a list of n_q lists, or an array of shape
            (n_q, n_ranked); the evaluation code of the dataset's authors takes the transposed matrix. A list may be cut
            short: positives that are not in it add nothing, n_pos still counts them.
        gnd: per query a mapping with the lists `easy`, `hard` and `junk` of database rows; other keys are not used.
        ks: the cuts of P@k, each >= 1.
        setups: which setups to judge.

    Returns:
        setup -> `map` (float), `aps` (n_q floats), `mp_at_k` (one float per k), `p_at_k` (n_q lists, one float per k).
        A query without positives in a setup has NaN in `aps` and `p_at_k` there and is left out of the means.

    Raises:
        LandmarkRetrievalError: `ranks` and `gnd` differ in length, a ranking is not made of distinct integers, none of
            a query's positives is in its ranking, no query at all has positives in a setup, or a setup or k is not
            valid.

    Source: Radenovic et al. 2018 (arXiv 1803.11285), section 3.3, and the dataset's evaluation code.

    Example:
        >>> gnd = [{"easy": [0], "hard": [1], "junk": [4]}]
        >>> result = revisited_average_precision([[4, 0, 3, 1, 2]], gnd, ks=[1, 5])
        >>> {setup: values["map"] for setup, values in result.items()}
        {'easy': 1.0, 'medium': 0.7916666666666666, 'hard': 0.25}
        >>> result["medium"]["mp_at_k"]
        [1.0, 0.6666666666666666]
    """
    if len(ranks) != len(gnd):
        raise LandmarkRetrievalError(
            f"ranks holds {len(ranks)} queries and gnd {len(gnd)}: ranks needs one ranked list per query "
            "(transpose a matrix of database images x queries)."
        )
    _check_cuts(ks)
    check_setups(setups)
    result: dict[str, dict[str, Any]] = {}
    rankings = [_ranking(query, ranked) for query, ranked in enumerate(ranks)]
    for setup in setups:
        positions = [positions_of_positives(q, *pair, setup) for q, pair in enumerate(zip(rankings, gnd, strict=True))]
        n_positives = [count_positives(query, truth, setup) for query, truth in enumerate(gnd)]
        if not any(n_positives):
            raise LandmarkRetrievalError(f"No query has positives in the setup {setup!r}: leave it out of setups.")
        result[setup] = revisited_from_positions(positions, n_positives, ks)
    return result


def revisited_from_positions(
    positions: Sequence[npt.ArrayLike], n_positives: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, Any]:
    """What `revisited_average_precision` says of one setup, from the places of the positives alone.

    Args:
        positions: per query the 0-based ranks of its positives, rising, among the images that are not ignored.
            Positives that were not found are left out; a query of which none was found has AP and P@k 0.
        n_positives: per query how many there are, found or not; 0 leaves the query out of the means.
        ks: the cuts of P@k, each >= 1.

    Returns:
        `map`, `aps`, `mp_at_k`, `p_at_k` as in `revisited_average_precision`.

    Raises:
        LandmarkRetrievalError: the two differ in length, positions are not rising, more are found than there are, no
            query has positives, or a k is below 1.

    Source: Radenovic et al. 2018 (arXiv 1803.11285), section 3.3.

    Example:
        >>> revisited_from_positions([[0, 2], []], [2, 0], ks=[1, 5])["map"]
        0.7916666666666666
    """
    if len(positions) != len(n_positives):
        raise LandmarkRetrievalError(f"There are positions of {len(positions)} queries, but {len(n_positives)} counts.")
    _check_cuts(ks)
    figures = [
        figures_of_query(query, found, count, ks)
        for query, (found, count) in enumerate(zip(positions, n_positives, strict=True))
    ]
    return means_of_queries(figures)


def figures_of_query(
    query: Hashable, found: npt.ArrayLike, n_positives: int, ks: Sequence[int]
) -> tuple[float, list[float]]:
    """AP and P@k of a query by the rising 0-based ranks of the positives found; NaN where it has no positives.

    `query` names it in errors.
    """
    ranks = np.asarray(found, dtype=np.int64).reshape(-1)
    if len(ranks) > n_positives or (np.diff(ranks) <= 0).any() or (ranks < 0).any():
        raise LandmarkRetrievalError(
            f"The positions of query {query!r} must be at most {n_positives} rising ranks from 0, not {ranks.tolist()}."
        )
    if not n_positives:
        return math.nan, [math.nan] * len(ks)
    if not len(ranks):
        return 0.0, [0.0] * len(ks)
    cuts = [min(k, int(ranks[-1]) + 1) for k in ks]
    return _trapezoid_average_precision(ranks, n_positives), [
        float(np.count_nonzero(ranks < cut)) / cut for cut in cuts
    ]


def means_of_queries(figures: Sequence[tuple[float, Sequence[float]]]) -> dict[str, Any]:
    """`map`, `aps`, `mp_at_k`, `p_at_k` from AP and P@k of each query, those with NaN left out of the means."""
    counted = [(ap, precisions) for ap, precisions in figures if not math.isnan(ap)]
    if not counted:
        raise LandmarkRetrievalError("No query has positives: the mean average precision is undefined.")
    return {
        "map": statistics.fmean(ap for ap, _ in counted),
        "aps": [ap for ap, _ in figures],
        "mp_at_k": [statistics.fmean(column) for column in zip(*(row for _, row in counted), strict=True)],
        "p_at_k": [list(precisions) for _, precisions in figures],
    }


def positions_of_positives(
    query: Hashable, ranked: npt.ArrayLike, truth: Mapping[str, Any], setup: str
) -> npt.NDArray[np.int64]:
    """The 0-based ranks of a query's positives in a ranked list of database rows, without the ignored images.

    Raises:
        LandmarkRetrievalError: it has positives and none of them is in the list.
    """
    rows = _ranking(query, ranked)
    positives, ignored = (_joined(query, truth, names) for names in SETUPS[setup])
    found = np.flatnonzero(np.isin(rows[~np.isin(rows, ignored)], positives))
    if len(positives) and not len(found):
        raise LandmarkRetrievalError(
            f"None of the {len(positives)} positives of query {query} ({setup}) is in its ranked list: "
            "give longer rankings."
        )
    return found


def count_positives(query: Hashable, truth: Mapping[str, Any], setup: str) -> int:
    """How many images are right for a query in a setup."""
    return len(_joined(query, truth, SETUPS[setup][0]))


def check_setups(setups: Sequence[str]) -> None:
    """Refuse setups that there are not."""
    unknown = [setup for setup in setups if setup not in SETUPS]
    if unknown:
        raise LandmarkRetrievalError(f"There is no setup {unknown[0]!r}: choose from {', '.join(SETUPS)}.")


def _check_cuts(ks: Sequence[int]) -> None:
    if not ks or any(k < 1 for k in ks):
        raise LandmarkRetrievalError(f"Every k of P@k must be at least 1, not {list(ks)}.")


def _trapezoid_average_precision(found: npt.NDArray[np.int64], n_positives: int) -> float:
    hits = np.arange(len(found), dtype=np.float64)
    # precision just before and just at each positive; before the very first image it is 1 by definition
    before = np.where(found == 0, 1.0, hits / np.maximum(found, 1))
    at = (hits + 1) / (found + 1)
    return float(((before + at) / 2).sum() / n_positives)


def _ranking(query: Hashable, ranked: npt.ArrayLike) -> npt.NDArray[np.int64]:
    rows = np.asarray(ranked.detach().cpu() if hasattr(ranked, "detach") else ranked)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise LandmarkRetrievalError(
            f"The ranked list of query {query} must be one row of integers, not {rows.ndim}-d {rows.dtype}."
        )
    rows = rows.astype(np.int64)
    # searches end lists that are shorter than others with -1
    rows = rows[: len(rows) - int(np.argmax(rows[::-1] != -1))] if (rows != -1).any() else rows[:0]
    if len(np.unique(rows)) != len(rows):
        raise LandmarkRetrievalError(f"The ranked list of query {query} holds a database image more than once.")
    return rows


def _joined(query: Hashable, truth: Mapping[str, Any], names: Sequence[str]) -> npt.NDArray[np.int64]:
    for name in SETUPS["medium"][0] + SETUPS["medium"][1]:
        if name not in truth:
            raise LandmarkRetrievalError(f"The ground truth of query {query} has no list {name!r}.")
    return np.concatenate([np.asarray(truth[name], dtype=np.int64).reshape(-1) for name in names])
