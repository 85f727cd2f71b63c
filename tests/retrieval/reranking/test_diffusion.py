"""Diffusion against the dense closed form, the truncated walk against the cut of the whole graph."""

import numpy as np
import pytest
from scipy.sparse import load_npz, save_npz

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking.diffusion import diffusion
from landmark_retrieval.retrieval.reranking.neighbor_graph import neighbor_graph
from landmark_retrieval.retrieval.search import exact_search


def clustered(seed, clusters, rows, dim=16, spread=0.25):
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.normal(size=(clusters, dim)), rows, axis=0)
    values = values / np.linalg.norm(values, axis=1, keepdims=True) + rng.normal(size=values.shape) * spread
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def split(values, every):
    asked = np.arange(len(values)) % every == 0
    return values[asked], values[~asked]


QUERY, INDEX = split(clustered(0, 10, 9), 9)


def dense_graph(index, k, gamma):
    cosines = index.astype(np.float64) @ index.T.astype(np.float64)
    np.fill_diagonal(cosines, -np.inf)
    near = [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in cosines]
    affinity = np.zeros_like(cosines)
    for i in range(len(index)):
        for j in near[i]:
            if i in near[j]:
                affinity[i, j] = max(cosines[i, j], 0) ** gamma
    degrees = affinity.sum(axis=1)
    roots = np.divide(1, np.sqrt(degrees), where=degrees > 0, out=np.zeros_like(degrees))
    return roots[:, None] * affinity * roots


def closed_form(query, index, lists, k, gamma, alpha, query_k, truncate=None):
    graph = dense_graph(index, k, gamma)
    scores = np.zeros((len(query), len(index)))
    for number, row in enumerate(lists):
        among = np.arange(len(index)) if truncate is None else row[:truncate]
        start = np.zeros(len(index))
        for i in row[: query_k if truncate is None else min(query_k, truncate)]:
            start[i] = max(float(query[number].astype(np.float64) @ index[i]), 0) ** gamma
        system = np.eye(len(among)) - alpha * graph[np.ix_(among, among)]
        scores[number, among] = np.linalg.solve(system, (1 - alpha) * start[among])
    return scores


@pytest.mark.parametrize(
    ("k", "gamma", "alpha", "query_k", "truncate"),
    [(50, 3, 0.99, 10, None), (6, 3, 0.99, 3, None), (15, 1, 0.5, 40, None), (6, 3, 0.9, 5, 20), (6, 3, 0.9, 5, 3)],
)
def test_scores_equal_the_closed_form(k, gamma, alpha, query_k, truncate):
    lists, cosines = exact_search(QUERY, INDEX, 40)
    wanted = closed_form(QUERY, INDEX, lists, k, gamma, alpha, query_k, truncate)
    options = {"k": k, "gamma": gamma, "alpha": alpha, "query_k": query_k, "truncate": truncate, "iterations": 2000}
    indices, scores = diffusion((lists, cosines), QUERY, INDEX, **options)
    for number in range(len(QUERY)):
        found, values = indices[number], scores[number]
        reached = values > 0
        np.testing.assert_allclose(values[reached], wanted[number, found[reached]], rtol=1e-3, atol=1e-5)
        best = np.sort(wanted[number])[::-1][: reached.sum()]
        np.testing.assert_allclose(values[reached], best, rtol=1e-3, atol=1e-5)
        # what the walk does not reach follows by cosine
        assert (wanted[number, found[~reached]] <= 1e-7).all()
        np.testing.assert_allclose(values[~reached] + 1, INDEX[found[~reached]] @ QUERY[number], atol=1e-6)
        assert len(set(found)) == 40


def test_by_pencil():
    # two rows that are each other's neighbours: (I - a S)^-1 (1 - a) y = [y1 + a y2, y2 + a y1] / (1 + a)
    angles = np.array([0.1, 0.2, -0.3])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    index, query = rows[:2], rows[2:]
    y1, y2, a = np.cos(0.4) ** 3, np.cos(0.5) ** 3, 0.8
    found = diffusion(exact_search(query, index, 2), query, index, alpha=a)
    assert found.indices.tolist() == [[0, 1]]
    assert found.scores[0] == pytest.approx([(y1 + a * y2) / (1 + a), (y2 + a * y1) / (1 + a)], abs=1e-6)


def test_without_spreading_the_lists_stay():
    lists, cosines = exact_search(QUERY, INDEX, 12)
    found = diffusion((lists, cosines), QUERY, INDEX, alpha=0.0, query_k=12)
    np.testing.assert_array_equal(found.indices, lists)


def test_a_graph_kept_on_disk_gives_the_same_lists(tmp_path):
    ranked = exact_search(QUERY, INDEX, 30)
    save_npz(tmp_path / "graph.npz", neighbor_graph(INDEX, 8))
    kept = load_npz(tmp_path / "graph.npz")
    for options in ({}, {"truncate": 20}):
        wanted = diffusion(ranked, QUERY, INDEX, k=8, **options)
        found = diffusion(ranked, QUERY, INDEX, graph=kept, **options)
        np.testing.assert_array_equal(found.indices, wanted.indices)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    with pytest.raises(LandmarkRetrievalError, match=r"\(80, 80\).*79 rows"):
        diffusion((ranked[0][:1, :1] * 0, ranked[1][:1, :1]), QUERY[:1], INDEX[:79], graph=kept)


def test_lists_are_filled_from_the_search_where_they_are_too_short():
    # far clusters: the walk of one query reaches only its own 8 rows
    query, index = split(clustered(1, 6, 9, dim=64, spread=0.01), 9)
    nearest = exact_search(query, index, 30)
    for ranked in (nearest, (nearest[0][:, :5], nearest[1][:, :5])):
        indices, scores = diffusion(ranked, query, index, k=7, query_k=3, top=30)
        assert indices.shape == (6, 30)
        for number in range(6):
            assert set(indices[number, :8]) == set(range(8 * number, 8 * number + 8))
            assert (scores[number, :8] > 0).all() and (scores[number, 8:] <= 0).all()
        np.testing.assert_array_equal(indices[:, 8:], nearest[0][:, 8:])


def test_the_end_of_a_shorter_list_is_not_a_row():
    lists, cosines = exact_search(QUERY, INDEX, 10)
    padded = lists.copy()
    padded[:, 4:] = -1
    for truncate in (None, 10):
        found = diffusion((padded, cosines), QUERY, INDEX, k=8, query_k=10, truncate=truncate)
        wanted = diffusion((lists[:, :4], cosines[:, :4]), QUERY, INDEX, k=8, query_k=10, truncate=truncate, top=10)
        np.testing.assert_array_equal(found.indices, wanted.indices)
        assert (found.indices >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must"),
        ({"query_k": 0}, "query_k"),
        ({"iterations": 0}, "iterations"),
        ({"truncate": 0}, "truncate"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": -0.1}, "alpha"),
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": np.nan}, "gamma"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        diffusion(exact_search(QUERY, INDEX, 5), QUERY, INDEX, **options)
