"""The metrics against values of the reference code, a second plain implementation, and what must hold for any input."""

import doctest
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional import (
    average_precisions,
    first_correct_ranks,
    global_average_precision,
    mean_average_precision,
    mean_median_position,
    mean_precisions,
    recall_at_k,
    recognition,
    retrieval,
    revisited,
    revisited_average_precision,
    revisited_from_positions,
    top1_accuracy,
)

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {"rel": 0, "abs": 1e-9}


def cases(family):
    return [
        pytest.param(case, id=case["name"])
        for case in json.loads((GOLDEN / family / "cases.json").read_text(encoding="utf-8"))
    ]


def check(expected, function, *args, **kwargs):
    if isinstance(expected, dict) and "error" in expected:
        with pytest.raises(ValueError, match=r"\w"):
            function(*args, **kwargs)
    else:
        assert function(*args, **kwargs) == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("case", cases("recognition_gap"))
def test_recognition_agrees_with_the_reference(case):
    predictions = {row["id"]: (row["class"], row["score"]) for row in case["predictions"]}
    solution, expected = case["solution"], case["expected"]
    check(expected["gap"], global_average_precision, predictions, solution)
    check(expected["gap_ignore_non_landmark"], global_average_precision, predictions, solution, ignore_non_gt=True)
    check(expected["top1_accuracy"], top1_accuracy, predictions, solution)


@pytest.mark.parametrize("case", cases("retrieval_map"))
def test_retrieval_agrees_with_the_reference(case):
    predictions = {row["id"]: row["images"] for row in case["predictions"]}
    solution, expected, k = case["solution"], case["expected"], case["max_predictions"]
    check(expected["map"], mean_average_precision, predictions, solution, k)
    check(expected["mean_precisions"], mean_precisions, predictions, solution, k)
    check(expected["mean_position"], lambda *args: mean_median_position(*args)[0], predictions, solution, k)
    check(expected["median_position"], lambda *args: mean_median_position(*args)[1], predictions, solution, k)


@pytest.mark.parametrize("case", cases("revisited"))
def test_revisited_agrees_with_the_reference(case):
    ranks, gnd, ks = case["ranks_by_query"], case["gnd"], case["kappas"]
    for setup, expected in case["expected"].items():
        if "error" in expected:
            with pytest.raises(ValueError, match=setup):
                revisited_average_precision(ranks, gnd, ks, setups=[setup])
            with pytest.raises(ValueError, match=r"\w"):
                revisited_average_precision(ranks, gnd, ks)
            continue
        result = revisited_average_precision(np.array(ranks), gnd, ks, setups=[setup])[setup]
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            wanted = np.array(value, dtype=np.float64)  # null becomes NaN
            np.testing.assert_allclose(np.array(result[name]), wanted, rtol=0, atol=1e-9, err_msg=name)


def test_revisited_judges_all_setups_at_once():
    case = json.loads((GOLDEN / "revisited" / "cases.json").read_text(encoding="utf-8"))[0]
    result = revisited_average_precision(case["ranks_by_query"], case["gnd"])
    assert list(result) == ["easy", "medium", "hard"]
    for setup in result:
        assert result[setup]["map"] == pytest.approx(case["expected"][setup]["map"], **TOLERANCE)


def plain_average_precision(ranked, relevant, k):
    total = 0.0
    for i in range(1, min(len(ranked), k) + 1):
        if ranked[i - 1] in relevant and ranked[i - 1] not in ranked[: i - 1]:
            total += len(set(ranked[:i]) & set(relevant)) / i
    return total / min(len(relevant), k)


def random_retrieval(seed, queries=30):
    rng = random.Random(seed)
    ids = [f"{number:03x}" for number in range(80)]
    solution = {f"q{i}": rng.sample(ids, rng.randint(1, 30)) for i in range(queries)}
    predictions = {query: rng.choices(ids, k=rng.randint(0, 60)) for query in solution if rng.random() < 0.9}
    return predictions, solution


