"""The drawn data set: file layout, repeatability, resuming, and what its tables promise about each other."""

import csv
import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from landmark_retrieval.data.procedural import generate
from landmark_retrieval.data.procedural.architecture import FAMILIES, built, landmark_specs
from landmark_retrieval.data.procedural.camera import looking, see
from landmark_retrieval.data.procedural.plan import Parameters, plan
from landmark_retrieval.data.procedural.rasterizer import nearest
from landmark_retrieval.errors import LandmarkRetrievalError

TINY = {"train_landmarks": 8, "index_landmarks": 3, "train_photos": 40, "index_photos": 12, "test_photos": 10}
TABLES = {
    "train.csv": ["id", "url", "landmark_id"],
    "train_clean.csv": ["landmark_id", "images"],
    "train_label_to_category.csv": ["landmark_id", "category"],
    "index.csv": ["id"],
    "test.csv": ["id"],
    "index_landmarks.csv": ["id", "landmark"],
    "retrieval_solution.csv": ["id", "images", "Usage"],
    "recognition_solution.csv": ["id", "landmarks", "Usage"],
}


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    summary = generate(folder, **TINY, seed=3, workers=2, progress=False)
    assert (summary.train_photos, summary.index_photos, summary.test_photos) == (40, 12, 10)
    assert summary.drawn == 62
    return folder


def test_layout_and_columns(drawn: Path) -> None:
    for name, header in TABLES.items():
        with (drawn / name).open(newline="") as file:
            assert next(csv.reader(file)) == header
    assert {path.name for path in drawn.iterdir()} == {*TABLES, "train", "index", "test", "procedural.json"}
    for split, count in (("train", 40), ("index", 12), ("test", 10)):
        ids = [row["id"] for row in rows(drawn, f"{split}.csv")]
        assert len(ids) == count
        paths = {path.relative_to(drawn).as_posix() for path in (drawn / split).rglob("*.*")}
        assert paths == {f"{split}/{i[0]}/{i[1]}/{i[2]}/{i}.jpg" for i in ids}
        assert all(re.fullmatch("[0-9a-f]{16}", i) for i in ids)


def test_photos_decode_and_differ(drawn: Path) -> None:
    seen = set()
    for path in drawn.rglob("*.jpg"):
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.shape[2] == 3
        assert 200 <= min(picture.shape[:2]) <= 284
        assert picture.std() > 3
        seen.add(picture.tobytes())
    assert len(seen) == 62


def test_one_worker_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", **TINY, seed=3, workers=1, progress=False)
    assert digests(tmp_path / "again") == digests(drawn)


def test_resumes_and_repairs(drawn: Path) -> None:
    before = digests(drawn)
    photos = sorted(drawn.rglob("*.jpg"))
    photos[0].unlink()
    photos[9].write_bytes(photos[9].read_bytes()[:500])
    (drawn / "procedural.json").rename(drawn / "procedural.started.json")
    (drawn / "index.csv").unlink()
    assert generate(drawn, **TINY, seed=3, workers=1, progress=False).drawn == 2
    assert digests(drawn) == before
    photos[3].unlink()
    assert generate(drawn, **TINY, seed=3, workers=1, progress=False).drawn == 1
    assert generate(drawn, **TINY, seed=3, progress=False).drawn == 0
    assert digests(drawn) == before


def test_other_parameters_are_refused(drawn: Path, tmp_path: Path) -> None:
    before = digests(drawn)
    with pytest.raises(LandmarkRetrievalError, match="other parameters"):
        generate(drawn, **TINY, seed=4, progress=False)
    with pytest.raises(LandmarkRetrievalError, match=str(drawn)):
        generate(drawn, **{**TINY, "test_photos": 11}, seed=3, progress=False)
    assert digests(drawn) == before
    (tmp_path / "index.csv").write_text("id\n")
    with pytest.raises(LandmarkRetrievalError, match="not drawn here"):
        generate(tmp_path, **TINY, progress=False)


@pytest.mark.parametrize(
    "wrong", [{"train_landmarks": 1}, {"train_photos": 15}, {"index_photos": 3}, {"test_photos": 4}, {"seed": -1}]
)
def test_impossible_numbers_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(LandmarkRetrievalError):
        generate(tmp_path / "set", **{**TINY, **wrong}, progress=False)
    assert not (tmp_path / "set").exists()


