import csv

import numpy as np
import pytest

from landmark_retrieval.data.gldv2 import read_photos, read_train
from landmark_retrieval.errors import LandmarkRetrievalError


def write(root, name, *rows):
    root.mkdir(exist_ok=True)
    with (root / name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def root(tmp_path):
    write(
        tmp_path,
        "train.csv",
        ("id", "url", "landmark_id"),
        ("aa1", "", 7),
        ("bb2", "", 30),
        ("cc3", "", 7),
        ("dd4", "", 9),
    )
    write(tmp_path, "train_clean.csv", ("landmark_id", "images"), (30, "bb2"), (7, "aa1 cc3"))
    write(tmp_path, "index.csv", ("id",), ("ee5",))
    return tmp_path


@pytest.mark.parametrize(
    ("which", "ids", "labels", "classes"),
    [
        ("c", ["bb2", "aa1", "cc3"], [1, 0, 0], ("7", "30")),
        ("x", ["aa1", "bb2", "cc3"], [0, 1, 0], ("7", "30")),
        ("full", ["aa1", "bb2", "cc3", "dd4"], [0, 2, 0, 1], ("7", "9", "30")),
    ],
)
def test_sets(root, which, ids, labels, classes):
    table = read_train(root, which)
    assert table.ids == ids
    np.testing.assert_array_equal(table.labels, labels)
    assert table.classes == classes
    assert table.locate("aa1") == root / "train" / "a" / "a" / "1" / "aa1.jpg"


def test_byte_order_mark_and_column_order(root):
    (root / "train.csv").write_text("landmark_id,id\n5,xy9\n", encoding="utf-8-sig")
    assert read_train(root, "full").classes == ("5",)


def test_another_list_in_place_of_train_clean(root):
    write(root, "fewer.csv", ("landmark_id", "images"), (7, "cc3"))
    assert read_train(root, "c", root / "fewer.csv").ids == ["cc3"]
    assert read_train(root, "x", root / "fewer.csv").ids == ["aa1", "cc3"]
    with pytest.raises(LandmarkRetrievalError, match=r"no GLDv2 file at .*nowhere\.csv"):
        read_train(root, "c", root / "nowhere.csv")


@pytest.mark.parametrize(
    ("name", "content", "which", "message"),
    [
        ("train.csv", "id,url\nx,\n", "full", "no column 'landmark_id'"),
        ("train_clean.csv", "landmark_id,images\n7,\n", "c", "Landmark 7 .* has no photos"),
        ("train_clean.csv", "landmark_id,images\nseven,abc\n", "c", "'seven' is not a number"),
        ("train.csv", "id,url,landmark_id\nabc,,1\nabc,,2\n", "full", "abc stands more than once"),
        ("train.csv", "id,url,landmark_id\nabc\n", "full", "line 2: the row must have 3 cells"),
        ("train.csv", "id,url,landmark_id\n", "full", "names no photos"),
        ("train.csv", "", "full", "no column 'id'"),
        ("train.csv", b"id,url,landmark_id\nabc,\xe9,1\n", "full", "not a CSV file in UTF-8"),
    ],
)
def test_damaged_csv(root, name, content, which, message):
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LandmarkRetrievalError, match=message):
        read_train(root, which)


def test_missing_things_are_named(root):
    with pytest.raises(LandmarkRetrievalError, match=r"no folder .*nowhere"):
        read_train(root / "nowhere")
    with pytest.raises(LandmarkRetrievalError, match=r"no GLDv2 file at .*test\.csv"):
        read_photos(root, "test")
    with pytest.raises(LandmarkRetrievalError, match="choose one of c, x, full"):
        read_train(root, "clean")
    assert read_photos(root, "index").ids == ["ee5"]
