"""Whatever a person points at, as photos: shards, a folder, Google Landmarks in its own layout, or a CSV."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from landmark_retrieval.data import manifest as manifests
from landmark_retrieval.data.importers.archive_scan import archives_in
from landmark_retrieval.data.importers.folder import read_unlabelled
from landmark_retrieval.data.importers.gldv2 import (
    TRAIN_SETS,
    PhotoPath,
    csv_file,
    existing_folder,
    read_photos,
    read_train,
    refuse_duplicates,
)
from landmark_retrieval.data.importers.listed import FlatPath, ListedFiles, read_listed
from landmark_retrieval.data.photos import FilesById, Ids, PhotoTable
from landmark_retrieval.data.places import LocalPlace, place
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.remote.transfer import is_url
from landmark_retrieval.data.tables import read_rows
from landmark_retrieval.errors import LandmarkRetrievalError

_SPLITS = ("test", "index", *(f"train_{which}" for which in TRAIN_SETS))
# a/b/c/abc....jpg, as Google Landmarks lies on disk
_NESTED = re.compile(r"([^/])/([^/])/([^/])/\1\2\3[^/]*\.jpg")


def open_photos(path: str | Path, split: str | None = None) -> ShardedPhotos | PhotoTable:
    """Open photos to describe.

    Args:
        path: a folder of shards, or of several such folders, or the URL of one; a folder in the layout of Google
            Landmarks; any other folder, for all photos below it; or a CSV with the columns id and perhaps path
            (absolute, or relative to the CSV), and perhaps landmark_id. Without a path a photo is at <id>.jpg beside
            the CSV, or at a/b/c/<id>.jpg.
        split: which photos of a data set: "test", "index", "train_c", ...; "train_c", "train_x" and "train_full" are
            also sets of Google Landmarks in its own layout, see `gldv2.read_train`.

    Returns:
        The photos with `ids`, and `labels` where they have some: of shards int32 (n,) with -1 for none, of a table
        int32 (n,) or None. Ids of a plain folder are paths below it; where photos lie at a/b/c/<id>.jpg, as in
        Google Landmarks, they are the bare ids.

    Raises:
        LandmarkRetrievalError: there is nothing of the kind, a split is missing or unknown (those there are are named),
            or something is damaged.
    """
    if is_url(path):
        there = place(path)
        return ShardedPhotos.open(there if split is None else there.below(split))
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise LandmarkRetrievalError(f"{path} is no CSV: give the folder of the photos, or a CSV that lists them.")
        _refuse_split(path, split)
        return _read_csv(path)
    if not path.is_dir():
        raise LandmarkRetrievalError(f"There are no photos at {path}: give a folder, a CSV, or a URL of shards.")
    if (path / manifests.NAME).is_file():
        _refuse_split(path, split)
        return ShardedPhotos.open(path)
    splits = _splits(path)
    if split is None:
        if splits:
            raise LandmarkRetrievalError(f"{path} holds {', '.join(splits)}: choose one of them with split (--split).")
        return _read_folder(path)
    if split in LocalPlace(path).folders():
        return ShardedPhotos.open(path / split)
    if split not in splits:
        raise LandmarkRetrievalError(
            f"{path} holds no photos called {split!r} (it has: {', '.join(splits) or 'none with a name'}): choose "
            "another split, or leave it out for all photos below a folder."
        )
    for which in TRAIN_SETS:
        if split == f"train_{which}":
            return read_train(path, which)
    if not csv_file(path, f"{split}.csv").exists():
        return _read_folder(path / split)
    return read_photos(path, "test" if split == "test" else "index")


def _splits(path: Path) -> list[str]:
    """The photos with a name in a folder: of shards, or of Google Landmarks as downloaded."""
    if folders := LocalPlace(path).folders():
        return folders
    lists = {"train_c": "train_clean.csv", "train_x": "train.csv", "train_full": "train.csv"}
    found = []
    for split in _SPLITS:
        folder = path / split.partition("_")[0]
        listed = csv_file(path, lists.get(split, f"{split}.csv")).exists()
        # Kaggle gives out test and index without a list
        if folder.is_dir() and (listed or (split not in lists and _first_is_nested(folder))):
            found.append(split)
    return found


def _read_folder(path: Path) -> PhotoTable:
    if archives := archives_in(path):
        raise LandmarkRetrievalError(
            f"The photos of {path} are in {len(archives)} archives: shard them (`landmark-retrieval shard gldv2`), or "
            "extract them."
        )
    table = read_unlabelled(path)
    if not all(_NESTED.fullmatch(photo) for photo in table.ids):
        return table
    return PhotoTable(Ids(Path(photo).stem for photo in table.ids), FilesById(PhotoPath(path)))


def _first_is_nested(folder: Path) -> bool:
    """Whether photos lie at a/b/c/abc....jpg, as far as one of them shows."""
    return next(folder.glob("[!.]/[!.]/[!.]/*.jpg"), None) is not None


def _read_csv(path: Path) -> PhotoTable:
    names = _columns(path)
    if "landmark_id" in names:
        return read_listed(path.parent, path)[0]
    wanted = ("id", "path") if "path" in names else ("id",)
    rows = [cells for _, cells in read_rows(path, wanted, "list")]
    if not rows:
        raise LandmarkRetrievalError(f"{path} lists no photos: give another list.")
    ids = Ids(cells[0] for cells in rows)
    refuse_duplicates(ids, path)
    root = existing_folder(path.parent)
    locate = FlatPath(Path()) if any(root.glob("*.jpg")) else PhotoPath(Path())
    paths = (cells[-1] if len(cells) > 1 and cells[-1] else locate(cells[0]).as_posix() for cells in rows)
    return PhotoTable(ids, ListedFiles(root, Ids(paths)))


def _columns(path: Path) -> Sequence[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except (csv.Error, UnicodeDecodeError):
        return []  # read_rows says what is wrong


def _refuse_split(path: Path, split: str | None) -> None:
    if split is not None:
        raise LandmarkRetrievalError(f"{path} has no splits: leave out split (--split) {split!r}.")
