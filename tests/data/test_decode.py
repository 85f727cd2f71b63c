import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from landmark_retrieval.data.decode import SCALES, BrokenPhotoError, check, decode, decode_stored, kind_of, resize
from landmark_retrieval.data.headers import read_header

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@pytest.fixture(scope="module")
def picture():
    """90 x 60 pixels in smooth colors, different at each edge."""
    return cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8), (90, 60))


def encoded(form, image, **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def refused(data):
    """The reason; the same from decoding and from checking."""
    with pytest.raises(BrokenPhotoError) as first:
        decode(data)
    with pytest.raises(BrokenPhotoError) as second:
        check(data)
    assert str(first.value) == str(second.value)
    return str(first.value)


def close(data, picture, error=3.0):
    made = decode(data)
    check(data)
    assert made.dtype == np.uint8
    assert made.shape == picture.shape
    assert made.flags.c_contiguous and made.flags.writeable
    return np.abs(made.astype(int) - picture).mean() <= error


@pytest.mark.parametrize("form", SUFFIXES)
def test_pixels_are_rgb(form, picture):
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 98}}[form]
    data = encoded(form, picture, **options)
    assert close(data, picture, 1.5 if form == "JPEG" else 0)
    assert kind_of(data) == SUFFIXES[form]


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"keep_rgb": True}])
def test_kinds_of_jpeg(options, picture):
    data = encoded("JPEG", picture, quality=98, **options)
    assert close(data, picture)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("scale", SCALES)
def test_a_jpeg_decodes_at_a_fraction_of_its_size(scale, channels):
    noise = np.random.default_rng(0).uniform(0, 255, (4, 5, 3)).astype(np.float32)
    whole = cv2.resize(noise, (400, 320), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    data = encoded("JPEG", whole, quality=98)
    small, made = decode_stored(data, read_header(data), scale, channels)
    assert made == scale
    assert small.shape == (40 * scale, 50 * scale, channels)
    expected = cv2.resize(whole, (50 * scale, 40 * scale), interpolation=cv2.INTER_AREA)
    assert np.abs(small[..., :3].astype(int) - expected).mean() < 1.5
    # a size that is no whole number of pixels is rounded up, down to a single one
    odd = encoded("JPEG", whole[:1, :37])
    assert decode_stored(odd, read_header(odd), scale)[0].shape == (1, -(-37 * scale // 8), 3)


@pytest.mark.parametrize("form", SUFFIXES)
def test_grey_becomes_rgb(form, picture):
    grey = Image.fromarray(picture).convert("L")
    assert close(encoded(form, grey), np.asarray(grey.convert("RGB")))


def test_cmyk_and_ycck_jpeg(picture):
    data = encoded("JPEG", Image.fromarray(picture).convert("CMYK"), quality=98)
    assert close(data, picture)
    # Adobe's marker says how the four channels are stored; the same grey channels read as YCCK are grey, too
    grey = encoded("JPEG", Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).convert("CMYK"), quality=98)
    adobe = grey.find(b"Adobe")
    assert grey[adobe + 11] == 0
    ycck = decode(grey[: adobe + 11] + b"\x02" + grey[adobe + 12 :])
    assert ycck.shape == (16, 16, 3)


def test_a_jpeg_with_colors_sampled_in_an_unusual_way():
    """Third color twice as wide: nothing writes that, but the format allows it."""
    data = bytearray(encoded("JPEG", np.full((32, 32, 3), 128, np.uint8), keep_rgb=True, subsampling=0))
    data[data.find(b"\xff\xc0") + 17] = 0x21
    assert close(bytes(data), np.full((32, 32, 3), 128))


def test_png_of_16_bits(picture):
    rng = np.random.default_rng(1)
    for shape in ((40, 50), (40, 50, 3), (40, 50, 4)):
        deep = rng.integers(0, 65536, shape, np.uint16)
        expected = np.broadcast_to((deep >> 8).reshape(40, 50, -1)[..., :3], (40, 50, 3))
        expected = expected if len(shape) == 2 else expected[..., ::-1]  # written as BGR
        np.testing.assert_array_equal(decode(cv2.imencode(".png", deep)[1].tobytes()), expected)


@pytest.mark.parametrize("transparency", [None, 3])
def test_palette_png(transparency, picture):
    palette = Image.fromarray(picture).quantize(64)
    options = {} if transparency is None else {"transparency": transparency}
    assert close(encoded("PNG", palette, **options), np.asarray(palette.convert("RGB")), 0)


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_transparency_is_dropped(form, options, picture):
    layered = Image.fromarray(picture).convert("RGBA")
    layered.putalpha(Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (60, 1))))
    assert close(encoded(form, layered, **options), picture, 0)


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_of_an_animation_the_first_picture(form, options, picture):
    others = [Image.fromarray(255 - picture)]
    assert close(encoded(form, picture, save_all=True, append_images=others, **options), picture, 0)


@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form, orientation, picture):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(form, picture, exif=exif)
    stored = Image.open(io.BytesIO(data))
    assert close(data, np.asarray(ImageOps.exif_transpose(stored).convert("RGB")), 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_makes_no_sense_is_none(orientation, picture):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded("PNG", picture, exif=exif)), picture)


