"""The folder of a saved index: index.json, which is written last, and the files that it names with their checksums.

index.json         kind, dim, count, card, why this kind, its parameters, sha256 of the other files
index.ids.txt      one photo id per line, in the order of the rows
index.faiss        the FAISS kinds: the index
index.slots.npy    the FAISS kinds, after photos were removed: the number that FAISS gave to each photo
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from landmark_retrieval.data.photos import Ids
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json, replacing, sha256_of, write_json
from landmark_retrieval.retrieval.store import DescriptorStore

DESCRIPTION = "index.json"
IDS = "index.ids.txt"
INDEX = "index.faiss"
SLOTS = "index.slots.npy"
REBUILD = "build the index again"
_NEEDED = {"kind", "dim", "count", "card", "sha256"}


def write_folder(
    folder: str | Path, description: Mapping[str, Any], files: Mapping[str, Callable[[Path], None]]
) -> None:
    """Write an index to a folder; an index that is there is replaced, other files in the folder stay.

    The index can be opened only once everything is written: a crash leaves the old one, the new one, or none.

    Args:
        folder: made if needed.
        description: for index.json; `sha256` is added.
        files: name -> what writes the file to the path that it is given.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        sums = {}
        for name, write in files.items():
            path = stack.enter_context(replacing(folder / name))
            write(path)
            sums[name] = sha256_of(path)
        # from here until the new description is written, the folder holds no index
        (folder / DESCRIPTION).unlink(missing_ok=True)
    write_json(folder / DESCRIPTION, {**description, "sha256": sums})
    for name in (INDEX, IDS, SLOTS):
        if name not in files:
            (folder / name).unlink(missing_ok=True)


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read index.json.

    Raises:
        LandmarkRetrievalError: there is none, or it does not describe an index.
    """
    path = Path(folder) / DESCRIPTION
    advice = "index a folder of photos first with `landmark-retrieval index`, or give the folder of another index"
    description = read_json(path, "photo index", advice)
    if not isinstance(description, dict) or not description.keys() >= _NEEDED:
        raise LandmarkRetrievalError(f"{path} does not describe a photo index: {REBUILD}.")
    return description


def check_files(folder: str | Path, description: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Compare the files of an index with their checksums; one that is missing or damaged is named."""
    for name in dict.fromkeys([*needed, *description["sha256"]]):
        path = Path(folder) / name
        if not path.exists():
            raise LandmarkRetrievalError(f"{path} is missing: {REBUILD}.")
        if sha256_of(path) != description["sha256"].get(name):
            raise LandmarkRetrievalError(f"{path} is damaged (its checksum is another): {REBUILD}.")


def write_ids(ids: Ids) -> Callable[[Path], None]:
    """What writes index.ids.txt."""

    def write(path: Path) -> None:
        with open_replacing(path) as file:
            file.writelines(f"{photo}\n" for photo in ids)

    return write


def read_ids(folder: str | Path) -> Ids:
    """The photo ids of a saved index."""
    with (Path(folder) / IDS).open(encoding="utf-8", newline="\n") as file:
        return Ids(line.removesuffix("\n") for line in file)


def place_of_store(store: str | Path, folder: str | Path) -> str:
    """Where the descriptors of an index lie, for index.json: relative to the index if they are inside its folder."""
    place, root = Path(store).resolve(), Path(folder).resolve()
    return os.path.relpath(place, root) if place.is_relative_to(root) else str(place)


def open_store(place: str, folder: str | Path, card: Mapping[str, Any]) -> DescriptorStore:
    """Open the descriptors that `place_of_store` noted.

    Raises:
        LandmarkRetrievalError: they are not there, or are of another model.
    """
    store = DescriptorStore.open(Path(folder) / place)
    if store.card != dict(card):
        raise LandmarkRetrievalError(
            f"The store {store.folder} is of another model than the index {folder}: {REBUILD}."
        )
    return store
