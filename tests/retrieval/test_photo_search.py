import json
import shutil

import pytest
import torch
from filelock import FileLock

from landmark_retrieval import GeMNet
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval import photo_index, photo_search, photo_update
from landmark_retrieval.retrieval.photo_index import index_photos
from landmark_retrieval.retrieval.photo_search import gallery_entries, model_of, search_photos

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


def stop(*_, **__):
    raise KeyboardInterrupt


def interrupted(monkeypatch, place, run):
    with monkeypatch.context() as patch:
        patch.setattr(f"landmark_retrieval.retrieval.{place}", stop)
        with pytest.raises(KeyboardInterrupt):
            run()


@pytest.mark.parametrize(
    "place",
    [
        "indexes.faiss_index.FaissIndex.save",
        "indexes.index_files.write_json",  # the old index is gone, the new one not there
        "photo_index.write_notes",
        "photo_index.forget_old",
    ],
)
@pytest.mark.parametrize("whiten", [None, 5])
def test_wherever_an_update_is_interrupted_the_next_one_makes_it_good(model, own, tmp_path, monkeypatch, place, whiten):
    files = sorted(own.rglob("*.jpg"))
    update(model, own, tmp_path, whiten=whiten)
    added, gone = own / "copy.jpg", tmp_path / "gone.jpg"
    shutil.copy(files[0], added)
    files[3].rename(gone)
    shutil.copy(files[5], files[4])
    interrupted(monkeypatch, place, lambda: update(model, own, tmp_path))
    # what was described by the interrupted run changes once more, what had gone comes back
    shutil.copy(files[7], added)
    gone.rename(files[3])
    done = update(model, own, tmp_path)
    assert len(done.index) == 15
    now = found(model, tmp_path, own)
    for photo, same in ((added, files[7]), (files[4], files[5])):
        assert {ranked for ranked, _ in now[photo][:2]} == {photo, same}
        assert now[photo][1][1] == pytest.approx(1, abs=1e-3)
    assert (update(model, own, tmp_path).added, update(model, own, tmp_path).removed) == (0, [])


@pytest.mark.parametrize("place", ["indexes.faiss_index.FaissIndex.save", "indexes.index_files.write_json"])
def test_a_first_run_that_was_interrupted_notices_what_changed_since(model, own, tmp_path, monkeypatch, place):
    files = sorted(own.rglob("*.jpg"))
    interrupted(monkeypatch, place, lambda: update(model, own, tmp_path, kind="flat"))
    shutil.copy(files[5], files[4])
    done = update(model, own, tmp_path)
    assert (len(done.index), done.added) == (14, 1)
    assert {photo for photo, _ in found(model, tmp_path, own)[files[4]][:2]} == {files[4], files[5]}


