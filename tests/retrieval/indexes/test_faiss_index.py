"""Each kind of index: it finds what exact search finds, grows and shrinks, and comes back from disk."""

import json
from dataclasses import replace

import numpy as np
import pytest

from landmark_retrieval.data.photos import Ids
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.index import build_index, open_index
from landmark_retrieval.retrieval.indexes import faiss_index
from landmark_retrieval.retrieval.indexes.faiss_kinds import recipe
from landmark_retrieval.retrieval.indexes.index_checks import found_first, named
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")

CARD = {"model": "tiny", "weights_sha256": "00"}
KINDS = ("flat", "exact", "fp16", "sq8", "hnsw", "ivf_pq")


def groups(count=40, each=20, dim=32, noise=0.02, seed=0):
    """Rows in tight groups, so that the nearest 20 of a row are clear: (count * each, dim)."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(count, dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    rows = np.repeat(centers, each, axis=0) + noise * rng.normal(size=(count * each, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def names(numbers):
    return [f"p{number}" for number in numbers]


def append(folder, ids, rows, dtype="float32"):
    with DescriptorWriter(folder, card=CARD, dtype=dtype, part_size=150) as writer:
        writer.append(ids, rows)
    return DescriptorStore.open(folder)


def exact_search(queries, rows, k):
    """Row numbers and scores, the simple way."""
    scores = queries @ rows.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


def found_sets(index, queries, k=20):
    return [set(ranked) for ranked in index.search(queries, k)[0]]


def exact_sets(rows, queries, ids, k=20):
    return [{ids[row] for row in ranked} for ranked in exact_search(queries, rows, k)[0]]


@pytest.fixture
def rows():
    return groups()


@pytest.fixture
def store(tmp_path, rows):
    return append(tmp_path / "store", names(range(800)), rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_kind_finds_what_exact_search_finds(tmp_path, rows, kind, dtype):
    index = build_index(append(tmp_path, names(range(800)), rows, dtype), kind)
    assert (index.kind, index.dim, len(index), index.card) == (kind, 32, 800, CARD)
    assert index.why.startswith(f"{kind}: ") and "800" in index.why
    queries = rows[::20]
    assert found_sets(index, queries) == exact_sets(rows, queries, names(range(800)))
    ids, scores = index.search(queries, 5)
    assert scores.shape == (40, 5) and scores.dtype == np.float32
    assert (np.diff(scores, axis=1) <= 0).all()
    # the scores are cosines: exact ones, or nearly
    true = [[float(queries[q] @ rows[int(photo[1:])]) for photo in ranked] for q, ranked in enumerate(ids)]
    np.testing.assert_allclose(scores, true, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_opened(tmp_path, store, rows, kind):
    index = build_index(store, kind)
    index.remove(names([5, 300]))
    index.save(tmp_path / "index")
    opened = open_index(tmp_path / "index")
    assert (opened.kind, opened.why, opened.card, opened.dim) == (kind, index.why, CARD, 32)
    assert opened.ids == index.ids and len(opened) == 798
    before, after = index.search(rows[:40], 30), opened.search(rows[:40], 30)
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved between"])
def test_added_and_removed_is_as_built_from_the_rest(tmp_path, rows, kind, saved):
    """Half of the photos, the others added in two steps, a third removed, some of those added again."""

    def stage(index):
        if saved:
            index.save(tmp_path / "index")
            index = open_index(tmp_path / "index")
        return index

    order = np.random.default_rng(1).permutation(800)
    first, second, third = order[:400], order[400:600], order[600:]
    index = build_index(append(tmp_path / "store", names(first), rows[first]), kind)
    for more in (second, third):
        append(tmp_path / "store", names(more), rows[more])
        index.add(names(more), rows[more], card=CARD)
        index = stage(index)
    gone = np.concatenate([first[:130], second[:70], third[:70]])
    index.remove(names(gone))
    index = stage(index)
    back = gone[:20]
    index.add(names(back), rows[back])
    index = stage(index)
    left = np.concatenate([np.setdiff1d(order, gone, assume_unique=True), back])
    assert sorted(index.ids) == sorted(names(left))
    rest = build_index(append(tmp_path / "rest", names(left), rows[left]), kind)
    queries = rows[::7]
    for made in (index, rest):
        for number, ranked in zip(range(0, 800, 7), made.search(queries, 20)[0], strict=True):
            group = {f"p{row}" for row in left if row // 20 == number // 20}
            assert set(ranked[: len(group)]) == group
    alive = set(names(left))
    ids, scores = index.search(queries, 10_000)
    assert scores.shape == (len(queries), len(left))
    for ranked, of_query in zip(ids, scores, strict=True):
        assert set(ranked) <= alive and len(set(ranked)) == len(ranked)
        assert np.isneginf(of_query[len(ranked) :]).all() and np.isfinite(of_query[: len(ranked)]).all()
    if kind not in ("hnsw", "ivf_pq"):
        assert all(len(ranked) == len(left) for ranked in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_photos_are_named(tmp_path, store, rows, kind):
    index = build_index(store, kind)
    with pytest.raises(LandmarkRetrievalError, match=r"'p3' is in the index already \(and 1 more of 2\)"):
        index.add(["p3", "p4"], rows[:2])
    with pytest.raises(LandmarkRetrievalError, match="'new' is given twice"):
        index.add(["new", "new"], rows[:2])
    with pytest.raises(LandmarkRetrievalError, match="'p900' is not in the index"):
        index.remove(["p3", "p900"])
    with pytest.raises(LandmarkRetrievalError, match="All photos"):
        index.remove(names(range(800)))
    with pytest.raises(LandmarkRetrievalError, match="'long' has length 2"):
        index.add(["long"], 2 * rows[:1])
    with pytest.raises(LandmarkRetrievalError, match="'nan' has length nan"):
        index.add(["nan"], np.full((1, 32), np.nan))
    with pytest.raises(LandmarkRetrievalError, match=r"need \(2, 32\) descriptors"):
        index.add(["a", "b"], rows[:1])
    with pytest.raises(LandmarkRetrievalError, match="the photos to add by model 'huge'"):
        index.add(["new"], rows[:1], card={"model": "huge"})
    assert len(index) == 800 and len(DescriptorStore.open(tmp_path / "store")) == 800


@pytest.mark.parametrize("kind", ["sq8", "ivf_pq"])
def test_rescored_scores_are_exact_and_need_the_store(tmp_path, rows, kind):
    store = append(tmp_path / "store", names(range(800)), rows)
    index = build_index(store, kind)
    exact = exact_search(rows[:10], rows, 15)[1]
    np.testing.assert_allclose(index.search(rows[:10], 15)[1], exact, atol=1e-6)
    rough = build_index(store, kind, rescore=0)
    assert np.abs(rough.search(rows[:10], 15)[1] - exact).max() > 1e-5
    with pytest.raises(LandmarkRetrievalError, match=r"'new' of the index is not in the store .* store first"):
        index.add(["new"], rows[:1])
    assert len(index) == 800
    index.save(tmp_path / "index")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(LandmarkRetrievalError, match="rescore=0: scores are then approximate"):
        open_index(tmp_path / "index")
    np.testing.assert_array_equal(
        open_index(tmp_path / "index", rescore=0).search(rows[:10], 15)[1], rough.search(rows[:10], 15)[1]
    )


def test_a_store_inside_the_index_moves_with_it(tmp_path, rows):
    index = build_index(append(tmp_path / "a" / "descriptors", names(range(800)), rows), "ivf_pq")
    index.save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_index(tmp_path / "b").search(rows[:3], 4)[0] == index.search(rows[:3], 4)[0]


def test_the_seed_decides_the_training(tmp_path, store, rows):
    first, again, other = (build_index(store, "ivf_pq", rescore=0, seed=seed).search(rows, 9) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[1], again[1])
    assert np.abs(first[1] - other[1]).max() > 0


def test_hnsw_grows_again_when_many_photos_are_gone(store, rows):
    index = build_index(store, "hnsw")
    index.remove(names(range(100)))
    assert index._index.ntotal == 800  # they wait in the graph
    index.remove(names(range(100, 400)))
    assert index._index.ntotal == 400
    assert found_sets(index, rows[400::20]) == exact_sets(rows[400:], rows[400::20], names(range(400, 800)))


def test_photos_that_were_added_can_be_removed_at_once(tmp_path, rows):
    index = build_index(append(tmp_path / "s", names(range(400)), rows[:400]), "ivf_pq", rescore=0)
    index.remove(names(range(390, 400)))
    index.add(names(range(600, 700)), rows[600:700])
    index.remove(names(range(600, 650)))
    index.add(names(range(390, 400)), rows[390:400])
    assert len(index) == 450
    assert found_sets(index, rows[[680, 395]]) == [set(names(range(680, 700))), set(names(range(380, 400)))]


def test_no_gpu_is_said(store, monkeypatch):
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    for kind in ("flat", "ivf_pq", "auto"):
        with pytest.raises(LandmarkRetrievalError, match="FAISS finds no GPU here: search on the CPU"):
            build_index(store, kind, device="cuda")
    monkeypatch.delattr(faiss, "index_cpu_to_all_gpus", raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    with pytest.raises(LandmarkRetrievalError, match="faiss-gpu in place of faiss-cpu"):
        build_index(store, "flat", device="cuda")
    with pytest.raises(LandmarkRetrievalError, match="cpu or cuda, not on 'tpu'"):
        build_index(store, "flat", device="tpu")


def test_kinds_that_gpus_cannot_search_are_refused(store, tmp_path, monkeypatch):
    build_index(store, "ivf_pq").save(tmp_path / "index")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda *_, **__: None, raising=False)
    for kind in ("hnsw", "sq8", "fp16"):
        with pytest.raises(LandmarkRetrievalError, match=f"kind {kind} .* cannot be searched on a GPU"):
            build_index(store, kind, device="cuda")
    with pytest.raises(LandmarkRetrievalError, match="cannot be searched on a GPU"):
        open_index(tmp_path / "index", device="cuda")


def test_long_descriptors_are_turned_and_cut_in_the_codes(tmp_path):
    rows = groups(count=60, each=20, dim=256, noise=0.01)
    index = build_index(append(tmp_path / "s", names(range(1200)), rows), "ivf_pq")
    assert index._recipe.factory.startswith("PCAR192,")
    assert found_sets(index, rows[::20]) == exact_sets(rows, rows[::20], names(range(1200)))
    index.remove(names(range(0, 100)))
    index.save(tmp_path / "index")
    index = open_index(tmp_path / "index")
    append(tmp_path / "s", names([5000]), -rows[:1])
    index.add(names([5000]), -rows[:1])
    assert index.search(-rows[:1], 1)[0] == [names([5000])]
    assert found_sets(index, rows[100::20]) == exact_sets(rows[100:], rows[100::20], names(range(100, 1200)))
    np.testing.assert_allclose(index.search(rows[200:201], 1)[1], 1, atol=1e-6)


def test_photos_that_are_missing_in_the_middle_do_not_shift_the_others():
    rows = np.array([[2, -1, 0, -1], [1, 0, 2, 3], [-1, -1, -1, 1]])
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2], [0.4, 0.3, 0.2, 0.1]], np.float32)
    assert named(Ids(names(range(4))), rows) == [["p2", "p0"], ["p1", "p0", "p2", "p3"], ["p1"]]
    moved, their = found_first(rows, scores)
    assert moved.tolist() == [[2, 0, -1, -1], [1, 0, 2, 3], [1, -1, -1, -1]]
    wanted = np.array([[0.9, 0.7, -np.inf, -np.inf], [0.5, 0.4, 0.3, 0.2], [0.1, *[-np.inf] * 3]], np.float32)
    np.testing.assert_array_equal(their, wanted)


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for a GPU: copies that know no selector, give at most 2048 results, and note what they are asked.

    Its codes are shorter than real ones and without the polysemous training, which takes long.
    """
    asked = []

    def short(*arguments):
        made = recipe(*arguments)
        return replace(made, factory=f"IVF{made.cells},PQ8x8np") if made.factory.endswith("x8") else made

    class OnGpu:
        def __init__(self, index):
            self.index = faiss.clone_index(index)

        def search(self, queries, depth, params=None):
            assert params is None and depth <= 2048
            asked.append(depth)
            return self.index.search(queries, depth)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss_index, "recipe", short)
    monkeypatch.setattr(faiss_index, "to_gpus", lambda index, made: OnGpu(index))
    return asked


