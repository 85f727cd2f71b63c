import io

import cv2
import numpy as np
import pytest
from PIL import Image

from landmark_retrieval.data.decode import BrokenPhotoError, decode, resize


def encoded(form, image=None, **options):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (6, 9, 3), np.uint8), (90, 60)) if image is None else image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue(), image


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pixels_are_rgb(form):
    data, image = encoded(form, quality=98) if form != "PNG" else encoded(form)
    assert np.abs(decode(data).astype(int) - image).mean() < (1 if form == "PNG" else 6)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data, image = encoded("JPEG", exif=exif)
    assert decode(data).shape == (image.shape[1], image.shape[0], 3)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_cut_photo_is_broken(share):
    data, _ = encoded("JPEG")
    with pytest.raises(BrokenPhotoError):
        decode(data[: int(share * len(data))])
    with pytest.raises(BrokenPhotoError):
        decode(data[: int(share * len(data))], reduced=True)


def test_something_else_is_broken():
    with pytest.raises(BrokenPhotoError, match="not a JPEG"):
        decode(b"<html>404</html>")


def test_squash():
    assert resize(np.full((30, 90, 3), 7, np.uint8), 64).shape == (64, 64, 3)
