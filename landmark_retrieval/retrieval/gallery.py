"""Ranked lists as a self-contained HTML page."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np

from landmark_retrieval.files import open_replacing

MARKS: Mapping[bool | None, tuple[str, str]] = {True: ("right", "✓"), False: ("wrong", "✗"), None: ("unknown", "")}
"""Whether a result is right -> its kind, and a sign."""
# wider photos are cut at the sides
_WIDEST = 2.2


@dataclass(frozen=True)
class GalleryResult:
    """One found photo.

    Attributes:
        photo_id: its id.
        photo: the encoded image (JPEG, PNG, ...), or None where there is none.
        score: its score, usually a cosine in [-1, 1].
        correct: whether it is right; None if that is not known.
    """

    photo_id: str
    photo: bytes | None
    score: float
    correct: bool | None = None


@dataclass(frozen=True)
class GalleryEntry:
    """A query and what was found for it.

    Attributes:
        query_id: its id.
        query_photo: the encoded image, or None where there is none.
        results: the found photos, best first.
        average_precision: the query's AP in [0, 1]; None if it is not known.
    """

    query_id: str
    query_photo: bytes | None
    results: Sequence[GalleryResult]
    average_precision: float | None = None


def write_gallery(
    path: str | Path,
    entries: Iterable[GalleryEntry],
    title: str,
    subtitle: str = "",
    metrics: Mapping[str, float | str] | None = None,
    height: int = 160,
) -> None:
    """Write one HTML page that needs no other file: a row per query, right and wrong photos marked, sortable by AP.

    The entries are taken one by one, so a generator keeps memory small. A photo that cannot be decoded shows as a grey
    cell with "no photo".

    Args:
        path: the page; written whole or not at all.
        entries: the queries with their results.
        title: heading of the page.
        subtitle: a line below it.
        metrics: names and values for the head of the page; floats are shown with four decimals.
        height: of the thumbnails, in pixels.
    """
    with open_replacing(path) as file:
        chips = "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(_number(value))}</dd></div>"
            for name, value in (metrics or {}).items()
        )
        file.write(
            Template(_PAGE_HEAD).substitute(
                height=height, title=html.escape(title), subtitle=html.escape(subtitle), metrics=chips
            )
        )
        for entry in entries:
            file.write(_query_section(entry, height))
        file.write(_PAGE_FOOT)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}" if isinstance(value, float) else str(value)


def decode(photo: bytes | None) -> np.ndarray | None:
    """The photo as (height, width, 3) BGR, turned as its EXIF data says; None if it cannot be read."""
    import cv2

    if not photo:
        return None
    try:
        return cv2.imdecode(np.frombuffer(photo, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None


def cut_and_resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The largest part around the centre that has the proportions of width x height, in that size."""
    import cv2

    tall, wide = image.shape[:2]
    scale = max(width / wide, height / tall)
    part_wide, part_tall = min(wide, round(width / scale)), min(tall, round(height / scale))
    left, top = (wide - part_wide) // 2, (tall - part_tall) // 2
    part = image[top : top + max(1, part_tall), left : left + max(1, part_wide)]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _data_uri(photo: bytes | None, height: int) -> tuple[str, int] | None:
    import cv2

    image = decode(photo)
    if image is None:
        return None
    width = max(1, round(height * min(_WIDEST, image.shape[1] / image.shape[0])))
    thumbnail = cut_and_resize(image, width, height)
    encoded = cv2.imencode(".jpg", thumbnail, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode('ascii')}", width


