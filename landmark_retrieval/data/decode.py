"""Bytes of a photo -> pixels, or a reason why not."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from landmark_retrieval.data.headers import BrokenPhotoError, Header, bare_png, kind_of, read_header

__all__ = ["BrokenPhotoError", "check", "decode", "decode_stored", "kind_of", "resize", "upright"]

# not of Image.open: it would try other kinds, and warn where we have our own limit
_READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    ".jpg": JpegImageFile,
    ".png": PngImageFile,
    ".webp": WebPImageFile,
}
# what the JPEG decoder mentions though every pixel is there; "before marker 0xd9" is filling before the end mark
_HARMLESS = ("before marker 0xd9", "Invalid SOS parameters", "Adobe color transform", "JFIF revision", "ICC")
# scales of an eighth at which decoding is fast; the decoder has 5 to 7 too, but they take longer than the full size
SCALES = (1, 2, 3, 4, 8)


def decode(data: bytes) -> np.ndarray:
    """Decode a JPEG, PNG or WebP, turned upright by its EXIF orientation; of an animation the first picture.

    Grey, CMYK, palettes and 16 bits become 8 bits of RGB; transparency is dropped.

    Args:
        data: the file's bytes.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        BrokenPhotoError: empty, cut short, damaged, too large (`headers.MAX_MEGAPIXELS`), or of another kind.
    """
    header = read_header(data)
    return upright(decode_stored(data, header)[0], header.orientation)


def check(data: bytes) -> None:
    """See whether a photo is whole: everything in the file is read, but a JPEG's pixels are made at an eighth only.

    Raises:
        BrokenPhotoError: where `decode` would raise it.
    """
    decode_stored(data, read_header(data), 1)


def decode_stored(data: bytes, header: Header, scale: int = 8, channels: int = 3) -> tuple[np.ndarray, int]:
    """Decode as stored, not turned upright, JPEGs at a fraction of their size.

    Args:
        data: the file's bytes.
        header: of the same bytes.
        scale: one of SCALES, in eighths of the size.
        channels: 3 for RGB, 4 for RGB and one byte without meaning.

    Returns:
        uint8 (h, w, channels) and the scale in eighths; 8 for what cannot be decoded smaller. At scale s, h is
        ceil(H s / 8), and pixel edge x of the photo is at x s / 8.

    Raises:
        BrokenPhotoError: damaged.
    """
    if header.kind == ".jpg":
        image = _jpeg(data, header, scale, channels)
        if image is not None:
            return image, scale
    image = _other(bare_png(data) if header.kind == ".png" else data, header)
    return (cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if channels == 4 else image), 8


def covering_scale(need: float) -> int:
    """The smallest of SCALES at which a photo keeps this share of its size; 8 if it is more than all of it."""
    return next((scale for scale in SCALES if scale / 8 >= need), 8)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a picture as stored, (h, w, 3), upright: (h, w, 3), or (w, h, 3) for orientations 5 to 8."""
    if orientation == 1:
        return np.ascontiguousarray(image)
    across, mirror, invert = turns(orientation)
    image = image.transpose(1, 0, 2) if across else image
    return np.ascontiguousarray(image[:: -1 if invert else 1, :: -1 if mirror else 1])


def turns(orientation: int) -> tuple[bool, bool, bool]:
    """What makes a stored picture upright: swap rows and columns, then mirror left-right, then top-bottom."""
    return orientation >= 5, orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Squash uint8 (H, W, 3) to (side, side, 3): by area where it shrinks, bilinear where it grows."""
    shrinks = image.shape[0] >= side and image.shape[1] >= side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _jpeg(data: bytes, header: Header, scale: int, channels: int) -> np.ndarray | None:
    """None where this decoder cannot tell how the colors are stored."""
    height, width = (-(-size * scale // 8) for size in (header.height, header.width))
    options = {"colorspace": "rgb" if channels == 3 else "rgbx", "min_height": height, "min_width": width}
    try:
        return simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        reason = str(error)
    if any(text in reason for text in _HARMLESS) and data.rfind(b"\xff\xd9") > len(data) // 2:
        try:
            return simplejpeg.decode_jpeg(data, strict=False, **options)
        except ValueError as error:
            reason = str(error)
    if "subsampling" in reason:
        return None
    # a decoder would fill the missing part with grey and say nothing more
    if "remature end" in reason:
        raise BrokenPhotoError(f"the JPEG is cut short or damaged ({reason})")
    raise BrokenPhotoError(f"the JPEG is damaged ({reason})")


def _other(data: bytes, header: Header) -> np.ndarray:
    try:
        with _READERS[header.kind](io.BytesIO(data)) as image:
            if image.size != (header.width, header.height):
                raise ValueError(f"its parts give the sizes {image.size} and {(header.width, header.height)}")
            if image.mode.startswith("I"):  # 16 bits
                return cv2.cvtColor((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8), cv2.COLOR_GRAY2RGB)
            return np.array(image.convert("RGB"))
    except Exception as error:  # damaged bytes bring out any exception of the reader's
        raise BrokenPhotoError(f"it cannot be decoded ({error or type(error).__name__})") from None
