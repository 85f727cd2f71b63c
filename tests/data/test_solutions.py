"""Kaggle CSV files: the golden files of the reference readers, and every mistake a person can make in one."""

import csv
import json
import random
from pathlib import Path

import pytest

from landmark_retrieval.data.solutions import (
    read_recognition_predictions,
    read_recognition_solution,
    read_retrieval_predictions,
    read_retrieval_solution,
    write_recognition_predictions,
    write_retrieval_predictions,
)
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics import (
    global_average_precision,
    mean_average_precision,
    mean_median_position,
    mean_precisions,
    top1_accuracy,
)

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {"rel": 0, "abs": 1e-9}


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("usage", ["Public", "Private"])
@pytest.mark.parametrize("case", ["csv_0", "csv_1"])
def test_recognition_files_agree_with_the_reference(case, usage):
    folder = GOLDEN / "recognition_gap" / case
    everything = json.loads((folder / "expected.json").read_text())
    expected = everything[usage.lower()]
    solution = read_recognition_solution(folder / "solution.csv", usage)
    predictions = read_recognition_predictions(folder / "predictions.csv", solution)
    assert len(solution.ignored) == everything["num_ignored"]
    assert len(solution.relevant) == expected["num_queries"]
    assert len(predictions) == expected["num_predictions"]
    gap = global_average_precision(predictions, solution.relevant)
    assert gap == pytest.approx(expected["gap"], **TOLERANCE)
    gap = global_average_precision(predictions, solution.relevant, ignore_non_gt=True)
    assert gap == pytest.approx(expected["gap_ignore_non_landmark"], **TOLERANCE)
    assert top1_accuracy(predictions, solution.relevant) == pytest.approx(expected["top1_accuracy"], **TOLERANCE)


@pytest.mark.parametrize("usage", ["Public", "Private"])
@pytest.mark.parametrize("case", ["csv_0", "csv_1"])
def test_retrieval_files_agree_with_the_reference(case, usage):
    folder = GOLDEN / "retrieval_map" / case
    everything = json.loads((folder / "expected.json").read_text())
    expected = everything[usage.lower()]
    solution = read_retrieval_solution(folder / "solution.csv", usage)
    predictions = read_retrieval_predictions(folder / "predictions.csv", solution)
    assert len(solution.ignored) == everything["num_ignored"]
    assert len(solution.relevant) == expected["num_queries"]
    assert len(predictions) == expected["num_predictions"]
    assert mean_average_precision(predictions, solution.relevant) == pytest.approx(expected["map"], **TOLERANCE)
    precisions = mean_precisions(predictions, solution.relevant)
    for k, value in expected["mean_precisions_at"].items():
        assert precisions[int(k) - 1] == pytest.approx(value, **TOLERANCE)
    positions = mean_median_position(predictions, solution.relevant)
    assert positions == pytest.approx((expected["mean_position"], expected["median_position"]), **TOLERANCE)


def test_both_usages_together_are_the_default(tmp_path):
    path = write(tmp_path / "s.csv", "id,landmarks,Usage\na,1 2,Public\nb,,Private\nc,3,Ignored\n")
    solution = read_recognition_solution(path)
    assert solution.relevant == {"a": [1, 2], "b": []}
    assert solution.ignored == {"c"}
    assert solution.usage == {"a": "Public", "b": "Private", "c": "Ignored"}


def test_ignored_and_other_queries_leave_the_predictions(tmp_path):
    path = write(tmp_path / "s.csv", "id,images,Usage\na,x y,Public\nb,z,Private\nc,None,Ignored\n")
    ranked = write(tmp_path / "p.csv", "id,images\nb,z x\na,y x \n\nc,x\n")
    assert read_retrieval_predictions(ranked, read_retrieval_solution(path)) == {"b": ["z", "x"], "a": ["y", "x"]}
    assert read_retrieval_predictions(ranked, read_retrieval_solution(path, "Public")) == {"a": ["y", "x"]}
    assert list(read_retrieval_predictions(ranked)) == ["b", "a", "c"]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = write(tmp_path / "s.csv", "\ufeffid,landmarks,Usage\r\na,1,Public\r\n")
    assert read_recognition_solution(path).relevant == {"a": [1]}


