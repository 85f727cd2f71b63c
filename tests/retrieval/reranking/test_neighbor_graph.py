"""The graph of mutual neighbours against loops, whole and in part."""

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking.neighbor_graph import mutual_graph, neighbor_graph
from landmark_retrieval.retrieval.reranking.neighbors import NeighborTable, Rows


def unit_rows(seed, rows, dim=8):
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


INDEX = unit_rows(0, 70)


def by_loops(index, k, gamma):
    cosines = index.astype(np.float64) @ index.T.astype(np.float64)
    np.fill_diagonal(cosines, -np.inf)
    near = [np.argsort(-row, kind="stable")[:k].tolist() for row in cosines]
    edges = {(i, j): max(cosines[i, j], 0) ** gamma for i in range(len(index)) for j in near[i] if i in near[j]}
    degree = [sum(weight for (i, _), weight in edges.items() if i == row) for row in range(len(index))]
    graph = np.zeros_like(cosines)
    for (i, j), weight in edges.items():
        graph[i, j] = weight / np.sqrt(degree[i] * degree[j]) if weight else 0
    return graph


@pytest.mark.parametrize(("k", "gamma"), [(1, 3.0), (6, 3.0), (15, 1.0), (500, 2.0)])
@pytest.mark.parametrize("chunk", [(7, 11), (1024, 16384)])
def test_equals_the_loops(k, gamma, chunk):
    graph = neighbor_graph(INDEX, k, gamma, chunk)
    assert graph.dtype == np.float32
    np.testing.assert_allclose(graph.toarray(), by_loops(INDEX, k, gamma), atol=1e-5)
    assert (graph != graph.T).nnz == 0
    kept = neighbor_graph(torch.from_numpy(INDEX), k, gamma, chunk)
    np.testing.assert_array_equal(kept.toarray(), graph.toarray())


def test_a_part_is_cut_from_the_whole():
    some = np.array([2, 3, 11, 40, 41, 69])
    table = NeighborTable(Rows({"index": INDEX}, torch.device("cpu")), 9, (16, 32))
    part = mutual_graph(table, some, 3.0)
    np.testing.assert_allclose(part.toarray(), by_loops(INDEX, 9, 3.0)[np.ix_(some, some)], atol=1e-6)


def test_half_precision_and_memory_maps(tmp_path):
    half = INDEX.astype(np.float16)
    np.save(tmp_path / "index.npy", half)
    graph = neighbor_graph(np.load(tmp_path / "index.npy", mmap_mode="r"), 6)
    np.testing.assert_array_equal(graph.toarray(), neighbor_graph(half.astype(np.float32), 6).toarray())


def test_rows_that_nobody_is_near_to_hold_nothing():
    index = np.eye(4, dtype=np.float32)
    assert neighbor_graph(index, 2).nnz == 0
    assert neighbor_graph(index[:1], 2).shape == (1, 1)


def test_misuse_is_refused():
    with pytest.raises(LandmarkRetrievalError, match="k must be at least 1, not 0"):
        neighbor_graph(INDEX, 0)
    with pytest.raises(LandmarkRetrievalError, match="gamma"):
        neighbor_graph(INDEX, 4, gamma=-1)
    with pytest.raises(LandmarkRetrievalError, match="no rows"):
        neighbor_graph(INDEX[:0], 4)
    broken = INDEX.copy()
    broken[7, 1] = np.nan
    with pytest.raises(LandmarkRetrievalError, match="Row 7 of the index"):
        neighbor_graph(broken, 4)
