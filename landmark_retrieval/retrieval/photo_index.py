"""A folder of photos -> an index of it, made or brought up to date."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from landmark_retrieval.data.importers.folder import read_unlabelled
from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json
from landmark_retrieval.retrieval.extract import broken_photos, extract, rank_and_world
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
from landmark_retrieval.retrieval.views import card_with_views
from landmark_retrieval.retrieval.whitening import Whitening, whiten_store
from landmark_retrieval.zoo.saved_model import CARD

ABOUT, WHITENING = "photos.json", "whitening.safetensors"
ADVICE = "build it with `landmark-retrieval index`"


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
        call = _Call(model, card, table, dict(stamps(table)), out, about, kind, whiten, index_device, extraction)
        if (out / DESCRIPTION).exists() or _interrupted(out):
            return call.update()
        return call.first()


@dataclass
class _Call:
    """What `index_photos` was asked for, and the photos that are there now with their stamps."""

    model: nn.Module
    card: dict[str, Any]
    table: PhotoTable
    now: Mapping[str, str]
    out: Path
    about: dict[str, str]
    kind: str
    whiten: int | None
    index_device: str
    extraction: dict[str, Any]

    def first(self) -> Indexed:
        """Make the index."""
        check_buildable(self.kind, len(self.table), self.index_device)
        self.extraction["dtype"] = self.extraction.get("dtype") or "float32"
        store = extract(self.model, self.card, self.table, self.out / RAW, **self.extraction)
        if self.whiten is not None:
            store = whiten_store(store, whitening_for(store, self.whiten, self.out / WHITENING), self.out / WHITENED)
        index = build_index(store, self.kind, self.index_device)
        broken = broken_photos(self.out / RAW)
        # nothing is stale yet, so the stamps come first here: an index that `_restored` puts in place needs them
        write_notes(self.out, self.now, broken)
        write_json(self.out / ABOUT, {**self.about, "store": store.folder.name, "kind": index.kind})
        index.save(self.out)
        return Indexed(index, broken, len(index))

    def update(self) -> Indexed:
        """Bring the index up to date."""
        before = read_json(self.out / ABOUT, "photo index", ADVICE)
        if before["photos"] != self.about["photos"]:
            raise LandmarkRetrievalError(
                f"{self.out} holds an index of the photos in {before['photos']}: choose another folder, or delete it."
            )
        if not (self.out / DESCRIPTION).exists():
            _restored(self.out, before)
        description = read_description(self.out)
        other_kind = self.kind not in ("auto", description["kind"])
        if other_kind:
            check_buildable(self.kind, len(self.table), self.index_device)
        # one of another kind may not be for that device, and gives only its photo ids
        index = open_index(self.out, "cpu" if other_kind else self.index_device)
        whitening = self._whitening(index)
        store = self._store(description, before)
        changes = FolderChanges(self.now, index, self.out)
        new: DescriptorStore | None = None
        broken: dict[str, str] = {}
        if changes.changed and not other_kind:
            check_buildable(index.kind, len(self.table), self.index_device)
        if changes.new:
            rows = self.table.ids.rows(changes.new)
            new, broken = describe_new(self.model, self.card, self.table.take(rows), self.out, **self.extraction)
        broken = changes.broken | broken
        # a changed photo that cannot be decoded any more leaves the index, too
        kept = set(index.ids) - changes.changed - set(changes.removed)
        if not kept and new is None:
            photo, why = next(iter(broken.items()))
            raise LandmarkRetrievalError(
                f"None of the {len(self.table):,} photos in {self.about['photos']} can be decoded any more, the first "
                f"is {photo} ({why}): mend them. The index stays as it was."
            )
        if (
            changes.changed
            or other_kind
            # a run was interrupted while the store grew
            or (store.folder / UNFINISHED).exists()
            or (new is not None and not set(store.ids).isdisjoint(new.ids))
        ):
            chosen = self.kind if other_kind else index.kind
            index, store = made_anew(chosen, store, new, kept, whitening, self.out, self.index_device)
        else:
            if new is not None:
                grow(index, store, new, whitening)
            if changes.removed:
                index.remove(changes.removed)
        write_json(self.out / ABOUT, {**self.about, "store": store.folder.name, "kind": index.kind})
        index.save(self.out)
        # after the index: without them, the next run describes the changed photos again
        write_notes(self.out, self.now, broken)
        forget_old(self.out, store)
        forget_new(self.out)
        return Indexed(index, broken, len(new) if new is not None else 0, changes.removed)

    def _whitening(self, index: Index) -> Whitening | None:
        """Of the index, which has to be of the same model and whitened as asked."""
        whitening = Whitening.load(self.out / WHITENING) if "whitening" in index.card else None
        if self.whiten is not None and self.whiten != (whitening and whitening.dim):
            state = f"is whitened to {whitening.dim} numbers" if whitening else "is not whitened"
            raise LandmarkRetrievalError(f"The index {self.out} {state}: choose another folder, or delete it.")
        asked = card_with_views(self.card, self.extraction.get("scales"), self.extraction.get("flip"))
        check_card(index.card, asked if whitening is None else whitening.card_of(asked), "the photos to add")
        return whitening

    def _store(self, description: Mapping[str, Any], before: Mapping[str, Any]) -> DescriptorStore:
        """The descriptors of the index, which are to be of the dtype that is asked for."""
        # that of the index: after an interruption, the note may name the store of the index that was not saved any more
        store = DescriptorStore.open(self.out / (description.get("store") or before.get("store", RAW)))
        if (self.extraction.get("dtype") or store.dtype) != store.dtype:
            raise LandmarkRetrievalError(
                f"The descriptors of the index {self.out} are kept in {store.dtype}, not in "
                f"{self.extraction['dtype']}: leave out the dtype, or choose another folder."
            )
        self.extraction["dtype"] = store.dtype
        return store


def _interrupted(out: Path) -> bool:
    """Whether a run ended while it put a new index in the place of the old one: the descriptors are all there."""
    if not (out / ABOUT).exists():
        return False
    about = read_json(out / ABOUT, "photo index", ADVICE)
    return (out / about.get("store", RAW) / FINISHED).exists()


def _restored(out: Path, about: Mapping[str, str]) -> None:
    """Build the index that such a run was about to save."""
    build_index(DescriptorStore.open(out / about.get("store", RAW)), about.get("kind", "auto")).save(out)
