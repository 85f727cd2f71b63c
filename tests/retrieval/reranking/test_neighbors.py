"""Neighbours of rows among themselves against a stable argsort, and that nothing is computed twice."""

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking import neighbors
from landmark_retrieval.retrieval.reranking.neighbors import NeighborTable, Rows

CPU = torch.device("cpu")


def unit_rows(seed, rows, dim=8):
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def nearest_others(rows, k):
    cosines = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


@pytest.mark.parametrize("k", [1, 7, 49, 80])
@pytest.mark.parametrize("chunk", [(3, 7), (1024, 16384)])
def test_nearest_others_of_two_arrays_together(k, chunk):
    first, second = unit_rows(0, 12), unit_rows(1, 38)
    wanted, wanted_cosines = nearest_others(np.concatenate([first, second]), min(k, 49))
    rows = Rows({"queries": first, "index": torch.from_numpy(second)}, CPU)
    found, cosines = rows.neighbors(np.arange(50), k, chunk)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(cosines, wanted_cosines, atol=1e-6)
    table = NeighborTable(rows, k, chunk)
    some = np.array([41, 3, 12, 3])
    np.testing.assert_array_equal(table.of(some)[0], wanted[some])
    np.testing.assert_array_equal(table.with_itself(some, 1), np.column_stack([some, wanted[some, 0]]))


def test_a_row_with_copies_is_not_its_own_neighbour():
    rows = Rows({"index": np.tile(unit_rows(0, 1), (6, 1))}, CPU)
    assert rows.neighbors(np.array([0, 2, 5]), 2, (8, 8))[0].tolist() == [[1, 2], [0, 1], [0, 1]]


def test_a_single_row_has_no_neighbours():
    rows = Rows({"queries": np.empty((0, 8), np.float32), "index": unit_rows(0, 1)}, CPU)
    assert rows.neighbors(np.array([0]), 3, (8, 8))[0].shape == (1, 0)
    assert NeighborTable(rows, 3, (8, 8)).with_itself(np.array([0]), 3).tolist() == [[0]]


def test_rows_and_cosines_come_from_where_they_lie(tmp_path):
    first, second = unit_rows(0, 5), unit_rows(1, 7).astype(np.float16)
    np.save(tmp_path / "rows.npy", second)
    rows = Rows({"queries": first, "index": np.load(tmp_path / "rows.npy", mmap_mode="r")}, CPU)
    everything = np.concatenate([first, second.astype(np.float32)])
    numbers = np.array([11, 0, 4, 5, 0])
    np.testing.assert_array_equal(rows.take(numbers).numpy(), everything[numbers])
    products = (everything[numbers] * everything[numbers[::-1]]).sum(axis=1)
    np.testing.assert_allclose(rows.cosines(numbers, numbers[::-1].copy()), products, atol=1e-6)


def test_a_fetched_row_that_is_not_finite_is_named():
    second = unit_rows(1, 7)
    second[3, 2] = np.inf
    rows = Rows({"queries": unit_rows(0, 5), "index": second}, CPU)
    assert rows.take(np.array([7, 9])).isfinite().all()
    with pytest.raises(LandmarkRetrievalError, match="Row 3 of the index"):
        rows.take(np.array([7, 8, 9]))


def test_each_row_is_searched_once(monkeypatch):
    searched = []
    search = neighbors.exact_search

    def counting(queries, *arguments):
        searched.append(len(queries))
        return search(queries, *arguments)

    monkeypatch.setattr(neighbors, "exact_search", counting)
    table = NeighborTable(Rows({"index": unit_rows(0, 30)}, CPU), 4, (8, 16))
    table.fill(np.arange(20))
    table.fill(np.array([5, 25, 25, 19]))
    table.of(np.arange(20))
    assert searched == [8, 8, 4, 1]
