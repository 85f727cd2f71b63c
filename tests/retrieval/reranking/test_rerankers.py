"""What all unsupervised re-rankers have in common: kinds, chunks, ties, memory maps, and that they help."""

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional import mean_average_precision
from landmark_retrieval.retrieval.reranking.rerankers import RERANKERS, find_reranker
from landmark_retrieval.retrieval.search import exact_search

# for clusters of ten, where the defaults of the papers are meant for larger ones
OPTIONS = {
    "alpha_query_expansion": {"n": 5},
    "database_augmentation": {"n": 5},
    "k_reciprocal": {"k1": 8, "k2": 4},
    "diffusion": {"k": 8, "query_k": 3},
}
CLUSTERS, PER_CLUSTER = 15, 10


def clustered(seed=0, dim=24, spread=0.22):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLUSTERS, dim))
    values = np.repeat(centres / np.linalg.norm(centres, axis=1, keepdims=True), PER_CLUSTER + 1, axis=0)
    values = values + rng.normal(size=values.shape) * spread
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    asked = np.arange(len(values)) % (PER_CLUSTER + 1) == 0
    return values[asked], values[~asked]


QUERY, INDEX = clustered()
RANKED = exact_search(QUERY, INDEX, 40)


@pytest.fixture(params=list(RERANKERS))
def name(request):
    return request.param


def rerank(name, ranked=RANKED, query=QUERY, index=INDEX, **options):
    return RERANKERS[name](ranked, query, index, **OPTIONS[name] | options)


def precision(indices):
    truth = {q: list(range(q * PER_CLUSTER, (q + 1) * PER_CLUSTER)) for q in range(CLUSTERS)}
    return mean_average_precision(dict(enumerate(indices.tolist())), truth, k=40)


def test_clusters_are_found_better_than_by_cosine(name):
    before, after = precision(RANKED[0]), precision(rerank(name).indices)
    assert before < 0.85
    assert after > before + 0.02


def test_form_of_what_comes_back(name):
    indices, scores = rerank(name)
    assert indices.shape == scores.shape == (CLUSTERS, 40)
    assert indices.dtype == np.int64 and scores.dtype == np.float32
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 40 for row in indices.tolist())
    assert rerank(name, top=7).indices.shape == (CLUSTERS, 7)
    np.testing.assert_array_equal(rerank(name, top=7).indices, indices[:, :7])
    longest = 40 if name == "k_reciprocal" else len(INDEX)
    assert rerank(name, top=10_000).indices.shape == (CLUSTERS, longest)


@pytest.mark.parametrize("chunk", [(1, 1024), (4, 17), (64, 64)])
def test_chunks_make_no_difference(name, chunk):
    wanted, found = rerank(name), rerank(name, chunk=chunk)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)


def test_the_same_twice(name):
    np.testing.assert_array_equal(rerank(name).scores, rerank(name).scores)


def test_torch_in_torch_out(name):
    wanted = rerank(name)
    ranked = torch.from_numpy(RANKED[0]), torch.from_numpy(RANKED[1])
    query = torch.from_numpy(QUERY).requires_grad_()
    for lists in (ranked, RANKED):
        found = rerank(name, lists, query, torch.from_numpy(INDEX))
        assert isinstance(found.indices, torch.Tensor) and isinstance(found.scores, torch.Tensor)
        np.testing.assert_array_equal(found.indices.numpy(), wanted.indices)
        np.testing.assert_allclose(found.scores.numpy(), wanted.scores, atol=1e-6)
        assert not found.scores.requires_grad


def test_memory_mapped_half_precision(name, tmp_path):
    half = INDEX.astype(np.float16)
    np.save(tmp_path / "index.npy", half)
    wanted = rerank(name, index=half.astype(np.float32))
    for index in (np.load(tmp_path / "index.npy", mmap_mode="r"), torch.from_numpy(half)):
        found = rerank(name, index=index)
        # augmented rows are kept in half precision, too
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-3)
        assert (found.indices == wanted.indices).mean() > (0.9 if name == "database_augmentation" else 0.999)


def test_equal_rows_stand_in_the_order_of_their_numbers(name):
    twice = np.concatenate([INDEX, INDEX])
    indices, scores = rerank(name, exact_search(QUERY, twice, 60), index=twice)
    tied = scores[:, 1:] == scores[:, :-1]
    assert tied.any()
    assert (indices[:, 1:] > indices[:, :-1])[tied].all()


def test_settings_of_training_do_not_leak_in(name):
    query, index = torch.from_numpy(QUERY), torch.from_numpy(INDEX)
    wanted = rerank(name, query=query, index=index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rerank(name, query=query, index=index)
    assert torch.equal(found.scores, wanted.scores)


def test_no_queries(name):
    ranked = np.empty((0, 12), np.int64), np.empty((0, 12), np.float32)
    indices, scores = rerank(name, ranked, QUERY[:0])
    assert indices.shape == scores.shape == (0, 12)
    assert indices.dtype == np.int64 and scores.dtype == np.float32


def test_an_index_of_one_row(name):
    ranked = exact_search(QUERY, INDEX[:1], 5)
    indices, scores = rerank(name, ranked, index=INDEX[:1])
    assert indices.tolist() == [[0]] * CLUSTERS
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("row", [0, 77])
def test_rows_that_are_not_finite_are_named(name, row):
    index = INDEX.copy()
    index[row, 3] = np.nan
    with pytest.raises(LandmarkRetrievalError, match=f"Row {row} of the index"):
        rerank(name, index=index)
    query = QUERY.copy()
    query[2] = np.inf
    with pytest.raises(LandmarkRetrievalError, match="Row 2 of the queries"):
        rerank(name, query=query)


def test_lists_of_another_index_are_refused(name):
    with pytest.raises(LandmarkRetrievalError, match="outside the index of 20 rows"):
        rerank(name, index=INDEX[:20])
    with pytest.raises(LandmarkRetrievalError, match="15 queries need lists of 15 rows"):
        rerank(name, (RANKED[0][:4], RANKED[1][:4]))
    with pytest.raises(LandmarkRetrievalError, match="same d"):
        rerank(name, index=INDEX[:, :5])


def test_numbers_below_one_are_refused(name):
    for option in ("top", *OPTIONS[name]):
        with pytest.raises(LandmarkRetrievalError, match=f"{option} must be at least 1, not 0"):
            rerank(name, **{option: 0})


def test_by_name():
    assert find_reranker("diffusion") is RERANKERS["diffusion"]
    with pytest.raises(LandmarkRetrievalError, match=r"'K_reciprocl'.*did you mean k_reciprocal\?"):
        find_reranker("K_reciprocl")
    with pytest.raises(LandmarkRetrievalError, match=r"there are alpha_query_expansion, .*, diffusion"):
        find_reranker("zzz")
