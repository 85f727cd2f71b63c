"""Exact search against a stable argsort, whatever the chunks, the kind of array and the ties."""

import doctest

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval import search
from landmark_retrieval.retrieval.search import exact_search
from landmark_retrieval.retrieval.topk import stable_topk


def unit_rows(rng, rows, dim):
    values = rng.normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def sorted_by_numpy(queries, index, k):
    scores = queries.astype(np.float64) @ index.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def tied_rows(rng, rows):
    # small integers: every dot product is exact in float32, and most of them are equal to others
    return rng.integers(-1, 2, size=(rows, 4)).astype(np.float32)


@pytest.mark.parametrize("chunk", [(1, 1), (3, 7), (64, 50), (1024, 16384)])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_agrees_with_a_stable_argsort(k, chunk):
    rng = np.random.default_rng(0)
    queries, index = unit_rows(rng, 5, 32), unit_rows(rng, 200, 32)
    indices, scores = exact_search(queries, index, k, chunk=chunk)
    expected_indices, expected_scores = sorted_by_numpy(queries, index, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert indices.dtype == np.int64
    assert scores.dtype == np.float32


@pytest.mark.parametrize("chunk", [(2, 1), (5, 9), (100, 300), (1024, 16384)])
@pytest.mark.parametrize("k", [1, 7, 60, 300])
def test_ties_go_to_the_lower_row(k, chunk):
    rng = np.random.default_rng(1)
    queries, index = tied_rows(rng, 5), tied_rows(rng, 300)
    indices, scores = exact_search(queries, index, k, chunk=chunk)
    expected_indices, expected_scores = sorted_by_numpy(queries, index, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


def test_stable_topk_agrees_with_a_stable_sort():
    scores = torch.randint(0, 5, (50, 40), generator=torch.Generator().manual_seed(0)).float()
    for k in (1, 5, 39, 40):
        values, columns = stable_topk(scores, k)
        wanted_values, wanted_columns = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(values, wanted_values[:, :k])
        assert torch.equal(columns, wanted_columns[:, :k])


def test_torch_in_torch_out():
    rng = np.random.default_rng(2)
    queries, index = unit_rows(rng, 4, 8), unit_rows(rng, 30, 8)
    indices, scores = exact_search(queries, index, 5)
    torch_indices, torch_scores = exact_search(torch.from_numpy(queries), torch.from_numpy(index), 5)
    assert isinstance(torch_indices, torch.Tensor)
    assert isinstance(torch_scores, torch.Tensor)
    np.testing.assert_array_equal(torch_indices.numpy(), indices)
    np.testing.assert_array_equal(torch_scores.numpy(), scores)


def test_memory_mapped_half_precision_is_searched_in_float32(tmp_path):
    rng = np.random.default_rng(3)
    queries, index = unit_rows(rng, 4, 8), unit_rows(rng, 30, 8).astype(np.float16)
    np.save(tmp_path / "index.npy", index)
    mapped = np.load(tmp_path / "index.npy", mmap_mode="r")
    indices, _ = exact_search(queries, mapped, 5, chunk=(2, 4))
    np.testing.assert_array_equal(indices, sorted_by_numpy(queries, index, 5)[0])


def test_k_is_cut_to_the_index_and_no_query_is_fine():
    rng = np.random.default_rng(4)
    index = unit_rows(rng, 3, 8)
    indices, scores = exact_search(unit_rows(rng, 2, 8), index, 10)
    assert indices.shape == scores.shape == (2, 3)
    assert exact_search(np.empty((0, 8), np.float32), index, 2)[0].shape == (0, 2)


def test_settings_of_training_do_not_leak_in_or_out():
    rng = np.random.default_rng(5)
    queries, index = torch.from_numpy(unit_rows(rng, 4, 64)), torch.from_numpy(unit_rows(rng, 30, 64))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, scores = exact_search(queries, index, 30)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(scores, sorted_by_numpy(queries.numpy(), index.numpy(), 30)[1], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(bad):
    rng = np.random.default_rng(6)
    queries, index = unit_rows(rng, 4, 8), unit_rows(rng, 30, 8)
    index[17, 3] = bad
    with pytest.raises(LandmarkRetrievalError, match="Row 17 of the index"):
        exact_search(queries, index, 5, chunk=(2, 10))
    with pytest.raises(LandmarkRetrievalError, match="Row 17 of the queries"):
        exact_search(index, queries, 2, chunk=(10, 10))


@pytest.mark.parametrize(
    ("queries", "index", "arguments", "message"),
    [
        ((2, 3), (5, 4), {"k": 1}, r"\(2, 3\).*\(5, 4\)"),
        ((3,), (5, 3), {"k": 1}, "same d"),
        ((2, 3), (0, 3), {"k": 1}, "holds no rows"),
        ((2, 3), (5, 3), {"k": 0}, "k=0"),
        ((2, 3), (5, 3), {"k": 1, "chunk": (0, 1)}, "chunk"),
    ],
)
def test_misuse_is_refused(queries, index, arguments, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        exact_search(np.ones(queries, np.float32), np.ones(index, np.float32), **arguments)


def test_docstring_examples():
    result = doctest.testmod(search)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("count", [2, 3, 50])
def test_an_index_split_over_devices_is_searched_as_one(count):
    rng = np.random.default_rng(2)
    queries, index = tied_rows(rng, 9), tied_rows(rng, 41)
    expected = sorted_by_numpy(queries, index, 12)
    found = exact_search(queries, index, 12, chunk=(4, 5), devices=["cpu"] * count)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    index[30, 2] = np.nan
    with pytest.raises(LandmarkRetrievalError, match="Row 30 of the index"):
        exact_search(queries, index, 12, devices=["cpu"] * count)


def test_a_device_that_is_not_there_is_named():
    rows = np.eye(3)
    with pytest.raises(LandmarkRetrievalError, match="There is no GPU cuda:99"):
        exact_search(rows, rows, 1, devices=["cuda:99"])
    with pytest.raises(LandmarkRetrievalError, match="no device 'gpu'"):
        exact_search(rows, rows, 1, devices=["gpu"])


@pytest.mark.parametrize(("columns", "k"), [(640, 2), (1000, 3), (4099, 16), (2048, 30), (5000, 78)])
def test_stable_topk_of_many_columns_agrees_with_a_stable_sort(columns, k):
    generator = torch.Generator().manual_seed(columns)
    for scores in (
        torch.randn(20, columns, generator=generator),
        torch.randint(0, 3, (20, columns), generator=generator).float(),
        torch.zeros(5, columns),
        torch.randn(20, columns, generator=generator).where(
            torch.arange(columns) > columns - 9, torch.tensor(-torch.inf)
        ),
    ):
        values, found = stable_topk(scores, k)
        wanted_values, wanted = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(values, wanted_values[:, :k])
        assert torch.equal(found, wanted[:, :k])
