"""Extraction: each photo once, whatever interrupts it; in shapes and views as the card says."""

import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch

from landmark_retrieval import GeMNet, HybridSwinNet
from landmark_retrieval.data.decode import decode, resize
from landmark_retrieval.data.importers.folder import read_unlabelled
from landmark_retrieval.data.importers.gldv2 import read_photos
from landmark_retrieval.data.photos import FilesById, Ids, PhotoTable
from landmark_retrieval.data.transforms import normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.models import blocks
from landmark_retrieval.retrieval import extract as module
from landmark_retrieval.retrieval import views
from landmark_retrieval.retrieval.extract import DOLG_SCALES, broken_photos, describe, extract, rank_and_world
from landmark_retrieval.retrieval.parts import Parts
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter, card_difference
from landmark_retrieval.retrieval.views import card_with_views

CARD = {"architecture": "GeMNet", "image_size": 48}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GeMNet("mobilenetv3_small_050", embedding_dim=None).eval()


def test_every_photo_once_with_unit_length(model, photos, tmp_path):
    table = read_photos(photos, "index")
    store = extract(model, CARD, table, tmp_path, batch_size=4, workers=0)
    rows = store.load()
    assert store.ids == table.ids
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    # one by one, by the plain way
    image = torch.from_numpy(resize(decode(table.photo(5).data), 48))[None]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(normalize(image)))[0]
    np.testing.assert_allclose(rows[5], expected, atol=1e-5)


def test_an_interrupted_run_carries_on(model, photos, tmp_path, monkeypatch):
    table = read_photos(photos, "index")
    whole = extract(model, CARD, table, tmp_path / "whole", batch_size=3, workers=0, part_size=5)
    real, calls = module.describe, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "describe", failing)
    with pytest.raises(KeyboardInterrupt):
        extract(model, CARD, table, tmp_path / "s", batch_size=3, workers=0, part_size=5)
    done = len(calls)
    monkeypatch.setattr(module, "describe", lambda *a: calls.append(1) or real(*a))
    resumed = extract(model, CARD, table, tmp_path / "s", batch_size=3, workers=0, part_size=5)
    assert len(calls) - done < 5  # the whole takes 5 batches
    assert resumed.ids == whole.ids
    np.testing.assert_allclose(resumed.load(), whole.load(), atol=1e-6)


def test_broken_photos_are_counted_and_listed(model, photos, tmp_path):
    files = sorted((photos / "index").rglob("*.jpg"))[:6]
    for i, path in enumerate(files):
        data = path.read_bytes()
        (tmp_path / f"{i}.jpg").write_bytes(data[:300] if i in (1, 4) else data)
    for _ in range(2):  # the second call finds the store finished
        store = extract(model, CARD, read_unlabelled(tmp_path), tmp_path / "out", batch_size=4, workers=0)
        assert store.ids == ["0.jpg", "2.jpg", "3.jpg", "5.jpg"]
        assert set(broken_photos(tmp_path / "out")) == {"1.jpg", "4.jpg"}


def test_photos_exchanged_under_the_same_names(model, photos, tmp_path):
    first, second = sorted((photos / "index").rglob("*.jpg"))[:2]
    (tmp_path / "a.jpg").write_bytes(first.read_bytes())
    extract(model, CARD, read_unlabelled(tmp_path), tmp_path / "out", workers=0)
    (tmp_path / "a.jpg").write_bytes(second.read_bytes())
    with pytest.raises(LandmarkRetrievalError, match="other photos"):
        extract(model, CARD, read_unlabelled(tmp_path), tmp_path / "out", workers=0)


def test_other_photos_or_another_model_in_the_folder(model, photos, tmp_path):
    extract(model, CARD, read_photos(photos, "test"), tmp_path, workers=0)
    with pytest.raises(LandmarkRetrievalError, match="other photos"):
        extract(model, CARD, read_photos(photos, "index"), tmp_path, workers=0)
    with pytest.raises(LandmarkRetrievalError, match=str(tmp_path)):
        extract(model, CARD | {"image_size": 64}, read_photos(photos, "test"), tmp_path, workers=0)


def test_a_store_that_was_not_made_from_these_photos(model, photos, tmp_path):
    table = read_photos(photos, "test")
    for finished in (True, False):
        out = tmp_path / str(finished)
        writer = DescriptorWriter(out, CARD, part_size=1)
        writer.append(["elsewhere"], np.eye(1, 1024, dtype=np.float32))
        if finished:
            writer.finish()
        del writer
        with pytest.raises(LandmarkRetrievalError, match=r"were not made from these photos .* choose another folder"):
            extract(model, CARD, table, out, workers=0)
        assert not (out / "source.json").exists()


