"""The gallery page and the contact sheet: self-contained, escaped, and never stopped by a broken photo."""

import base64
import io
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from PIL import Image

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.contact_sheet import write_contact_sheet
from landmark_retrieval.retrieval.gallery import GalleryEntry, GalleryResult, write_gallery

EVIL = '<script>alert("1")</script>&\''


def photo(seed=0, height=300, width=400, suffix=".jpg"):
    coarse = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def entry(number=0, results=3, average_precision=0.5, query_id=None):
    found = [
        GalleryResult(f"p{rank}", photo(10 * number + rank), 0.9 - rank / 10, (True, False, None)[rank % 3])
        for rank in range(results)
    ]
    return GalleryEntry(query_id or f"q{number}", photo(number), found, average_precision)


class Page(HTMLParser):
    """Counts tags and collects attributes; every tag that opens must close."""

    VOID = ("meta", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


def page_of(tmp_path, entries, title="Gallery", **kwargs):
    write_gallery(tmp_path / "gallery.html", entries, title, **kwargs)
    text = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_shows_queries_results_and_metrics(tmp_path):
    entries = (entry(number, average_precision=value) for number, value in enumerate([0.25, None]))
    page, text = page_of(tmp_path, entries, subtitle="tiny model", metrics={"mAP@100": 0.123456, "queries": 2})
    assert [found["data-ap"] for found in page.all("section")] == ["0.250000", ""]
    assert len(page.all("img")) == 8
    assert [len(page.all("figure", class_=kind)) for kind in ("asked", "right", "wrong", "unknown")] == [2, 2, 2, 2]
    # not by colour alone: a sign, and words for a screen reader
    assert (text.count("✓"), text.count("✗")) == (2, 2)
    assert page.all("img", alt="1. p0, score 0.9000, right")
    for expected in ("Gallery", "tiny model", "mAP@100", "0.1235", "AP 0.250", "0.900", "0.700"):
        assert expected in page.text


def test_the_page_needs_nothing_from_outside(tmp_path):
    page, text = page_of(tmp_path, [entry()])
    assert not re.search(r"https?://|url\(|@import|<link|<iframe|srcset", text)
    assert all(found["src"].startswith("data:image/jpeg;base64,") for found in page.all("img"))
    assert all("src" not in found for found in page.all("script"))
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert page.all("meta", name="viewport")


def test_thumbnails_have_one_height_and_extreme_shapes_are_cut(tmp_path):
    shapes = [(600, 800), (50, 40), (100, 2000), (2000, 10)]
    results = [GalleryResult("p", photo(1, *shape, suffix=".png"), 0.5) for shape in shapes]
    page, _ = page_of(tmp_path, [GalleryEntry("q", photo(), results)], height=100)
    sizes = []
    for found in page.all("img")[1:]:
        image = Image.open(io.BytesIO(base64.b64decode(found["src"].split(",")[1])))
        assert image.size == (int(found["width"]), int(found["height"]))
        sizes.append(image.size)
    assert sizes == [(133, 100), (80, 100), (220, 100), (1, 100)]


def test_what_comes_from_outside_is_escaped(tmp_path):
    evil = GalleryEntry(EVIL, photo(), [GalleryResult(EVIL, photo(), 0.5, True)], 0.5)
    page, text = page_of(tmp_path, [evil], title=EVIL, subtitle="$title " + EVIL, metrics={EVIL: EVIL})
    assert "alert(" in text
    assert "<script>alert" not in text
    assert len(page.all("script")) == 1
    assert page.text.count(EVIL) == 6  # title twice, subtitle, metric name and value, query
    assert "$title" in page.text
    assert page.all("figure", title=f"1. {EVIL}, score 0.5000, right")


@pytest.mark.parametrize("broken", [None, b"", b"no image at all", photo()[:60]])
def test_a_broken_photo_is_a_grey_cell(tmp_path, broken):
    entries = [GalleryEntry("q", broken, [GalleryResult("p", broken, 0.5, False)])]
    page, _ = page_of(tmp_path, entries)
    assert page.text.count("no photo") == 2
    assert not page.all("img")
    write_contact_sheet(tmp_path / "sheet.png", entries, "broken", columns=1, width=300)
    assert Image.open(tmp_path / "sheet.png").size[0] == 300


def test_a_page_without_results_or_queries_is_still_a_page(tmp_path):
    page, _ = page_of(tmp_path, [entry(results=0)])
    assert "nothing found" in page.text
    page, _ = page_of(tmp_path, [])
    assert not page.all("section")


def test_a_failed_page_leaves_the_old_one(tmp_path):
    page_of(tmp_path, [entry()])
    before = (tmp_path / "gallery.html").read_bytes()

    def failing():
        yield entry()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gallery(tmp_path / "gallery.html", failing(), "new")
    assert (tmp_path / "gallery.html").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("name", "kind"), [("sheet.png", "PNG"), ("sheet.jpg", "JPEG"), ("sheet.JPEG", "JPEG")])
def test_the_contact_sheet_has_its_size_and_its_colours(tmp_path, name, kind):
    grey = cv2.imencode(".png", np.full((90, 120, 3), 128, np.uint8))[1].tobytes()
    results = [GalleryResult("p", grey, 0.5, correct) for correct in (True, False, None)]
    write_contact_sheet(tmp_path / name, [GalleryEntry("q", grey, results, 0.5)] * 2, "Title", "below", columns=3)
    picture = Image.open(tmp_path / name)
    assert picture.format == kind
    assert picture.size[0] == 1400
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    for colour in ((26, 127, 55), (207, 34, 46), (9, 105, 218)):  # right, wrong, query
        near = np.abs(pixels - colour).max(axis=2) < 24
        assert near.sum() > 2000, colour


def test_a_contact_sheet_of_six_queries_stays_small(tmp_path):
    entries = [entry(number, results=8) for number in range(6)]
    for name in ("sheet.png", "sheet.jpg"):
        write_contact_sheet(tmp_path / name, entries, "Six queries")
        assert (tmp_path / name).stat().st_size < 1_000_000


def test_rows_and_columns_are_limits(tmp_path):
    sizes = []
    for rows in (1, 2, None):
        write_contact_sheet(tmp_path / "s.png", (entry(i) for i in range(3)), "t", columns=2, rows=rows, width=400)
        sizes.append(Image.open(tmp_path / "s.png").size[1])
    assert sizes[0] < sizes[1] < sizes[2]


def test_long_texts_are_shortened(tmp_path):
    write_contact_sheet(
        tmp_path / "s.png", [entry(query_id="q" * 90)], "title " * 20, "sub " * 40, columns=3, width=500
    )
    assert Image.open(tmp_path / "s.png").size[0] == 500


@pytest.mark.parametrize(
    ("name", "entries", "arguments", "message"),
    [
        ("sheet.gif", [entry()], {}, r"\.png or \.jpg file, not 'sheet\.gif'"),
        ("sheet.png", [], {}, "at least one query"),
        ("sheet.png", [entry()], {"columns": 0}, "at least one query and one column"),
        ("sheet.png", [entry()], {"columns": 50}, "50 columns do not fit"),
    ],
)
def test_misuse_of_the_contact_sheet_is_refused(tmp_path, name, entries, arguments, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        write_contact_sheet(tmp_path / name, entries, "title", **arguments)
    assert not list(tmp_path.iterdir())
