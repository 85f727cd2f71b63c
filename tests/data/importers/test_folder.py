import os

import numpy as np
import pytest

from landmark_retrieval.data.importers.folder import (
    hold_out,
    only_listed,
    read_folder,
    read_queries_and_index,
    read_unlabelled,
    split_queries,
)
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def root(tmp_path):
    for landmark, count in (("Tower", 6), ("Arch", 1), ("Old bridge", 9)):
        for i in range(count):
            path = tmp_path / landmark / "sub" / f"photo {i}.JPG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        (tmp_path / landmark / "notes.txt").write_text("no photo")
    return tmp_path


def test_folder_per_landmark(root):
    table = read_folder(root)
    assert table.classes == ("Arch", "Old bridge", "Tower")
    np.testing.assert_array_equal(np.bincount(table.labels), [1, 9, 6])
    assert table.ids[0] == "Arch/sub/photo%200.JPG"
    assert all(table.photo(row).data == b"x" for row in range(len(table)))
    assert len(read_unlabelled(root)) == 16


def test_an_empty_landmark_is_named(root):
    (root / "Empty palace").mkdir()
    with pytest.raises(LandmarkRetrievalError, match="Empty palace holds no photos"):
        read_folder(root)


def test_names_that_no_list_can_hold(tmp_path):
    (tmp_path / "Tower").mkdir()
    try:
        (tmp_path / "Tower" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    with pytest.raises(LandmarkRetrievalError, match=r"caf.*is not UTF-8.*rename"):
        read_folder(tmp_path)


def test_photos_without_landmark_folders(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(LandmarkRetrievalError, match="holds no folders"):
        read_folder(tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="no folder"):
        read_folder(tmp_path / "nowhere")


def test_held_out_landmarks_are_never_trained_on(root):
    table = read_folder(root)
    train, query, index, relevant = hold_out(table, 0.5)
    held = {photo.split("/")[0] for photo in [*query.ids, *index.ids]}
    assert len(held) == 1
    assert held.isdisjoint(photo.split("/")[0] for photo in train.ids)
    assert sorted([*train.ids, *query.ids, *index.ids]) == sorted(table.ids)
    assert set(relevant) == set(query.ids)
    assert all(set(images) == set(index.ids) for images in relevant.values())
    assert set(train.labels) == set(range(len(train.classes)))


def test_a_quarter_of_each_landmark_becomes_queries(root):
    table = read_folder(root)
    query, index, relevant = split_queries(table, seed=1)
    assert sorted([*query.ids, *index.ids]) == sorted(table.ids)
    assert [photo.split("/")[0] for photo in query.ids] == ["Old%20bridge", "Old%20bridge", "Tower"]
    assert list(relevant) == list(query.ids)
    for photo, images in relevant.items():
        assert set(images) == {other for other in index.ids if other.split("/")[0] == photo.split("/")[0]}
    assert list(split_queries(table, seed=1)[0].ids) == list(query.ids)
    assert any(list(split_queries(table, seed=seed)[0].ids) != list(query.ids) for seed in range(2, 6))
    assert query.photo(0).data == b"x"
    assert query.labels is None and index.labels is None
    alone = table.take(np.array([0, 1]))  # two photos of two landmarks
    with pytest.raises(LandmarkRetrievalError, match="has a single photo"):
        split_queries(alone)


def test_folders_of_queries_and_index(root, tmp_path):
    (tmp_path / "both").mkdir()
    for name in ("query", "index"):
        for landmark in ("Tower", f"{name} only"):
            folder = tmp_path / "both" / name / landmark
            folder.mkdir(parents=True)
            (folder / "1.jpg").write_bytes(name.encode())
    query, index, relevant = read_queries_and_index(tmp_path / "both")
    assert relevant == {"Tower/1.jpg": ["Tower/1.jpg"]}
    assert sorted(query.ids) == ["Tower/1.jpg", "query%20only/1.jpg"]
    assert {table.photo(0).data for table in (query, index)} == {b"query", b"index"}
    (tmp_path / "both" / "index" / "Tower").rename(tmp_path / "both" / "index" / "tower")
    with pytest.raises(LandmarkRetrievalError, match="no landmark in common"):
        read_queries_and_index(tmp_path / "both")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 2.0])
def test_impossible_fractions(root, fraction):
    with pytest.raises(LandmarkRetrievalError, match="not possible"):
        hold_out(read_folder(root), fraction)


def test_only_listed_photos(root):
    table = read_folder(root)
    (root / "clean.csv").write_text(
        "landmark_id,images\nTower,Tower/sub/photo%203.JPG Tower/sub/photo%201.JPG\nArch,Arch/sub/photo%200.JPG\n"
    )
    clean = only_listed(table, root / "clean.csv")
    assert clean.classes == ("Arch", "Tower")
    assert clean.ids == ["Arch/sub/photo%200.JPG", "Tower/sub/photo%201.JPG", "Tower/sub/photo%203.JPG"]
    assert clean.labels.tolist() == [0, 1, 1]
    for content, message in (
        ("Tower,Tower/gone.jpg", r"line 2: Tower/gone\.jpg is no training photo of Tower.*hold out the same"),
        ("Arch,Tower/sub/photo%203.JPG", "is no training photo of Arch"),
        ("", "lists no photos"),
    ):
        (root / "clean.csv").write_text(f"landmark_id,images\n{content}")
        with pytest.raises(LandmarkRetrievalError, match=message):
            only_listed(table, root / "clean.csv")