@pytest.mark.parametrize("turned", ["", "PCAR24,"])
def test_a_gpu_does_not_find_removed_photos(tmp_path, gpu, monkeypatch, turned):
    short = faiss_index.recipe
    monkeypatch.setattr(
        faiss_index, "recipe", lambda *given: replace(made := short(*given), factory=turned + made.factory)
    )
    rows = groups(count=60, noise=0.01)
    store = append(tmp_path / "store", names(range(1100)), rows[:1100])
    index = build_index(store, "ivf_pq", device="cuda", rescore=0)
    assert isinstance(index._index, faiss.IndexPreTransform) == bool(turned)
    index.remove(names(range(5, 20)))
    index.add(names(range(1100, 1200)), rows[1100:])
    index.remove(names(range(1100, 1110)))
    left = set(names([*range(5), *range(20, 1100), *range(1110, 1200)]))
    for made in (index, "opened"):
        if made == "opened":
            index.save(tmp_path / "index")
            made = open_index(tmp_path / "index", device="cuda")
        before = len(gpu)
        ids, scores = made.search(rows[[0, 1110, 500]], 20)
        assert len(gpu) == before + 1
        assert all(set(ranked) <= left and len(ranked) == 20 for ranked in ids)
        assert set(ids[0][:5]) == set(names(range(5)))
        assert set(ids[1][:10]) == set(names(range(1110, 1120)))
        assert set(ids[2]) == set(names(range(500, 520)))
        assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", ["flat", "ivf_pq"])
