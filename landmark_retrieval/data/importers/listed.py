"""Photos listed in a CSV with their landmarks: more photos of landmarks that a data set knows, for instance."""

import csv
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from landmark_retrieval.data.importers.gldv2 import PhotoPath, checked_id, existing_folder, refuse_duplicates
from landmark_retrieval.data.photos import FilesById, Ids, PhotoFiles, PhotoTable
from landmark_retrieval.data.tables import read_rows
from landmark_retrieval.errors import LandmarkRetrievalError


@dataclass(frozen=True)
class ListedFiles:
    """`PhotoFiles` at paths below a folder, a path a row."""

    root: Path
    paths: Ids

    def read(self, row: int, photo: str) -> bytes:  # noqa: D102
        return (self.root / self.paths[row]).read_bytes()

    def where(self, row: int, photo: str) -> str:  # noqa: D102
        return str(self.root / self.paths[row])

    def stamp(self, row: int, photo: str) -> object:  # noqa: D102
        return FilesById(self.root.joinpath).stamp(row, self.paths[row])

    def take(self, rows: np.ndarray) -> PhotoFiles:  # noqa: D102
        return ListedFiles(self.root, self.paths.take(rows))


def read_listed(
    root: str | Path, csv_path: str | Path, known: Sequence[str] | None = None
) -> tuple[PhotoTable, int, int]:
    """Photos that a CSV lists: id, landmark_id, and perhaps path, which is relative to `root`.

    Without a column `path`, or where its cell is empty, a photo is at root/<id>.jpg if `root` itself holds .jpg files,
    and at root/a/b/c/<id>.jpg, as in GLDv2, if it holds none.

    Args:
        root: folder of the photos.
        csv_path: UTF-8, with or without a byte order mark.
        known: classes of another set, in the order of its labels: rows of other landmarks are left out, and the labels
            agree with that set. A number that is not among them counts without its leading zeros. By default the
            landmarks of the CSV are the classes, sorted, as numbers if all of them are.

    Returns:
        The table; how many rows and how many landmarks were left out.

    Raises:
        LandmarkRetrievalError: no such folder, file or column; an id that stands twice or can be no name of a file; a
            path that leads out of `root`; no landmark, or no photo of a known one.
    """
    root, path = existing_folder(root), Path(csv_path)
    has_paths = _has_column(path, "path")
    flat = any(root.glob("*.jpg"))
    locate = FlatPath(Path()) if flat else PhotoPath(Path())
    labels_of = {name: label for label, name in enumerate(known or ())}
    left_out: dict[str, int] = {}
    ids, paths, labels = _Column(), _Column(), array("i")
    columns = ("id", "landmark_id", "path") if has_paths else ("id", "landmark_id")
    for line, (photo, landmark, *cells) in read_rows(path, columns, "list"):
        if not landmark:
            raise LandmarkRetrievalError(f"{path}, line {line}: the landmark_id is empty: mend or remove the line.")
        label = labels_of.get(landmark)
        if label is None and known is None:
            label = labels_of.setdefault(landmark, len(labels_of))
        if label is None and landmark.isdecimal():
            label = labels_of.get(landmark.lstrip("0") or "0")
        if label is None:
            left_out[landmark] = left_out.get(landmark, 0) + 1
            continue
        ids.append(checked_id(photo, path, line))
        labels.append(label)
        if has_paths:
            paths.append(_below(cells[0], path, line) if cells[0] else locate(photo).as_posix())
    if not labels:
        raise LandmarkRetrievalError(
            f"All {sum(left_out.values()):,} photos in {path} are of {len(left_out):,} landmarks that --known does not "
            "have: give another list, or another --known."
            if left_out
            else f"{path} lists no photos: give another list."
        )
    refuse_duplicates(ids.ids(), path)
    files: PhotoFiles = FilesById(FlatPath(root) if flat else PhotoPath(root))
    if has_paths:
        files = ListedFiles(root, paths.ids())
    numbers = np.array(labels, np.int32)
    if known is not None:
        return PhotoTable(ids.ids(), files, numbers, tuple(known)), sum(left_out.values()), len(left_out)
    classes = sorted(labels_of, key=(lambda name: (int(name), name)) if all(map(_is_number, labels_of)) else None)
    rank = np.empty(len(classes), np.int32)
    rank[[labels_of[name] for name in classes]] = np.arange(len(classes))
    return PhotoTable(ids.ids(), files, rank[numbers], tuple(classes)), 0, 0


class FlatPath:
    """id -> <id>.jpg in a folder; a class, so that worker processes can receive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, photo: str) -> Path:  # noqa: D102
        return self.folder / f"{photo}.jpg"


class _Column:
    """Strings as they come, kept as bytes: a list of millions of them takes several times the memory."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._texts: list[str] = []

    def append(self, text: str) -> None:
        self._texts.append(text)
        if len(self._texts) == 65536:
            self._close_block()

    def ids(self) -> Ids:
        self._close_block()
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return Ids(self._blocks[0])

    def _close_block(self) -> None:
        if self._texts or not self._blocks:
            self._blocks.append(Ids(self._texts).column)
            self._texts = []


def _has_column(path: Path, name: str) -> bool:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return name in next(csv.reader(file), [])
    except (OSError, csv.Error, UnicodeDecodeError):
        return False  # read_rows says what is wrong


def _is_number(landmark: str) -> bool:
    return re.fullmatch("[0-9]{1,18}", landmark) is not None


def _below(text: str, path: Path, line: int) -> str:
    """A path that stays below the folder of the photos."""
    parts = PurePosixPath(text)
    if parts.is_absolute() or ".." in parts.parts or "\\" in text or not text.isprintable() or not parts.name:
        raise LandmarkRetrievalError(
            f"{path}, line {line}: the path {text!r} does not lead to a file below the folder of the photos: give it "
            "relative to that folder, with slashes and without '..'."
        )
    return parts.as_posix()