@pytest.mark.parametrize("exif", [b"", b"II", b"II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12"])
def test_damaged_exif_is_no_orientation(exif, picture):
    assert read_header(encoded("JPEG", picture, exif=b"Exif\x00\x00" + exif)).orientation == 1


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_photo_cut_anywhere_is_broken(form, picture):
    data = encoded(form, picture)
    for length in {*range(0, 40), *range(0, len(data), len(data) // 60), len(data) - 1}:
        assert refused(data[:length])


def test_a_jpeg_cut_after_its_thumbnail_is_broken(picture):
    thumbnail = encoded("JPEG", picture, quality=95)
    data = encoded("JPEG", picture[:16, :16], exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00" + thumbnail)
    decode(data)
    assert "cut short" in refused(data[:-60])


def test_a_jpeg_cut_and_closed_again_is_broken(picture):
    data = encoded("JPEG", picture, quality=98)
    assert "cut short" in refused(data[: len(data) * 3 // 4] + b"\xff\xd9")


@pytest.mark.parametrize("form", SUFFIXES)
def test_rubbish_after_the_end_is_allowed(form, picture):
    data = encoded(form, picture)
    np.testing.assert_array_equal(decode(data + bytes(range(256)) * 30), decode(data))


def test_filling_before_the_end_mark_is_allowed(picture):
    data = encoded("JPEG", picture)
    np.testing.assert_array_equal(decode(data[:-2] + b"abcdef" + data[-2:]), decode(data))


def test_a_damaged_png_is_broken(picture, capfd):
    data = encoded("PNG", picture)
    at = data.find(b"IDAT") + 200
    damaged = data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
    assert "checksum" in refused(damaged)
    start = data.find(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    # the same with a fitting checksum: only unpacking finds it
    content = damaged[start + 8 : start + 8 + length]
    assert refused(data[:start] + chunk(b"IDAT", content) + data[start + 12 + length :])
    assert capfd.readouterr() == ("", "")


def test_a_wrong_color_profile_changes_nothing_and_prints_nothing(picture, capfd):
    data = encoded("PNG", picture)
    start = data.find(b"IDAT") - 4
    odd = data[:start] + chunk(b"iCCP", b"x\x00\x00" + zlib.compress(b"rubbish")) + data[start:]
    np.testing.assert_array_equal(decode(odd), picture)
    assert capfd.readouterr() == ("", "")


def bombs():
    flat = np.zeros((16, 16, 3), np.uint8)
    jpeg = encoded("JPEG", flat)
    at = jpeg.find(b"\xff\xc0") + 5
    yield jpeg[:at] + struct.pack(">HH", 50000, 50000) + jpeg[at + 4 :]
    png = encoded("PNG", flat)
    yield png[:8] + chunk(b"IHDR", struct.pack(">II", 50000, 50000) + png[24:29]) + png[33:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16383).to_bytes(3, "little") * 2
    body = b"WEBP" + extended + encoded("WEBP", flat)[12:]
    yield b"RIFF" + struct.pack("<I", len(body)) + body
    lossless = bytearray(encoded("WEBP", flat, lossless=True))
    start = lossless.find(b"VP8L") + 9
    lossless[start : start + 4] = struct.pack("<I", 16383 | 16383 << 14)
    yield bytes(lossless)


@pytest.mark.parametrize("bomb", list(bombs()), ids=["jpeg", "png", "webp", "lossless webp"])
def test_a_bomb_is_refused_before_anything_is_allocated(bomb):
    tracemalloc.start()
    try:
        assert "megapixels" in refused(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_a_jpeg_of_very_many_scans_is_refused(picture):
    data = encoded("JPEG", picture, progressive=True)
    scan = data.rfind(b"\xff\xda")
    assert "scans" in refused(data[:-2] + data[scan:-2] * 300 + data[-2:])


def test_a_size_of_nothing_is_broken():
    png = encoded("PNG", np.zeros((4, 4, 3), np.uint8))
    assert "0 x 4" in refused(png[:8] + chunk(b"IHDR", struct.pack(">II", 0, 4) + png[24:29]) + png[33:])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<html>404</html>", "HTML"),
        (b"\n<!DOCTYPE html>", "HTML"),
        (b'{"error": 404}', "JSON"),
        (b"%PDF-1.7", "PDF"),
        (b"\x00\x00\x00\x1cftypavif", "AVIF"),
        (encoded("GIF", np.zeros((4, 4, 3), np.uint8)), "GIF"),
        (encoded("BMP", np.zeros((4, 4, 3), np.uint8)), "BMP"),
        (encoded("TIFF", np.zeros((4, 4, 3), np.uint8)), "TIFF"),
    ],
)
def test_other_kinds_are_refused_by_name(data, name):
    assert name in refused(data)
    with pytest.raises(BrokenPhotoError, match="not a JPEG"):
        kind_of(data)


@pytest.mark.parametrize("data", [b"\x01\x02\x03", bytes(100), b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"])
def test_something_else_is_broken(data):
    assert refused(data)


def test_nothing_is_broken():
    assert "empty" in refused(b"")


def test_squash():
    assert resize(np.full((30, 90, 3), 7, np.uint8), 64).shape == (64, 64, 3)
