"""What a photo says about itself before any pixel is decoded: its kind, its size, which way is up.

Sources: ITU-T T.81 annex B (JPEG), W3C PNG (third edition) section 5, RFC 9649 (WebP), CIPA DC-008 (Exif) section 4.6.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MAX_MEGAPIXELS = 200
"""Photos beyond are refused: a few bytes of header could ask for any amount of memory."""

MAX_SCANS = 200
"""Progressive JPEGs with more scans are refused (usual are 10): each scan costs the time of a whole picture."""

_NAMES = {".jpg": "JPEG", ".png": "PNG", ".webp": "WebP"}
_PNG = b"\x89PNG\r\n\x1a\n"
# what else turns up where photos are expected, by its first bytes
_OTHERS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\x00": "a TIFF",
    b"MM\x00*": "a TIFF",
    b"8BPS": "a Photoshop file",
    b"\x00\x00\x00\x0cjP": "a JPEG 2000 file",
    b"\xff\x0a": "a JPEG XL file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"<": "a page of HTML or XML",
    b"{": "JSON",
}


class BrokenPhotoError(Exception):
    """A file that is not a whole photo; the text says what is wrong with it."""


@dataclass(frozen=True)
class Header:
    """Of a photo as it is stored.

    Attributes:
        kind: ".jpg", ".png" or ".webp".
        height: of the stored picture, pixels, before it is turned upright.
        width: of the stored picture, pixels.
        orientation: 1 to 8 as Exif counts them; 1 is upright.
    """

    kind: str
    height: int
    width: int
    orientation: int


def kind_of(data: bytes) -> str:
    """The suffix that fits the content, whatever the file is called: ".jpg", ".png" or ".webp".

    Raises:
        BrokenPhotoError: empty, or of another kind, which is named if it is a common one.
    """
    if not data:
        raise BrokenPhotoError("the file is empty or cannot be read")
    if data.startswith(b"\xff\xd8"):
        return ".jpg"
    if data.startswith(_PNG):
        return ".png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return ".webp"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    other = "an AVIF or HEIC" if data[4:8] == b"ftyp" else ""
    other = other or next((name for first, name in _OTHERS.items() if start.startswith(first)), "")
    raise BrokenPhotoError(f"it is {other + ', ' if other else ''}not a JPEG, PNG or WebP photo")


def read_header(data: bytes) -> Header:
    """Kind, size and orientation, without decoding.

    Raises:
        BrokenPhotoError: not a JPEG, PNG or WebP; cut short within the header, or for PNG and WebP anywhere; larger
            than MAX_MEGAPIXELS; or of more than MAX_SCANS scans.
    """
    kind = kind_of(data)
    try:
        height, width, exif = {".jpg": _jpeg, ".png": _png, ".webp": _webp}[kind](data)
    except (struct.error, IndexError):
        raise BrokenPhotoError(f"the {_NAMES[kind]} is cut short within its header") from None
    if not height or not width:
        raise BrokenPhotoError(f"its header gives a size of {width} x {height} pixels")
    if height * width > MAX_MEGAPIXELS * 1e6:
        raise BrokenPhotoError(
            f"its header gives a size of {width} x {height} pixels, more than {MAX_MEGAPIXELS} megapixels"
        )
    return Header(kind, height, width, _orientation(exif))


def bare_png(data: bytes) -> bytes:
    """A PNG without everything that is not needed for its first picture: text, color profiles, further frames."""
    chunks = [chunk for name, chunk, _ in _png_chunks(data) if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")]
    return _PNG + b"".join(chunks)


def _jpeg(data: bytes) -> tuple[int, int, bytes]:
    size: tuple[int, int] | None = None
    exif = b""
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise IndexError
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these stand alone
            continue
        if marker in (0xD9, 0xDA):  # the end, or the first scan
            if size is None:
                raise BrokenPhotoError("the JPEG has no picture in it")
            return *size, exif
        (length,) = struct.unpack_from(">H", data, at)
        # start of frame, of any coding process: 0xC4, 0xC8 and 0xCC are something else
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = struct.unpack_from(">HH", data, at + 3)
            if marker not in (0xC0, 0xC1) and data.count(b"\xff\xda", at) > MAX_SCANS:
                raise BrokenPhotoError(f"the JPEG has more than {MAX_SCANS} scans")
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\x00", at + 2):
            exif = data[at + 8 : at + length]
        at += max(length, 2)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(name, whole chunk, content) up to the end mark."""
    at = len(_PNG)
    name = b""
    while name != b"IEND":
        if at + 12 > len(data):
            raise BrokenPhotoError("the PNG is cut short")
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise BrokenPhotoError("the PNG is cut short")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise BrokenPhotoError(f"the PNG is damaged: wrong checksum of its part {name.decode('ascii', 'replace')}")
        yield name, data[at:end], data[at + 8 : end - 4]
        at = end


def _png(data: bytes) -> tuple[int, int, bytes]:
    chunks = {name: content for name, _, content in _png_chunks(data)}
    if b"IHDR" not in chunks or b"IDAT" not in chunks:
        raise BrokenPhotoError("the PNG has no picture in it")
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    return height, width, chunks.get(b"eXIf", b"")


def _webp(data: bytes) -> tuple[int, int, bytes]:
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data):
        raise BrokenPhotoError("the WebP is cut short")
    size = (0, 0)
    exif = b""
    at = 12
    while at + 8 <= length + 8:
        name, part = struct.unpack_from("<4sI", data, at)
        start = at + 8
        if name == b"VP8X":
            size = 1 + _uint24(data, start + 7), 1 + _uint24(data, start + 4)
        elif name == b"VP8 " and size == (0, 0):
            width, height = struct.unpack_from("<HH", data, start + 6)
            size = height & 0x3FFF, width & 0x3FFF
        elif name == b"VP8L" and size == (0, 0):
            (bits,) = struct.unpack_from("<I", data, start + 1)
            size = 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
        elif name == b"EXIF":
            exif = data[start : start + part].removeprefix(b"Exif\x00\x00")
        at = start + part + part % 2
    return *size, exif


def _uint24(data: bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory; 1 where it is missing or makes no sense."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