def test_other_boxes_are_other_photos(model, photos, tmp_path):
    table = read_photos(photos, "test")
    boxes = np.tile(np.array([[10, 5, 60, 45]], np.int32), (len(table), 1))
    extract(model, CARD, PhotoTable(table.ids, table.files, boxes=boxes), tmp_path, workers=0)
    boxes[3, 0] = 11
    with pytest.raises(LandmarkRetrievalError, match="other photos"):
        extract(model, CARD, PhotoTable(table.ids, table.files, boxes=boxes), tmp_path, workers=0)


def test_notes_left_behind_are_removed(model, photos, tmp_path, monkeypatch):
    table = read_photos(photos, "test")
    whole = extract(model, CARD, table, tmp_path / "whole", workers=0)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "_remove_notes", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(model, CARD, table, tmp_path / "cut", workers=0)
    assert (tmp_path / "cut" / "unfinished.json").exists()
    assert extract(model, CARD, table, tmp_path / "cut", workers=0).ids == whole.ids
    names = ({path.name for path in (tmp_path / name).iterdir()} for name in ("cut", "whole"))
    assert next(names) == next(names)


@pytest.mark.parametrize(("size", "most"), [(None, 4), (48, 9)])
def test_photos_of_any_size_are_decoded_few_at_a_time(model, photos, tmp_path, monkeypatch, size, most):
    table, read = read_photos(photos, "index"), PhotoTable.photos
    ranges = []
    monkeypatch.setattr(PhotoTable, "photos", lambda self, *which: ranges.append(which) or read(self, *which))
    card = CARD | {"resize": "original", "image_size": size}
    assert extract(model, card, table, tmp_path, batch_size=9, workers=0).ids == table.ids
    assert max(stop - start for start, stop in ranges) == most


def test_descriptors_of_another_dtype_or_length_are_refused(model, photos, tmp_path):
    table = read_photos(photos, "test")
    extract(model, CARD, table, tmp_path, workers=0)
    with pytest.raises(LandmarkRetrievalError, match="has dtype float32, not float16"):
        extract(model, CARD, table, tmp_path, workers=0, dtype="float16")
    with pytest.raises(LandmarkRetrievalError, match=r"other views \(views: None and"):
        extract(model, CARD, table, tmp_path, workers=0, flip=True)


def test_half_precision(model, photos, tmp_path):
    table = read_photos(photos, "test")
    whole = extract(model, CARD, table, tmp_path / "32", workers=0).load()
    half = extract(model, CARD, table, tmp_path / "16", workers=0, dtype="float16")
    assert half.dtype == "float16"
    np.testing.assert_allclose(half.load(), whole, atol=1e-3)


def test_nan_names_the_photo(photos, tmp_path):
    table = read_photos(photos, "test")

    class Broken(torch.nn.Module):
        def forward(self, images):
            found = torch.ones(len(images), 4)
            found[-1] = float("nan")  # the last of a batch
            return found

    with pytest.raises(LandmarkRetrievalError, match=f"photo '{table.ids[3]}' holds NaN"):
        extract(Broken(), CARD, table, tmp_path, batch_size=4, workers=0)


def test_photos_that_cannot_be_decoded_fill_parts_of_their_own(model, photos, tmp_path):
    data = [path.read_bytes() for path in sorted((photos / "index").rglob("*.jpg"))[:6]]
    for i, photo in enumerate(data):
        (tmp_path / f"{i}.jpg").write_bytes(photo[:300] if i in (0, 1, 5) else photo)
    store = extract(model, CARD, read_unlabelled(tmp_path), tmp_path / "out", workers=0, part_size=2)
    assert [len(ids) for ids, _ in store.parts()] == [0, 2, 1]
    assert list(broken_photos(tmp_path / "out")) == ["0.jpg", "1.jpg", "5.jpg"]
    assert DescriptorStore.open(tmp_path / "out", verify=True).load().shape == (3, store.dim)
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(data[i][:300])
    for _ in range(2):
        with pytest.raises(LandmarkRetrievalError, match=r"None of 6 photos can be decoded, see .*broken\.csv"):
            extract(model, CARD, read_unlabelled(tmp_path), tmp_path / "none", workers=0, part_size=2)
    assert len(broken_photos(tmp_path / "none")) == 6


