"""Whatever a person points at becomes photos with their right ids."""

import shutil

import numpy as np
import pytest

from landmark_retrieval.data.importers.gldv2 import read_photos, read_train
from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.sources import open_photos
from landmark_retrieval.errors import LandmarkRetrievalError


def content(source):
    return {photo.id: photo.data for photo in source.photos()}


def test_shards(shards):
    for opened in (
        open_photos(shards / "train_c"),
        open_photos(shards, "train_c"),
        open_photos(str(shards), "train_c"),
    ):
        assert isinstance(opened, ShardedPhotos)
        assert opened.ids == ShardedPhotos.open(shards / "train_c").ids
        assert opened.labels.min() == 0
    with pytest.raises(LandmarkRetrievalError, match=r"holds index, test, train_c, train_full, train_x: choose one"):
        open_photos(shards)
    with pytest.raises(LandmarkRetrievalError, match=r"no photos called 'query' \(it has: index, test"):
        open_photos(shards, "query")
    with pytest.raises(LandmarkRetrievalError, match="has no splits"):
        open_photos(shards / "test", "test")


def test_shards_at_a_url(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LANDMARK_RETRIEVAL_CACHE", str(tmp_path))
    opened = open_photos(shards.as_uri(), "test")
    assert content(opened) == content(ShardedPhotos.open(shards / "test"))


def test_the_layout_of_google_landmarks(photos):
    for split in ("test", "index"):
        assert content(open_photos(photos, split)) == content(read_photos(photos, split))
    train = open_photos(photos, "train_x")
    np.testing.assert_array_equal(train.labels, read_train(photos, "x").labels)
    with pytest.raises(LandmarkRetrievalError, match="holds test, index, train_c, train_x, train_full: choose"):
        open_photos(photos)


def test_nested_folders_without_a_list(photos, tmp_path):
    """As Kaggle gives out test and index: ids are those that a submission names."""
    shutil.copytree(photos / "index", tmp_path / "index")
    expected = content(read_photos(photos, "index"))
    assert content(open_photos(tmp_path, "index")) == expected
    assert content(open_photos(tmp_path / "index")) == expected
    # another photo beside them: no such layout any more
    (tmp_path / "index" / "mine.jpg").write_bytes(b"x")
    assert "mine.jpg" in open_photos(tmp_path / "index").ids


def test_any_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"one")
    (tmp_path / "2.png").write_bytes(b"two")
    assert content(open_photos(tmp_path)) == {"2.png": b"two", "a/1.jpg": b"one"}
    assert open_photos(tmp_path).labels is None
    with pytest.raises(LandmarkRetrievalError, match=r"no photos called 'test' \(it has: none with a name\)"):
        open_photos(tmp_path, "test")


def test_a_list(tmp_path):
    there, elsewhere = tmp_path / "list", tmp_path / "elsewhere"
    for folder in (there, elsewhere):
        folder.mkdir()
    (there / "x.jpg").write_bytes(b"x")
    (there / "y1.jpg").write_bytes(b"y")
    (elsewhere / "z.jpg").write_bytes(b"z")
    photos = there / "photos.csv"
    photos.write_text(f"path,id\nx.jpg,first\n,y1\n{elsewhere}/z.jpg,third\n../elsewhere/z.jpg,fourth\n")
    assert content(open_photos(photos)) == {"first": b"x", "y1": b"y", "third": b"z", "fourth": b"z"}
    photos.write_text("id\ny1\nx\n")
    assert content(open_photos(photos)) == {"y1": b"y", "x": b"x"}
    photos.write_text("id,landmark_id\ny1,7\nx,3\n")
    opened = open_photos(photos)
    assert isinstance(opened, PhotoTable)
    assert (list(opened.ids), opened.labels.tolist(), opened.classes) == (["y1", "x"], [1, 0], ("3", "7"))
    for text, message in (
        ("id\nx\nx\n", "Photo x stands more than once"),
        ("id\n", "lists no photos"),
        ("name\nx\n", "no column 'id'"),
    ):
        photos.write_text(text)
        with pytest.raises(LandmarkRetrievalError, match=message):
            open_photos(photos)


def test_a_list_in_the_layout_of_google_landmarks(photos, tmp_path):
    shutil.copytree(photos / "test", tmp_path, dirs_exist_ok=True)
    expected = read_photos(photos, "test")
    (tmp_path / "some.csv").write_text("id\n" + "".join(f"{photo}\n" for photo in expected.ids[:3]))
    assert content(open_photos(tmp_path / "some.csv")) == {photo.id: photo.data for photo in expected.photos(0, 3)}


def test_mistakes(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match=r"no photos at .*nowhere"):
        open_photos(tmp_path / "nowhere")
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(LandmarkRetrievalError, match="is no CSV"):
        open_photos(tmp_path / "a.jpg")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "images_000.tar").write_bytes(b"x")
    with pytest.raises(LandmarkRetrievalError, match="are in 1 archives"):
        open_photos(tmp_path / "test")
