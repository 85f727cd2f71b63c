"""Recognition: one label and score for each query, judged by GAP and by the share of right labels."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional.inputs import Recognized, Truth, plain_value, plain_values


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
        LandmarkRetrievalError: no query has a label, a predicted query is not in the solution, or a prediction is
            malformed.

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
            raise LandmarkRetrievalError(f"Query {query!r} is predicted but is not in the solution.")
        label, score = label_and_score(query, prediction)
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
        LandmarkRetrievalError: no query has a label, or a prediction is malformed.

    Source: the evaluation code published with Weyand et al. 2020 (arXiv 2004.01804).

    Example:
        >>> top1_accuracy({"a": (7, 0.9), "b": (7, 0.8)}, {"a": [7, 8], "b": [], "c": [9]})
        0.5
    """
    labels = _labels_of_queries(solution)
    queries_with_labels = _count_labelled(labels)
    predicted = {query: label_and_score(query, prediction)[0] for query, prediction in predictions.items()}
    correct = sum(query in predicted and predicted[query] in right for query, right in labels.items())
    return correct / queries_with_labels


def _labels_of_queries(solution: Truth) -> dict[Any, set[Hashable]]:
    return {query: set(plain_values(query, labels, "labels in the solution")) for query, labels in solution.items()}


def _count_labelled(labels: Mapping[Any, set[Hashable]]) -> int:
    count = sum(bool(right) for right in labels.values())
    if not count:
        raise LandmarkRetrievalError("No query of the solution has a label: the metric is undefined.")
    return count


def label_and_score(query: Hashable, prediction: Any) -> tuple[Hashable, float]:
    """A prediction as plain values. LandmarkRetrievalError if it is no pair, or its score no number."""
    try:
        label, score = prediction
        score = float(score.item() if hasattr(score, "item") else score)
    except (TypeError, ValueError):
        raise LandmarkRetrievalError(
            f"The prediction of query {query!r} must be (label, score), not {prediction!r}."
        ) from None
    if math.isnan(score):
        raise LandmarkRetrievalError(f"The score of query {query!r} is NaN: it has no place in a ranking.")
    return plain_value(label), score
