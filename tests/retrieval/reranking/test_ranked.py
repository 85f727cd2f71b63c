"""Ranked lists: what is refused, with the query, row or option named, and the order of equal scores."""

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking.ranked import (
    RankedLists,
    checked,
    given_back,
    in_order,
    require_at_least_one,
)

CHUNK = (1024, 16384)


def check(lists, scores=None, queries=2, rows=5, top=None, chunk=CHUNK, **options):
    lists = np.array(lists)
    scores = np.zeros(lists.shape, np.float32) if scores is None else scores
    return checked((lists, scores), np.eye(queries, 4), np.ones((rows, 4)), top, chunk, **options)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[0, 1], [2, 5]], "query 1 names row 5 at place 1, outside the index of 5 rows"),
        ([[0, -2], [2, 3]], "query 0 names row -2 at place 1"),
        ([[0, 1], [-1, 3]], "query 1 names row -1 at place 0"),
        ([[0, 1], [-1, -1]], "list of query 1 is empty"),
        ([[0, 1, 4], [2, 3, 2]], "query 1 names row 2 twice"),
        ([[0, 1]], "2 queries need lists of 2 rows"),
        ([0, 1], "2 queries need lists of 2 rows"),
        ([[], []], "integers"),
        ([[0.0, 1.0], [2.0, 3.0]], "integers"),
        ([[True, False], [True, False]], "integers"),
    ],
)
def test_lists_that_do_not_fit_are_refused(lists, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        check(lists)


def test_lists_without_rows_are_refused():
    with pytest.raises(LandmarkRetrievalError, match="empty"):
        check(np.empty((2, 0), np.int64))


def test_scores_must_have_the_shape_of_the_lists():
    with pytest.raises(LandmarkRetrievalError, match=r"\(2, 2\).*\(2, 3\)"):
        check([[0, 1], [2, 3]], np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"top": 0}, "top"), ({"n": 0}, "n must be at least 1, not 0"), ({"k1": -3}, "k1"), ({"chunk": (0, 1)}, "chunk")],
)
def test_options_below_one_are_refused(arguments, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        check([[0, 1], [2, 3]], **arguments)


def test_descriptors_must_fit_and_be_finite():
    lists = np.zeros((1, 1), np.int64), np.zeros((1, 1))
    with pytest.raises(LandmarkRetrievalError, match="same d"):
        checked(lists, np.ones((1, 3)), np.ones((4, 2)), None, CHUNK)
    with pytest.raises(LandmarkRetrievalError, match="holds no rows"):
        checked(lists, np.ones((1, 3)), np.ones((0, 3)), None, CHUNK)
    with pytest.raises(LandmarkRetrievalError, match="Row 0 of the queries"):
        checked(lists, np.full((1, 3), np.nan), np.ones((4, 3)), None, CHUNK)


def test_what_is_right_comes_through():
    lists, query, top = check([[0, 4], [3, -1]])
    assert lists.tolist() == [[0, 4], [3, -1]] and lists.dtype == torch.int64
    assert query.dtype == torch.float32 and top == 2
    assert check([[0, 4], [3, -1]], top=9).top == 9
    assert check(np.empty((0, 3), np.int32), queries=0).lists.shape == (0, 3)
    require_at_least_one(n=1)


def test_equal_scores_stand_in_the_order_of_rows():
    lists, scores = torch.tensor([[7, 2, 9, 4]]), torch.tensor([[0.5, 0.5, 0.8, 0.5]])
    rows, values = in_order(lists, scores, 3)
    assert rows.tolist() == [[9, 2, 4]]
    assert values[0].tolist() == pytest.approx([0.8, 0.5, 0.5])


def test_given_back_in_the_kind_of_the_queries():
    with torch.inference_mode():
        lists, scores = torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.25]])
    arrays = given_back(lists, scores, np.ones((1, 2)))
    assert isinstance(arrays, RankedLists)
    assert isinstance(arrays.indices, np.ndarray) and isinstance(arrays.scores, np.ndarray)
    tensors = given_back(lists, scores, torch.ones(1, 2))
    tensors.scores.mul_(2)
    assert tensors.scores.tolist() == [[1.0, 0.5]] and scores.tolist() == [[0.5, 0.25]]