def test_a_cell_longer_than_the_csv_modules_limit_is_read(tmp_path):
    limit = csv.field_size_limit()
    images = [f"{number:016x}" for number in range(10_000)]
    path = write(tmp_path / "s.csv", f"id,images,Usage\na,{' '.join(images)},Private\n")
    assert read_retrieval_solution(path).relevant == {"a": images}
    assert csv.field_size_limit() == limit


def test_what_is_written_is_read_again(tmp_path):
    rng = random.Random(0)
    labels = {f"q{i}": (rng.randint(0, 99), rng.gauss(0, 1)) for i in range(50)}
    write_recognition_predictions(tmp_path / "r.csv", {**labels, "none": None})
    assert read_recognition_predictions(tmp_path / "r.csv") == labels
    ranked = {'q"1"': ["a", "b"], "q,2": ["b"]}
    write_retrieval_predictions(tmp_path / "i.csv", {**ranked, "none": []})
    assert read_retrieval_predictions(tmp_path / "i.csv") == ranked
    assert (tmp_path / "i.csv").read_text().splitlines()[-1] == "none,"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "p.csv"
    write_retrieval_predictions(path, {"a": ["x"]})
    before = path.read_text()
    with pytest.raises(LandmarkRetrievalError, match="'two words' of query b"):
        write_retrieval_predictions(path, {"a": ["y"], "b": ["two words"]})
    with pytest.raises(LandmarkRetrievalError, match="score of query a is NaN"):
        write_recognition_predictions(path, {"a": (1, float("nan"))})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


SOLUTION = "id,landmarks,Usage\na,1,Public\n"


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_recognition_solution, "id,landmarks\na,1\n", "no column 'Usage'"),
        (read_retrieval_solution, SOLUTION, "no column 'images'"),
        (read_retrieval_solution, "", "no column 'id'"),
        (read_recognition_solution, "id,landmarks,Usage\na,1,Secret\n", "query 'a': Usage must be .* not 'Secret'"),
        (read_recognition_solution, SOLUTION + "a,2,Public\n", "line 3, query 'a': the query was already in line 2"),
        (read_recognition_solution, "id,landmarks,Usage\na,one,Public\n", "query 'a': the landmarks must be integers"),
        (read_recognition_solution, "id,landmarks,Usage\n,1,Public\n", "line 2: the id is empty"),
        (read_retrieval_solution, "id,images,Usage\na,,Public\n", "query 'a': there are no relevant images"),
        (read_retrieval_solution, "id,images,Usage\na,None,Private\n", "query 'a': there are no relevant images"),
        (read_retrieval_solution, "id,images,Usage\na,x,y,Private\n", "line 2: the row must have 3 cells"),
        (read_retrieval_predictions, "id,images\na\n", "line 2: the row must have 2 cells"),
        (read_recognition_predictions, "id,landmarks\na,1\n", "query 'a': landmarks must be \"label score\""),
        (read_recognition_predictions, "id,landmarks\na,1 0.5 2 0.4\n", "query 'a'"),
        (read_recognition_predictions, "id,landmarks\na,1 nan\n", "query 'a': the score is NaN"),
    ],
)
def test_mistakes_are_named(tmp_path, read, text, message):
    path = write(tmp_path / "file.csv", text)
    with pytest.raises(LandmarkRetrievalError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_an_unknown_query_is_named(tmp_path):
    solution = read_recognition_solution(write(tmp_path / "s.csv", SOLUTION))
    path = write(tmp_path / "p.csv", "id,landmarks\na,1 0.5\nzz,1 0.5\n")
    with pytest.raises(LandmarkRetrievalError, match="line 3, query 'zz': the solution has no such query"):
        read_recognition_predictions(path, solution)


def test_a_missing_file_and_a_file_that_is_no_text_are_named(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match=r"no solution file at .*nowhere\.csv"):
        read_retrieval_solution(tmp_path / "nowhere.csv")
    path = write(tmp_path / "s.csv", "id,images,Usage\né,x,Public\n", encoding="latin-1")
    with pytest.raises(LandmarkRetrievalError, match="not a CSV file in UTF-8"):
        read_retrieval_solution(path)


def test_only_public_and_private_can_be_asked_for(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="Usage 'Ignored'"):
        read_recognition_solution(write(tmp_path / "s.csv", SOLUTION), usage="Ignored")
