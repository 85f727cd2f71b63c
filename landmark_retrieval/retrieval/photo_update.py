"""An index follows its folder of photos: new ones are described, removed ones leave, changed ones come anew."""

import csv
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json
from landmark_retrieval.retrieval.extract import SOURCE, broken_photos, extract
from landmark_retrieval.retrieval.index import Index, build_index
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter
from landmark_retrieval.retrieval.whitening import Whitening

_STAMPS = "stamps.csv"
_NEW = "new"


class FolderChanges:
    """What changed in a folder of photos since it was indexed.

    Args:
        table: the photos that are there now.
        index: the index of those that were.
        folder: of the index.
        broken: photos that could not be decoded then, with the reason.
    """

    def __init__(self, table: PhotoTable, index: Index, folder: Path, broken: Mapping[str, str]) -> None:
        before, now = _read_stamps(folder), dict(stamps(table))
        held = set(index.ids)
        self.changed = {photo for photo in held & now.keys() if photo in before and before[photo] != now[photo]}
        self.removed = sorted(held - now.keys())
        self.broken = {p: why for p, why in broken.items() if p in now and before.get(p) == now[p] and p not in held}
        self.new = [photo for photo in table.ids if photo in self.changed or photo not in held | self.broken.keys()]

    def __bool__(self) -> bool:
        return bool(self.new or self.removed)


def stamps(table: PhotoTable) -> Iterator[tuple[str, str]]:
    """Of each photo something that changes when its file does."""
    for row, photo in enumerate(table.ids):
        yield photo, repr(table.files.stamp(row, photo))


def write_stamps(folder: Path, table: PhotoTable) -> None:
    """Keep them beside the index."""
    with open_replacing(folder / _STAMPS) as file:
        csv.writer(file).writerows(stamps(table))


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


def grow(index: Index, store: DescriptorStore, new: DescriptorStore, whitening: Whitening | None) -> None:
    """Append the descriptors of new photos to the store of an index, and add them to the index."""
    with DescriptorWriter(store.folder, store.card, dtype=store.dtype) as writer:
        for ids, part in new.parts():
            writer.append(ids, _whitened(part, whitening))
    for ids, part in new.parts():
        index.add(ids, _whitened(part, whitening))


def made_anew(
    index: Index,
    store: DescriptorStore,
    new: DescriptorStore | None,
    keep: set[str],
    whitening: Whitening | None,
    folder: Path,
    device: str = "cpu",
    kind: str | None = None,
) -> tuple[Index, DescriptorStore]:
    """An index over a new store: what is kept of the old descriptors, and the new ones.

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
            writer.append(ids, _whitened(part, whitening))
    made = DescriptorStore.open(out)
    return build_index(made, kind or index.kind, device), made


def _whitened(rows: np.ndarray, whitening: Whitening | None) -> np.ndarray:
    return rows if whitening is None else whitening.apply(rows)


def _read_stamps(folder: Path) -> dict[str, str]:
    try:
        with (folder / _STAMPS).open(newline="", encoding="utf-8") as file:
            return dict(csv.reader(file))
    except FileNotFoundError:
        return {}
