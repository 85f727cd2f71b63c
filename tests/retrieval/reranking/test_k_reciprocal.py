"""k-reciprocal re-ranking against dense loops over the formulas of the paper, and a case small enough for a pencil."""

import math

import numpy as np
import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking.k_reciprocal import k_reciprocal
from landmark_retrieval.retrieval.search import exact_search


def clustered(seed, clusters, rows, dim=16, spread=0.25):
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.normal(size=(clusters, dim)), rows, axis=0)
    values = values / np.linalg.norm(values, axis=1, keepdims=True) + rng.normal(size=values.shape) * spread
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def split(values, every):
    asked = np.arange(len(values)) % every == 0
    return values[asked], values[~asked]


def dense(query, index, k1, k2, lambda_value):
    """Final distances (n_q, n_i): everything with everything, one row after the other."""
    rows = np.concatenate([query, index]).astype(np.float64)
    distance = 1 - rows @ rows.T
    np.fill_diagonal(distance, -1)
    rank = np.argsort(distance, axis=1, kind="stable")
    np.fill_diagonal(distance, 0)

    def reciprocal(i, k):
        return {int(j) for j in rank[i, : k + 1] if i in rank[j, : k + 1]}

    encoding = np.zeros_like(distance)
    for i in range(len(rows)):
        members = reciprocal(i, k1)
        extended = set(members)
        for j in members:
            half = reciprocal(j, round(k1 / 2))
            if len(half & members) > 2 / 3 * len(half):
                extended |= half
        columns = sorted(extended)
        weights = np.exp(-distance[i, columns])
        encoding[i, columns] = weights / weights.sum()
    encoding = np.array([encoding[rank[i, :k2]].mean(axis=0) for i in range(len(rows))])
    final = np.empty((len(query), len(index)))
    for q in range(len(query)):
        for i in range(len(index)):
            one, other = encoding[q], encoding[len(query) + i]
            jaccard = 1 - np.minimum(one, other).sum() / np.maximum(one, other).sum()
            final[q, i] = (1 - lambda_value) * jaccard + lambda_value * distance[q, len(query) + i]
    return final


@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"),
    [(20, 6, 0.3), (7, 1, 0.3), (5, 3, 0.0), (1, 1, 0.5), (3, 9, 0.1), (10, 4, 1.0)],
)
@pytest.mark.parametrize("chunk", [(5, 13), (1024, 16384)])
def test_the_whole_index_as_a_list_equals_the_dense_loops(k1, k2, lambda_value, chunk):
    query, index = split(clustered(0, 12, 9), 9)
    ranked = exact_search(query, index, len(index))
    final = dense(query, index, k1, k2, lambda_value)
    indices, scores = k_reciprocal(ranked, query, index, k1=k1, k2=k2, lambda_value=lambda_value, chunk=chunk)
    np.testing.assert_allclose(scores, 1 - np.take_along_axis(final, indices, axis=1), atol=2e-6)
    np.testing.assert_allclose(scores, np.sort(1 - final, axis=1)[:, ::-1], atol=2e-6)
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(len(index)), (len(query), 1)))


def test_more_neighbours_than_there_are_rows():
    query, index = split(clustered(7, 5, 6), 6)
    indices, scores = k_reciprocal(exact_search(query, index, 25), query, index, k1=500, k2=500)
    final = dense(query, index, 500, 500, 0.3)
    np.testing.assert_allclose(scores, 1 - np.take_along_axis(final, indices, axis=1), atol=2e-6)


def test_a_list_is_put_in_order_as_part_of_the_whole():
    query, index = split(clustered(1, 20, 9), 9)
    final = dense(query, index, 10, 4, 0.3)
    ranked = exact_search(query, index, 15)
    indices, scores = k_reciprocal(ranked, query, index, k1=10, k2=4, top=8)
    for number, row in enumerate(ranked[0]):
        wanted = np.sort(row)[np.argsort(final[number, np.sort(row)], kind="stable")][:8]
        np.testing.assert_allclose(scores[number], 1 - final[number, wanted], atol=2e-6)
        assert set(indices[number]) <= set(row)


def test_only_rows_that_count_are_searched(monkeypatch):
    from landmark_retrieval.retrieval.reranking import neighbors

    searched = []
    search = neighbors.exact_search

    def counting(queries, *arguments):
        searched.append(len(queries))
        return search(queries, *arguments)

    monkeypatch.setattr(neighbors, "exact_search", counting)
    query, index = split(clustered(2, 50, 21, spread=0.05), 21)
    k_reciprocal(exact_search(query[:2], index, 10), query[:2], index, k1=6, k2=3)
    # per call the queries and the index: the two clusters hold 42 rows of 1002
    assert sum(searched) <= 2 * 42


def test_by_pencil():
    # q and the first row are each other's nearest, nobody is nearest to the second: J(q, first) = exp(c - 1)
    angles = np.array([0.0, 0.3, 0.8])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query, index = rows[:1], rows[1:]
    near, far = math.cos(0.3), math.cos(0.8)
    found = k_reciprocal(exact_search(query, index, 2), query, index, k1=1, k2=1, lambda_value=0.3)
    assert found.indices.tolist() == [[0, 1]]
    assert found.scores[0] == pytest.approx([0.7 * math.exp(near - 1) + 0.3 * near, 0.3 * far], abs=1e-6)


def test_queries_asked_alone_do_not_depend_on_others():
    query, index = split(clustered(3, 8, 7), 7)
    ranked = exact_search(query, index, 20)
    alone = k_reciprocal((ranked[0][:1], ranked[1][:1]), query[:1], index, k1=5)
    np.testing.assert_allclose(
        alone.scores[0],
        1 - np.take_along_axis(dense(query[:1], index, 5, 6, 0.3), alone.indices, axis=1)[0],
        atol=2e-6,
    )


def test_many_copies_of_one_row():
    index = np.tile(clustered(4, 1, 1), (30, 1))
    ranked = exact_search(index[:2], index, 30)
    indices, scores = k_reciprocal(ranked, index[:2], index, k1=3, k2=2)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(30), (2, 1)))


def test_shorter_lists_keep_their_end():
    query, index = split(clustered(5, 4, 6), 6)
    lists, scores = exact_search(query, index, 8)
    lists[1, 5:], scores[1, 5:] = -1, -np.inf
    indices, scores = k_reciprocal((lists, scores), query, index, k1=4)
    assert indices[1, 5:].tolist() == [-1] * 3 and np.isneginf(scores[1, 5:]).all()
    assert set(indices[1, :5]) == set(lists[1, :5]) and np.isfinite(scores[1, :5]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k1": 0}, "k1"), ({"k2": 0}, "k2"), ({"lambda_value": 1.5}, "1.5"), ({"lambda_value": np.nan}, "nan")],
)
def test_options_out_of_range_are_refused(options, message):
    query, index = split(clustered(6, 2, 4), 4)
    with pytest.raises(LandmarkRetrievalError, match=message):
        k_reciprocal(exact_search(query, index, 3), query, index, **options)
