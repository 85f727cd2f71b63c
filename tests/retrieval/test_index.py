"""Building, saving and opening an index: the exact kinds and their ties, which kind is chosen, damage, refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.index import build_index, open_index
from landmark_retrieval.retrieval.indexes.faiss_kinds import recipe
from landmark_retrieval.retrieval.search import exact_search
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter

pytest.importorskip("faiss", reason="FAISS is not installed")

CARD = {"model": "tiny", "weights_sha256": "00"}


def unit_rows(rows, dim=16, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def store_of(folder, rows, dtype="float32"):
    with DescriptorWriter(folder, card=CARD, dtype=dtype, part_size=70) as writer:
        writer.append([f"p{number}" for number in range(len(rows))], rows)
    return DescriptorStore.open(folder)


@pytest.fixture
def index(tmp_path):
    return build_index(store_of(tmp_path / "store", unit_rows(200)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("queries", [1, 50])
def test_agrees_with_exact_search(tmp_path, dtype, queries):
    store = store_of(tmp_path, unit_rows(200), dtype)
    ids, scores = build_index(store).search(unit_rows(queries, seed=1), 10)
    rows, exact_scores = exact_search(unit_rows(queries, seed=1), store.load(), 10)
    assert ids == [[f"p{row}" for row in ranked] for ranked in rows]
    np.testing.assert_allclose(scores, exact_scores, atol=1e-6)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("k", [1, 2, 7, 50, 299, 300])
@pytest.mark.parametrize("kind", ["flat", "exact"])
def test_ties_go_to_the_photo_that_was_stored_first(tmp_path, k, queries, kind):
    # rows along the axes: every score is exactly 0 or 1, and nearly all are tied
    rows = np.eye(4, dtype=np.float32)[np.random.default_rng(0).integers(0, 4, size=300)]
    wanted = np.eye(4, dtype=np.float32)[np.arange(queries) % 4]
    ids, scores = build_index(store_of(tmp_path, rows), kind).search(wanted, k)
    exact_rows, exact_scores = exact_search(wanted, rows, k)
    assert ids == [[f"p{row}" for row in ranked] for ranked in exact_rows]
    np.testing.assert_array_equal(scores, exact_scores)


def test_what_is_saved_is_opened(tmp_path, index):
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "note.txt").write_text("mine")
    index.save(folder)
    index.save(folder)
    opened = open_index(folder)
    assert (opened.ids, opened.card, opened.dim, len(opened)) == (index.ids, CARD, 16, 200)
    queries = unit_rows(5, seed=2)
    assert opened.search(queries, 5)[0] == index.search(queries, 5)[0]
    files = {path.name for path in folder.iterdir()}
    assert files == {"index.faiss", "index.ids.txt", "index.json", "note.txt"}
    # another kind takes its place and leaves nothing of it
    build_index(DescriptorStore.open(tmp_path / "store"), "exact").save(folder)
    assert {path.name for path in folder.iterdir()} == {"index.ids.txt", "index.json", "note.txt"}
    assert open_index(folder).search(queries, 5)[0] == index.search(queries, 5)[0]


def test_an_index_of_an_earlier_version_is_opened(tmp_path, index):
    """Its index.json knew kind, dim, count, card, ids and sha256."""
    index.save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    description = json.loads(path.read_text())
    old = {name: description[name] for name in ("kind", "dim", "count", "card", "sha256")}
    path.write_text(json.dumps({**old, "ids": "index.ids.txt"}))
    (tmp_path / "store").rename(tmp_path / "gone")
    opened = open_index(tmp_path / "index")
    assert opened.search(unit_rows(5, seed=2), 5)[0] == index.search(unit_rows(5, seed=2), 5)[0]
    opened.remove(["p3"])
    assert len(opened) == 199


@pytest.mark.parametrize(
    ("rows", "memory", "kind", "why"),
    [
        (939, 2**34, "flat", "flat: 939 photos take 2 MB and about 0.19 ms a query; exact"),
        (100_000, 2**34, "flat", "flat: 100,000 photos take 205 MB"),
        (100_000, 2**29, "ivf_pq", "a query looks into"),
        (1_000_000, 2**37, "ivf_pq", "ivf_pq: 1,000,000 photos take 104 MB as codes where descriptors take 2 GB"),
    ],
)
def test_auto_chooses_by_size_and_says_why(rows, memory, kind, why):
    chosen = recipe("auto", rows, 512, memory=memory)
    assert chosen.kind == kind and why in chosen.why


@pytest.mark.parametrize("rows", [1, 2, 30, 1000, 10**5, 10**7])
@pytest.mark.parametrize("dim", [1, 15, 512, 1280])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cells_fit_the_number_of_photos(rows, dim, device):
    made = recipe("ivf_pq", rows, dim, device)
    assert 1 <= made.probe <= made.cells <= rows
    assert 39 * made.cells <= max(39, made.training_rows) <= max(39, rows)
    bits = int(made.factory.split("x")[1].removesuffix("fs"))
    parts = int(made.factory.split("PQ")[1].split("x")[0])
    kept = int(made.factory.split(",")[0].removeprefix("PCAR")) if "PCAR" in made.factory else dim
    assert kept % parts == 0 and kept >= dim * 3 // 4 and bits * parts <= 32 * dim


def test_kinds_that_do_not_exist_are_refused(tmp_path, index):
    with pytest.raises(LandmarkRetrievalError, match=r"no kind of index 'ivf': choose auto, flat, fp16"):
        build_index(DescriptorStore.open(tmp_path / "store"), "ivf")
    assert index.kind == "flat"


def test_a_failed_save_leaves_the_old_index(tmp_path, index, monkeypatch):
    import faiss

    folder = tmp_path / "index"
    index.save(folder)

    def full_disk(index, path):
        raise RuntimeError("no space left")

    monkeypatch.setattr(faiss, "write_index", full_disk)
    with pytest.raises(RuntimeError, match="no space left"):
        index.save(folder)
    assert len(open_index(folder)) == 200
    assert len(list(folder.iterdir())) == 3


def test_k_is_cut_to_the_index(index):
    ids, scores = index.search(unit_rows(2), 1000)
    assert len(ids[0]) == 200
    assert scores.shape == (2, 200)
    assert index.search(np.empty((0, 16), np.float32), 3)[0] == []


def test_another_model_or_dim_is_refused(index):
    with pytest.raises(LandmarkRetrievalError, match="made by model 'tiny', the query by model 'huge'"):
        index.search(unit_rows(1), 5, card={"model": "huge"})
    with pytest.raises(LandmarkRetrievalError, match="weights_sha256: '00' and '11'"):
        index.search(unit_rows(1), 5, card={**CARD, "weights_sha256": "11"})
    with pytest.raises(LandmarkRetrievalError, match=r"model 'tiny' holds 16-d .* shape \(1, 8\)"):
        index.search(unit_rows(1, dim=8), 5)
    assert index.search(unit_rows(1), 1, card=dict(CARD))[0] == [["p0"]]


def test_misuse_is_refused(index):
    with pytest.raises(LandmarkRetrievalError, match="k must be at least 1"):
        index.search(unit_rows(1), 0)
    queries = unit_rows(3)
    queries[1, 0] = np.nan
    with pytest.raises(LandmarkRetrievalError, match="Query 1 holds NaN"):
        index.search(queries, 1)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_rows_that_are_not_of_unit_length_are_refused(tmp_path, scale):
    rows = unit_rows(100)
    rows[80] *= scale
    with pytest.raises(LandmarkRetrievalError, match=f"photo 'p80' .* has length {scale:.0f}"):
        build_index(store_of(tmp_path, rows))


@pytest.mark.parametrize("name", ["index.faiss", "index.ids.txt"])
def test_damage_is_named(tmp_path, index, name):
    index.save(tmp_path / "index")
    path = tmp_path / "index" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(LandmarkRetrievalError, match=f"{name} is damaged .*build the index again"):
        open_index(tmp_path / "index")
    path.unlink()
    with pytest.raises(LandmarkRetrievalError, match=f"{name} is missing"):
        open_index(tmp_path / "index")


def test_no_index_and_a_strange_description_are_named(tmp_path, index):
    with pytest.raises(LandmarkRetrievalError, match="no photo index at"):
        open_index(tmp_path)
    index.save(tmp_path)
    description = json.loads((tmp_path / "index.json").read_text())
    for change, message in [({"kind": "ivf"}, "kind 'ivf'"), ({"count": 7}, "says 7"), ({"dim": 3}, "of 3-d")]:
        (tmp_path / "index.json").write_text(json.dumps({**description, **change}))
        with pytest.raises(LandmarkRetrievalError, match=message):
            open_index(tmp_path)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(LandmarkRetrievalError, match="does not describe a photo index"):
        open_index(tmp_path)


def test_without_faiss_the_error_says_what_to_install(tmp_path, monkeypatch):
    store = store_of(tmp_path, unit_rows(3))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(LandmarkRetrievalError, match="pip install faiss-cpu"):
        build_index(store)


def test_faiss_and_picture_libraries_are_imported_only_where_used():
    code = (
        "import sys; from landmark_retrieval.retrieval import gallery, index, search, store;"
        "print([name for name in ('faiss', 'cv2', 'PIL', 'hydra', 'pytorch_lightning') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