def test_a_gpu_gives_at_most_2048_results(tmp_path, gpu, kind):
    rows = groups(count=110)
    index = build_index(append(tmp_path / "store", names(range(2200)), rows), kind, device="cuda")
    with pytest.raises(
        LandmarkRetrievalError, match=r"at most 2048 photos for a query on a GPU, not 2100: .*device cpu"
    ):
        index.search(rows[:1], 2100)
    ids, _ = index.search(rows[:1], 600)  # 2,400 candidates were to be compared again
    assert max(gpu) == (2048 if kind == "ivf_pq" else 601)
    assert set(ids[0][:20]) == set(names(range(20)))
    assert index.search(rows[:1], 2048)[1].shape == (1, 2048)


@pytest.mark.parametrize(("kind", "device", "fewest"), [("ivf_pq", "cpu", 16), ("ivf_pq", "cuda", 256)])
def test_too_few_photos_to_train_on_are_refused(tmp_path, rows, gpu, kind, device, fewest):
    with pytest.raises(LandmarkRetrievalError, match=f"trained on {fewest} photos or more, .*: choose flat"):
        build_index(append(tmp_path / "few", names(range(fewest - 1)), rows[: fewest - 1]), kind, device)
    made = build_index(append(tmp_path / "enough", names(range(fewest)), rows[:fewest]), kind, device)
    assert made.search(rows[:1], 1)[0] == [["p0"]]


