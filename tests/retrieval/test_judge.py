import json
import shutil

import pytest

from landmark_retrieval.data.solutions import Solution
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.judge import (
    judge_predictions,
    recognition_figures,
    retrieval_figures,
    scalars,
    table,
)


def files(golden, family, case, folder):
    """The folder with the solution under its usual name, the predictions, and the expected values."""
    name = {"retrieval_map": "retrieval_solution.csv", "recognition_gap": "recognition_solution.csv"}[family]
    shutil.copy(golden / family / case / "solution.csv", folder / name)
    return (
        golden / family / case / "predictions.csv",
        json.loads((golden / family / case / "expected.json").read_text()),
    )


@pytest.mark.parametrize("case", ["csv_0", "csv_1"])
def test_a_file_of_retrieval_predictions(golden, tmp_path, case):
    path, expected = files(golden, "retrieval_map", case, tmp_path)
    report = judge_predictions(path, tmp_path)
    for usage in ("public", "private"):
        wanted = expected[usage]
        assert report[usage]["queries"] == wanted["num_queries"]
        assert report[usage]["map_at_100"] == pytest.approx(wanted["map"], abs=1e-9)
        for k, value in wanted["mean_precisions_at"].items():
            assert report[usage]["mean_precisions"][int(k) - 1] == pytest.approx(value, abs=1e-9)
        assert report[usage]["precision_at_10"] == report[usage]["mean_precisions"][9]
        assert report[usage]["mean_position"] == pytest.approx(wanted["mean_position"], abs=1e-9)
        assert report[usage]["median_position"] == pytest.approx(wanted["median_position"], abs=1e-9)
    # all queries together: the mean over both parts
    parts = [report[usage] for usage in ("public", "private")]
    for name in ("map_at_100", "recall_at_5", "mean_position"):
        mean = sum(part[name] * part["queries"] for part in parts) / report["queries"]
        assert report[name] == pytest.approx(mean, abs=1e-12)
    assert 0 <= report["recall_at_1"] <= report["recall_at_5"] <= report["recall_at_10"] <= 1
    assert report["recall_at_1"] == pytest.approx(report["precision_at_1"])


@pytest.mark.parametrize("case", ["csv_0", "csv_1"])
def test_a_file_of_recognition_predictions(golden, tmp_path, case):
    path, expected = files(golden, "recognition_gap", case, tmp_path)
    report = judge_predictions(path, tmp_path)["recognition"]
    for usage in ("public", "private"):
        wanted = expected[usage]
        assert report[usage]["gap"] == pytest.approx(wanted["gap"], abs=1e-9)
        assert report[usage]["gap_ignore_non_landmarks"] == pytest.approx(wanted["gap_ignore_non_landmark"], abs=1e-9)
        assert report[usage]["top1_accuracy"] == pytest.approx(wanted["top1_accuracy"], abs=1e-9)


def test_files_as_google_landmarks_names_them(golden, tmp_path):
    path, _ = files(golden, "retrieval_map", "csv_0", tmp_path)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "retrieval_solution.csv").rename(tmp_path / "metadata" / "retrieval_solution_v2.1.csv")
    assert judge_predictions(path, tmp_path)["queries"] > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,images\nnobody,a b\n", "query 'nobody': the solution has no such query"),
        ("id,images\nq1,a\nq2,a\nq1,b\n", "line 4, query 'q1': the query was already in line 2"),
        ("id,landmarks\nq1,7\n", "query 'q1': landmarks must be \"label score\""),
        ("id,landmarks\nq1,7 nan\n", "query 'q1': the score is NaN"),
        ("id,photos\nq1,a\n", "must have the columns id,images .* not id,photos"),
        ("id,images,landmarks\nq1,a,3 1\n", "must have the columns"),
        ("", "not nothing"),
        (b"\xff\xfe\x00", "is not a CSV file in UTF-8"),
    ],
)
def test_files_against_the_rules(tmp_path, content, message):
    (tmp_path / "retrieval_solution.csv").write_text("id,images,Usage\nq1,a b,Public\nq2,c,Private\n")
    (tmp_path / "recognition_solution.csv").write_text("id,landmarks,Usage\nq1,7,Public\nq2,,Private\n")
    path = tmp_path / "predictions.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LandmarkRetrievalError, match=message):
        judge_predictions(path, tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="no predictions file at"):
        judge_predictions(tmp_path / "p.csv", tmp_path)
    (tmp_path / "p.csv").write_text("id,images\n")
    with pytest.raises(LandmarkRetrievalError, match=r"holds no retrieval_solution\.csv"):
        judge_predictions(tmp_path / "p.csv", tmp_path)


def test_queries_that_do_not_count_change_nothing():
    solution = Solution({"a": ["x"], "b": ["y"]}, {"a": "Public", "b": "Public", "c": "Ignored"})
    report = retrieval_figures({"a": ["x"], "c": ["z"]}, solution)
    assert (report["map_at_100"], report["queries"]) == (0.5, 2)
    assert "public" not in report  # all of them are
    landmarks = Solution({"a": [3], "b": []}, {"a": "Public", "b": "Private", "c": "Ignored"})
    found = recognition_figures({"a": (3, 0.5), "b": (3, 0.75), "c": (9, 1.0)}, landmarks)
    assert (found["gap"], found["gap_ignore_non_landmarks"], found["top1_accuracy"]) == (0.5, 1.0, 1.0)
    assert found["public"]["gap"] == 1.0
    assert "private" not in found  # without a landmark GAP is undefined


def test_table_and_scalars():
    solution = Solution({"a": ["x"], "b": ["y"]}, {"a": "Public", "b": "Private"})
    report = retrieval_figures({"a": ["n", "x"], "b": ["y"]}, solution)
    report["recognition"] = recognition_figures({"a": (3, 0.5)}, Solution({"a": [3]}, {"a": "Public"}))
    rows = [line.split("  ") for line in table(report)]
    cells = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert cells["retrieval"] == ["all", "public", "private"]
    assert cells["mAP@100"] == ["75.00", "50.00", "100.00"]
    assert cells["mean position"] == ["1.50", "2.00", "1.00"]
    assert cells["GAP"] == ["100.00"]
    found = scalars(report)
    assert (found["map_at_100"], found["recognition_gap"]) == (0.75, 1.0)
    assert all(isinstance(value, float) for value in found.values())
    setups = {name: {"map": value, "mp_at_1": 1.0} for name, value in (("easy", 0.5), ("hard", 0.25))}
    assert table({"queries": 3, **setups})[1].split() == ["mAP", "50.00", "25.00"]
    assert scalars(setups) == {"map_easy": 0.5, "mp_at_1_easy": 1.0, "map_hard": 0.25, "mp_at_1_hard": 1.0}
