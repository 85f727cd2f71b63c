import json
import shutil

import pytest
import torch

from landmark_retrieval import GeMNet
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.photo_search import gallery_entries, index_photos, model_of, search_photos

CARD = {"architecture": "GeMNet", "image_size": 48}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GeMNet("mobilenetv3_small_050", embedding_dim=None).eval()


@pytest.fixture(scope="module")
def index(model, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("index")
    index_photos(model, CARD, "imagenet", photos / "index", out, workers=0)
    return out


def test_a_photo_of_the_index_finds_itself_first(model, index, photos):
    files = sorted((photos / "index").rglob("*.jpg"))[:3]
    found = search_photos(model, CARD, index, files, top=5)
    assert [row.photos[0] for row in found] == [file.resolve() for file in files]
    for row in found:
        assert row.scores[0] == pytest.approx(1, abs=1e-4)
        assert row.scores == sorted(row.scores, reverse=True)
        assert len(row.photos) == 5
    assert len(search_photos(model, CARD, index, [photos / "test"], top=1000)[0].photos) == 14
    assert all(result.photo for entry in gallery_entries(found) for result in entry.results)


def test_mistakes(model, index, photos, tmp_path):
    assert model_of(index) == "imagenet"
    query = next((photos / "test").rglob("*.jpg"))
    with pytest.raises(LandmarkRetrievalError, match="no query photo"):
        search_photos(model, CARD, index, [tmp_path / "nowhere.jpg"])
    (tmp_path / "cut.jpg").write_bytes(query.read_bytes()[:1000])
    with pytest.raises(LandmarkRetrievalError, match=r"cut\.jpg cannot be used: the JPEG is cut short"):
        search_photos(model, CARD, index, [tmp_path / "cut.jpg"])
    with pytest.raises(LandmarkRetrievalError, match=r"no photo index|no index"):
        search_photos(model, CARD, tmp_path, [query])
    with pytest.raises(LandmarkRetrievalError):
        search_photos(model, CARD | {"weights_sha256": "other"}, index, [query])


@pytest.fixture
def own(photos, tmp_path):
    shutil.copytree(photos / "index", tmp_path / "photos")
    return tmp_path / "photos"


def update(model, own, tmp_path, **options):
    return index_photos(model, CARD, "imagenet", own, tmp_path / "index", workers=0, **options)


def found(model, tmp_path, own):
    """Each photo of the folder -> its five nearest with their scores."""
    rows = search_photos(model, CARD, tmp_path / "index", [own], top=5)
    return {row.query: list(zip(row.photos, [round(score, 4) for score in row.scores], strict=True)) for row in rows}


@pytest.mark.parametrize("kind", ["flat", "exact", "hnsw", "sq8"])
@pytest.mark.parametrize("whiten", [None, 5])
def test_an_index_follows_its_folder(model, own, tmp_path, kind, whiten):
    """Photos are added, removed, changed and come back: as if indexed at once, and only what is new is described."""
    files = sorted(own.rglob("*.jpg"))
    aside = tmp_path / "aside.jpg"
    files[0].rename(aside)
    done = update(model, own, tmp_path, kind=kind, whiten=whiten)
    assert (len(done.index), done.added, done.removed) == (13, 13, [])
    done = update(model, own, tmp_path)
    assert (len(done.index), done.added, done.removed, done.index.kind) == (13, 0, [], kind)
    aside.rename(files[0])
    shutil.copy(files[1], own / "copy.jpg")
    files[2].rename(aside)
    done = update(model, own, tmp_path)
    assert (len(done.index), done.added) == (14, 2)
    assert done.removed == [files[2].relative_to(own).as_posix()]
    shutil.copy(aside, files[2])  # comes back
    shutil.copy(files[5], files[4])  # becomes another photo
    done = update(model, own, tmp_path)
    assert (len(done.index), done.added, done.removed) == (15, 2, [])
    now = found(model, tmp_path, own)
    assert all(ranked[0][1] == pytest.approx(1, abs=1e-3) for ranked in now.values())
    assert {photo for photo, _ in now[files[4]][:2]} == {files[4], files[5]}
    if whiten is None:
        update(model, own, tmp_path / "fresh", kind="flat")
        for photo, ranked in found(model, tmp_path / "fresh", own).items():
            assert [score for _, score in now[photo]] == pytest.approx([score for _, score in ranked], abs=2e-3)
    assert not (tmp_path / "index" / "new").exists()


def test_broken_photos_are_reported_each_time_and_described_when_mended(model, own, tmp_path):
    update(model, own, tmp_path)
    photo = sorted(own.rglob("*.jpg"))[0]
    (own / "cut.jpg").write_bytes(photo.read_bytes()[:1000])
    for _ in range(2):
        done = update(model, own, tmp_path)
        assert (len(done.index), done.added, list(done.broken)) == (14, 0, ["cut.jpg"])
    shutil.copy(photo, own / "cut.jpg")
    done = update(model, own, tmp_path)
    assert (len(done.index), done.added, done.broken) == (15, 1, {})


def test_another_kind_another_folder_another_model(model, own, tmp_path):
    update(model, own, tmp_path)
    before = found(model, tmp_path, own)
    assert update(model, own, tmp_path, kind="exact").index.kind == "exact"
    assert found(model, tmp_path, own) == before
    shutil.copytree(own, tmp_path / "others")
    with pytest.raises(LandmarkRetrievalError, match="holds an index of the photos in"):
        update(model, tmp_path / "others", tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="is not whitened"):
        update(model, own, tmp_path, whiten=4)
    with pytest.raises(LandmarkRetrievalError, match="weights_sha256: None and 'other'"):
        index_photos(model, CARD | {"weights_sha256": "other"}, "imagenet", own, tmp_path / "index")


def test_a_crash_between_descriptors_and_index_is_made_good(model, own, tmp_path, monkeypatch):
    update(model, own, tmp_path)
    shutil.copy(sorted(own.rglob("*.jpg"))[0], own / "copy.jpg")
    with monkeypatch.context() as patch:
        patch.setattr("landmark_retrieval.retrieval.indexes.faiss_index.FaissIndex.save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            update(model, own, tmp_path)
    done = update(model, own, tmp_path)
    assert len(done.index) == 15 and "copy.jpg" in done.index.ids
    assert json.loads((tmp_path / "index" / "index.json").read_text())["count"] == 15
