"""One's own photos: describe and index a folder, keep the index up to date, then find the nearest photos of a query."""

from collections.abc import Iterator, Mapping, Sequence
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
from landmark_retrieval.retrieval.extract import broken_photos, describe, extract, rank_and_world
from landmark_retrieval.retrieval.gallery import GalleryEntry, GalleryResult
from landmark_retrieval.retrieval.index import Index, build_index, check_buildable, open_index
from landmark_retrieval.retrieval.indexes.index_checks import check_card
from landmark_retrieval.retrieval.indexes.index_files import DESCRIPTION, read_description
from landmark_retrieval.retrieval.inputs import present_device
from landmark_retrieval.retrieval.photo_update import (
    RAW,
    WHITENED,
    FolderChanges,
    describe_new,
    forget_new,
    forget_old,
    grow,
    made_anew,
    stamps,
    updating,
    whitening_for,
    write_notes,
)
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.store_files import FINISHED, UNFINISHED
from landmark_retrieval.retrieval.views import VIEWS, card_with_views
from landmark_retrieval.retrieval.whitening import Whitening, whiten_store
from landmark_retrieval.zoo.saved_model import CARD

_ABOUT = "photos.json"
_WHITENING = "whitening.safetensors"
_ADVICE = "build it with `landmark-retrieval index`"
# queries that are decoded at a time
_BLOCK = 256


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
    leave the index. Interrupted, the same call goes on. One process at a time may do it.

    Args:
        model: in eval mode.
        card: of the model.
        model_name: as `zoo.load_model` takes it; kept, so that a search can load the same model.
        photos: the folder.
        out: folder of the index; gets the descriptors, too.
        kind: of the index, see `index.build_index`; "auto" leaves an index that is there as it is.
        whiten: PCA-whiten the descriptors to so many numbers, learned from those of the first photos; None for not.
        index_device: "cuda" searches on GPUs.
        extraction: passed on to `extract`; without a dtype that of the index, float32 for a new one.

    Raises:
        LandmarkRetrievalError: no such folder, no photo in it or none that can be decoded, `out` holds an index of
            another folder, of another model, whitening or dtype, another process is updating it, or the kind cannot be
            built of so few photos or searched on the device.
    """
    out, table = Path(out), read_unlabelled(photos)
    if rank_and_world(extraction.get("rank"), extraction.get("world"))[1] > 1:
        raise LandmarkRetrievalError(
            "An index of a folder is made by one process: start it without torchrun, or describe the photos with "
            "`landmark-retrieval extract` first."
        )
    if extraction.get("device") is not None:
        present_device(extraction["device"])
    # a folder where there is one, or else a name that stays as it is
    name = str(Path(model_name).resolve()) if (Path(model_name) / CARD).exists() else model_name
    about = {"photos": str(Path(photos).resolve()), "model": name}
    with updating(out):
        # before the first photo is read: one that changes from now on is described anew by the next run
        now = dict(stamps(table))
        if (out / DESCRIPTION).exists() or _interrupted(out):
            return _update(model, card, table, now, out, about, kind, whiten, index_device, **extraction)
        return _first(model, card, table, now, out, about, kind, whiten, index_device, **extraction)


def _first(
    model: nn.Module,
    card: dict[str, Any],
    table: PhotoTable,
    now: Mapping[str, str],
    out: Path,
    about: dict[str, str],
    kind: str,
    whiten: int | None,
    index_device: str,
    **extraction: Any,
) -> Indexed:
    check_buildable(kind, len(table), index_device)
    extraction["dtype"] = extraction.get("dtype") or "float32"
    store = extract(model, card, table, out / RAW, **extraction)
    if whiten is not None:
        store = whiten_store(store, whitening_for(store, whiten, out / _WHITENING), out / WHITENED)
    index = build_index(store, kind, index_device)
    broken = broken_photos(out / RAW)
    # nothing is stale yet, so the stamps come first here: an index that `_restored` puts in place needs them
    write_notes(out, now, broken)
    write_json(out / _ABOUT, {**about, "store": store.folder.name, "kind": index.kind})
    index.save(out)
    return Indexed(index, broken, len(index))


def _update(
    model: nn.Module,
    card: dict[str, Any],
    table: PhotoTable,
    now: Mapping[str, str],
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
    if not (out / DESCRIPTION).exists():
        _restored(out, before)
    description = read_description(out)
    other_kind = kind not in ("auto", description["kind"])
    if other_kind:
        check_buildable(kind, len(table), index_device)
    # one of another kind may not be for that device, and gives only its photo ids
    index = open_index(out, "cpu" if other_kind else index_device)
    whitening = Whitening.load(out / _WHITENING) if "whitening" in index.card else None
    if whiten is not None and whiten != (whitening and whitening.dim):
        raise LandmarkRetrievalError(
            f"The index {out} {f'is whitened to {whitening.dim} numbers' if whitening else 'is not whitened'}: choose "
            "another folder, or delete it."
        )
    asked = card_with_views(card, extraction.get("scales"), extraction.get("flip"))
    check_card(index.card, asked if whitening is None else whitening.card_of(asked), "the photos to add")
    # that of the index: after an interruption, the note may name the store of the index that was not saved any more
    store = DescriptorStore.open(out / (description.get("store") or before.get("store", RAW)))
    if (extraction.get("dtype") or store.dtype) != store.dtype:
        raise LandmarkRetrievalError(
            f"The descriptors of the index {out} are kept in {store.dtype}, not in {extraction['dtype']}: leave out "
            "the dtype, or choose another folder."
        )
    extraction["dtype"] = store.dtype
    changes = FolderChanges(now, index, out)
    new: DescriptorStore | None = None
    broken: dict[str, str] = {}
    if changes.changed and not other_kind:
        check_buildable(index.kind, len(table), index_device)
    if changes.new:
        rows = table.ids.rows(changes.new)
        new, broken = describe_new(model, card, table.take(rows), out, **extraction)
    broken = changes.broken | broken
    # a changed photo that cannot be decoded any more leaves the index, too
    kept = set(index.ids) - changes.changed - set(changes.removed)
    if not kept and new is None:
        photo, why = next(iter(broken.items()))
        raise LandmarkRetrievalError(
            f"None of the {len(table):,} photos in {about['photos']} can be decoded any more, the first is {photo} "
            f"({why}): mend them. The index stays as it was."
        )
    if (
        changes.changed
        or other_kind
        # a run was interrupted while the store grew
        or (store.folder / UNFINISHED).exists()
        or (new is not None and not set(store.ids).isdisjoint(new.ids))
    ):
        chosen = kind if other_kind else index.kind
        index, store = made_anew(chosen, store, new, kept, whitening, out, index_device)
    else:
        if new is not None:
            grow(index, store, new, whitening)
        if changes.removed:
            index.remove(changes.removed)
    write_json(out / _ABOUT, {**about, "store": store.folder.name, "kind": index.kind})
    index.save(out)
    # after the index: without them, the next run describes the changed photos again
    write_notes(out, now, broken)
    forget_old(out, store)
    forget_new(out)
    return Indexed(index, broken, len(new) if new is not None else 0, changes.removed)


def _interrupted(out: Path) -> bool:
    """Whether a run ended while it put a new index in the place of the old one: the descriptors are all there."""
    if not (out / _ABOUT).exists():
        return False
    about = read_json(out / _ABOUT, "photo index", _ADVICE)
    return (out / about.get("store", RAW) / FINISHED).exists()


def _restored(out: Path, about: Mapping[str, str]) -> None:
    """Build the index that such a run was about to save."""
    build_index(DescriptorStore.open(out / about.get("store", RAW)), about.get("kind", "auto")).save(out)


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
    """Descriptors of the queries; only a block of them is in memory at a time."""
    resizing = Resizing(card)
    blocks = [
        _described_block(
            model, card, [torch.from_numpy(_read(file, resizing)) for file in files[start : start + _BLOCK]]
        )
        for start in range(0, len(files), _BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)


def _described_block(model: nn.Module, card: dict[str, Any], images: Sequence[torch.Tensor]) -> np.ndarray:
    """Descriptors of images, those of equal shape in batches."""
    target = next(model.parameters(), torch.empty(0)).device
    order: list[int] = []
    parts = []
    for shape in dict.fromkeys(image.shape for image in images):
        rows = [row for row, image in enumerate(images) if image.shape == shape]
        for start in range(0, len(rows), 32):
            batch = rows[start : start + 32]
            parts.append(describe(model, torch.stack([images[row] for row in batch]).to(target), card).cpu().numpy())
            order += batch
    return np.concatenate(parts)[np.argsort(order)]


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
