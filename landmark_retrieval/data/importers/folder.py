"""One's own photos: a folder per landmark."""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from landmark_retrieval.data.importers.gldv2 import existing_folder, read_clean
from landmark_retrieval.data.photos import SUFFIXES, FilesById, Ids, PhotoTable
from landmark_retrieval.errors import LandmarkRetrievalError


def read_folder(root: str | Path) -> PhotoTable:
    """Photos at root/<landmark>/**/<photo>.jpg (or .jpeg, .png, .webp).

    Ids are the paths below root with slashes, blanks in them written as in URLs ("Old%20bridge/1.jpg"): in the files of
    the Google Landmarks challenges blanks separate ids.

    Raises:
        LandmarkRetrievalError: no such folder, no landmark folder in it, or a landmark folder without photos.
    """
    root = existing_folder(root)
    landmarks = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not landmarks:
        raise LandmarkRetrievalError(
            f"{root} holds no folders: put the photos of each landmark into a folder of its name."
        )
    ids: list[str] = []
    labels: list[int] = []
    for label, landmark in enumerate(landmarks):
        photos = list_photos(landmark)
        if not photos:
            raise LandmarkRetrievalError(f"Landmark folder {landmark} holds no photos: add some, or remove the folder.")
        ids += [without_blanks(path.relative_to(root).as_posix()) for path in photos]
        labels += [label] * len(photos)
    names = tuple(path.name for path in landmarks)
    return PhotoTable(Ids(ids), FilesById(QuotedPath(root)), np.asarray(labels, np.int32), names)


def without_blanks(path: str) -> str:
    """A path as an id that can stand in files of predictions: blanks written as in URLs, and so the % sign."""
    return re.sub(r"[\s%]", lambda blank: quote(blank[0]), path)