def test_tables_agree(drawn: Path) -> None:
    categories = {row["landmark_id"]: row["category"] for row in rows(drawn, "train_label_to_category.csv")}
    shown = {row["id"]: row["landmark"] for row in rows(drawn, "index_landmarks.csv")}
    assert list(shown) == [row["id"] for row in rows(drawn, "index.csv")]
    unseen = set(shown.values()) - {""}
    assert len(unseen) == 3
    assert "" in shown.values()
    assert unseen.isdisjoint(categories.values())

    test_ids = [row["id"] for row in rows(drawn, "test.csv")]
    retrieval, recognition = rows(drawn, "retrieval_solution.csv"), rows(drawn, "recognition_solution.csv")
    assert [row["id"] for row in retrieval] == [row["id"] for row in recognition] == test_ids
    asked = set()
    for row, answer in zip(retrieval, recognition, strict=True):
        if row["images"] == "None":
            assert row["Usage"] == "Ignored"
            assert answer["landmarks"] == "" or answer["landmarks"] in categories
            continue
        assert row["Usage"] in ("Private", "Public")
        assert answer["landmarks"] == ""
        landmarks = {shown[image] for image in row["images"].split()}
        assert len(landmarks) == 1
        (landmark,) = landmarks
        assert set(row["images"].split()) == {i for i, name in shown.items() if name == landmark}
        asked.add(landmark)
    assert asked == unseen
    assert any(row["landmarks"] for row in recognition)


def test_wrong_labels_are_in_the_full_list_only() -> None:
    whole = plan(Parameters(40, 20, 1100, 350, 120, 0))
    train = whole.of("train")
    wrong = {p.id for p in train if p.shows is None or whole.train_ids[p.shows] != p.label}
    assert len(wrong) == 55
    assert any(p.shows is None for p in train)
    clean = [i for ids in whole.clean.values() for i in ids]
    assert len(clean) == len(set(clean)) > 800
    assert wrong.isdisjoint(clean)
    assert set(clean) < {p.id for p in train}
    assert set(whole.clean) < set(whole.train_ids.values())
    labels = {p.id: p.label for p in train}
    assert all(labels[i] == label for label, ids in whole.clean.items() for i in ids)
    unseen = {p.shows for p in whole.of("index")} - {None}
    assert len(unseen) == 20
    assert unseen.isdisjoint(whole.train_ids)
    assert {spec.family for spec in unseen if spec} <= {spec.family for spec in whole.train_ids}
    counts = sorted(np.unique([p.label for p in train], return_counts=True)[1])
    assert sum(counts) == 1100
    assert counts[0] <= 7
    assert counts[-1] >= 50
    assert len({p.id for p in whole.photos}) == len(whole.photos) == 1570


def test_every_family_builds_on_the_ground() -> None:
    specs = landmark_specs(0, 2 * len(FAMILIES))
    assert {spec.family for spec in specs} == set(FAMILIES)
    assert len({spec.name for spec in specs}) == len(specs)
    for first, second in zip(specs[::2], specs[1::2], strict=True):
        assert (first.family, first.style_seed) == (second.family, second.style_seed)  # near-twins ...
        assert first.shape_seed != second.shape_seed  # ... of another shape
    for spec in specs[::4]:
        model = built(spec)
        assert model.height > 5
        assert model.radius > 3
        assert np.isfinite(model.mesh.corners).all()
        assert np.allclose(np.linalg.norm(model.mesh.normals, axis=1), 1)


def test_camera_and_z_buffer_see_a_box_from_its_front() -> None:
    mesh = built(landmark_specs(0, 1)[0]).mesh
    camera = looking(np.array([0.0, -200.0, 20.0]), np.array([0.0, 0.0, 10.0]), 0.0, 200.0, 160, 120)
    middle, depth = camera.project(np.array([0.0, 0.0, 10.0]))
    assert np.allclose(middle, (80, 60))
    assert depth == pytest.approx(np.hypot(200, 10))
    above, _ = camera.project(np.array([0.0, 0.0, 30.0]))
    assert above[1] < 60
    seen = see(camera, mesh)
    offset = camera.position - mesh.corners[seen.faces, 0]
    assert (np.einsum("fc,fc->f", offset, mesh.normals[seen.faces]) > 0).all()

    square = np.array([(2, 2), (12, 2), (12, 12), (2, 12)], dtype=float)
    outlines = np.stack([square, square + 5])
    winner, best = nearest(outlines, np.array([[0, 0, 1.0], [0, 0, 2.0]]), 24, 20)
    assert winner.shape == (20, 24)
    assert (winner[5, 5], winner[10, 10], winner[15, 15], winner[1, 1]) == (0, 1, 1, -1)
    assert best[10, 10] == 2
