"""One's own photos: describe and index a folder, keep the index up to date, then find the nearest photos of a query."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from landmark_retrieval.data.decode import BrokenPhotoError, decode
from landmark_retrieval.data.importers.folder import list_photos, read_unlabelled
from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.data.resizing import Resizing
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json
from landmark_retrieval.retrieval.extract import broken_photos, describe, extract
from landmark_retrieval.retrieval.gallery import GalleryEntry, GalleryResult
from landmark_retrieval.retrieval.index import Index, build_index, open_index
from landmark_retrieval.retrieval.indexes.index_checks import check_card
from landmark_retrieval.retrieval.indexes.index_files import DESCRIPTION
from landmark_retrieval.retrieval.photo_update import (
    FolderChanges,
    describe_new,
    forget_new,
    grow,
    made_anew,
    write_stamps,
)
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.views import VIEWS, card_with_views
from landmark_retrieval.retrieval.whitening import Whitening, whiten_store

_ABOUT = "photos.json"
_WHITENING = "whitening.safetensors"
_ADVICE = "build it with `landmark-retrieval index`"


@dataclass(frozen=True)
class Found:
    """What a search found for one query: photo files and cosines, best first."""

    query: Path
    photos: list[Path]
    scores: list[float]


@dataclass(frozen=True)
class Indexed:
    """What `index_photos` did.

    Attributes:
        index: as it is now.
        broken: photos that could not be decoded, with the reason.
        added: photos that were described: all of a new index, or the new and changed ones.
        removed: photos that are in the folder no more.
    """

    index: Index
    broken: dict[str, str]
    added: int
    removed: list[str] = field(default_factory=list)


def index_photos(
    model: nn.Module,
    card: dict[str, Any],
    model_name: str,
    photos: str | Path,
    out: str | Path,
    kind: str = "auto",
    whiten: int | None = None,
    index_device: str = "cpu",
    **extraction: Any,
) -> Indexed:
    """Describe all photos below a folder and build an index over them, or bring an index of the folder up to date.

    Of a folder that is indexed already, only photos that are new or have changed are described; those that are gone
    leave the index. Interrupted, the same call goes on.

    Args:
        model: in eval mode.
        card: of the model.
        model_name: as `zoo.load_model` takes it; kept, so that a search can load the same model.
        photos: the folder.
        out: folder of the index; gets the descriptors, too.
        kind: of the index, see `index.build_index`; "auto" leaves an index that is there as it is.
        whiten: PCA-whiten the descriptors to so many numbers, learned from those of the first photos; None for not.
        index_device: "cuda" searches on GPUs.
        extraction: passed on to `extract`.

    Raises:
        LandmarkRetrievalError: no such folder, no photo in it, or `out` holds an index of another folder or of another
            model.
    """
    out = Path(out)
    table = read_unlabelled(photos)
    if index_device == "cuda" and not torch.cuda.is_available():
        raise LandmarkRetrievalError("There is no GPU here: describe and search on the CPU (device cpu).")
    name = model_name if model_name == "imagenet" else str(Path(model_name).resolve())
    about = {"photos": str(Path(photos).resolve()), "model": name}
    if (out / DESCRIPTION).exists():
        return _update(model, card, table, out, about, kind, whiten, index_device, **extraction)
    store = extract(model, card, table, out / "descriptors", **extraction)
    if whiten is not None:
        whitening = Whitening.fit(store, whiten)
        whitening.save(out / _WHITENING)
        store = whiten_store(store, whitening, out / "whitened")
    index = build_index(store, kind, index_device)
    write_json(out / _ABOUT, {**about, "store": store.folder.name})
    write_stamps(out, table)
    index.save(out)
    return Indexed(index, broken_photos(out / "descriptors"), len(index))


def _update(
    model: nn.Module,
    card: dict[str, Any],
    table: PhotoTable,
    out: Path,
    about: dict[str, str],
    kind: str,
    whiten: int | None,
    index_device: str,
    **extraction: Any,
) -> Indexed:
    before = read_json(out / _ABOUT, "photo index", _ADVICE)
    if before["photos"] != about["photos"]:
        raise LandmarkRetrievalError(
            f"{out} holds an index of the photos in {before['photos']}: choose another folder, or delete it."
        )
    index = open_index(out, index_device)
    whitening = Whitening.load(out / _WHITENING) if "whitening" in index.card else None
    if whiten is not None and whiten != (whitening and whitening.dim):
        raise LandmarkRetrievalError(
            f"The index {out} {f'is whitened to {whitening.dim} numbers' if whitening else 'is not whitened'}: choose "
            "another folder, or delete it."
        )
    asked = card_with_views(card, extraction.get("scales"), extraction.get("flip"))
    check_card(index.card, asked if whitening is None else whitening.card_of(asked), "the photos to add")
    store = DescriptorStore.open(out / before.get("store", "descriptors"))
    extraction["dtype"] = store.dtype
    changes = FolderChanges(table, index, out, broken_photos(out / "descriptors"))
    new: DescriptorStore | None = None
    broken: dict[str, str] = {}
    if changes.new:
        rows = table.ids.rows(changes.new)
        new, broken = describe_new(model, card, table.take(rows), out, **extraction)
    kept = set(index.ids) - changes.changed - set(changes.removed)
    again = changes.changed or (new is not None and not set(store.ids).isdisjoint(new.ids))
    old = store.folder
    if again:
        # a changed photo that cannot be decoded any more leaves the index, too
        index, store = made_anew(index, store, new, kept, whitening, out, device=index_device)
    else:
        if new is not None:
            grow(index, store, new, whitening)
        if changes.removed:
            index.remove(changes.removed)
    if kind not in ("auto", index.kind):
        # only the photos of the index, where its store holds more
        index, store = made_anew(index, store, None, set(index.ids), None, out, device=index_device, kind=kind)
    write_json(out / _ABOUT, {**about, "store": store.folder.name})
    write_stamps(out, table)
    index.save(out)
    if store.folder != old:
        shutil.rmtree(old)
    forget_new(out)
    return Indexed(index, changes.broken | broken, len(new) if new is not None else 0, changes.removed)


def model_of(index: str | Path) -> str:
    """The name of the model that an index was made with, as `zoo.load_model` takes it."""
    return read_json(Path(index) / _ABOUT, "photo index", _ADVICE)["model"]


def search_photos(
    model: nn.Module,
    card: dict[str, Any],
    index: str | Path,
    queries: Sequence[str | Path],
    top: int = 20,
    device: str = "cpu",
) -> list[Found]:
    """The photos of an index that look most alike to each query.

    Args:
        model: in eval mode, the one the index was made with.
        card: of the model.
        index: folder of the index.
        queries: photo files, or folders of them.
        top: how many to give for each; all if the index holds fewer.
        device: "cuda" searches on GPUs.

    Raises:
        LandmarkRetrievalError: a query is missing or cannot be decoded; there is no such index; it was made with
            another model.
    """
    opened = open_index(index, device)
    root = Path(read_json(Path(index) / _ABOUT, "photo index", _ADVICE)["photos"])
    files = [file for query in queries for file in _files(Path(query))]
    card = card_with_views({**card, **({VIEWS: opened.card[VIEWS]} if VIEWS in opened.card else {})})
    descriptors = _described(model.to(device), card, files)
    if "whitening" in opened.card:
        whitening = Whitening.load(Path(index) / _WHITENING)
        descriptors, card = whitening.apply(descriptors), whitening.card_of(card)
    ids, scores = opened.search(descriptors, min(top, len(opened)), card=card)
    return [
        Found(file, [root / photo for photo in row], row_scores[: len(row)])
        for file, row, row_scores in zip(files, ids, scores.tolist(), strict=True)
    ]


def _described(model: nn.Module, card: dict[str, Any], files: Sequence[Path]) -> np.ndarray:
    """Descriptors of the queries, those of equal shape in batches."""
    resizing = Resizing(card)
    target = next(model.parameters(), torch.empty(0)).device
    images = [torch.from_numpy(_read(file, resizing)) for file in files]
    found = np.empty((len(files), 0), np.float32)
    for shape in dict.fromkeys(image.shape for image in images):
        rows = [row for row, image in enumerate(images) if image.shape == shape]
        for start in range(0, len(rows), 32):
            batch = rows[start : start + 32]
            part = describe(model, torch.stack([images[row] for row in batch]).to(target), card).cpu().numpy()
            if not found.shape[1]:
                found = np.empty((len(files), part.shape[1]), np.float32)
            found[batch] = part
    return found


def gallery_entries(found: Sequence[Found]) -> Iterator[GalleryEntry]:
    """Rows for `gallery.write_gallery`, with nothing marked, since nobody knows what is right."""
    for row in found:
        results = [
            GalleryResult(str(photo), photo.read_bytes() if photo.is_file() else None, score)
            for photo, score in zip(row.photos, row.scores, strict=True)
        ]
        yield GalleryEntry(str(row.query), row.query.read_bytes(), results)


def _files(query: Path) -> list[Path]:
    if query.is_dir():
        files = list_photos(query)
        if not files:
            raise LandmarkRetrievalError(
                f"The query folder {query} holds no photos: give a folder that does, or a photo."
            )
        return files
    if not query.is_file():
        raise LandmarkRetrievalError(f"There is no query photo {query}: check the path.")
    return [query]


def _read(file: Path, resizing: Resizing) -> np.ndarray:
    try:
        return resizing(decode(file.read_bytes()))
    except BrokenPhotoError as error:
        raise LandmarkRetrievalError(f"The query photo {file} cannot be used: {error}. Give another one.") from None
