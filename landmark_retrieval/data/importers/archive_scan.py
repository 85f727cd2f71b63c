"""The headers of tar archives -> where their photos lie: in parallel, resumable, and with an account of the rest."""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from landmark_retrieval.data.importers.archives import MAX_ARCHIVES, MAX_BYTES, ArchivedFiles, Archives, Skipped
from landmark_retrieval.data.importers.tar_headers import DamagedTarError, walk
from landmark_retrieval.data.photos import Ids
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import replacing
from landmark_retrieval.processes import in_processes

_FORMAT = 1


def archives_in(folder: str | Path) -> list[Path]:
    """The archives (*.tar) of a folder, sorted by name. None where photos lie extracted beside them, in folders of one
    character: those are taken then."""
    folder = Path(folder)
    if not folder.is_dir() or any(len(path.name) == 1 and path.is_dir() for path in folder.iterdir()):
        return []
    return sorted(path for path in folder.glob("*.tar") if path.is_file())


def scan_archives(
    archives: Sequence[Path], cache: str | Path, workers: int | None = None, title: str = "archives"
) -> Archives:
    """Find the photos in archives whose members are called a/b/c/<id>.jpg, abc being how the id begins.

    Other members (links, devices, directories, absolute names, `..`, other names) are never followed or read. Where an
    archive is cut short or damaged, what lies before the damage is used. Of photos with the same id the first counts,
    in the order of the archives. All that is not used is in `skipped`.

    Args:
        archives: uncompressed tar files of one folder.
        cache: folder for what was found, a file an archive: an archive of the same name, size and time of change is
            not read again, so an interrupted scan goes on where it stopped.
        workers: processes; as many as cores by default.
        title: shown beside the progress bar.

    Raises:
        LandmarkRetrievalError: no archives, too many of them, or one cannot be read.
    """
    if not 0 < len(archives) <= MAX_ARCHIVES:
        raise LandmarkRetrievalError(
            f"{len(archives):,} archives cannot be scanned: give 1 to {MAX_ARCHIVES:,} of them."
        )
    cache = Path(cache)
    stamps = [_stamp(path) for path in archives]
    scans = {path.name: held for path, stamp in zip(archives, stamps, strict=True) if (held := _kept(cache, stamp))}
    left = [path for path in archives if path.name not in scans]
    with tqdm(total=len(archives), initial=len(scans), desc=title, unit="tar") as bar:
        for found in in_processes(partial(_scan, cache), left, workers or os.cpu_count() or 1):
            scans[found["archive"][0]] = found
            bar.update()
    return _join(archives[0].parent, [scans.pop(path.name) for path in archives])


def _stamp(path: Path) -> tuple[str, int, int]:
    held = path.stat()
    return path.name, held.st_size, held.st_mtime_ns


def _photo_id(name: str) -> str | None:
    *above, first, second, third, file = ["", "", "", *name.split("/")]
    photo, suffix = file[:-4], file[-4:]
    inside = all(part not in ("", "..") for part in above[3:])
    if not inside or not name.isprintable() or suffix != ".jpg" or [first, second, third] != list(photo[:3]):
        return None
    return None if re.search(r"[\s\\]", photo) else photo


def _scan(cache: Path, path: Path) -> dict[str, Any]:
    """What one archive holds, from its headers; kept in the cache."""
    stamp = _stamp(path)
    ids: list[str] = []
    places: list[tuple[int, int]] = []
    skipped: list[Skipped] = []
    folders: list[str] = []
    try:
        for member in walk(path):
            photo = _photo_id(member.name)
            if member.kind == "a directory":
                folders.append(member.name)
            elif member.kind:
                skipped.append(Skipped(path.name, member.name, f"it is {member.kind}, not a file"))
            elif photo is None:
                skipped.append(Skipped(path.name, member.name, "its name is not a/b/c/<id>.jpg"))
            elif member.size > MAX_BYTES:
                skipped.append(Skipped(path.name, member.name, f"no photo has {member.size:,} bytes"))
            else:
                ids.append(photo)
                places.append((member.offset, member.size))
    except DamagedTarError as damage:
        skipped.append(Skipped(path.name, "", f"damaged: {damage}; what follows is lost"))
    except OSError as error:
        raise LandmarkRetrievalError(
            f"The archive {path} cannot be read ({error.strerror}): mend its rights or its disk, or copy it once more."
        ) from error
    if folders:
        skipped.append(Skipped(path.name, folders[0], "directories hold no photos of their own", len(folders)))
    columns: dict[str, Any] = {"ids": Ids(ids).column, "places": np.array(places, np.int64).reshape(-1, 2)}
    about = {"format": _FORMAT, "archive": stamp, "skipped": [asdict(row) for row in skipped]}
    with replacing(cache / f"{path.name}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **columns)
    return {"archive": stamp, "skipped": skipped, **columns}


def _kept(cache: Path, stamp: tuple[str, int, int]) -> dict[str, Any] | None:
    """What an earlier run found in an archive; None where there is nothing, or nothing of use."""
    try:
        with np.load(cache / f"{stamp[0]}.npz", allow_pickle=False) as held:
            about = json.loads(str(held["about"]))
            if about["format"] != _FORMAT or tuple(about["archive"]) != stamp:
                return None
            skipped = [Skipped(**row) for row in about["skipped"]]
            return {"archive": stamp, "skipped": skipped, "ids": held["ids"], "places": held["places"]}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _join(folder: Path, scans: list[dict[str, Any]]) -> Archives:
    """The scans of all archives as columns sorted by id, without ids that come again."""
    counts = [len(found["ids"]) for found in scans]
    ids = np.concatenate([found["ids"] for found in scans])
    places = np.concatenate([found["places"] for found in scans])
    for found in scans:
        del found["ids"], found["places"]  # of millions of photos, once is enough
    archive = np.repeat(np.arange(len(scans), dtype=np.uint16), counts)
    order = np.argsort(ids, kind="stable")  # stable: of equal ids the first stays the first
    ids, places, archive = ids[order], places[order], archive[order]
    again = np.concatenate([[False], ids[1:] == ids[:-1]]) if len(ids) else np.zeros(0, bool)
    names = tuple(found["archive"] for found in scans)
    skipped = [row for found in scans for row in found["skipped"]]
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(ids)))) if len(ids) else order
    for row in np.flatnonzero(again):
        photo, held, other = ids[row].decode(), names[archive[row]][0], names[archive[first[row]]][0]
        skipped.append(Skipped(held, photo, f"a photo of this id comes before it, in {other}"))
    new = ~again
    located = ArchivedFiles(
        folder, names, archive[new], np.ascontiguousarray(places[new, 0]), places[new, 1].astype(np.uint32)
    )
    return Archives(Ids(ids[new]), located, tuple(skipped))