def test_no_photos_and_odd_settings(model, photos, tmp_path):
    empty = PhotoTable(Ids([]), FilesById(tmp_path.joinpath))
    with pytest.raises(LandmarkRetrievalError, match="no photos to describe"):
        extract(model, CARD, empty, tmp_path / "out", workers=0)
    table = read_photos(photos, "test")
    for options, message in (
        ({"batch_size": 0}, "A batch of 0 photos"),
        ({"part_size": 0}, "at least 1 photo"),
        ({"dtype": "int8"}, "float32 or float16"),
        ({"scales": []}, "give numbers above 0"),
        ({"scales": [1, -1]}, "give numbers above 0"),
        ({"rank": 2, "world": 2}, "no process 2 of 2"),
        ({"device": "foo"}, "There is no device 'foo'"),
        ({"device": "cuda:99"}, "There is no GPU cuda:99"),
    ):
        with pytest.raises(LandmarkRetrievalError, match=message):
            extract(model, CARD, table, tmp_path / "out", workers=0, **options)
    assert not (tmp_path / "out").exists()


# shapes


@pytest.fixture
def shapes(tmp_path):
    """Photos of several shapes, some of them equal."""
    rng = np.random.default_rng(0)
    (tmp_path / "shapes").mkdir()
    for number, shape in enumerate([(40, 60), (60, 40), (40, 60), (52, 52), (60, 40), (33, 90), (40, 60)]):
        blurred = cv2.GaussianBlur(rng.integers(0, 256, (*shape, 3), np.uint8), (5, 5), 0)
        cv2.imwrite(str(tmp_path / "shapes" / f"{number}.png"), blurred)
    return read_unlabelled(tmp_path / "shapes")


