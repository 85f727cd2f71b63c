import pickle

import numpy as np
import pytest

from landmark_retrieval.data.importers.listed import read_listed
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def root(tmp_path):
    for name in ("a/b/c/abc1", "x/y/z/xyz2", "more/odd name"):
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"


def written(root, text, **kwargs):
    path = root.parent / "extra.csv"
    path.write_text(text, **kwargs)
    return path


def bytes_of(table):
    return [photo.data for photo in table.photos()]


def test_classes_of_the_csv(root):
    table, *left_out = read_listed(
        root, written(root, "id,landmark_id\nabc1,30\nxyz2,7\ngone,7\n", encoding="utf-8-sig")
    )
    assert table.classes == ("7", "30")
    assert table.labels.tolist() == [1, 0, 0]
    assert bytes_of(table) == [b"a/b/c/abc1", b"x/y/z/xyz2", b""]
    assert left_out == [0, 0]
    table, *_ = read_listed(root, written(root, "landmark_id,id\n30,abc1\nTower,xyz2\n7,q\n"))
    assert table.classes == ("30", "7", "Tower")
    assert table.labels.tolist() == [0, 2, 1]


def test_known_classes_keep_their_labels(root):
    path = written(root, "id,landmark_id\nabc1,30\nnew1,99\nxyz2,007\nnew2,99\nnew3,Tower\n")
    table, photos, landmarks = read_listed(root, path, ("5", "30", "7"))
    assert table.classes == ("5", "30", "7")
    assert table.ids == ["abc1", "xyz2"]
    assert table.labels.tolist() == [1, 2]
    assert (photos, landmarks) == (3, 2)
    with pytest.raises(LandmarkRetrievalError, match=r"All 5 photos .* 4 landmarks that --known does not have"):
        read_listed(root, path, ("1",))


def test_paths(root):
    path = written(root, "id,path,landmark_id\nq1,more/odd name.jpg,1\nabc1,,1\nq2,./x//y/z/xyz2.jpg,2\n")
    table, *_ = read_listed(root, path)
    assert bytes_of(table) == [b"more/odd name", b"a/b/c/abc1", b"x/y/z/xyz2"]
    part = pickle.loads(pickle.dumps(table.take(np.array([2, 0]))))
    assert bytes_of(part) == [b"x/y/z/xyz2", b"more/odd name"]
    assert part.where(1) == str(root / "more/odd name.jpg")


def test_a_flat_folder(root):
    (root / "flat1.jpg").write_bytes(b"flat")
    for columns, cell in (("", ""), (",path", ",")):
        table, *_ = read_listed(root, written(root, f"id,landmark_id{columns}\nflat1,1{cell}\nabc1,1{cell}\n"))
        assert bytes_of(table) == [b"flat", b""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,landmark_id\nabc1,1\nabc1,2\n", "abc1 stands more than once"),
        ("id,landmark_id\n../abc1,1\n", "line 2: '../abc1' cannot be the id"),
        ("id,landmark_id\nabc1,\n", "line 2: the landmark_id is empty"),
        ("id,landmark_id\n", "lists no photos"),
        ("id,label\nabc1,1\n", "no column 'landmark_id'"),
        ("id,landmark_id,path\nabc1,1,/etc/passwd\n", "line 2: the path '/etc/passwd' does not lead"),
        ("id,landmark_id,path\nabc1,1,a/../../secret.jpg\n", "does not lead"),
        ("id,landmark_id,path\nabc1,1,.\n", "does not lead"),
        ("id,landmark_id,path\nabc1,1,a\\b.jpg\n", "does not lead"),
    ],
)
def test_bad_lists(root, text, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        read_listed(root, written(root, text))


def test_missing_things_are_named(root):
    with pytest.raises(LandmarkRetrievalError, match=r"no list file at .*nowhere\.csv"):
        read_listed(root, root / "nowhere.csv")
    with pytest.raises(LandmarkRetrievalError, match="no folder"):
        read_listed(root / "nowhere", written(root, "id,landmark_id\na,1\n"))


def test_an_id_given_twice_among_those_left_out_does_not_matter(root):
    path = written(root, "id,landmark_id\nabc1,1\nnew,99\nnew,99\n")
    table, photos, landmarks = read_listed(root, path, ("1",))
    assert table.ids == ["abc1"]
    assert (photos, landmarks) == (2, 1)
