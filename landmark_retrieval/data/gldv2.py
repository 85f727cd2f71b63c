"""Google Landmarks v2 in its own layout: CSVs, and photos at a/b/c/<id>.jpg."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.data.tables import read_rows
from landmark_retrieval.errors import LandmarkRetrievalError

TrainSet = Literal["c", "x", "full"]
TRAIN_SETS: tuple[TrainSet, ...] = ("c", "x", "full")
CLEAN = "train_clean.csv"


def read_train(root: str | Path, which: TrainSet = "c", clean_csv: str | Path | None = None) -> PhotoTable:
    """The training photos of GLDv2 with their classes.

    Args:
        root: folder with train.csv (id, url, landmark_id), train_clean.csv (landmark_id, images) and
            train/a/b/c/<id>.jpg.
        which: "c", the cleaned set of train_clean.csv; "x", all photos of train.csv whose landmark is in the cleaned
            set; "full", all of train.csv. c and x have the same classes.
        clean_csv: takes the place of train_clean.csv.

    Returns:
        The table; class numbers are the ranks of the sorted landmark ids, class names the landmark ids.

    Raises:
        LandmarkRetrievalError: no such folder, file, or column; a landmark without photos; an unknown set.

    Source: Weyand et al. 2020 (arXiv 2004.01804); Henkel 2021, section 2.3 for the sets.
    """
    root = existing_folder(root)
    if which not in TRAIN_SETS:
        raise LandmarkRetrievalError(
            f"There is no training set {which!r} in GLDv2: choose one of {', '.join(TRAIN_SETS)}."
        )
    clean = root / CLEAN if clean_csv is None else Path(clean_csv)
    ids: list[str] = []
    landmarks: list[int] = []
    if which == "c":
        for line, landmark, photos in read_clean(clean):
            ids += photos
            landmarks += [_landmark_id(landmark, clean, line)] * len(photos)
    else:
        known = set(read_train(root, "c", clean).classes) if which == "x" else None
        for line, (photo, landmark) in read_rows(root / "train.csv", ("id", "landmark_id"), "GLDv2"):
            number = _landmark_id(landmark, root / "train.csv", line)
            if known is None or str(number) in known:
                ids.append(photo)
                landmarks.append(number)
    if not ids:
        raise LandmarkRetrievalError(f"GLDv2 set {which!r} in {root} names no photos: look at its CSV files.")
    _refuse_duplicates(ids, clean if which == "c" else root / "train.csv")
    classes, labels = np.unique(np.asarray(landmarks, np.int64), return_inverse=True)
    return PhotoTable(ids, PhotoPath(root / "train"), labels.astype(np.int64), tuple(map(str, classes.tolist())))


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


def read_photos(root: str | Path, split: Literal["index", "test"]) -> PhotoTable:
    """The index or test (query) photos of GLDv2, without labels: <split>.csv (id) and <split>/a/b/c/<id>.jpg.

    Raises:
        LandmarkRetrievalError: no such folder, file or column, or an id that stands twice.
    """
    root = existing_folder(root)
    ids = [photo for _, (photo,) in read_rows(root / f"{split}.csv", ("id",), "GLDv2")]
    _refuse_duplicates(ids, root / f"{split}.csv")
    return PhotoTable(ids, PhotoPath(root / split))


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
    try:
        return int(text)
    except ValueError:
        raise LandmarkRetrievalError(
            f"{path}, line {line}: landmark_id {text!r} is not a number: mend the line."
        ) from None


def _refuse_duplicates(ids: list[str], path: Path) -> None:
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(photo for photo in ids if photo in seen or seen.add(photo))  # type: ignore[func-returns-value]
        raise LandmarkRetrievalError(f"Photo {twice} stands more than once in {path}: keep one of its lines.")
