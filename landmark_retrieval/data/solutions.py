"""Solutions and predictions in the CSV format of the Google Landmarks challenges on Kaggle.

A solution has the columns `id, landmarks, Usage` (recognition) or `id, images, Usage` (retrieval), a file of
predictions `id, landmarks` ("label score") or `id, images` (ranked ids). Several values in a cell are separated by
blanks. `Usage` is Public, Private or Ignored; Ignored queries leave both the solution and the predictions.
"""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from landmark_retrieval.data.tables import read_rows
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing

USAGES = ("Public", "Private", "Ignored")

T = TypeVar("T", int, str)
V = TypeVar("V")


@dataclass(frozen=True)
class Solution(Generic[T]):
    """What a file of solutions says.

    Attributes:
        relevant: the queries that count, each with its labels (an empty list: no landmark) or relevant image ids. This
            is the `solution` of `landmark_retrieval.metrics`.
        usage: every query of the file, counted or not, with its usage; a query that is not here is unknown.
    """

    relevant: dict[str, list[T]]
    usage: dict[str, str]

    @property
    def ignored(self) -> frozenset[str]:
        """The ids of the Ignored queries."""
        return frozenset(query for query, usage in self.usage.items() if usage == "Ignored")


def read_recognition_solution(path: str | Path, usage: str | None = None) -> Solution[int]:
    """Read `id, landmarks, Usage`: for each query its landmark labels, an empty list where it shows none.

    Args:
        path: the CSV file, UTF-8 with or without a byte order mark.
        usage: "Public" or "Private" to take only these queries; by default both count.

    Raises:
        LandmarkRetrievalError: no such file, a missing column, an unknown Usage, a query twice, a label that is no
            integer.
    """

    def labels(cell: str, where: str) -> list[int]:
        try:
            return [int(label) for label in cell.split()]
        except ValueError:
            raise LandmarkRetrievalError(f"{where}: the landmarks must be integers, not {cell!r}.") from None

    return _read_solution(path, "landmarks", usage, labels)


def read_retrieval_solution(path: str | Path, usage: str | None = None) -> Solution[str]:
    """Read `id, images, Usage`: for each query the ids of the index images that show the same landmark.

    Args:
        path: the CSV file, UTF-8 with or without a byte order mark.
        usage: "Public" or "Private" to take only these queries; by default both count.

    Raises:
        LandmarkRetrievalError: no such file, a missing column, an unknown Usage, a query twice, a query without
            images that is not Ignored (its average precision is undefined).
    """

    def images(cell: str, where: str) -> list[str]:
        ids = cell.split()
        if not ids or ids == ["None"]:
            raise LandmarkRetrievalError(f"{where}: there are no relevant images; give the query the Usage Ignored.")
        return ids

    return _read_solution(path, "images", usage, images)


def read_recognition_predictions(
    path: str | Path, solution: Solution[int] | None = None
) -> dict[str, tuple[int, float]]:
    """Read `id, landmarks`, where landmarks is "label score" or empty for no prediction.

    Args:
        path: the CSV file, UTF-8 with or without a byte order mark.
        solution: what the predictions will be judged by: known queries that do not count in it are left out, an unknown
            one is an error. Without it, every row is taken.

    Returns:
        query id -> (label, score), without the queries whose cell is empty.

    Raises:
        LandmarkRetrievalError: no such file, a missing column, a query twice, a query that the solution does not know,
            a cell that is not "label score".
    """

    def label_and_score(cell: str, where: str) -> tuple[int, float]:
        try:
            label, score = cell.split()
            pair = int(label), float(score)
        except ValueError:
            raise LandmarkRetrievalError(f'{where}: landmarks must be "label score", not {cell!r}.') from None
        if math.isnan(pair[1]):
            raise LandmarkRetrievalError(f"{where}: the score is NaN, which cannot be ranked.")
        return pair

    return _read_predictions(path, "landmarks", solution, label_and_score)


