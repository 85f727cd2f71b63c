from types import SimpleNamespace

import pytest
import torch

from landmark_retrieval.data.solutions import Solution
from landmark_retrieval.heads import SubCenterArcFace
from landmark_retrieval.training.validation import Described, measure

QUERIES = {"q0": (1.0, 0.0), "q1": (0.0, 1.0), "q2": (0.8, 0.6), "q3": (0.6, 0.8)}
INDEX = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.6, 0.8), "a again": (1.0, 0.0)}
# q0 finds a, "a again", c, b; q1 finds b, c, a, "a again"; q2 does not count, and nobody knows q3
RETRIEVAL = Solution({"q0": ["a", "b"], "q1": ["c"]}, {"q0": "Public", "q1": "Public", "q2": "Ignored"})
# q0 is 7 with 1.0, q1 a class that no solution knows with 1.0, q2 is 7 with 0.8
RECOGNITION = Solution({"q0": [7], "q1": [9], "q2": [7]}, dict.fromkeys(("q0", "q1", "q2"), "Public"))


def in_batches(photos, split, size):
    for start in range(0, len(photos), size):
        part = dict(list(photos.items())[start : start + size])
        yield Described(descriptors=torch.tensor(list(part.values())), ids=list(part), split=split, position=start)


def data(retrieval=RETRIEVAL, recognition=RECOGNITION):
    solutions = {"retrieval_solution": retrieval, "recognition_solution": recognition}
    return SimpleNamespace(**solutions, train=SimpleNamespace(classes=["7", "a folder"]))


@pytest.fixture
def nearest_class():
    head = SubCenterArcFace(2, 2, sub_centers=1)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        yield head.nearest_class


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned round"])
def test_the_figures_are_those_worked_out_by_hand(nearest_class, size, turned):
    described = [*in_batches(QUERIES, 0, size), *in_batches(INDEX, 1, size)]
    figures = measure(described[::-1] if turned else described, data(), nearest_class)
    average_precisions = [(1 + 2 / 4) / 2, 1 / 2]
    assert figures == {
        "val/map_at_100": pytest.approx(sum(average_precisions) / 2),
        "val/precision_at_1": pytest.approx(1 / 2),
        "val/gap": pytest.approx((1 + 2 / 3) / 3),
    }


def test_what_cannot_be_measured_is_left_out(nearest_class):
    queries, index = list(in_batches(QUERIES, 0, 4)), list(in_batches(INDEX, 1, 4))
    retrieval_alone = measure(queries + index, data(recognition=None), nearest_class)
    assert set(retrieval_alone) == {"val/map_at_100", "val/precision_at_1"}
    assert measure(queries + index, data(retrieval=None), nearest_class) == {}
    assert measure(queries, data(), nearest_class) == {}
    assert measure(index, data(), nearest_class) == {}