def plain(model, image):
    """One image, described without any of the code in question."""
    x = torch.from_numpy((image.astype(np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).float()
    with torch.no_grad():
        found = model(x.permute(2, 0, 1)[None])[0].numpy()
    return found / np.linalg.norm(found)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_photos_keep_their_shape_whatever_the_batches(model, shapes, tmp_path, batch_size):
    card = CARD | {"resize": "original", "image_size": None}
    store = extract(model, card, shapes, tmp_path / "out", batch_size=batch_size, workers=0)
    assert store.ids == shapes.ids
    expected = [plain(model, decode(shapes.photo(row).data)) for row in range(len(shapes))]
    np.testing.assert_allclose(store.load(), expected, atol=1e-5)


def test_photos_of_a_longest_side(model, shapes, tmp_path):
    store = extract(model, CARD | {"resize": "longest_side"}, shapes, tmp_path / "out", workers=0)
    image = cv2.resize(decode(shapes.photo(1).data), (32, 48), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(store.load()[1], plain(model, image), atol=1e-5)
    square = extract(model, CARD, shapes, tmp_path / "square", workers=0)
    assert card_difference(store.card, square.card) == "resize: 'longest_side' and None"
    # what cards without the key mean
    assert extract(model, CARD | {"resize": "squash"}, shapes, tmp_path / "square", workers=0).card == square.card


def test_only_the_box_of_a_query_is_described(model, photos, tmp_path):
    table = read_photos(photos, "test")
    boxes = np.tile(np.array([[10, 5, 60, 45]], np.int32), (len(table), 1))
    card = CARD | {"resize": "original", "image_size": None}
    boxed = PhotoTable(table.ids, table.files, boxes=boxes)
    store = extract(model, card, boxed, tmp_path, workers=0)
    np.testing.assert_allclose(store.load()[2], plain(model, decode(table.photo(2).data)[5:45, 10:60]), atol=1e-5)


def test_a_model_for_one_size_takes_no_other(photos, tmp_path):
    net = HybridSwinNet("tf_efficientnet_lite0", "swin_tiny_patch4_window7_224.ms_in1k", 224, embedding_dim=8).eval()
    table = read_photos(photos, "test").take(np.arange(1))
    card = {"image_size": 224}
    for wrong, options in (
        (card | {"resize": "longest_side"}, {}),
        (card | {"image_size": 448}, {}),
        (card, {"scales": DOLG_SCALES}),
    ):
        with pytest.raises(LandmarkRetrievalError, match=r"HybridSwinNet is made for squares of 224 px.*squash"):
            extract(net, wrong, table, tmp_path, workers=0, **options)
    assert len(extract(net, card, table, tmp_path, workers=0, flip=True)) == 1


# views


def several(model, image, scales, flip):
    """The mean over views by another road: OpenCV's bilinear on floats, one image at a time."""
    found = []
    for scale in scales:
        size = [max(32, round(side * scale)) for side in image.shape[1::-1]]
        scaled = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        found += [plain(model, scaled)] + ([plain(model, scaled[:, ::-1])] if flip else [])
    mean = np.mean(found, axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.9, 1.5), DOLG_SCALES])
def test_views_are_averaged(model, shapes, tmp_path, scales, flip):
    card = CARD | {"resize": "original", "image_size": None}
    store = extract(model, card, shapes, tmp_path / "out", workers=0, scales=scales, flip=flip)
    for row in (0, 1, 5):
        expected = several(model, decode(shapes.photo(row).data), scales, flip)
        np.testing.assert_allclose(store.load()[row], expected, atol=2e-5)


def test_views_are_as_large_as_networks_need_them(model, tmp_path):
    assert views.SMALLEST_SIDE == blocks.SMALLEST_SIDE
    image = np.random.default_rng(0).integers(0, 256, (10, 90, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "thin.png"), image[..., ::-1])
    card = CARD | {"resize": "original", "image_size": None}
    store = extract(model, card, read_unlabelled(tmp_path), tmp_path / "out", workers=0, scales=(0.3, 1))
    np.testing.assert_allclose(store.load()[0], several(model, image, (0.3, 1), False), atol=2e-5)


def test_scales_of_squares_multiply_their_side(model, photos, tmp_path):
    table = read_photos(photos, "test")
    store = extract(model, CARD, table, tmp_path, workers=0, scales=(1, 1.5))
    image = resize(decode(table.photo(0).data), 48)
    np.testing.assert_allclose(store.load()[0], several(model, image, (1, 1.5), False), atol=2e-5)


def test_a_query_is_described_in_the_views_of_the_store(model, photos, tmp_path):
    table = read_photos(photos, "test")
    store = extract(model, CARD, table, tmp_path / "one", workers=0, scales=(0.8, 1), flip=True)
    assert store.card["views"] == {"scales": [0.8, 1.0], "flip": True}
    image = torch.from_numpy(resize(decode(table.photo(3).data), 48))[None]
    np.testing.assert_allclose(describe(model, image, store.card)[0], store.load()[3], atol=1e-5)
    # its card alone is enough to make the same again, and one view is what cards always meant
    again = extract(model, store.card, table, tmp_path / "two", workers=0)
    assert again.card == store.card
    np.testing.assert_array_equal(again.load(), store.load())
    assert card_with_views(store.card, (1,), False) == CARD
    assert "views" not in extract(model, CARD, table, tmp_path / "three", workers=0).card


# several processes


def together(count, *arguments, **options):
    """As many extractions at once, each in a thread that knows nothing of the others; the stores they give."""
    found = [None] * count

    def one(rank):
        try:
            found[rank] = extract(*arguments, rank=rank, world=count, **options)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


@pytest.fixture
def log(monkeypatch):
    """Photos described, counted."""
    seen, real = [], module.describe
    monkeypatch.setattr(module, "_PAUSE", 0.01)

    def noted(model, images, card):
        seen.append(len(images))
        return real(model, images, card)

    monkeypatch.setattr(module, "describe", noted)
    return seen


@pytest.mark.parametrize("count", [2, 3, 8])
def test_processes_share_the_photos_and_make_the_same_store(model, photos, tmp_path, log, count):
    table = read_photos(photos, "index")
    options = {"batch_size": 2, "part_size": 3, "workers": 0}
    one = extract(model, CARD, table, tmp_path / "one", **options)
    log.clear()
    stores = together(count, model, CARD, table, tmp_path / "many", **options)
    assert sum(log) == len(table)
    for store in stores:
        assert store.ids == one.ids == table.ids
        np.testing.assert_array_equal(store.load(), one.load())
    names = {path.name for path in (tmp_path / "many").iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()}
    assert (tmp_path / "many" / "store.json").read_bytes() == (tmp_path / "one" / "store.json").read_bytes()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1)])
def test_another_number_of_processes_goes_on(model, photos, tmp_path, log, monkeypatch, before, after):
    table = read_photos(photos, "index")
    options = {"batch_size": 2, "part_size": 3, "workers": 0}
    one = extract(model, CARD, table, tmp_path / "one", **options)
    log.clear()
    counting = module.describe

    def failing(*arguments):
        if len(log) >= 5:
            raise RuntimeError("out of power")
        return counting(*arguments)

    monkeypatch.setattr(module, "describe", failing)
    with pytest.raises(RuntimeError, match="out of power"):
        together(before, model, CARD, table, tmp_path / "many", **options)
    with pytest.raises(LandmarkRetrievalError, match="not finished"):
        DescriptorStore.open(tmp_path / "many")
    monkeypatch.setattr(module, "describe", counting)
    there = sum(
        len(np.load(tmp_path / "many" / f"{note.stem}.npy")) for note in (tmp_path / "many").glob("part-*.json")
    )
    assert there > 0
    log.clear()
    # another size of parts is asked for: those that are there stay what they are
    store = together(after, model, CARD, table, tmp_path / "many", **(options | {"part_size": 5}))[0]
    assert sum(log) == len(table) - there
    assert store.ids == one.ids
    np.testing.assert_array_equal(store.load(), one.load())


