"""Query expansion and database augmentation against loops over the formulas of the papers."""

import doctest

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking import expansion
from landmark_retrieval.retrieval.reranking.expansion import alpha_query_expansion, augment, database_augmentation
from landmark_retrieval.retrieval.search import exact_search


def unit_rows(seed, rows, dim=16):
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


QUERY, INDEX = unit_rows(0, 9), unit_rows(1, 60)


def sorted_lists(query, index, top):
    scores = query @ index.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return order, np.take_along_axis(scores, order, axis=1)


def moved(row, others, alpha, include=True):
    total = row.astype(np.float64) * include
    for other in others:
        cosine = max(float(row.astype(np.float64) @ other), 0.0)
        total = total + (1.0 if alpha == 0 else cosine**alpha) * other
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("n", "alpha"), [(1, 3.0), (5, 3.0), (5, 0.0), (20, 0.5), (99, 1)])
def test_expansion_follows_the_formula(n, alpha, rounds, include):
    ranked = exact_search(QUERY, INDEX, 20)
    lists, query = ranked[0], QUERY.astype(np.float64)
    for _ in range(rounds):
        query = np.array([moved(q, INDEX[row[:n]], alpha, include) for q, row in zip(query, lists, strict=True)])
        lists, _ = sorted_lists(query, INDEX, n)
    wanted, wanted_scores = sorted_lists(query, INDEX, 25)
    options = {"n": n, "alpha": alpha, "rounds": rounds, "include_query": include, "top": 25}
    indices, scores = alpha_query_expansion(ranked, QUERY, INDEX, **options)
    if n <= 20:  # beyond the first list the rounds have more to add than the loop was given
        np.testing.assert_array_equal(indices, wanted)
        np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)
    else:
        first = alpha_query_expansion(ranked, QUERY, INDEX, **options | {"n": 20, "rounds": 1})
        np.testing.assert_array_equal(
            alpha_query_expansion(ranked, QUERY, INDEX, **options | {"rounds": 1}).indices, first.indices
        )


def test_the_order_of_the_list_counts_and_not_its_scores():
    indices, scores = exact_search(QUERY, INDEX, 20)
    plain = alpha_query_expansion((indices, scores), QUERY, INDEX, n=5)
    same = alpha_query_expansion((indices, np.zeros_like(scores)), QUERY, INDEX, n=5)
    np.testing.assert_array_equal(plain.scores, same.scores)
    other = alpha_query_expansion((indices[:, ::-1].copy(), scores), QUERY, INDEX, n=5)
    assert (other.scores != plain.scores).any()


def test_rows_that_point_away_leave_the_query_as_it_is():
    away = np.argsort(QUERY @ INDEX.T, axis=1)[:, :4]
    assert (np.take_along_axis(QUERY @ INDEX.T, away, axis=1) < 0).all()
    wanted = exact_search(QUERY, INDEX, 10)
    for include in (True, False):
        found = alpha_query_expansion((away, away * 0.0), QUERY, INDEX, n=4, top=10, include_query=include)
        np.testing.assert_array_equal(found.indices, wanted[0])
        np.testing.assert_allclose(found.scores, wanted[1], atol=1e-6)


def test_the_end_of_a_shorter_list_is_not_a_row():
    lists = exact_search(QUERY, INDEX, 6)[0]
    padded = lists.copy()
    padded[:, 3:] = -1
    found = alpha_query_expansion((padded, padded * 0.0), QUERY, INDEX, n=6, alpha=0)
    wanted = alpha_query_expansion((lists, lists * 0.0), QUERY, INDEX, n=3, alpha=0)
    np.testing.assert_array_equal(found.scores, wanted.scores)


@pytest.mark.parametrize(("n", "alpha"), [(1, 3.0), (6, 3.0), (6, 0.0), (99, 1.0)])
@pytest.mark.parametrize("chunk", [(7, 11), (1024, 16384)])
def test_augmentation_follows_the_formula(n, alpha, chunk):
    cosines = INDEX @ INDEX.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(n, 59)]
    wanted = np.array([moved(row, INDEX[near], alpha) for row, near in zip(INDEX, nearest, strict=True)])
    augmented = augment(INDEX, n, alpha, chunk)
    assert augmented.dtype == np.float32
    np.testing.assert_allclose(augmented, wanted, atol=1e-6)
    lists = sorted_lists(QUERY, wanted, 30)
    found = database_augmentation(exact_search(QUERY, INDEX, 30), QUERY, INDEX, n=n, alpha=alpha, chunk=chunk)
    np.testing.assert_array_equal(found.indices, lists[0])
    np.testing.assert_allclose(found.scores, lists[1], atol=1e-6)


def test_augmented_rows_are_written_where_one_likes(tmp_path):
    half = INDEX.astype(np.float16)
    target = np.lib.format.open_memmap(tmp_path / "augmented.npy", "w+", np.float32, half.shape)
    assert augment(half, 4, out=target) is target
    target.flush()
    wanted = augment(half.astype(np.float32), 4)
    np.testing.assert_array_equal(np.load(tmp_path / "augmented.npy"), wanted)
    assert augment(half, 4).dtype == np.float16
    tensor = augment(torch.from_numpy(half), 4)
    assert tensor.dtype == torch.float16
    np.testing.assert_allclose(tensor.float().numpy(), wanted, atol=1e-3)


def test_a_single_row_is_its_own_augmentation():
    np.testing.assert_allclose(augment(INDEX[:1]), INDEX[:1], atol=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf])
def test_alpha_out_of_range_is_refused(alpha):
    ranked = exact_search(QUERY, INDEX, 5)
    for method in (alpha_query_expansion, database_augmentation):
        with pytest.raises(LandmarkRetrievalError, match="alpha"):
            method(ranked, QUERY, INDEX, alpha=alpha)


def test_misuse_of_augment_is_refused():
    with pytest.raises(LandmarkRetrievalError, match="n must be"):
        augment(INDEX, 0)
    with pytest.raises(LandmarkRetrievalError, match=r"\(60, 16\).*\(59, 16\)"):
        augment(INDEX, out=np.empty((59, 16)))
    with pytest.raises(LandmarkRetrievalError, match="no rows"):
        augment(INDEX[:0])
    with pytest.raises(LandmarkRetrievalError, match="rounds"):
        alpha_query_expansion(exact_search(QUERY, INDEX, 5), QUERY, INDEX, rounds=0)


def test_docstring_examples():
    result = doctest.testmod(expansion)
    assert result.attempted
    assert not result.failed