def read_retrieval_predictions(path: str | Path, solution: Solution[str] | None = None) -> dict[str, list[str]]:
    """Read `id, images`, where images holds the ranked ids, best first, or is empty for no prediction.

    Args:
        path: the CSV file, UTF-8 with or without a byte order mark.
        solution: what the predictions will be judged by: known queries that do not count in it are left out, an unknown
            one is an error. Without it, every row is taken.

    Returns:
        query id -> ranked ids, without the queries whose cell is empty.

    Raises:
        LandmarkRetrievalError: no such file, a missing column, a query twice, a query that the solution does not know.
    """
    return _read_predictions(path, "images", solution, lambda cell, _: cell.split())


def write_recognition_predictions(path: str | Path, predictions: Mapping[str, tuple[int, float] | None]) -> None:
    """Write `id, landmarks`, whole or not at all; the scores keep all their digits.

    Args:
        path: the CSV file.
        predictions: query id -> (label, score), or None for an empty cell.

    Raises:
        LandmarkRetrievalError: a score is NaN.
    """
    rows = []
    for query, prediction in predictions.items():
        if prediction is not None and math.isnan(prediction[1]):
            raise LandmarkRetrievalError(f"The score of query {query} is NaN: {path} was not written.")
        rows.append((query, "" if prediction is None else f"{int(prediction[0])} {float(prediction[1])!r}"))
    _write(path, "landmarks", rows)


def write_retrieval_predictions(path: str | Path, predictions: Mapping[str, Sequence[str]]) -> None:
    """Write `id, images`, whole or not at all.

    Args:
        path: the CSV file.
        predictions: query id -> ranked ids, best first; an empty list makes an empty cell.

    Raises:
        LandmarkRetrievalError: an id is empty or holds white space, which separates ids in this format.
    """
    rows = []
    for query, images in predictions.items():
        for image in images:
            if image.split() != [image]:
                raise LandmarkRetrievalError(
                    f"Image id {image!r} of query {query} is empty or holds white space, which separates ids in this "
                    f"format: rename the photo; {path} was not written."
                )
        rows.append((query, " ".join(images)))
    _write(path, "images", rows)


def _read_solution(
    path: str | Path, column: str, usage: str | None, parse: Callable[[str, str], list[T]]
) -> Solution[T]:
    if usage not in (None, "Public", "Private"):
        raise LandmarkRetrievalError(
            f"There are no queries of Usage {usage!r} to judge: choose Public, Private or None."
        )
    relevant: dict[str, list[T]] = {}
    usages: dict[str, str] = {}
    for where, query, (cell, row_usage) in _rows(path, (column, "Usage"), "solution"):
        if row_usage not in USAGES:
            raise LandmarkRetrievalError(
                f"{where}: Usage must be {', '.join(USAGES[:-1])} or Ignored, not {row_usage!r}."
            )
        usages[query] = row_usage
        if row_usage != "Ignored" and usage in (None, row_usage):
            relevant[query] = parse(cell, where)
    return Solution(relevant, usages)


def _read_predictions(
    path: str | Path, column: str, solution: Solution[T] | None, parse: Callable[[str, str], V]
) -> dict[str, V]:
    predictions = {}
    for where, query, (cell,) in _rows(path, (column,), "predictions"):
        if solution is not None and query not in solution.usage:
            raise LandmarkRetrievalError(
                f"{where}: the solution has no such query; remove the row or take the right solution."
            )
        counted = solution is None or query in solution.relevant
        if counted and cell.strip():
            predictions[query] = parse(cell, where)
    return predictions


def _rows(path: str | Path, columns: Sequence[str], what: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield where a row stands (for errors), its query id and the cells of `columns`."""
    seen: dict[str, int] = {}
    for line, (query, *cells) in read_rows(path, ("id", *columns), what):
        where = f"{path}, line {line}, query {query!r}"
        if not query:
            raise LandmarkRetrievalError(f"{path}, line {line}: the id is empty.")
        if query in seen:
            raise LandmarkRetrievalError(f"{where}: the query was already in line {seen[query]}; remove one of them.")
        seen[query] = line
        yield where, query, cells


def _write(path: str | Path, column: str, rows: Sequence[tuple[str, str]]) -> None:
    with open_replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", column))
        writer.writerows(rows)