_STUCK = """
import sys, time
from pathlib import Path
import torch
from landmark_retrieval import GeMNet
from landmark_retrieval.data.importers.gldv2 import read_photos
from landmark_retrieval.models import blocks
from landmark_retrieval.retrieval import extract as module
from landmark_retrieval.retrieval import views

photos, out = Path(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(0)
torch.set_num_threads(1)
model = GeMNet("mobilenetv3_small_050", embedding_dim=None).eval()
real, calls = module.describe, []

def describe(*arguments):
    calls.append(1)
    if len(calls) == 2:
        (out / "stuck").touch()
        time.sleep(600)
    return real(*arguments)

module.describe = describe
card = {"architecture": "GeMNet", "image_size": 48}
module.extract(model, card, read_photos(photos, "index"), out, batch_size=3, part_size=3, workers=0)
"""


def test_a_process_takes_over_from_one_that_was_killed(model, photos, tmp_path, log, monkeypatch):
    table = read_photos(photos, "index")
    options = {"batch_size": 3, "part_size": 3, "workers": 0}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = extract(model, CARD, table, tmp_path / "one", **options)
    log.clear()
    out = tmp_path / "many"
    out.mkdir()
    # as torchrun says it
    command, environment = [sys.executable, "-c", _STUCK, str(photos), str(out)], {"RANK": "1", "WORLD_SIZE": "2"}
    other = subprocess.Popen(command, env=os.environ | environment)
    counting = module.describe

    def waiting(*arguments):
        while not (out / "stuck").exists():
            assert other.poll() is None
            time.sleep(0.02)
        if not log:
            assert not Parts(out, CARD, "float32", 3).claim(3)
            other.kill()
            other.wait()
        return counting(*arguments)

    monkeypatch.setattr(module, "describe", waiting)
    try:
        store = extract(model, CARD, table, out, rank=0, world=2, **options)
    finally:
        other.kill()
        other.wait()
        torch.set_num_threads(threads)
    assert len(log) == 4  # of five parts the killed process had finished one
    assert DescriptorStore.open(out, verify=True).ids == store.ids == one.ids
    np.testing.assert_array_equal(store.load(), one.load())


def test_what_others_add_to_the_store_is_left_alone(model, photos, tmp_path, monkeypatch):
    table = read_photos(photos, "test")
    store = extract(model, CARD, table, tmp_path, workers=0, part_size=4)
    monkeypatch.setattr(module, "describe", None)
    writer = DescriptorWriter(tmp_path, CARD, part_size=1)
    writer.append(["one more"], store.load()[:1])
    # not finished yet: the store is what it was
    assert extract(model, CARD, table, tmp_path, workers=0).ids == table.ids
    writer.finish()
    assert extract(model, CARD, table, tmp_path, workers=0).ids == [*table.ids, "one more"]
    assert DescriptorStore.open(tmp_path, verify=True).ids == [*table.ids, "one more"]


def test_which_process_this_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_and_world() == (0, 1)  # alone it says nothing: a trainer sets it, too
    monkeypatch.setenv("RANK", "3")
    assert rank_and_world() == (3, 4)
    assert rank_and_world(1, 2) == (1, 2)


def test_parts_of_processes_with_other_options_do_not_become_a_store(model, photos, tmp_path, log, monkeypatch):
    table = read_photos(photos, "index")
    counting = module.describe
    monkeypatch.setattr(module, "describe", lambda *a: counting(*a) if len(log) < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract(model, CARD, table, tmp_path, batch_size=4, part_size=4, workers=0)
    monkeypatch.setattr(module, "describe", counting)
    about = (tmp_path / "unfinished.json").read_text()
    (tmp_path / "unfinished.json").write_text(about.replace('"part_size": 4', '"part_size": 5'))
    with pytest.raises(LandmarkRetrievalError, match=r"Part 0 .* is not of photos 0 to 5"):
        extract(model, CARD, table, tmp_path, batch_size=4, workers=0)