class QuotedPath:
    """Id of `read_folder` -> file; a class, so that worker processes can receive it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, photo: str) -> Path:  # noqa: D102
        return self.root / unquote(photo)


def list_photos(root: str | Path) -> list[Path]:
    """All photos below a folder, sorted by path. LandmarkRetrievalError if the name of one is not UTF-8."""
    photos = sorted(
        path
        for path in Path(root).rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    for path in photos:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise LandmarkRetrievalError(
                f"The name of the photo {str(path)!a} is not UTF-8, so that it cannot stand in lists: rename it."
            ) from None
    return photos


def read_unlabelled(root: str | Path) -> PhotoTable:
    """All photos below a folder, without labels; ids are the paths below it.

    Raises:
        LandmarkRetrievalError: no such folder, or no photo in it.
    """
    root = existing_folder(root)
    photos = list_photos(root)
    if not photos:
        raise LandmarkRetrievalError(f"{root} holds no photos ({', '.join(SUFFIXES)}): give a folder that does.")
    return PhotoTable(Ids(path.relative_to(root).as_posix() for path in photos), FilesById(root.joinpath))


def hold_out(
    table: PhotoTable, fraction: float, seed: int = 0
) -> tuple[PhotoTable, PhotoTable, PhotoTable, dict[str, list[str]]]:
    """Set whole landmarks aside, so that retrieval is measured on landmarks never trained on.

    Args:
        table: labelled photos.
        fraction: of the landmarks with at least two photos, in (0, 1); at least one is taken.
        seed: which ones.

    Returns:
        train: the table without them, classes renumbered; query: a quarter of the photos of each landmark taken (at
            least one);
        index: the rest of them; relevant: for each query id the index ids of its landmark.

    Raises:
        LandmarkRetrievalError: nothing to hold out, or nothing would be left to train on.
    """
    assert table.labels is not None
    counts = np.bincount(table.labels, minlength=len(table.classes))
    candidates = np.flatnonzero(counts >= 2)
    taken = max(1, round(fraction * len(candidates)))
    if not 0 < fraction < 1 or len(candidates) == 0 or taken >= len(table.classes):
        raise LandmarkRetrievalError(
            f"Holding out {fraction:g} of {len(table.classes)} landmarks is not possible: it takes a fraction between "
            "0 and 1, a landmark with two photos or more, and another one to train on."
        )
    rng = np.random.default_rng(seed)
    held = set(rng.choice(candidates, taken, replace=False).tolist())
    train = _alone(table, np.flatnonzero(~np.isin(table.labels, list(held))))
    return train, *_queries_and_index(table, sorted(held), rng)


def split_queries(table: PhotoTable, seed: int = 0) -> tuple[PhotoTable, PhotoTable, dict[str, list[str]]]:
    """Take a quarter of the photos of every landmark as queries, so that retrieval can be measured on all of them.

    Args:
        table: labelled photos.
        seed: which ones.

    Returns:
        query: a quarter of the photos of each landmark (at least one; none of a landmark with a single photo); index:
        the rest of them; relevant: for each query id the index ids of its landmark. Photos have no labels any more.

    Raises:
        LandmarkRetrievalError: no landmark has two photos.
    """
    assert table.labels is not None
    if np.bincount(table.labels).max() < 2:
        raise LandmarkRetrievalError(
            f"Each of the {len(table.classes)} landmarks has a single photo, so that there is nothing to find: add "
            "photos of the same landmarks."
        )
    return _queries_and_index(table, range(len(table.classes)), np.random.default_rng(seed))


def read_queries_and_index(root: str | Path) -> tuple[PhotoTable, PhotoTable, dict[str, list[str]]]:
    """Query photos at root/query/<landmark>/**, index photos at root/index/<landmark>/**; see `read_folder`.

    Returns:
        query, index, and for each query id the index ids of its landmark. Queries of landmarks that the index does not
        have are in `query`, but have no such list. Photos have no labels any more.

    Raises:
        LandmarkRetrievalError: see `read_folder`; the two have no landmark in common.
    """
    query, index = read_folder(Path(root) / "query"), read_folder(Path(root) / "index")
    assert query.labels is not None
    assert index.labels is not None
    photos: dict[str, list[str]] = {name: [] for name in index.classes}
    for photo, label in zip(index.ids, index.labels.tolist(), strict=True):
        photos[index.classes[label]].append(photo)
    names = (query.classes[label] for label in query.labels.tolist())
    relevant = {photo: photos[name] for photo, name in zip(query.ids, names, strict=True) if name in photos}
    if not relevant:
        raise LandmarkRetrievalError(
            f"{root}/query and {root}/index have no landmark in common: give the folders of a landmark the same name "
            "in both."
        )
    return PhotoTable(query.ids, query.files), PhotoTable(index.ids, index.files), relevant


def _queries_and_index(
    table: PhotoTable, landmarks: Iterable[int], rng: np.random.Generator
) -> tuple[PhotoTable, PhotoTable, dict[str, list[str]]]:
    """Of the photos of each of these landmarks a quarter as queries, the rest as index, and what is right for each."""
    query: list[int] = []
    index: list[int] = []
    relevant: dict[str, list[str]] = {}
    for label in landmarks:
        rows = rng.permutation(np.flatnonzero(table.labels == label))
        cut = max(1, len(rows) // 4) if len(rows) > 1 else 0
        query += rows[:cut].tolist()
        index += rows[cut:].tolist()
        relevant.update((table.ids[row], [table.ids[other] for other in rows[cut:]]) for row in rows[:cut])
    unlabelled = PhotoTable(table.ids, table.files)
    return unlabelled.take(np.asarray(query)), unlabelled.take(np.asarray(index)), relevant


def only_listed(table: PhotoTable, path: str | Path) -> PhotoTable:
    """The photos of a table that a CSV in the form of GLDv2's train_clean.csv lists (landmark_id, images).

    Landmarks of which it lists none are left out, and the others renumbered.

    Raises:
        LandmarkRetrievalError: the file lists nothing, or a photo that the table does not have under that landmark; see
            also `gldv2.read_clean`.
    """
    assert table.labels is not None
    rows = {photo: row for row, photo in enumerate(table.ids)}
    listed: list[int] = []
    for line, landmark, photos in read_clean(path):
        for photo in photos:
            row = rows.get(photo)
            if row is None or table.classes[table.labels[row]].strip() != landmark:
                raise LandmarkRetrievalError(
                    f"{path}, line {line}: {photo} is no training photo of {landmark}: name a list of these photos, "
                    "and hold out the same landmarks as when they were sharded for it (--hold-out, --seed)."
                )
            listed.append(row)
    if not listed:
        raise LandmarkRetrievalError(f"{path} lists no photos: name another file.")
    return _alone(table, np.unique(listed))


def _alone(table: PhotoTable, rows: np.ndarray) -> PhotoTable:
    """The table of these rows, without the classes that have no photo in them."""
    part = table.take(rows)
    assert part.labels is not None
    kept, labels = np.unique(part.labels, return_inverse=True)
    return PhotoTable(part.ids, part.files, labels.astype(np.int32), tuple(table.classes[label] for label in kept))
