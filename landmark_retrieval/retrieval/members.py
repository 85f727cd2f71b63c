"""The models of an ensemble, and what they make of a data set: descriptors of each set of photos."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from landmark_retrieval.data.dataset import train_place
from landmark_retrieval.data.photos import Ids, PhotoTable
from landmark_retrieval.data.places import place
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.sources import open_photos
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import sha256_of
from landmark_retrieval.retrieval.extract import extract
from landmark_retrieval.retrieval.steps import digest
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.store_files import FINISHED
from landmark_retrieval.retrieval.store_rows import StoreRows
from landmark_retrieval.retrieval.views import card_as_asked

Photos = ShardedPhotos | PhotoTable
Load = Callable[[str], tuple[nn.Module, dict[str, Any]]]


@dataclass(frozen=True)
class Wanted:
    """A model of the ensemble.

    Attributes:
        model: what `Load` takes.
        image_size: px, in place of its card's; None keeps that.
        resize: see `data.resizing.Resizing`; None keeps its card's.
        scales: see `extract`.
        flip: see `extract`.
        weight: of its scores in the sum of lists.
        type: models of one type are averaged before types are put side by side; the architecture if None.
    """

    model: str
    image_size: int | None = None
    resize: str | None = None
    scales: Sequence[float] | None = None
    flip: bool | None = None
    weight: float = 1.0
    type: str | None = None


@dataclass(frozen=True)
class Member:
    """A model whose descriptors are there.

    Attributes:
        wanted: which one.
        card: of the model, with the changes that were wanted.
        folder: where all that is made with it lies.
        stores: the descriptors, by set of photos.
    """

    wanted: Wanted
    card: dict[str, Any]
    folder: Path
    stores: dict[str, DescriptorStore]

    @property
    def type(self) -> str:
        """What it is averaged with."""
        kind = self.wanted.type or self.card.get("architecture")
        if not kind:
            raise LandmarkRetrievalError(
                f"The card of {self.wanted.model} does not say of which architecture it is: name a type, "
                f"{{model: {self.wanted.model}, type: ...}}."
            )
        return str(kind)

    def rows(self, name: str) -> StoreRows:
        """The descriptors of a set of photos, which stay on disk."""
        return StoreRows(self.stores[name])

    def digest(self, name: str) -> str:
        """Says which descriptors those are."""
        return sha256_of(self.stores[name].folder / FINISHED)


def open_sets(data: str | Path, names: Sequence[str], train_set: str) -> dict[str, Photos]:
    """The photos of a data set by name: "test", "index", and "train" for those of training set `train_set`.

    Raises:
        LandmarkRetrievalError: there are none of that name; see `open_photos`.
    """
    found: dict[str, Photos] = {}
    for name in names:
        if name != "train":
            found[name] = open_photos(data, name)
        elif place(data).folders():
            found[name] = ShardedPhotos.open(train_place(data, train_set))
        else:
            found[name] = open_photos(data, f"train_{train_set}")
    return found


def card_of(wanted: Wanted, card: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a model with what is wanted of it."""
    return card_as_asked(card, wanted.image_size, wanted.resize, wanted.scales, wanted.flip)


def store_of(folder: Path, name: str, photos: Photos, dtype: str) -> Path:
    """Where a model's descriptors of a set of photos go: other photos, as of another training set, go elsewhere."""
    return folder / f"{name}-{digest(photos.fingerprint, dtype)}"


def folder_of(wanted: Wanted, card: Mapping[str, Any], out: Path) -> Path:
    """Where everything of a model goes: its name, and digits that say what its card says."""
    stem = re.sub(r"[^\w.-]+", "-", wanted.model.rstrip("/").split("/")[-1])
    return out / "models" / f"{stem}-{digest(dict(card))}"


def describe_sets(
    wanted: Sequence[Wanted],
    load: Load,
    photos: Mapping[str, Photos],
    out: Path,
    dtype: str = "float32",
    **extraction: Any,
) -> list[Member]:
    """Describe every set of photos with every model; what is there already is taken as it is.

    Args:
        wanted: the models; one is in memory at a time.
        load: how to load a model.
        photos: by name.
        out: descriptors go below `<out>/models`.
        dtype: of the descriptors, "float32" or "float16".
        extraction: passed on to `extract`.

    Raises:
        LandmarkRetrievalError: a model cannot be loaded or stands twice, or could not describe the same photos as the
            first (one that it lacks is named).
    """
    members: list[Member] = []
    for number, one in enumerate(wanted, 1):
        model, card = load(one.model)
        card = card_of(one, card)
        folder = folder_of(one, card, out)
        if folder in [member.folder for member in members]:
            raise LandmarkRetrievalError(f"The model {one.model} stands twice among the models: name it once.")
        stores = {}
        for name, source in photos.items():
            title = f"{one.model} ({number} of {len(wanted)}): {name}"
            stores[name] = extract(
                model, card, source, store_of(folder, name, source, dtype), dtype=dtype, title=title, **extraction
            )
        members.append(Member(one, card, folder, stores))
        for name in photos:
            _check_same_photos(members[0], members[-1], name)
    return members


def labels_of(photos: Photos, ids: Sequence[str]) -> np.ndarray:
    """int64 (n,): the class of each of these photos. LandmarkRetrievalError if the photos have none."""
    if photos.labels is None or (np.asarray(photos.labels) < 0).any():
        raise LandmarkRetrievalError("The training photos have no landmarks: name a labelled set with train_set=.")
    return np.asarray(photos.labels)[photos.ids.rows(Ids(ids))].astype(np.int64)


def classes_of(photos: Photos) -> tuple[str, ...]:
    """The name of each class, in the order of the labels."""
    return tuple(photos.manifest.classes or () if isinstance(photos, ShardedPhotos) else photos.classes)


def _check_same_photos(first: Member, other: Member, name: str) -> None:
    ours, theirs = first.stores[name].ids, other.stores[name].ids
    if ours == theirs:
        return
    odd = next(iter(set(ours) ^ set(theirs)), None)
    difference = "the same in another order" if odd is None else f"{odd!r} is in one alone"
    raise LandmarkRetrievalError(
        f"{other.stores[name].folder} holds {len(theirs):,} photos, {first.stores[name].folder} {len(ours):,} "
        f"({difference}): an ensemble needs the same photos of all models; delete the folder that lacks some."
    )