def _figure(photo: bytes | None, height: int, kind: str, label: str, caption: str, sign: str = "") -> str:
    thumbnail = _data_uri(photo, height)
    if thumbnail is None:
        picture = '<div class="none">no photo</div>'
    else:
        uri, width = thumbnail
        picture = f'<img src="{uri}" width="{width}" height="{height}" loading="lazy" alt="{html.escape(label)}">'
    badge = f'<b class="sign">{sign}</b>' if sign else ""
    return (
        f'<figure class="{kind}" title="{html.escape(label)}">{picture}{badge}'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _query_section(entry: GalleryEntry, height: int) -> str:
    ap = entry.average_precision
    query = html.escape(entry.query_id)
    figures = []
    for rank, result in enumerate(entry.results, start=1):
        kind, sign = MARKS[result.correct]
        label = f"{rank}. {result.photo_id}, score {result.score:.4f}" + (f", {kind}" if sign else "")
        caption = f"<span>{rank}</span> {result.score:.3f}"
        figures.append(_figure(result.photo, height, kind, label, caption, sign))
    return (
        f'<section class="query" data-ap="{"" if ap is None else f"{ap:.6f}"}">\n<h2>{query}'
        f"{'' if ap is None else f'<span>AP {ap:.3f}</span>'}</h2>\n<div class='row'>"
        f"{_figure(entry.query_photo, height, 'asked', f'query {entry.query_id}', 'query')}\n"
        f'<div class="results">{"".join(figures) or "<p>nothing found</p>"}</div></div>\n</section>\n'
    )


_PAGE_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --paper: #f6f8fa; --card: #fff; --text: #1f2328; --faint: #59636e; --line: #d1d9e0;
  --right: #1a7f37; --wrong: #cf222e; --unknown: #afb8c1; --asked: #0969da; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #151b23; --text: #f0f6fc; --faint: #9198a1;
  --line: #3d444d; --right: #3fb950; --wrong: #f85149; --unknown: #656c76; --asked: #4493f8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
header, main { max-width: 1600px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 24px; }
h1 { margin: 0; font-size: 26px; line-height: 1.2; }
header p { margin: 4px 0 0; color: var(--faint); }
dl { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0 0; }
dl div { padding: 6px 14px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
dt { color: var(--faint); font-size: 12px; }
dd { margin: 0; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
form { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: center; margin-top: 16px; color: var(--faint); }
form[hidden] { display: none; }
label { display: flex; gap: 8px; align-items: center; }
select { font: inherit; padding: 3px 6px; }
output { color: var(--text); font-variant-numeric: tabular-nums; }
.query { margin: 16px 0; padding: 12px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
h2 { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0 0 10px; font-size: 15px; overflow-wrap: anywhere; }
h2 span { color: var(--faint); font-weight: 400; font-variant-numeric: tabular-nums; }
.row { display: flex; gap: 22px; }
.asked { min-width: calc(1.5 * ${height}px); }
.results { display: flex; gap: 10px; overflow-x: auto; padding-bottom: 6px; }
.results p { color: var(--faint); }
figure { position: relative; flex: none; margin: 0; }
figure img, .none { display: block; height: ${height}px; border: 4px solid var(--mark); border-radius: 7px; }
figure img { width: auto; }
.none { display: grid; place-items: center; width: ${height}px; color: var(--faint); background: var(--line); }
.right { --mark: var(--right); } .wrong { --mark: var(--wrong); }
.unknown { --mark: var(--unknown); } .asked { --mark: var(--asked); }
.sign { position: absolute; top: 8px; right: 8px; width: 24px; height: 24px; border-radius: 50%; text-align: center;
  line-height: 24px; color: var(--card); background: var(--mark); box-shadow: 0 0 0 2px var(--card); }
figcaption { margin-top: 3px; font-size: 13px; font-variant-numeric: tabular-nums; }
figcaption span { color: var(--faint); margin-right: 4px; }
@media (max-width: 700px) { header, main { padding: 0 10px; } header { padding-top: 14px; } h1 { font-size: 21px; }
  .query { padding: 10px; } .row { flex-direction: column; gap: 10px; }
  .asked { min-width: 0; } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$subtitle</p>
<dl>$metrics</dl>
<form hidden>
<label>Order <select id="order"><option value="0">as given</option><option value="1">lowest AP first</option>
<option value="-1">highest AP first</option></select></label>
<label>AP at most <input id="most" type="range" min="0" max="1" step="0.01" value="1">
<output id="limit">1.00</output></label>
<output id="count"></output>
</form>
</header>
<main>
"""

_PAGE_FOOT = """</main>
<script>
const [order, most, limit, count] = ["order", "most", "limit", "count"].map(id => document.getElementById(id));
const page = document.querySelector("main"), given = [...page.children];
const ap = query => query.dataset.ap === "" ? null : Number(query.dataset.ap);
function update() {
  const way = Number(order.value), queries = [...given];
  // a query without an AP goes last
  if (way) queries.sort((a, b) => (ap(a) === null) - (ap(b) === null) || way * (ap(a) - ap(b)));
  const top = Number(most.value);
  for (const query of queries) query.hidden = top < 1 && (ap(query) === null || ap(query) > top);
  page.append(...queries);
  limit.value = top.toFixed(2);
  count.value = `${queries.filter(query => !query.hidden).length} of ${queries.length} queries`;
}
document.querySelector("form").hidden = given.every(query => ap(query) === null);
order.addEventListener("change", update);
most.addEventListener("input", update);
update();
</script>
</body>
</html>
"""
