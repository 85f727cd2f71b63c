"""Revisited Oxford and Paris: their ground truth (pickled lists, read without running anything), boxes and photos."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landmark_retrieval.data.headers import BrokenPhotoError, read_header
from landmark_retrieval.data.importers.gldv2 import existing_folder
from landmark_retrieval.data.importers.listed import FlatPath
from landmark_retrieval.data.importers.safe_pickle import read_plain_pickle
from landmark_retrieval.data.photos import FilesById, Ids, PhotoTable
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json

_FORMAT = 1
_SETS = ("easy", "hard", "junk")
_ADVICE = "take gnd_roxford5k.pkl or gnd_rparis6k.pkl as their authors give them out, or revisited.json"


@dataclass(frozen=True)
class GroundTruth:
    """Which images show what a query shows.

    Attributes:
        images: names of the database images; the rows that `relevant` and rankings speak of are places in this list.
        queries: names of the query images.
        boxes: float64 (queries, 4), the part of each query image that counts: left, top, right, bottom in pixels.
        relevant: for each query the rows of its `easy`, `hard` and `junk` images: the `gnd` of
            `metrics.functional.revisited_average_precision`.
    """

    images: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: np.ndarray
    relevant: tuple[Mapping[str, list[int]], ...]

    @property
    def whole_boxes(self) -> np.ndarray:
        """int32 (queries, 4): the boxes in whole pixels, halves to the even side, as PIL's `crop` rounds them."""
        return np.rint(self.boxes).astype(np.int32)

    def write(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all; `read_ground_truth` reads it again."""
        queries = [
            {"id": query, "box": box, **relevant}
            for query, box, relevant in zip(self.queries, self.boxes.tolist(), self.relevant, strict=True)
        ]
        write_json(path, {"format": _FORMAT, "images": self.images, "queries": queries})


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Read the ground truth of Revisited Oxford or Paris.

    Args:
        path: the authors' .pkl (imlist, qimlist, and gnd with bbx, easy, hard, junk for each query), of which nothing
            but lists, dictionaries, strings, numbers and arrays of numbers is accepted, so that nothing in it can run;
            or revisited.json as `GroundTruth.write` makes it.

    Raises:
        LandmarkRetrievalError: no such file, something else in it, something missing, a name that stands twice or can
            be no file's, a row that is not in the list of images or stands twice for a query, an empty or negative box.

    Source: Radenovic et al. 2018 (arXiv 1803.11285), and the form of the files that its authors give out.
    """
    path = Path(path)
    if path.suffix == ".json":
        content = read_json(path, "ground truth", _ADVICE)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise _damaged(path, f"it is not of format {_FORMAT}")
        queries = _get(content, "queries", list, path)
        names = [_get(query, "id", str, path) for query in queries]
        return _checked(path, _get(content, "images", list, path), names, queries, "box")
    content = read_plain_pickle(path, "ground truth", _ADVICE)
    images, names, queries = (_get(content, key, list, path) for key in ("imlist", "qimlist", "gnd"))
    return _checked(path, images, names, queries, "bbx")


def read_revisited(root: str | Path, truth: GroundTruth) -> tuple[PhotoTable, PhotoTable]:
    """The index and query photos of Revisited Oxford or Paris: <root>/<name>.jpg, or <root>/jpg/<name>.jpg.

    Returns:
        The index photos in the order of `truth.images`, the query photos in that of `truth.queries` with their boxes;
        both without labels. Photos that are missing are refused when they are sharded.

    Raises:
        LandmarkRetrievalError: no such folder, or the box of a query lies outside of its photo.
    """
    root = existing_folder(root)
    files = FilesById(FlatPath(root / "jpg" if (root / "jpg").is_dir() else root))
    query = PhotoTable(Ids(truth.queries), files, boxes=truth.whole_boxes)
    for row, (left, top, _, _) in enumerate(truth.whole_boxes.tolist()):
        try:
            header = read_header(query.photo(row).data)
        except (OSError, BrokenPhotoError):
            continue  # it is refused, with its reason, when the shards are written
        width, height = header.width, header.height
        if header.orientation > 4:
            width, height = height, width
        if left >= width or top >= height:
            raise LandmarkRetrievalError(
                f"The box of query {query.ids[row]} begins at {left}, {top}, outside of {query.where(row)} with its "
                f"{width} x {height} pixels: take the photos and the ground truth of the same set, photos as they were "
                "downloaded."
            )
    return PhotoTable(Ids(truth.images), files), query


def _checked(path: Path, images: Sequence[Any], names: Sequence[Any], queries: Sequence[Any], box: str) -> GroundTruth:
    for what, listed in (("images", images), ("queries", names)):
        _check_names(path, what, listed)
    if len(names) != len(queries) or not queries:
        raise _damaged(path, f"it names {len(names)} queries and has the answers of {len(queries)}")
    boxes, relevant = [], []
    for name, query in zip(names, queries, strict=True):
        boxes.append(_box(path, name, _get(query, box, list, path)))
        rows = {key: _rows(path, name, key, _get(query, key, list, path), len(images)) for key in _SETS}
        together = [row for key in _SETS for row in rows[key]]
        if len(set(together)) < len(together):
            raise _damaged(path, f"an image stands twice among easy, hard and junk of query {name}")
        relevant.append(rows)
    return GroundTruth(tuple(images), tuple(names), np.array(boxes, np.float64), tuple(relevant))


def _check_names(path: Path, what: str, names: Iterable[Any]) -> None:
    seen: set[str] = set()
    for name in names:
        # names become parts of paths, and blanks separate ids in files of predictions
        if not isinstance(name, str) or name.split() != [name] or not name.isprintable() or "/" in name or "\\" in name:
            shown = repr(name[:80]) if isinstance(name, str) else f"a {type(name).__name__}"
            raise _damaged(path, f"{shown} among its {what} cannot be the name of a photo")
        if name in seen:
            raise _damaged(path, f"{name} stands twice among its {what}")
        seen.add(name)


def _box(path: Path, name: str, box: Sequence[Any]) -> list[float]:
    if len(box) != 4 or not all(type(edge) in (int, float) and abs(edge) < 2**31 for edge in box):
        raise _damaged(path, f"the box of query {name} is not four numbers")
    left, top, right, bottom = map(round, box)
    if min(left, top) < 0 or right <= left or bottom <= top:
        raise _damaged(path, f"the box of query {name} (left, top, right, bottom: {box}) is empty or begins outside")
    return [float(edge) for edge in box]


def _rows(path: Path, name: str, key: str, rows: Sequence[Any], count: int) -> list[int]:
    for row in rows:
        if type(row) is not int or not 0 <= row < count:
            raise _damaged(path, f"{key} of query {name} must hold whole numbers from 0 to {count - 1}, rows of images")
    return list(rows)


def _get(holder: Any, key: str, kind: type, path: Path) -> Any:
    value = holder.get(key) if isinstance(holder, dict) else None
    if kind is list and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, kind):
        raise _damaged(path, f"there is no {key!r} of the right kind where it must be")
    return value


def _damaged(path: Path, what: str) -> LandmarkRetrievalError:
    return LandmarkRetrievalError(f"The ground truth {path} is damaged: {what}; {_ADVICE}.")
