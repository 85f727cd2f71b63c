"""What was found -> figures, for metrics.json, and figures -> a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landmark_retrieval.columns import aligned
from landmark_retrieval.data.dataset import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from landmark_retrieval.data.importers.gldv2 import csv_file
from landmark_retrieval.data.places import LocalPlace, place
from landmark_retrieval.data.solutions import (
    Solution,
    read_recognition_predictions,
    read_recognition_solution,
    read_retrieval_predictions,
    read_retrieval_solution,
)
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics import functional as metrics
from landmark_retrieval.metrics.functional.revisited import SETUPS, count_positives

TOP = 100
"""Ranks that count in the challenges."""

KS = (1, 5, 10)

# name in metrics.json -> name in a table
_NAMES = {
    "map_at_100": "mAP@100",
    "precision_at_1": "P@1",
    "precision_at_10": "P@10",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_10": "recall@10",
    "mean_position": "mean position",
    "median_position": "median position",
    "gap": "GAP",
    "gap_ignore_non_landmarks": "GAP, landmarks only",
    "top1_accuracy": "top-1 accuracy",
    "map": "mAP",
    "mp_at_1": "mP@1",
    "mp_at_5": "mP@5",
    "mp_at_10": "mP@10",
}
_POSITIONS = ("mean_position", "median_position")
_SPLITS = ("public", "private")


def retrieval_figures(ranked: Mapping[str, Sequence[str]], solution: Solution[str]) -> dict[str, Any]:
    """Judge ranked lists.

    Args:
        ranked: query id -> index ids, best first; queries that do not count may be there.
        solution: what is right.

    Returns:
        `queries` (how many count), `map_at_100`, `precision_at_1`, `precision_at_10`, `recall_at_1`, `recall_at_5`,
        `recall_at_10`, `mean_position` and `median_position` of the first right photo (101 where none is among the
        first 100), `mean_precisions` (at 1, 2, ..., 100); and where there are Public and Private queries, the same for
        each of them as `public` and `private`. Shares are fractions in [0, 1].

    Raises:
        LandmarkRetrievalError: no query counts.
    """

    def figures(relevant: Mapping[str, list[str]]) -> dict[str, Any]:
        found = {query: ranked[query] for query in relevant if query in ranked}
        precisions = metrics.mean_precisions(found, relevant, TOP)
        mean, median = metrics.mean_median_position(found, relevant, TOP)
        return {
            "queries": len(relevant),
            "map_at_100": metrics.mean_average_precision(found, relevant, TOP),
            "precision_at_1": precisions[0],
            "precision_at_10": precisions[9],
            **{f"recall_at_{k}": value for k, value in metrics.recall_at_k(found, relevant, KS).items()},
            "mean_position": mean,
            "median_position": median,
            "mean_precisions": precisions,
        }

    return figures(solution.relevant) | {name: figures(part) for name, part in _splits(solution).items()}


def recognition_figures(predictions: Mapping[str, tuple[int, float]], solution: Solution[int]) -> dict[str, Any]:
    """Judge recognised landmarks.

    Args:
        predictions: query id -> (label, score); queries that do not count may be there.
        solution: what is right.

    Returns:
        `queries` (how many count), `gap`, `gap_ignore_non_landmarks`, `top1_accuracy`; and where there are Public and
        Private queries with landmarks, the same for each of them as `public` and `private`.

    Raises:
        LandmarkRetrievalError: no query that counts has a landmark.
    """

    def figures(labels: Mapping[str, list[int]]) -> dict[str, Any]:
        found = {query: predictions[query] for query in labels if query in predictions}
        return {
            "queries": len(labels),
            "gap": metrics.global_average_precision(found, labels),
            "gap_ignore_non_landmarks": metrics.global_average_precision(found, labels, ignore_non_gt=True),
            "top1_accuracy": metrics.top1_accuracy(found, labels),
        }

    splits = {name: part for name, part in _splits(solution).items() if any(part.values())}
    return figures(solution.relevant) | {name: figures(part) for name, part in splits.items()}


def revisited_figures(
    positions: Mapping[str, Sequence[np.ndarray]], relevant: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[float]]:
    """Judge rankings of Revisited Oxford and Paris.

    Args:
        positions: setup -> per query the ranks of its positives, see `revisited.rank_positives`.
        relevant: of the ground truth.

    Returns:
        `queries`, and for `easy`, `medium` and `hard` their `map`, `mp_at_1`, `mp_at_5`, `mp_at_10`, in [0, 1]; a setup
        in which no query has positives is not there. Then the AP of each query in Medium, NaN without positives.
    """
    report: dict[str, Any] = {"queries": len(relevant)}
    average_precision = [float("nan")] * len(relevant)
    for setup in SETUPS:
        counts = [count_positives(query, truth, setup) for query, truth in enumerate(relevant)]
        if not any(counts):
            continue
        found = metrics.revisited_from_positions(positions[setup], counts, KS)
        precisions = {f"mp_at_{k}": value for k, value in zip(KS, found["mp_at_k"], strict=True)}
        report[setup] = {"map": found["map"], **precisions}
        if setup == "medium":
            average_precision = found["aps"]
    return report, average_precision


def judge_predictions(path: str | Path, data: str | Path) -> dict[str, Any]:
    """Judge a CSV of predictions in the format of the challenges on Kaggle.

    Args:
        path: columns id and images, or id and landmarks.
        data: folder or URL with the solution, retrieval_solution.csv or recognition_solution.csv.

    Returns:
        What `retrieval_figures` says, or `recognition` with what `recognition_figures` says.

    Raises:
        LandmarkRetrievalError: it is neither of the two, there is no such solution, or one of the files is not what it
            should be (the query is named).
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            columns = {name.strip() for name in next(csv.reader(file), [])}
    except (FileNotFoundError, IsADirectoryError):
        raise LandmarkRetrievalError(f"There is no predictions file at {path}: give the path of a CSV file.") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise LandmarkRetrievalError(f"The predictions file {path} is not a CSV file in UTF-8 ({error}).") from None
    kinds = columns & {"images", "landmarks"}
    if len(kinds) != 1:
        raise LandmarkRetrievalError(
            f"The first line of {path} must have the columns id,images (retrieval) or id,landmarks (recognition), not "
            f"{','.join(sorted(columns)) or 'nothing'}."
        )
    if kinds == {"images"}:
        retrieval = read_retrieval_solution(_solution_file(data, RETRIEVAL_SOLUTION))
        return retrieval_figures(read_retrieval_predictions(path, retrieval), retrieval)
    recognition = read_recognition_solution(_solution_file(data, RECOGNITION_SOLUTION))
    return {"recognition": recognition_figures(read_recognition_predictions(path, recognition), recognition)}


