"""Bytes of a photo -> pixels, or a reason why not."""

import os

# must be set before cv2 is imported: broken photos are counted and reported by us, not by the decoder on stderr
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

import cv2
import numpy as np


class BrokenPhotoError(Exception):
    """A file that is not a whole photo; the text says what is wrong with it."""


def decode(data: bytes, reduced: bool = False) -> np.ndarray:
    """Decode a JPEG, PNG or WebP, turned upright by its EXIF orientation.

    Args:
        data: the file's bytes.
        reduced: decode at an eighth of the size, much faster; enough to see whether the photo is whole.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        BrokenPhotoError: empty, cut short, or not a photo.
    """
    if not data:
        raise BrokenPhotoError("the file is empty or cannot be read")
    # a decoder fills the missing part of a cut JPEG with grey and says nothing; an EXIF thumbnail has an end mark too
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < len(data) // 2:
        raise BrokenPhotoError("the JPEG is cut short")
    flag = cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:  # a size beyond the decoder's limit
        raise BrokenPhotoError(f"it cannot be decoded ({error.err})") from None
    if image is None:
        raise BrokenPhotoError("it is not a JPEG, PNG or WebP photo that can be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Squash uint8 (H, W, 3) to (side, side, 3): by area where it shrinks, bilinear where it grows."""
    shrinks = image.shape[0] >= side and image.shape[1] >= side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
