"""The metrics of Google Landmarks v2 and of Revisited Oxford and Paris, as functions of predictions and a solution.

Recognition: `predictions` maps a query id to `(label, score)`; retrieval: to a ranked list of ids, best first.
`solution` maps *every* query id to its list of labels or relevant ids; queries without a prediction may be missing from
`predictions`. All arithmetic is float64, all values are fractions in [0, 1] unless said otherwise.

Sources: Weyand et al., Google Landmarks Dataset v2, arXiv 2004.01804, section 5 (GAP, also called micro-AP, mAP@100);
Radenovic et al., Revisiting Oxford and Paris, arXiv 1803.11285, section 3.3 (Easy, Medium, Hard; mAP and mP@k).
"""

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# query id -> (label, score)
Recognized = Mapping[Any, tuple[Hashable, float]]
# query id -> ranked ids, best first
Ranked = Mapping[Any, Iterable[Hashable]]
# query id -> labels or relevant ids
Truth = Mapping[Any, Iterable[Hashable]]

_REVISITED_SETUPS = {
    # name: (lists that count as positive, lists that are dropped from the ranking)
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def global_average_precision(predictions: Recognized, solution: Truth, ignore_non_gt: bool = False) -> float:
    """Global average precision (GAP, micro-AP) of recognition with at most one prediction per query.

    All predictions of all queries form one ranking: score falling, on a tie the query id rising as a string, then the
    label rising. `GAP = 1/M * sum over ranks i of precision(i) * right(i)`, where M counts the queries that have a
    label, predicted or not. A prediction for a query without labels takes a rank and is never right.

    Args:
        predictions: query id -> (label, score); any finite or infinite score, not NaN.
        solution: query id -> its labels, an empty list for a query without a landmark. Any of several labels is right.
        ignore_non_gt: leave out the predictions for queries without labels.

    Returns:
        The GAP in [0, 1].

    Raises:
        ValueError: no query has a label, a predicted query is not in the solution, or a prediction is malformed.

    Source: Weyand et al. 2020 (arXiv 2004.01804), section 5.1; Perronnin et al. 2009.

    Example:
        >>> solution = {"a": [7], "b": [], "c": [9]}
        >>> global_average_precision({"a": (7, 0.9), "b": (7, 0.8), "c": (9, 0.7)}, solution)
        0.8333333333333333
        >>> global_average_precision({"a": (7, 0.9), "b": (7, 0.8), "c": (9, 0.7)}, solution, ignore_non_gt=True)
        1.0
    """
    labels = _labels_of_queries(solution)
    queries_with_labels = _count_labelled(labels)
    ranking = []
    for query, prediction in predictions.items():
        if query not in labels:
            raise ValueError(f"Query {query!r} is predicted but is not in the solution.")
        label, score = _label_and_score(query, prediction)
        if labels[query] or not ignore_non_gt:
            ranking.append((-score, str(query), label, label in labels[query]))
    ranking.sort(key=lambda row: row[:3])
    total, correct = 0.0, 0
    for rank, (*_, right) in enumerate(ranking, start=1):
        if right:
            correct += 1
            total += correct / rank
    return total / queries_with_labels


def top1_accuracy(predictions: Recognized, solution: Truth) -> float:
    """Share of the queries with labels whose predicted label is one of theirs; scores are not used.

    Predictions for queries without labels, or for queries that are not in the solution, have no influence.

    Args:
        predictions: query id -> (label, score).
        solution: query id -> its labels.

    Returns:
        The accuracy in [0, 1].

    Raises:
        ValueError: no query has a label, or a prediction is malformed.

    Source: the evaluation code published with Weyand et al. 2020 (arXiv 2004.01804).

    Example:
        >>> top1_accuracy({"a": (7, 0.9), "b": (7, 0.8)}, {"a": [7, 8], "b": [], "c": [9]})
        0.5
    """
    labels = _labels_of_queries(solution)
    queries_with_labels = _count_labelled(labels)
    predicted = {query: _label_and_score(query, prediction)[0] for query, prediction in predictions.items()}
    correct = sum(query in predicted and predicted[query] in right for query, right in labels.items())
    return correct / queries_with_labels


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
        ValueError: the solution is empty, a predicted query is not in it or has no relevant id, or k < 1.

    Source: Weyand et al. 2020 (arXiv 2004.01804), section 5.2.

    Example:
        >>> average_precisions({"a": ["x", "no", "y"]}, {"a": ["x", "y"], "b": ["z"]})
        {'a': 0.8333333333333333, 'b': 0.0}
    """
    result = {}
    for query, (hits, n_relevant) in _hits_of_queries(predictions, solution, k).items():
        if not hits:
            result[query] = 0.0
        elif not n_relevant:
            raise ValueError(
                f"Query {query!r} is predicted but has no relevant id in the solution: its AP is undefined."
            )
        else:
            found, total = 0, 0.0
            for rank, hit in enumerate(hits, start=1):
                if hit:
                    found += 1
                    total += found / rank
            result[query] = total / min(n_relevant, k)
    return result


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
        ValueError: the solution is empty, a predicted query is not in it or has no relevant id, or k < 1.

    Source: Weyand et al. 2020 (arXiv 2004.01804), section 5.2.

    Example:
        >>> mean_average_precision({"a": ["x", "no", "y"]}, {"a": ["x", "y"], "b": ["z"]})
        0.41666666666666663
    """
    values = average_precisions(predictions, solution, k)
    return math.fsum(values.values()) / len(values)


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
        ValueError: the solution is empty, a predicted query is not in it, or k < 1.

    Source: the evaluation code published with Weyand et al. 2020 (arXiv 2004.01804).

    Example:
        >>> mean_precisions({"a": ["x", "no", "y"]}, {"a": ["x", "y"], "b": ["z"]}, k=4)
        [0.5, 0.25, 0.3333333333333333, 0.25]
    """
    per_query = _hits_of_queries(predictions, solution, k)
    hits = np.zeros((len(per_query), k), dtype=np.float64)
    for row, (hit, _) in zip(hits, per_query.values(), strict=True):
        row[: len(hit)] = hit
    precisions = hits.cumsum(axis=1) / np.arange(1, k + 1)
    return [float(value) for value in precisions.mean(axis=0)]


def first_correct_ranks(predictions: Ranked, solution: Truth, k: int = 100) -> dict[Any, int]:
    """The 1-based rank of each query's first relevant id; k + 1 where none is among the first k.

    Args:
        predictions: query id -> ranked ids, best first.
        solution: query id -> relevant ids.
        k: ranks beyond k are not looked at.

    Returns:
        query id -> rank in 1 .. k + 1, in the order of the solution.

    Raises:
        ValueError: the solution is empty, a predicted query is not in it, or k < 1.

    Source: the evaluation code published with Weyand et al. 2020 (arXiv 2004.01804).

    Example:
        >>> first_correct_ranks({"a": ["no", "x", "y"]}, {"a": ["x", "y"], "b": ["z"]})
        {'a': 2, 'b': 101}
    """
    per_query = _hits_of_queries(predictions, solution, k)
    return {query: hits.index(True) + 1 if True in hits else k + 1 for query, (hits, _) in per_query.items()}


def mean_median_position(predictions: Ranked, solution: Truth, k: int = 100) -> tuple[float, float]:
    """Mean and median of `first_correct_ranks` over all queries of the solution.

    Args:
        predictions: query id -> ranked ids, best first.
        solution: query id -> relevant ids.
        k: ranks beyond k are not looked at; a query without a hit counts as k + 1.

    Returns:
        (mean, median), each in [1, k + 1].

    Raises:
        ValueError: the solution is empty, a predicted query is not in it, or k < 1.

    Source: the evaluation code published with Weyand et al. 2020 (arXiv 2004.01804).

    Example:
        >>> mean_median_position({"a": ["no", "x", "y"]}, {"a": ["x", "y"], "b": ["z"]})
        (51.5, 51.5)
    """
    ranks = list(first_correct_ranks(predictions, solution, k).values())
    return statistics.fmean(ranks), float(statistics.median(ranks))


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
        ValueError: `ranks` and `gnd` differ in length, a ranking is not made of distinct integers, none of a query's
            positives is in its ranking, no query at all has positives in a setup, or a setup or k is not valid.

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
        raise ValueError(
            f"ranks holds {len(ranks)} queries and gnd {len(gnd)}: ranks needs one ranked list per query "
            "(transpose a matrix of database images x queries)."
        )
    if any(k < 1 for k in ks):
        raise ValueError(f"Every k of P@k must be at least 1, not {list(ks)}.")
    unknown = [setup for setup in setups if setup not in _REVISITED_SETUPS]
    if unknown:
        raise ValueError(f"There is no setup {unknown[0]!r}: choose from {', '.join(_REVISITED_SETUPS)}.")
    rankings = [_ranking(query, ranked) for query, ranked in enumerate(ranks)]
    lists = [{name: _rows(query, truth, name) for name in ("easy", "hard", "junk")} for query, truth in enumerate(gnd)]

    result: dict[str, dict[str, Any]] = {}
    for setup in setups:
        positive_lists, ignored_lists = _REVISITED_SETUPS[setup]
        aps, p_at_k = [], []
        for query, (ranked, truth) in enumerate(zip(rankings, lists, strict=True)):
            positives = np.concatenate([truth[name] for name in positive_lists])
            if not len(positives):
                aps.append(math.nan)
                p_at_k.append([math.nan] * len(ks))
                continue
            judged = ranked[~np.isin(ranked, np.concatenate([truth[name] for name in ignored_lists]))]
            found = np.flatnonzero(np.isin(judged, positives))
            if not len(found):
                raise ValueError(
                    f"None of the {len(positives)} positives of query {query} ({setup}) is in its ranked list: "
                    "give longer rankings."
                )
            aps.append(_trapezoid_average_precision(found, len(positives)))
            cuts = [min(k, int(found[-1]) + 1) for k in ks]
            p_at_k.append([float(np.count_nonzero(found < cut)) / cut for cut in cuts])
        counted = [query for query, value in enumerate(aps) if not math.isnan(value)]
        if not counted:
            raise ValueError(f"No query has positives in the setup {setup!r}: leave it out of setups.")
        result[setup] = {
            "map": statistics.fmean(aps[query] for query in counted),
            "aps": aps,
            "mp_at_k": [statistics.fmean(p_at_k[query][j] for query in counted) for j in range(len(ks))],
            "p_at_k": p_at_k,
        }
    return result


def _trapezoid_average_precision(found: npt.NDArray[np.int64], n_positives: int) -> float:
    hits = np.arange(len(found), dtype=np.float64)
    # precision just before and just at each positive; before the very first image it is 1 by definition
    before = np.where(found == 0, 1.0, hits / np.maximum(found, 1))
    at = (hits + 1) / (found + 1)
    return float(((before + at) / 2).sum() / n_positives)


def _ranking(query: int, ranked: npt.ArrayLike) -> npt.NDArray[np.int64]:
    rows = np.asarray(ranked)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(
            f"The ranked list of query {query} must be one row of integers, not {rows.ndim}-d {rows.dtype}."
        )
    rows = rows.astype(np.int64)
    if len(np.unique(rows)) != len(rows):
        raise ValueError(f"The ranked list of query {query} holds a database image more than once.")
    return rows


def _rows(query: int, truth: Mapping[str, Any], name: str) -> npt.NDArray[np.int64]:
    if name not in truth:
        raise ValueError(f"The ground truth of query {query} has no list {name!r}.")
    return np.asarray(truth[name], dtype=np.int64).reshape(-1)


def _hits_of_queries(predictions: Ranked, solution: Truth, k: int) -> dict[Any, tuple[list[bool], int]]:
    """Per query of the solution: which of its first k ranks hold a new relevant id, and how many ids are relevant."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    if not solution:
        raise ValueError("The solution holds no query.")
    for query in predictions:
        if query not in solution:
            raise ValueError(f"Query {query!r} is predicted but is not in the solution.")
    result = {}
    for query in solution:
        relevant = _values(query, solution[query], "relevant ids in the solution")
        ranked = _values(query, predictions.get(query, ()), "predicted ids")[:k]
        waiting = set(relevant)
        hits = []
        for value in ranked:
            hits.append(value in waiting)
            waiting.discard(value)
        result[query] = hits, len(relevant)
    return result


def _labels_of_queries(solution: Truth) -> dict[Any, set[Hashable]]:
    return {query: set(_values(query, labels, "labels in the solution")) for query, labels in solution.items()}


def _count_labelled(labels: Mapping[Any, set[Hashable]]) -> int:
    count = sum(bool(right) for right in labels.values())
    if not count:
        raise ValueError("No query of the solution has a label: the metric is undefined.")
    return count


def _values(query: Hashable, values: Any, what: str) -> list[Hashable]:
    # a bare string would be taken apart into letters, and nothing would ever match
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"The {what} of query {query!r} must be a list, not {values!r}.")
    return [_plain(value) for value in values]


def _label_and_score(query: Hashable, prediction: Any) -> tuple[Hashable, float]:
    try:
        label, score = prediction
        score = float(score)
    except (TypeError, ValueError):
        raise ValueError(f"The prediction of query {query!r} must be (label, score), not {prediction!r}.") from None
    if math.isnan(score):
        raise ValueError(f"The score of query {query!r} is NaN: it has no place in a ranking.")
    return _plain(label), score


def _plain(value: Any) -> Hashable:
    # numpy and torch scalars become Python ones: a tensor is equal to a label but has another hash
    return value.item() if hasattr(value, "item") else value
