"""Google Landmarks v2 in its own layout: CSVs, and photos at a/b/c/<id>.jpg, extracted or in archives as downloaded."""

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from landmark_retrieval.data.dataset import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from landmark_retrieval.data.importers.archive_scan import archives_in
from landmark_retrieval.data.importers.archives import Archives
from landmark_retrieval.data.photos import FilesById, Ids, PhotoFiles, PhotoTable
from landmark_retrieval.data.solutions import read_recognition_solution, read_retrieval_solution
from landmark_retrieval.data.tables import read_rows
from landmark_retrieval.errors import LandmarkRetrievalError

TrainSet = Literal["c", "x", "full"]
TRAIN_SETS: tuple[TrainSet, ...] = ("c", "x", "full")
CLEAN = "train_clean.csv"


def read_train(
    root: str | Path, which: TrainSet = "c", clean_csv: str | Path | None = None, archives: Archives | None = None
) -> PhotoTable:
    """The training photos of GLDv2 with their classes.

    Args:
        root: folder with train.csv (id, url, landmark_id), train_clean.csv (landmark_id, images), see `csv_file`, and
            train/a/b/c/<id>.jpg.
        which: "c", the cleaned set of train_clean.csv; "x", all photos of train.csv whose landmark is in the cleaned
            set; "full", all of train.csv. c and x have the same classes.
        clean_csv: takes the place of train_clean.csv.
        archives: where the photos are, if they are in archives (`archive_scan.scan_archives`).

    Returns:
        The table; class numbers are the ranks of the sorted landmark ids, class names the landmark ids.

    Raises:
        LandmarkRetrievalError: no such folder, file, or column; a landmark without photos; an unknown set; an id that
            stands twice or can be no name of a file; photos in archives that were not scanned.

    Source: Weyand et al. 2020 (arXiv 2004.01804); Henkel 2021, section 2.3 for the sets.
    """
    root = existing_folder(root)
    if which not in TRAIN_SETS:
        raise LandmarkRetrievalError(
            f"There is no training set {which!r} in GLDv2: choose one of {', '.join(TRAIN_SETS)}."
        )
    clean = csv_file(root, CLEAN) if clean_csv is None else Path(clean_csv)
    listed = clean if which == "c" else csv_file(root, "train.csv")
    ids, landmarks = _columns(_clean_rows(listed) if which == "c" else _train_rows(listed))
    if which == "x":
        known = np.isin(landmarks, _columns(_clean_rows(clean))[1])
        ids, landmarks = ids.take(known), landmarks[known]
    if not len(ids):
        raise LandmarkRetrievalError(f"GLDv2 set {which!r} in {root} names no photos: look at its CSV files.")
    refuse_duplicates(ids, listed)
    classes, labels = np.unique(landmarks, return_inverse=True)
    files = _photo_files(root / "train", ids, archives)
    return PhotoTable(ids, files, labels.astype(np.int32), tuple(map(str, classes.tolist())))