def scalars(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report over all queries that are one number each, by names of their own."""
    found = {name: value for name, value in report.items() if name in _NAMES}
    for setup in SETUPS:
        found |= {f"{name}_{setup}": value for name, value in report.get(setup, {}).items()}
    found |= {f"recognition_{name}": v for name, v in report.get("recognition", {}).items() if name in _NAMES}
    return found


def table(report: Mapping[str, Any]) -> list[str]:
    """A report as lines: shares in percent, positions as ranks."""
    lines: list[str] = []
    if "map_at_100" in report:
        lines += _columns("retrieval", {"all": report, **_parts(report, _SPLITS)})
    if setups := _parts(report, SETUPS):
        lines += _columns("retrieval", setups)
    if "recognition" in report:
        found = report["recognition"]
        lines += [""] * bool(lines) + _columns("recognition", {"all": found, **_parts(found, _SPLITS)})
    return lines


def _parts(report: Mapping[str, Any], names: Sequence[str] | Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: report[name] for name in names if name in report}


def _columns(title: str, columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [[title, *columns]]
    for name in next(iter(columns.values())):
        if name in _NAMES:
            factor = 1 if name in _POSITIONS else 100
            rows.append([_NAMES[name], *(f"{factor * column[name]:.2f}" for column in columns.values())])
    if all("queries" in column for column in columns.values()):
        rows.append(["queries", *(f"{column['queries']:,}" for column in columns.values())])
    return aligned(rows, right=range(1, len(rows[0])))


def _splits(solution: Solution[Any]) -> dict[str, dict[str, list[Any]]]:
    """The queries of each usage, where both are there."""
    parts: dict[str, dict[str, list[Any]]] = {name: {} for name in _SPLITS}
    for query, relevant in solution.relevant.items():
        parts[solution.usage[query].lower()][query] = relevant
    return parts if all(parts.values()) else {}


def _solution_file(data: str | Path, name: str) -> Path:
    root = place(data)
    if isinstance(root, LocalPlace):
        path = csv_file(root.path, name)
        if path.exists():
            return path
    elif root.has(name):
        return root.file(name)
    raise LandmarkRetrievalError(f"{data} holds no {name}, so there is nothing to compare with: name its folder.")