@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_mean_average_precision_agrees_with_plain_loops(k):
    predictions, solution = random_retrieval(seed=k)
    expected = [plain_average_precision(predictions.get(query, []), solution[query], k) for query in solution]
    assert list(average_precisions(predictions, solution, k).values()) == pytest.approx(expected, **TOLERANCE)
    assert mean_average_precision(predictions, solution, k) == pytest.approx(np.mean(expected), **TOLERANCE)


def test_precisions_and_positions_agree_with_plain_loops():
    predictions, solution = random_retrieval(seed=7)
    for k, value in enumerate(mean_precisions(predictions, solution, 40), start=1):
        plain = [len(set(predictions.get(query, [])[:k]) & set(solution[query])) / k for query in solution]
        assert value == pytest.approx(np.mean(plain), **TOLERANCE)
    for query, rank in first_correct_ranks(predictions, solution, 40).items():
        ranked = predictions.get(query, [])
        plain_rank = next((i for i, image in enumerate(ranked[:40], start=1) if image in solution[query]), 41)
        assert rank == plain_rank
    for k, value in recall_at_k(predictions, solution, (1, 5, 40)).items():
        plain = [bool(set(predictions.get(query, [])[:k]) & set(solution[query])) for query in solution]
        assert value == pytest.approx(np.mean(plain), **TOLERANCE)


def test_a_hit_moved_forward_never_lowers_the_average_precision():
    rng = random.Random(3)
    for _ in range(50):
        ranked = [f"n{i}" for i in range(30)] + [f"r{i}" for i in range(10)]
        rng.shuffle(ranked)
        relevant = [f"r{i}" for i in range(10)]
        at = rng.choice([i for i, image in enumerate(ranked) if i and image in relevant])
        better = [*ranked[: at - 1], ranked[at], ranked[at - 1], *ranked[at + 1 :]]
        solution = {"q": relevant}
        before, after = (mean_average_precision({"q": images}, solution) for images in (ranked, better))
        assert 0 <= before <= after <= 1


def test_gap_ranks_ties_by_query_id_as_a_string():
    solution = {"q9": [1], "q10": [2]}
    # "q10" < "q9", so its wrong prediction stands first
    assert global_average_precision({"q9": (1, 0.5), "q10": (1, 0.5)}, solution) == pytest.approx(0.25)
    assert global_average_precision({"q9": (2, 0.5), "q10": (2, 0.5)}, solution) == pytest.approx(0.5)


def test_gap_depends_only_on_the_order_of_the_scores():
    rng = random.Random(5)
    solution = {f"{i:02d}": [rng.randint(0, 3)] if rng.random() < 0.6 else [] for i in range(60)}
    predictions = {query: (rng.randint(0, 3), rng.gauss(0, 1)) for query in solution}
    moved = {query: (label, math.exp(3 * score)) for query, (label, score) in predictions.items()}
    assert global_average_precision(moved, solution) == global_average_precision(predictions, solution)


def test_numpy_and_torch_scalars_count_like_python_ones():
    torch = pytest.importorskip("torch")
    solution = {"a": np.array([3, 4]), "b": torch.tensor([5])}
    predictions = {"a": (torch.tensor(4), np.float32(0.5)), "b": (np.int64(5), torch.tensor(0.25))}
    assert global_average_precision(predictions, solution) == 1.0
    assert top1_accuracy(predictions, solution) == 1.0
    assert mean_average_precision({"a": torch.tensor([4, 3]), "b": np.array([5])}, solution) == 1.0


@pytest.mark.parametrize(
    ("function", "predictions", "solution", "message"),
    [
        (global_average_precision, {"x": (1, 0.5)}, {"a": [1]}, "'x' is predicted but is not"),
        (global_average_precision, {"a": (1, math.nan)}, {"a": [1]}, "score of query 'a' is NaN"),
        (global_average_precision, {"a": 1}, {"a": [1]}, r"prediction of query 'a' must be \(label, score\)"),
        (global_average_precision, {"a": (1, "high")}, {"a": [1]}, "prediction of query 'a'"),
        (global_average_precision, {}, {"a": "12"}, "labels in the solution of query 'a' must be a list"),
        (global_average_precision, {}, {"a": 12}, "labels in the solution of query 'a' must be a list"),
        (top1_accuracy, {}, {"a": []}, "has a label"),
        (mean_average_precision, {"x": ["1"]}, {"a": ["1"]}, "'x' is predicted but is not"),
        (mean_average_precision, {"a": "1 2"}, {"a": ["1"]}, "predicted ids of query 'a' must be a list"),
        (mean_average_precision, {"a": ["1"]}, {"a": []}, "'a' is predicted but has no relevant id"),
        (mean_precisions, {}, {}, "holds no query"),
        (first_correct_ranks, {"x": ["1"]}, {"a": ["1"]}, "'x' is predicted"),
        (recall_at_k, {"x": ["1"]}, {"a": ["1"]}, "'x' is predicted"),
    ],
)
def test_errors_name_the_query(function, predictions, solution, message):
    with pytest.raises(ValueError, match=message):
        function(predictions, solution)


