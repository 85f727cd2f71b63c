"""A Qdrant collection, in its embedded form, behind the same protocol as the other kinds."""

import json
import sys

import numpy as np
import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.index import open_index
from landmark_retrieval.retrieval.indexes.qdrant_index import QdrantIndex
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter

qdrant_client = pytest.importorskip("qdrant_client", reason="needs qdrant-client (extra `qdrant`)")

CARD = {"model": "tiny", "mean": [0.5, 0.5]}


def unit_rows(rows, dim=16, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def names(numbers):
    return [f"town hall/{number}.jpg" for number in numbers]


def store_of(folder, rows, card=CARD):
    with DescriptorWriter(folder, card=card, part_size=70) as writer:
        writer.append(names(range(len(rows))), rows)
    return DescriptorStore.open(folder)


def exact(queries, rows, ids, k):
    scores = queries @ rows.T
    order = np.argsort(-scores, axis=1)[:, :k]
    return [[ids[row] for row in ranked] for ranked in order], np.take_along_axis(scores, order, 1)


@pytest.fixture
def rows():
    return unit_rows(200)


@pytest.fixture
def store(tmp_path, rows):
    return store_of(tmp_path / "store", rows)


@pytest.fixture
def index(store):
    index = QdrantIndex.build(store, ":memory:", exact=True)
    yield index
    index.close()


def test_finds_what_exact_search_finds(index, rows):
    assert (index.kind, index.dim, len(index), index.card) == ("qdrant", 16, 200, CARD)
    assert "200 photos in the collection 'landmarks' at :memory:" in index.why
    assert sorted(index.ids) == sorted(names(range(200)))
    queries = unit_rows(70, seed=1)  # more than are asked at once
    ids, scores = index.search(queries, 10, card=CARD)
    wanted, cosines = exact(queries, rows, names(range(200)), 10)
    assert ids == wanted
    np.testing.assert_allclose(scores, cosines, atol=1e-5)
    assert scores.dtype == np.float32
    assert index.search(queries[:2], 1000)[1].shape == (2, 200)
    assert index.search(queries[:0], 3)[0] == []


def test_added_and_removed(tmp_path, index, rows):
    more = unit_rows(50, seed=2)
    index.add(names(range(200, 250)), more, card=CARD)
    gone = [*range(0, 30), *range(220, 230)]
    index.remove(names(gone))
    left = np.setdiff1d(np.arange(250), gone)
    assert len(index) == 210 and sorted(index.ids) == sorted(names(left))
    queries = unit_rows(5, seed=3)
    assert index.search(queries, 20)[0] == exact(queries, np.concatenate([rows, more])[left], names(left), 20)[0]


def test_wrong_photos_and_models_are_refused(tmp_path, index, rows, store):
    with pytest.raises(LandmarkRetrievalError, match=r"'town hall/3\.jpg' is in the index already"):
        index.add(names([3]), rows[:1])
    with pytest.raises(LandmarkRetrievalError, match=r"'town hall/900\.jpg' is not in the index"):
        index.remove(names([3, 900]))
    with pytest.raises(LandmarkRetrievalError, match="All photos"):
        index.remove(index.ids)
    with pytest.raises(LandmarkRetrievalError, match="the query by model 'huge'"):
        index.search(rows[:1], 3, card={"model": "huge"})
    with pytest.raises(LandmarkRetrievalError, match="'long' has length 2"):
        index.add(["long"], 2 * rows[:1])
    with pytest.raises(LandmarkRetrievalError, match="in memory cannot be saved"):
        index.save(tmp_path / "index")
    assert len(index) == 200


def test_saved_opened_and_moved(tmp_path, store, rows):
    index = QdrantIndex.build(store, tmp_path / "a" / "qdrant", "photos", exact=True)
    index.save(tmp_path / "a")
    found = index.search(rows[:9], 4)[0]
    with pytest.raises(LandmarkRetrievalError, match="cannot be opened"):
        open_index(tmp_path / "a")  # one process at a time
    index.close()
    (tmp_path / "a").rename(tmp_path / "b")
    opened = open_index(tmp_path / "b")
    assert (opened.kind, opened.card, opened.exact, len(opened)) == ("qdrant", CARD, True, 200)
    assert opened.search(rows[:9], 4)[0] == found
    opened.close()


def test_an_upload_goes_on_where_it_was_cut_off(tmp_path, store, rows, monkeypatch):
    sent = []
    send = QdrantIndex._send

    def cut_off(self, ids, descriptors):
        if len(sent) == 3:
            raise KeyboardInterrupt
        sent.append(len(ids))
        send(self, ids, descriptors)

    monkeypatch.setattr(QdrantIndex, "_send", cut_off)
    with pytest.raises(KeyboardInterrupt):
        QdrantIndex.build(store, tmp_path / "q", batch_size=20)
    sent.clear()
    monkeypatch.setattr(QdrantIndex, "_send", lambda self, ids, rows: (sent.extend(ids), send(self, ids, rows)))
    index = QdrantIndex.build(store, tmp_path / "q", batch_size=50)
    assert sorted(sent) == sorted(names(range(60, 200)))
    assert len(index) == 200
    index.close()
    with pytest.raises(LandmarkRetrievalError, match="the descriptors by model 'huge'"):
        QdrantIndex.build(store_of(tmp_path / "other", rows, {"model": "huge"}), tmp_path / "q")


def test_saved_again_after_it_was_opened(tmp_path, store, rows, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    QdrantIndex.build(store, "data", exact=True).close()
    index = QdrantIndex.build(store, "data", exact=True)
    index.save(tmp_path / "link" / "first")
    index.close()
    monkeypatch.chdir(tmp_path)
    opened = open_index("here/first")
    opened.save("second")
    opened.close()
    monkeypatch.chdir(tmp_path / "store")
    again = open_index(tmp_path / "second")
    assert again.search(rows[:3], 1)[0] == [[name] for name in names(range(3))]
    again.close()
    (tmp_path / "here" / "data").rename(tmp_path / "gone")
    with pytest.raises(LandmarkRetrievalError, match=r"There is no folder .*data, where the collection of the index"):
        open_index(tmp_path / "second")
    assert not (tmp_path / "here" / "data").exists()


def test_a_collection_is_made_of_one_store(tmp_path, store, rows):
    QdrantIndex.build(store, tmp_path / "q").close()
    other = store_of(tmp_path / "other", unit_rows(200, seed=9))
    with pytest.raises(LandmarkRetrievalError, match=r"made from other descriptors than those in .*other: choose"):
        QdrantIndex.build(other, tmp_path / "q")
    index = QdrantIndex.build(store, tmp_path / "q")
    assert index.search(rows[:5], 1)[0] == [[name] for name in names(range(5))]
    index.close()


def test_a_collection_that_cannot_be_used_is_let_go(tmp_path, store):
    index = QdrantIndex.build(store, tmp_path / "q")
    index.save(tmp_path / "index")
    index.close()
    description = json.loads((tmp_path / "index" / "index.json").read_text())
    for change, message in (({"card": {"model": "huge"}}, "made by model 'huge'"), ({"collection": "x"}, "no coll")):
        (tmp_path / "index" / "index.json").write_text(json.dumps(description | change))
        with pytest.raises(LandmarkRetrievalError, match=message) as held:
            open_index(tmp_path / "index")
        client = qdrant_client.QdrantClient(path=str(tmp_path / "q"))  # the lock is free, though the error is kept
        assert client.collection_exists("landmarks")
        client.close()
        assert held.value is not None


def test_changes_ask_for_their_own_photos_alone(index, rows, monkeypatch):
    monkeypatch.setattr(type(index._client), "scroll", None)
    index.add(["new"], unit_rows(1, seed=8))
    index.remove(["new", *names([0])])
    assert len(index) == 199
    with pytest.raises(LandmarkRetrievalError, match=r"'town hall/0\.jpg' is not in the index"):
        index.remove(names([1, 0]))
    with pytest.raises(LandmarkRetrievalError, match="given twice"):
        index.add(["twice", "twice"], unit_rows(2))


def test_options_of_a_cluster_reach_it(store, monkeypatch):
    asked = {}
    create = qdrant_client.QdrantClient.create_collection

    def note(self, *arguments, **options):
        asked.update(options)
        return create(self, *arguments, **options)

    monkeypatch.setattr(qdrant_client.QdrantClient, "create_collection", note)
    QdrantIndex.build(store, ":memory:", quantize=True, on_disk=True, shards=4, replicas=2).close()
    assert asked["vectors_config"].on_disk and asked["vectors_config"].hnsw_config.on_disk
    assert asked["vectors_config"].size == 16 and asked["vectors_config"].distance == "Dot"
    assert asked["quantization_config"].scalar.type == "int8" and asked["quantization_config"].scalar.always_ram
    assert (asked["shard_number"], asked["replication_factor"]) == (4, 2)


def test_a_collection_of_others_is_refused(tmp_path, store):
    client = qdrant_client.QdrantClient(path=str(tmp_path / "q"))
    client.create_collection(
        "landmarks", qdrant_client.models.VectorParams(size=16, distance=qdrant_client.models.Distance.DOT)
    )
    client.close()
    with pytest.raises(LandmarkRetrievalError, match="was not made by landmark_retrieval"):
        QdrantIndex.build(store, tmp_path / "q")


def test_no_server_and_no_package(store, monkeypatch):
    with pytest.raises(LandmarkRetrievalError, match="no answer from a Qdrant server at http://127"):
        QdrantIndex.build(store, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(LandmarkRetrievalError, match=r"pip install landmark-retrieval\[qdrant\]"):
        QdrantIndex.build(store, ":memory:")
