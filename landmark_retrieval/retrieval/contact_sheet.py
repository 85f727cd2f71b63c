"""Ranked lists as one picture, for a README or a notebook."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing
from landmark_retrieval.retrieval.gallery import MARKS, GalleryEntry, cut_and_resize, decode

if TYPE_CHECKING:
    from PIL import Image


def write_contact_sheet(
    path: str | Path,
    entries: Iterable[GalleryEntry],
    title: str,
    subtitle: str = "",
    columns: int = 8,
    rows: int | None = None,
    width: int = 1400,
) -> None:
    """Draw the ranked lists as one picture: a row per query, right and wrong photos marked by frame and sign.

    Photos are cut to equal cells; one that cannot be decoded shows as a grey cell with "no photo".

    Args:
        path: a `.png` (256 colours, to keep it small), `.jpg` or `.jpeg` file; written whole or not at all.
        entries: the queries with their results.
        title: heading of the picture.
        subtitle: a line below it.
        columns: results shown per query.
        rows: queries shown; by default all.
        width: of the picture, in pixels.

    Raises:
        LandmarkRetrievalError: the suffix is another, there is no entry, or the width leaves no room for the columns.
    """
    path = Path(path)
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if path.suffix.lower() not in formats:
        raise LandmarkRetrievalError(f"A contact sheet is a .png or .jpg file, not {path.name!r}.")
    shown = list(islice(entries, rows))
    if not shown or columns < 1:
        raise LandmarkRetrievalError("A contact sheet needs at least one query and one column.")
    picture = _Sheet(shown, title, subtitle, columns, width).draw()
    with open_replacing(path, "wb") as file:
        if formats[path.suffix.lower()] == "PNG":
            _in_256_colours(picture).save(file, "PNG", optimize=True)
        else:
            picture.save(file, "JPEG", quality=88, optimize=True, progressive=True)


def _in_256_colours(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    # Pillow dithers only towards a palette that is given; without it, skies show bands
    palette = picture.quantize(255, Image.Quantize.MEDIANCUT)
    dithered = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    # the paper keeps a pure white of its own
    indices = np.array(dithered)
    indices[(np.asarray(picture) == 255).all(axis=2)] = 255
    result = Image.fromarray(indices)
    result.putpalette([*(palette.getpalette() or [])[: 3 * 255], 255, 255, 255])
    return result


class _Sheet:
    """Draws at twice the size and shrinks, for smooth frames and signs."""

    TEXT, FAINT, PAPER, GREY = "#1f2328", "#656d76", "#ffffff", "#e4e7eb"
    FRAMES: Mapping[str, str] = {"right": "#1a7f37", "wrong": "#cf222e", "unknown": "#afb8c1", "asked": "#0969da"}
    SCALE = 2

    def __init__(self, entries: Sequence[GalleryEntry], title: str, subtitle: str, columns: int, width: int) -> None:
        unit = self.unit = self.SCALE
        self.entries, self.title, self.subtitle, self.columns = entries, title, subtitle, columns
        self.width = width * unit
        self.margin, self.gap, self.query_gap = 24 * unit, 10 * unit, 26 * unit
        room = self.width - 2 * self.margin - self.query_gap - (columns - 1) * self.gap
        self.cell_width = room // (columns + 1)
        self.cell_height = self.cell_width * 4 // 5
        if self.cell_width < 40 * unit:
            raise LandmarkRetrievalError(
                f"{columns} columns do not fit into {width} pixels: take fewer, or a wider sheet."
            )
        self.caption = 30 * unit
        self.head = (84 if subtitle else 64) * unit

    def draw(self) -> "Image.Image":
        from PIL import Image, ImageDraw

        row_height = self.cell_height + self.caption
        height = self.head + len(self.entries) * row_height + self.margin // 2
        self.image = Image.new("RGB", (self.width, height), self.PAPER)
        self.pen = ImageDraw.Draw(self.image)
        unit, across = self.unit, self.width - 2 * self.margin
        self._text((self.margin, 18 * unit), self.title, 25, self.TEXT, across)
        self._text((self.margin, 52 * unit), self.subtitle, 15, self.FAINT, across)
        for number, entry in enumerate(self.entries):
            self._row(entry, self.head + number * row_height)
        return self.image.resize((self.width // unit, height // unit), Image.Resampling.LANCZOS)

    def _row(self, entry: GalleryEntry, top: int) -> None:
        below = top + self.cell_height + 5 * self.unit
        self._cell(entry.query_photo, self.margin, top, "asked")
        ap = "" if entry.average_precision is None else f"AP {entry.average_precision:.2f}  "
        self._text((self.margin, below), ap + entry.query_id, 13, self.TEXT, self.cell_width)
        for column, result in enumerate(entry.results[: self.columns]):
            left = self.margin + self.cell_width + self.query_gap + column * (self.cell_width + self.gap)
            kind = MARKS[result.correct][0]
            self._cell(result.photo, left, top, kind)
            self._text((left, below), f"{result.score:.3f}", 13, self.FAINT, self.cell_width)

    def _cell(self, photo: bytes | None, left: int, top: int, kind: str) -> None:
        from PIL import Image, ImageDraw

        unit = self.unit
        size = self.cell_width, self.cell_height
        box = (left, top, left + size[0] - 1, top + size[1] - 1)
        image = decode(photo)
        if image is None:
            self.pen.rounded_rectangle(box, 7 * unit, fill=self.GREY)
            self._text((left + size[0] // 2, top + size[1] // 2), "no photo", 13, self.FAINT, size[0], anchor="mm")
        else:
            mask = Image.new("L", size)
            ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 7 * unit, fill=255)
            pixels = np.ascontiguousarray(cut_and_resize(image, *size)[:, :, ::-1])
            self.image.paste(Image.fromarray(pixels), (left, top), mask)
        colour = self.FRAMES[kind]
        self.pen.rounded_rectangle(box, 7 * unit, outline=colour, width=4 * unit)
        if kind in ("right", "wrong"):
            self._sign(left + size[0] - 15 * unit, top + 15 * unit, kind, colour)

    def _sign(self, x: int, y: int, kind: str, colour: str) -> None:
        unit = self.unit
        radius = 11 * unit
        self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white", width=2 * unit)
        strokes: list[list[tuple[int, int]]] = (
            [[(-5, 0), (-1, 4), (5, -4)]] if kind == "right" else [[(-4, -4), (4, 4)], [(-4, 4), (4, -4)]]
        )
        for stroke in strokes:
            points = [(x + dx * unit, y + dy * unit) for dx, dy in stroke]
            self.pen.line(points, fill="white", width=5 * unit // 2, joint="curve")

    def _text(self, at: tuple[int, int], text: str, size: int, colour: str, width: int, **options: Any) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(size * self.unit)
        fitted = text
        while fitted and self.pen.textlength(fitted, font=font) > width:
            text = text[:-1]
            fitted = text + "…"
        self.pen.text(at, fitted, fill=colour, font=font, **options)
