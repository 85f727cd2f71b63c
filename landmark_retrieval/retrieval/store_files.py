"""The files of a descriptor store, and what may stand in them.

store.json           dim, dtype, count, card, and of each part its count and checksums; written last
part-00000.npy       (n, dim) float16 or float32; neither this nor the next, if none of its photos can be described
part-00000.ids.txt   one photo id per line
unfinished.json      card, dtype and part size of a store that is being written, as long as it is
part-00000.json      of one of its parts count, dim, checksums and broken photos; written after the part
part-00000.lock      held by the process that is at work on that part
store.lock           held by the process that begins or finishes the store
writer.lock          held by a `DescriptorWriter`
source.json          of a store that `extract` made: fingerprint of the photos; written first
broken.csv           of such a store: the photos that cannot be decoded, each with the reason
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, sha256_of

DTYPES = ("float32", "float16")
FINISHED = "store.json"
UNFINISHED = "unfinished.json"
REMAKE = "remove the folder and extract the descriptors again"
# what store.json says of a part
RECORD = ("count", "sha256", "ids_sha256")

Record = dict[str, Any]


def as_stored(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card as it comes back from a file (tuples become lists), so that cards can be compared."""
    return json.loads(json.dumps(dict(card)))


def card_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The entries in which two cards differ, for messages."""
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return "; ".join(f"{name}: {first.get(name)!r} and {second.get(name)!r}" for name in names)


def checked_rows(folder: Path, ids: Sequence[str], descriptors: Any, dtype: str, dim: int | None) -> np.ndarray:
    """Descriptors as they are stored, (n, dim), of n photos.

    Raises:
        LandmarkRetrievalError: the shapes do not fit, an id is empty or holds a line break, or a descriptor holds NaN
            or infinity in that dtype (the photo is named).
    """
    if hasattr(descriptors, "detach"):
        descriptors = descriptors.detach().float().cpu().numpy()
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinity and is refused below
        rows = np.array(descriptors, dtype=dtype)
    if rows.ndim != 2 or len(rows) != len(ids):
        raise LandmarkRetrievalError(f"{len(ids)} photos need ({len(ids)}, d) descriptors, not {rows.shape}.")
    if dim not in (None, rows.shape[1]):
        raise LandmarkRetrievalError(
            f"The store {folder} holds {dim}-d descriptors, the batch has {rows.shape[1]}-d ones."
        )
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise LandmarkRetrievalError(
            f"The descriptor of photo {ids[int(np.argmin(finite))]!r} holds NaN or infinity in {dtype}: "
            "check the photo and the model."
        )
    for photo in ids:
        if photo.splitlines() != [photo]:
            raise LandmarkRetrievalError(f"Photo id {photo!r} is empty or holds a line break: rename the photo.")
    return rows


def part_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """The files of a part: its descriptors, and its ids."""
    return folder / f"{stem(number)}.npy", folder / f"{stem(number)}.ids.txt"


def open_part(
    folder: Path, number: int, part: Mapping[str, Any], dim: int, dtype: str, verify: bool = False
) -> tuple[list[str], np.ndarray]:
    """The ids and the memory-mapped (n, dim) descriptors of a part.

    Raises:
        LandmarkRetrievalError: it is missing or damaged, as far as shapes and counts show, or with `verify` checksums.
    """
    array, names = part_paths(folder, number)
    if not part["count"]:
        return [], np.empty((0, dim), dtype)

    def damaged(path: Path, what: str) -> LandmarkRetrievalError:
        return LandmarkRetrievalError(f"Part {path} is damaged ({what}): {REMAKE}.")

    if verify:
        for path, name in ((array, "sha256"), (names, "ids_sha256")):
            if path.exists() and sha256_of(path) != part[name]:
                raise damaged(path, "its checksum is another")
    try:
        rows = np.load(array, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise damaged(array, "it is missing") from None
    except (ValueError, EOFError, OSError) as error:
        raise damaged(array, str(error)) from None
    wanted = (part["count"], dim)
    if rows.shape != wanted or rows.dtype != dtype:
        raise damaged(array, f"it holds {rows.shape} {rows.dtype} instead of {wanted} {dtype}")
    try:
        ids = names.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise damaged(names, "it is missing") from None
    except UnicodeDecodeError as error:
        raise damaged(names, str(error)) from None
    if ids.pop() != "" or len(ids) != part["count"]:
        raise damaged(names, f"it does not hold {part['count']} lines")
    return ids, rows


def read_description(path: Path) -> dict[str, Any]:
    """What store.json says. LandmarkRetrievalError if it is missing or something else."""
    advice = "extract the descriptors of your photos first, or give the folder of another store"
    description = read_json(path, "descriptor store", advice)
    if not (
        isinstance(description, dict)
        and {"dim", "dtype", "count", "card", "parts"} <= description.keys()
        and description["dtype"] in DTYPES
        and all(set(RECORD) <= part.keys() for part in description["parts"])
    ):
        raise LandmarkRetrievalError(f"{path} is not the description of a descriptor store: {REMAKE}.")
    return description


def stem(number: int) -> str:
    """The name of a part's files without what they end in."""
    return f"part-{number:05d}"
