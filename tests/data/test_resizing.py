import cv2
import numpy as np
import pytest

from landmark_retrieval.data.decode import resize
from landmark_retrieval.data.resizing import Resizing
from landmark_retrieval.errors import LandmarkRetrievalError

PHOTO = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.mark.parametrize(
    ("how", "size", "shape"),
    [
        ("squash", 40, (40, 40)),
        ("longest_side", 45, (30, 45)),
        ("longest_side", 180, (120, 180)),
        ("shortest_side", 30, (30, 45)),
        ("shortest_side", 61, (61, 92)),  # 91.5 to the even side
        ("original", 45, (30, 45)),
        ("original", 90, (60, 90)),
        ("original", 500, (60, 90)),
        ("original", None, (60, 90)),
    ],
)
def test_shapes(how, size, shape):
    resizing = Resizing({"resize": how, "image_size": size})
    assert resizing(PHOTO).shape == (*shape, 3)
    assert resizing.shape(60, 90) == shape
    assert resizing(PHOTO.transpose(1, 0, 2)).shape == (*shape[::-1], 3)


def test_the_pixels():
    np.testing.assert_array_equal(Resizing({"image_size": 40})(PHOTO), resize(PHOTO, 40))
    np.testing.assert_array_equal(Resizing({"resize": "original"})(PHOTO), PHOTO)
    # half the size by area: the mean of four
    half = Resizing({"resize": "longest_side", "image_size": 45})(PHOTO)
    mean = PHOTO.reshape(30, 2, 45, 2, 3).mean((1, 3))
    assert np.abs(half - mean).max() <= 0.5
    grown = Resizing({"resize": "shortest_side", "image_size": 80})(PHOTO)
    np.testing.assert_array_equal(grown, cv2.resize(PHOTO, (120, 80), interpolation=cv2.INTER_LINEAR))


def test_a_thin_photo_keeps_a_pixel():
    assert Resizing({"resize": "longest_side", "image_size": 40}).shape(1, 1000) == (1, 40)


@pytest.mark.parametrize(
    "card",
    [{"resize": "stretch", "image_size": 40}, {"resize": "longest_side"}, {}, {"resize": "original", "image_size": 0}],
)
def test_what_is_not_possible(card):
    with pytest.raises(LandmarkRetrievalError, match=r"not possible|cannot be resized by 'stretch'.*longest_side"):
        Resizing(card)