@pytest.mark.parametrize("kind", ["flat", "fp16", "ivf_pq"])
def test_the_store_is_not_forgotten(tmp_path, store, rows, kind):
    """Opened without rescoring, changed and saved, an index can be rescored again, at once or once it is opened."""
    build_index(store, kind, rescore=0).save(tmp_path / "index")
    append(tmp_path / "store", ["new"], -rows[:1])
    index = open_index(tmp_path / "index", rescore=0)
    index.add(["new"], -rows[:1])
    index.save(tmp_path / "index")
    opened = open_index(tmp_path / "index", rescore=4)
    index.rescore = 4
    exact = exact_search(rows[:10], np.concatenate([rows, -rows[:1]]), 15)[1]
    for made in (opened, index):
        np.testing.assert_allclose(made.search(rows[:10], 15)[1], exact, atol=1e-6)
        made.remove(["p3"])
        assert "p3" not in made.search(rows[:1], 20)[0][0]
    (tmp_path / "store").rename(tmp_path / "gone")
    assert open_index(tmp_path / "index", rescore=0).search(-rows[:1], 1)[0] == [["new"]]


def test_photos_are_added_after_an_interruption_while_the_store_grew(tmp_path, store, rows, monkeypatch):
    index = build_index(store, "exact")
    with monkeypatch.context() as patch:
        patch.setattr("landmark_retrieval.retrieval.parts.Parts.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.add(["new"], -rows[:1])
    with pytest.raises(LandmarkRetrievalError, match="holds another descriptor for photo 'new'"):
        build_index(DescriptorStore.open(tmp_path / "store"), "exact").add(["new", "more"], rows[:2])
    index.add(["new"], -rows[:1])
    assert len(index) == 801 and index.search(-rows[:1], 1)[0] == [["new"]]


def test_devices_and_candidates_that_are_not_possible(tmp_path, store):
    with pytest.raises(LandmarkRetrievalError, match="cpu or cuda, not on 'mps'"):
        build_index(store, "exact", device="mps")
    build_index(store, "exact").save(tmp_path / "exact")
    with pytest.raises(LandmarkRetrievalError, match="no device 'gpu'"):
        open_index(tmp_path / "exact", device="gpu")
    with pytest.raises(LandmarkRetrievalError, match="0 or more candidates per wanted result, not -1"):
        build_index(store, "sq8", rescore=-1)
    build_index(store, "sq8").save(tmp_path / "sq8")
    with pytest.raises(LandmarkRetrievalError, match="not -1"):
        open_index(tmp_path / "sq8", rescore=-1)
    description = json.loads((tmp_path / "sq8" / "index.json").read_text())
    (tmp_path / "sq8" / "index.json").write_text(json.dumps({**description, "kind": "qdrant"}))
    with pytest.raises(
        LandmarkRetrievalError, match="collection of Qdrant, which searches where it runs, not on 'cuda'"
    ):
        open_index(tmp_path / "sq8", device="cuda")
