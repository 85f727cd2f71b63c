"""An index follows its folder of photos: new ones are described, removed ones leave, changed ones come anew."""

import contextlib
import csv
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torch import nn

from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.data.tables import write_reasons
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json
from landmark_retrieval.retrieval.extract import BROKEN, SOURCE, broken_photos, extract
from landmark_retrieval.retrieval.index import Index, build_index
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter
from landmark_retrieval.retrieval.whitening import Whitening

RAW, WHITENED = "descriptors", "whitened"
_STAMPS = "stamps.csv"
_NEW = "new"
_LOCK = "index.lock"


class FolderChanges:
    """What changed in a folder of photos since it was indexed.

    Args:
        now: the photos that are there now, in order, with their stamps.
        index: the index of those that were.
        folder: of the index.
    """

    def __init__(self, now: Mapping[str, str], index: Index, folder: Path) -> None:
        before, broken = _read_stamps(folder), _read_broken(folder)
        held = set(index.ids)
        # a photo without a stamp was added by a run that was interrupted before it wrote them; without any, no run was
        self.changed = {photo for photo in held & now.keys() if before and before.get(photo) != now[photo]}
        self.removed = sorted(held - now.keys())
        self.broken = {p: why for p, why in broken.items() if p in now and before.get(p) == now[p] and p not in held}
        known = (held | self.broken.keys()) - self.changed
        self.new = [photo for photo in now if photo not in known]

    def __bool__(self) -> bool:
        return bool(self.new or self.removed)


def stamps(table: PhotoTable) -> Iterator[tuple[str, str]]:
    """Of each photo something that changes when its file does."""
    for row, photo in enumerate(table.ids):
        yield photo, repr(table.files.stamp(row, photo))


def write_notes(folder: Path, now: Mapping[str, str], broken: Mapping[str, str]) -> None:
    """Keep the stamps, and the photos that cannot be decoded, beside the index."""
    # in this order: without its stamp a broken photo is only tried once more
    write_reasons(folder / BROKEN, broken)
    with open_replacing(folder / _STAMPS) as file:
        csv.writer(file).writerows(now.items())


@contextlib.contextmanager
def updating(folder: Path) -> Iterator[None]:
    """Keep other processes from changing an index. LandmarkRetrievalError if one is at it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK, timeout=0):
            yield
    except Timeout:
        raise LandmarkRetrievalError(
            f"Another process is updating the index {folder}: wait until it is done, or choose another folder."
        ) from None


def describe_new(
    model: nn.Module, card: Mapping[str, Any], photos: PhotoTable, folder: Path, **extraction: Any
) -> tuple[DescriptorStore | None, dict[str, str]]:
    """Describe photos into a store of their own, which `forget_new` takes away; None if none can be decoded."""
    new = folder / _NEW
    source = new / SOURCE
    if source.exists() and read_json(source, "note on the photos", f"delete {new}") != photos.fingerprint:
        # left by a run that was interrupted, before the folder changed once more
        shutil.rmtree(new)
    try:
        store = extract(model, card, photos, new, title="describe new photos", **extraction)
    except LandmarkRetrievalError:
        if len(broken_photos(new)) != len(photos):
            raise
        store = None
    return store, broken_photos(new)


def forget_new(folder: Path) -> None:
    """Remove the store of the new photos, once their descriptors are in that of the index."""
    shutil.rmtree(folder / _NEW, ignore_errors=True)


def forget_old(folder: Path, store: DescriptorStore) -> None:
    """Remove the stores that an index had before this one; the raw descriptors stay beside whitened ones."""
    for path in folder.iterdir():
        ours = re.fullmatch(rf"({RAW}|{WHITENED})(-\d+)?", path.name)
        raw = path.name == RAW and store.folder.name.startswith(WHITENED)
        if ours and path.name != store.folder.name and not raw:
            shutil.rmtree(path)


def whitening_for(store: DescriptorStore, dim: int, path: Path) -> Whitening:
    """Learn a whitening and keep it at `path`, or take the one of a run that was interrupted."""
    if path.exists():
        held = Whitening.load(path)
        if held.dim == dim and held.card == store.card:
            return held
    # what an interrupted run whitened in another way
    shutil.rmtree(path.parent / WHITENED, ignore_errors=True)
    whitening = Whitening.fit(store, dim)
    whitening.save(path)
    return whitening


def grow(index: Index, store: DescriptorStore, new: DescriptorStore, whitening: Whitening | None) -> None:
    """Append the descriptors of new photos to the store of an index, and add them to the index."""
    with DescriptorWriter(store.folder, store.card, dtype=store.dtype) as writer:
        for ids, part in new.parts():
            writer.append(ids, _whitened(part, ids, whitening))
    for ids, part in new.parts():
        index.add(ids, _whitened(part, ids, whitening))


def made_anew(
    kind: str,
    store: DescriptorStore,
    new: DescriptorStore | None,
    keep: set[str],
    whitening: Whitening | None,
    folder: Path,
    device: str = "cpu",
) -> tuple[Index, DescriptorStore]:
    """An index of a kind over a new store: what is kept of the old descriptors, and the new ones.

    For photos whose descriptors the old store holds in another form: a store only grows.
    """
    name, _, number = store.folder.name.partition("-")
    out = folder / f"{name}-{int(number or 1) + 1}"
    shutil.rmtree(out, ignore_errors=True)  # of a run that was interrupted
    with DescriptorWriter(out, store.card, dtype=store.dtype) as writer:
        for ids, part in store.parts():
            rows = [row for row, photo in enumerate(ids) if photo in keep]
            if rows:
                writer.append([ids[row] for row in rows], part[rows])
        for ids, part in new.parts() if new is not None else ():
            writer.append(ids, _whitened(part, ids, whitening))
    made = DescriptorStore.open(out)
    return build_index(made, kind, device), made


def _whitened(rows: np.ndarray, ids: Sequence[str], whitening: Whitening | None) -> np.ndarray:
    return rows if whitening is None else whitening.apply(rows, ids)


def _read_broken(folder: Path) -> dict[str, str]:
    # earlier versions kept them with the descriptors alone
    return broken_photos(folder if (folder / BROKEN).exists() else folder / RAW)


def _read_stamps(folder: Path) -> dict[str, str]:
    try:
        with (folder / _STAMPS).open(newline="", encoding="utf-8") as file:
            return dict(csv.reader(file))
    except FileNotFoundError:
        return {}