@pytest.mark.parametrize(
    ("ranks", "kwargs", "message"),
    [
        (np.zeros((5, 2), dtype=int), {}, "transpose"),
        ([[0, 1, 1]], {}, "query 0 holds a database image more than once"),
        ([["a", "b"]], {}, "query 0 must be one row of integers"),
        ([[0, 1, 2]], {"ks": (0,)}, "at least 1"),
        ([[0, 1, 2]], {"setups": ("tough",)}, "no setup 'tough'"),
    ],
)
def test_revisited_errors(ranks, kwargs, message):
    with pytest.raises(ValueError, match=message):
        revisited_average_precision(ranks, [{"easy": [0], "hard": [1], "junk": []}], **kwargs)


def test_revisited_from_the_places_of_the_positives_alone():
    # a positive of three that was never found; a query of which none was found; one without positives
    result = revisited_from_positions([[0, 2], [], []], [3, 2, 0], ks=(1, 5))
    assert result["aps"] == pytest.approx([(1 + (1 / 2 + 2 / 3) / 2) / 3, 0.0, math.nan], nan_ok=True)
    assert result["map"] == pytest.approx(result["aps"][0] / 2)
    assert result["mp_at_k"] == pytest.approx([1 / 2, (2 / 3) / 2])
    for positions, counts, message in (
        ([[1, 1]], [2], "rising ranks"),
        ([[0, 1]], [1], "at most 1 rising"),
        ([[-1]], [1], "rising ranks from 0"),
        ([[]], [0], "No query has positives"),
        ([[0]], [1, 1], "1 queries, but 2 counts"),
    ):
        with pytest.raises(ValueError, match=message):
            revisited_from_positions(positions, counts)


def test_revisited_names_a_missing_list():
    with pytest.raises(ValueError, match="query 0 has no list 'junk'"):
        revisited_average_precision([[0, 1]], [{"easy": [0], "hard": [1]}])


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k must be at least 1"):
        mean_average_precision({}, {"a": ["1"]}, k=0)
    for ks in ((), (0, 5)):
        with pytest.raises(ValueError, match="Every k of recall@k must be at least 1"):
            recall_at_k({}, {"a": ["1"]}, ks)


def test_docstring_examples():
    results = [doctest.testmod(module) for module in (recognition, retrieval, revisited)]
    assert sum(result.attempted for result in results) >= 9
    assert not any(result.failed for result in results)


def test_what_is_no_id_or_label_is_refused():
    for prediction in (([7], 0.5), (np.array([7, 8]), 0.5)):
        with pytest.raises(LandmarkRetrievalError, match="one number or name"):
            global_average_precision({"a": prediction}, {"a": [7]})
    with pytest.raises(LandmarkRetrievalError, match="one number or name"):
        mean_average_precision({"a": [["x"]]}, {"a": ["x"]})


def test_ranks_may_be_tensors_and_end_with_minus_one():
    gnd = [{"easy": [0], "hard": [1], "junk": [4]}]
    wanted = revisited_average_precision([[4, 0, 3, 1, 2]], gnd)
    found = revisited_average_precision(torch.tensor([[4, 0, 3, 1, 2, -1, -1]]), gnd)
    assert found == wanted
    scored = {"a": (7, torch.tensor(0.9, requires_grad=True))}
    assert global_average_precision(scored, {"a": [7]}) == 1.0
