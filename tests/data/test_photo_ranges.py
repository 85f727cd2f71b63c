import cv2
import numpy as np
import pytest
import torch

from landmark_retrieval.data.batches import loader
from landmark_retrieval.data.decode import decode, resize
from landmark_retrieval.data.importers.gldv2 import read_photos
from landmark_retrieval.data.photo_ranges import PhotoRanges, images_by_shape
from landmark_retrieval.data.photos import FilesById, Ids, PhotoTable
from landmark_retrieval.data.resizing import Resizing

SHAPES = [(20, 30), (30, 20), (20, 30), (20, 30), (8, 9), (30, 20)]


@pytest.fixture
def table(tmp_path):
    """Photos of a few shapes, one of them broken."""
    rng = np.random.default_rng(0)
    for number, shape in enumerate(SHAPES):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (*shape, 3), np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no photo")
    names = [f"{number}.png" for number in range(len(SHAPES))]
    return PhotoTable(Ids([*names[:3], "broken.png", *names[3:]]), FilesById(tmp_path.joinpath))


@pytest.mark.parametrize("at_most", [1, 1200, 10**6])
def test_every_image_once_in_groups_of_its_shape(table, at_most):
    batch = PhotoRanges(table, Resizing({"resize": "original"}))[0, 7, 7]
    assert batch["broken"] == [("broken.png", batch["broken"][0][1])]
    seen = {}
    for numbers, images in images_by_shape(batch, batch["pixels"], at_most):
        assert len(numbers) == len(images)
        assert len(numbers) == 1 or images[..., 0].numel() <= at_most
        seen |= {batch["ids"][number]: image.numpy() for number, image in zip(numbers, images, strict=True)}
    assert len(seen) == len(SHAPES)
    for photo, image in seen.items():
        np.testing.assert_array_equal(image, decode(table.find([photo])[photo]))


def test_squares_are_one_group(table):
    batch = PhotoRanges(table, Resizing({"image_size": 16}))[0, 7, 7]
    ((numbers, images),) = images_by_shape(batch, batch["pixels"], 10**6)
    assert numbers == list(range(6))
    assert images.data_ptr() == batch["pixels"].data_ptr()
    np.testing.assert_array_equal(images[0].numpy(), resize(decode(table.photo(0).data), 16))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_asked_for(photos, workers):
    table = read_photos(photos, "index")
    order = [(10, 14, 14), (0, 5, 10), (5, 10, 10)]
    made = loader(PhotoRanges(table, Resizing({"image_size": 8})), workers, order=iter(order))
    assert [list(batch["ids"]) for batch in made] == [list(table.ids[first:stop]) for first, stop, _ in order]


def test_only_the_box_counts(photos):
    table = read_photos(photos, "test")
    boxes = np.tile(np.array([[10, 5, 60, 45]], np.int32), (len(table), 1))
    boxed = PhotoTable(table.ids, table.files, boxes=boxes)
    batch = PhotoRanges(boxed, Resizing({"resize": "original"}))[0, 1, 1]
    assert batch["shapes"] == [(40, 50)]
    np.testing.assert_array_equal(batch["pixels"].view(40, 50, 3).numpy(), decode(table.photo(0).data)[5:45, 10:60])


def test_a_batch_of_broken_photos(tmp_path):
    table = PhotoTable(Ids(["a.jpg"]), FilesById(tmp_path.joinpath))
    batch = PhotoRanges(table, Resizing({"image_size": 8}))[0, 1, 1]
    assert (batch["ids"], batch["shapes"], len(batch["pixels"])) == ([], [], 0)
    assert list(images_by_shape(batch, batch["pixels"], 100)) == []
    assert batch["pixels"].dtype == torch.uint8