@pytest.mark.parametrize("kind", ["flat", "exact"])
def test_an_interruption_while_the_store_grows(model, own, tmp_path, monkeypatch, kind):
    update(model, own, tmp_path, kind=kind)
    photo = sorted(own.rglob("*.jpg"))[0]
    shutil.copy(photo, own / "copy.jpg")
    run = photo_index.grow

    def grow(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr("landmark_retrieval.retrieval.parts.Parts.finish", stop)
            run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(photo_index, "grow", grow)
        with pytest.raises(KeyboardInterrupt):
            update(model, own, tmp_path)
    done = update(model, own, tmp_path)
    assert len(done.index) == 15 and done.index.kind == kind
    assert {p for p, _ in found(model, tmp_path, own)[photo][:2]} == {photo, own / "copy.jpg"}


@pytest.mark.parametrize("first", [True, False])
def test_a_photo_that_changes_while_the_folder_is_described_is_described_again(
    model, own, tmp_path, monkeypatch, first
):
    files = sorted(own.rglob("*.jpg"))
    if not first:
        update(model, own, tmp_path)
        shutil.copy(files[6], files[4])
    module, name = (photo_index, "extract") if first else (photo_index, "describe_new")
    run = getattr(module, name)

    def slow(*arguments, **options):
        done = run(*arguments, **options)
        shutil.copy(files[5], files[4])
        return done

    with monkeypatch.context() as patch:
        patch.setattr(module, name, slow)
        update(model, own, tmp_path)
    assert update(model, own, tmp_path).added == 1
    assert {photo for photo, _ in found(model, tmp_path, own)[files[4]][:2]} == {files[4], files[5]}


def test_one_process_at_a_time(model, own, tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    with (
        FileLock(tmp_path / "index" / "index.lock"),
        pytest.raises(LandmarkRetrievalError, match="Another process is updating the index"),
    ):
        update(model, own, tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LandmarkRetrievalError, match="made by one process"):
        update(model, own, tmp_path)


def test_only_folders_of_models_are_kept_as_paths(model, own, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    names = {"hf-hub:a/b@c": "hf-hub:a/b@c", "imagenet": "imagenet", "run": str(tmp_path / "run")}
    for number, (name, kept) in enumerate(names.items()):
        index_photos(model, CARD, name, own, tmp_path / str(number), workers=0)
        assert model_of(tmp_path / str(number)) == kept


def test_what_cannot_be_built_is_refused_before_photos_are_described(model, own, tmp_path, monkeypatch):
    monkeypatch.setattr(photo_index, "extract", stop)
    for options, message in [
        ({"kind": "ivf_pq"}, "trained on 16 photos or more, these are 14: choose flat"),
        ({"kind": "ivf"}, "no kind of index"),
        ({"kind": "exact", "index_device": "mps"}, "cpu or cuda, not on 'mps'"),
        ({"index_device": "tpu"}, "cpu or cuda, not on 'tpu'"),
        ({"device": "nowhere"}, "no device 'nowhere'"),
    ]:
        with pytest.raises(LandmarkRetrievalError, match=message):
            update(model, own, tmp_path, **options)
    monkeypatch.undo()
    update(model, own, tmp_path)
    shutil.copy(sorted(own.rglob("*.jpg"))[0], own / "copy.jpg")
    monkeypatch.setattr(photo_index, "describe_new", stop)
    with pytest.raises(LandmarkRetrievalError, match="these are 15: choose flat"):
        update(model, own, tmp_path, kind="ivf_pq")


@pytest.mark.parametrize("whiten", [None, 5])
def test_old_descriptors_do_not_stay(model, own, tmp_path, whiten):
    files = sorted(own.rglob("*.jpg"))
    update(model, own, tmp_path, whiten=whiten)
    name = "descriptors" if whiten is None else "whitened"
    (tmp_path / "index" / f"{name}-7").mkdir()
    for number, kind in enumerate(("exact", "flat", "hnsw"), 2):
        shutil.copy(files[5 + number], files[4])
        done = update(model, own, tmp_path, kind=kind)
        assert (len(done.index), done.added, done.index.kind) == (14, 1, kind)
        stores = {path.name for path in (tmp_path / "index").iterdir() if path.is_dir()}
        assert stores == {f"{name}-{number}"} | ({"descriptors"} if whiten else set())
        now = found(model, tmp_path, own)[files[4]]
        assert {photo for photo, _ in now[:2]} == {files[4], files[5 + number]}


def test_a_folder_in_which_nothing_can_be_decoded_any_more(model, own, tmp_path):
    update(model, own, tmp_path)
    for photo in own.rglob("*.jpg"):
        photo.write_bytes(photo.read_bytes()[:500])
    with pytest.raises(LandmarkRetrievalError, match=r"None of the 14 photos in .* can be decoded any more"):
        update(model, own, tmp_path)


def test_broken_photos_are_decoded_once(model, own, tmp_path, monkeypatch):
    files = sorted(own.rglob("*.jpg"))
    (own / "cut.jpg").write_bytes(files[0].read_bytes()[:1000])
    update(model, own, tmp_path)
    shutil.copy(files[5], files[4])  # for which the store is made anew
    (own / "cut too.jpg").write_bytes(files[1].read_bytes()[:1000])
    assert sorted(update(model, own, tmp_path).broken) == ["cut too.jpg", "cut.jpg"]
    monkeypatch.setattr(photo_index, "describe_new", stop)
    assert sorted(update(model, own, tmp_path).broken) == ["cut too.jpg", "cut.jpg"]


def test_a_whitening_is_learned_once(model, own, tmp_path, monkeypatch):
    interrupted(monkeypatch, "photo_index.build_index", lambda: update(model, own, tmp_path, whiten=5))
    with monkeypatch.context() as patch:
        patch.setattr(photo_update.Whitening, "fit", stop)
        assert update(model, own, tmp_path, whiten=5).index.dim == 5
    interrupted(monkeypatch, "photo_index.build_index", lambda: update(model, own, tmp_path / "other", whiten=5))
    assert update(model, own, tmp_path / "other", whiten=4).index.dim == 4


def test_the_dtype_of_an_index_stays(model, own, tmp_path):
    update(model, own, tmp_path, dtype="float16")
    update(model, own, tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="kept in float16, not in float32: leave out"):
        update(model, own, tmp_path, dtype="float32")


def test_queries_are_decoded_block_by_block(model, index, photos, monkeypatch):
    files = sorted((photos / "index").rglob("*.jpg"))[:7]
    at_once = search_photos(model, CARD, index, files, top=5)
    events = []
    read, describe = photo_search._read, photo_search.describe
    monkeypatch.setattr(photo_search, "_BLOCK", 3)
    monkeypatch.setattr(photo_search, "_read", lambda *given: events.append("read") or read(*given))
    monkeypatch.setattr(photo_search, "describe", lambda *given: events.append("describe") or describe(*given))
    in_blocks = search_photos(model, CARD, index, files, top=5)
    assert events == [*["read"] * 3, "describe"] * 2 + ["read", "describe"]
    assert [row.photos for row in in_blocks] == [row.photos for row in at_once]
    # photos of their own shape are grouped, and come back in order
    own_shape = {**CARD, "resize": "longest", "image_size": 64}
    images = [torch.randint(0, 255, (32 + 16 * (n % 2), 32, 3), dtype=torch.uint8) for n in range(5)]
    together = photo_search._described_block(model, own_shape, images)
    for row, image in zip(together, images, strict=True):
        assert row == pytest.approx(photo_search._described_block(model, own_shape, [image])[0], abs=1e-4)
