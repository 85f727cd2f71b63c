import csv
import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from landmark_retrieval.data.importers.archive_scan import scan_archives
from landmark_retrieval.data.importers.gldv2 import csv_file, read_photos, read_train
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
    assert Path(table.where(table.ids.rows(["aa1"])[0])) == root / "train" / "a" / "a" / "1" / "aa1.jpg"


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


@pytest.mark.parametrize("photo", ["../../x", "/abs", "a\\b", "abc\0d", "abc\x1bd", ""])
def test_ids_that_lead_elsewhere_are_refused(root, photo):
    write(root, "train.csv", ("id", "url", "landmark_id"), ("aa1", "", 7), (photo, "", 7))
    write(root, "test.csv", ("id",), ("aa1",), (photo,))
    if not photo:
        (root / "test.csv").write_text('id\naa1\n""\n')
    for read in (lambda: read_train(root, "full"), lambda: read_photos(root, "test")):
        with pytest.raises(LandmarkRetrievalError, match=r"line 3: .* cannot be the id of a photo|not a CSV file"):
            read()


def test_csv_files_by_version_and_in_metadata(root):
    assert csv_file(root, "test.csv") == root / "test.csv"
    write(root / "metadata", "test.csv", ("id",), ("mm1",))
    assert read_photos(root, "test").ids == ["mm1"]
    write(root, "test.csv", ("id",), ("rr1",))
    assert read_photos(root, "test").ids == ["rr1"]
    write(root, "test_v2.1.csv", ("id",), ("rr2",))
    write(root / "metadata", "test_v2.10.csv", ("id",), ("mm2",))
    assert read_photos(root, "test").ids == ["mm2"]
    write(root, "train_v3.csv", ("id", "landmark_id"), ("vv1", 5))
    write(root, "train_vegetables.csv", ("id", "landmark_id"), ("vv2", 5))
    assert read_train(root, "full").ids == ["vv1"]
    assert read_train(root, "c").classes == ("7", "30")  # train_clean.csv is no version of train.csv


def test_photos_in_archives(root, tmp_path):
    path = root / "train" / "images_000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for photo in ("aa1", "dd4"):
            info = tarfile.TarInfo("/".join([*photo, f"{photo}.jpg"]))
            info.size = 3
            tar.addfile(info, io.BytesIO(photo.encode()))
    with pytest.raises(LandmarkRetrievalError, match=r"in 1 archives: scan them first"):
        read_train(root, "full")
    table = read_train(root, "full", archives=scan_archives([path], tmp_path / "cache", 1))
    assert table.find(["aa1", "bb2", "dd4"]) == {"aa1": b"aa1", "dd4": b"dd4"}


def test_a_large_table_is_small(tmp_path):
    """GLDv2 has 4.1 million photos; its table has to stay well under 1 GB while it is made."""
    count = 200_000
    rng = np.random.default_rng(0)
    ids = rng.bytes(8 * count).hex()
    with (tmp_path / "train.csv").open("w") as file:
        file.write("id,url,landmark_id\n")
        file.writelines(
            f"{ids[16 * i : 16 * i + 16]},https://example.org/photos/{i:030d}.jpg,{rng.integers(10_000)}\n"
            for i in range(count)
        )
    tracemalloc.start()
    try:
        table = read_train(tmp_path, "full")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == count
    # blocks of strings on the way, whatever the number of rows, are some 10 MB
    assert peak < 120 * count + 10e6
    assert held < 40 * count + 2e6