def read_clean(path: str | Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, landmark and photo ids of each row of a file in the form of train_clean.csv (landmark_id, images).

    Raises:
        LandmarkRetrievalError: no such file or column, or a landmark without photos.
    """
    for line, (landmark, images) in read_rows(path, ("landmark_id", "images"), "GLDv2"):
        photos = images.split()
        if not photos:
            raise LandmarkRetrievalError(f"Landmark {landmark} in {path}, line {line}, has no photos: remove its line.")
        yield line, landmark, photos


def read_photos(root: str | Path, split: Literal["index", "test"], archives: Archives | None = None) -> PhotoTable:
    """The index or test (query) photos of GLDv2, without labels: <split>.csv (id) and <split>/a/b/c/<id>.jpg.

    Args:
        root: folder with both; for the CSV see `csv_file`.
        split: which photos.
        archives: where the photos are, if they are in archives (`archive_scan.scan_archives`).

    Raises:
        LandmarkRetrievalError: no such folder, file or column; an id that stands twice or can be no name of a file;
            photos in archives that were not scanned.
    """
    root = existing_folder(root)
    path = csv_file(root, f"{split}.csv")
    ids = Ids(checked_id(photo, path, line) for line, (photo,) in read_rows(path, ("id",), "GLDv2"))
    refuse_duplicates(ids, path)
    return PhotoTable(ids, _photo_files(root / split, ids, archives))


def csv_file(root: Path, name: str) -> Path:
    """Where the CSV file `name` ("test.csv") of GLDv2 is: in `root` or in `root`/metadata, also with a version in its
    name (test_v2.1.csv). Of several the newest version counts, one without version as the oldest, `root` before
    metadata. `root / name` where there is none.
    """
    stem = re.escape(Path(name).stem)
    found: list[tuple[tuple[int, ...], int, Path]] = []
    for rank, folder in ((1, root), (0, root / "metadata")):
        for path in folder.glob("*.csv"):
            named = re.fullmatch(rf"{stem}(?:_v([0-9]+(?:\.[0-9]+)*))?\.csv", path.name)
            if named:
                version = tuple(map(int, named[1].split("."))) if named[1] else ()
                found.append((version, rank, path))
    return max(found)[2] if found else root / name


def solution_files(root: Path) -> dict[str, Path]:
    """The retrieval and recognition solutions that are there (see `csv_file`), by their plain names; read once.

    Raises:
        LandmarkRetrievalError: one of them is damaged; see `solutions`.
    """
    readers = {RETRIEVAL_SOLUTION: read_retrieval_solution, RECOGNITION_SOLUTION: read_recognition_solution}
    found = {name: path for name in readers if (path := csv_file(root, name)).exists()}
    for name, path in found.items():
        readers[name](path)
    return found


def _photo_files(folder: Path, ids: Ids, archives: Archives | None) -> PhotoFiles:
    if archives is not None:
        return archives.files(ids)
    if held := archives_in(folder):
        raise LandmarkRetrievalError(
            f"The photos of {folder} are in {len(held)} archives: scan them first (archive_scan.scan_archives), "
            "or extract them."
        )
    return FilesById(PhotoPath(folder))


class PhotoPath:
    """id -> a/b/c/<id>.jpg below a folder; a class, so that worker processes can receive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, photo: str) -> Path:  # noqa: D102
        return self.folder.joinpath(*photo[:3], f"{photo}.jpg")


def existing_folder(path: str | Path) -> Path:
    """`path` as a Path. LandmarkRetrievalError if it is not a folder."""
    path = Path(path)
    if not path.is_dir():
        raise LandmarkRetrievalError(
            f"There is no folder {path}: give the folder that holds the photos and their CSV files."
        )
    return path


def _landmark_id(text: str, path: Path, line: int) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise LandmarkRetrievalError(f"{path}, line {line}: landmark_id {text!r} is not a number: mend the line.")
    return int(text)


def checked_id(photo: str, path: Path, line: int) -> str:
    """`photo`, which will be part of a path. LandmarkRetrievalError if it is empty, leads elsewhere, or has control
    characters in it."""
    if not photo or "/" in photo or "\\" in photo or not photo.isprintable():
        raise LandmarkRetrievalError(
            f"{path}, line {line}: {photo!r} cannot be the id of a photo (it must not be empty, nor hold slashes or "
            "control characters): mend the line."
        )
    return photo


def refuse_duplicates(ids: Ids, path: Path) -> None:
    """LandmarkRetrievalError if an id stands twice; `path` is the file that they come from."""
    if twice := ids.first_twice():
        raise LandmarkRetrievalError(f"Photo {twice} stands more than once in {path}: keep one of its lines.")


def _clean_rows(path: Path) -> Iterator[tuple[str, int]]:
    for line, landmark, photos in read_clean(path):
        number = _landmark_id(landmark, path, line)
        for photo in photos:
            yield checked_id(photo, path, line), number


def _train_rows(path: Path) -> Iterator[tuple[str, int]]:
    for line, (photo, landmark) in read_rows(path, ("id", "landmark_id"), "GLDv2"):
        yield checked_id(photo, path, line), _landmark_id(landmark, path, line)


def _columns(rows: Iterator[tuple[str, int]]) -> tuple[Ids, np.ndarray]:
    """Photo ids and landmarks as columns, without a list of millions of rows in between."""
    landmarks = array("q")

    def ids() -> Iterator[str]:
        for photo, landmark in rows:
            landmarks.append(landmark)
            yield photo

    return Ids(ids()), np.array(landmarks, np.int64)
