"""Photos -> descriptors in a store, in one process or several: resumable, broken photos counted and listed."""

import csv
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from landmark_retrieval.data.batches import Batch, PhotoSource, loader
from landmark_retrieval.data.photo_ranges import PhotoRanges, images_by_shape
from landmark_retrieval.data.resizing import SQUASH, Resizing
from landmark_retrieval.data.tables import write_reasons
from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json
from landmark_retrieval.retrieval.inputs import present_device
from landmark_retrieval.retrieval.parts import Parts
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.store_files import FINISHED, UNFINISHED, checked_rows
from landmark_retrieval.retrieval.views import DOLG_SCALES, card_with_views, check_size, views_of

__all__ = ["DOLG_SCALES", "broken_photos", "describe", "extract", "rank_and_world"]

BROKEN, SOURCE = "broken.csv", "source.json"
PART_SIZE = 10_000
# a photo of its own shape counts as so many px a side where no image size says how large photos are
_USUAL_SIDE = 1024
# such photos are decoded so few at a time: a batch, as large as they may be, lies in memory as a whole, several times
_UNKNOWN_SIZES = 4
_AHEAD = 16  # batches, for which shards that lie elsewhere are fetched
_PAUSE = 1.0  # s between two looks at what other processes have done


def extract(
    model: nn.Module,
    card: Mapping[str, Any],
    source: PhotoSource,
    out: str | Path,
    batch_size: int = 32,
    workers: int | None = None,
    dtype: str = "float32",
    part_size: int | None = None,
    device: str | None = None,
    title: str = "describe",
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> DescriptorStore:
    """Describe every photo of a source once and keep the descriptors in a store.

    A part of the store is a fixed range of the photos, and is made by one process. Interrupted, the same call goes on
    with the parts that are missing; finished, it does nothing. Any number of processes, on one machine or on several
    with a common file system, may make the same call at the same time, or join later: each takes parts that no other
    is at work on, all return the finished store. Which processes there are changes neither rows nor their order; into
    which parts they are cut it does, where no part size is given. Processes that torchrun did not start, and that are
    not told their rank, all count as the first: give each its own GPU (`device`), and a `part_size` that leaves enough
    parts for all of them.

    Args:
        model: in eval mode; see `zoo.load_model`.
        card: of the model; its `image_size`, `resize` (see `data.resizing.Resizing`), `mean` and `std` (ImageNet's
            where they are missing) are used, and all of it is kept in the store.
        source: the photos.
        out: folder of the store; made if needed.
        batch_size: photos per forward pass. Photos of different shapes go through the model in groups of equal shape,
            of at most as many pixels as so many squares of `image_size` px have. At most 4 where the card leaves
            photos as large as they are.
        workers: processes that decode; as many as cores, at most 8, if None.
        dtype: of the stored descriptors, "float32" or "float16".
        part_size: photos per part; that of an unfinished store is kept. If None 10,000, or with several processes as
            many as give each of them four parts, if those are fewer, so that parts and checksums depend on `world`.
        device: "cuda", "cpu", ...; a GPU where there is one if None, each process of a machine another one.
        title: shown beside the progress bar, which the first process has.
        scales: the descriptor is the normalised mean over these scales of the image, each of unit length;
            `DOLG_SCALES` for those of the DOLG paper. If None what the card's `views` say, or else (1.0,).
        flip: also mirrored; the mean is over both. If None what the card's `views` say, or else not.
        rank: number of this process; RANK in the environment if None, as torchrun sets it, or else 0.
        world: number of processes; WORLD_SIZE in the environment if None, or else 1.

    Returns:
        The store, with rows of unit length, in the order of the source. Photos that cannot be decoded are not in it;
        they are listed in its broken.csv. Its card has `views` where there is more than the image itself.

    Raises:
        LandmarkRetrievalError: the folder holds descriptors of other photos (or those of a store that `extract` did
            not make) or of another model, a descriptor holds NaN, the model cannot take such images, there is no such
            device, or no photo can be decoded.
    """
    rank, world = rank_and_world(rank, world)
    out, fingerprint = Path(out), source.fingerprint
    _check_photos(out, fingerprint)
    card = card_with_views(card, scales, flip)
    check_size(model, card)
    if batch_size < 1:
        raise LandmarkRetrievalError(f"A batch of {batch_size} photos is not possible: set at least 1.")
    if part_size is None:
        share = -(-len(source) // (4 * world))
        part_size = PART_SIZE if world == 1 else min(PART_SIZE, max(batch_size, share))
    parts = Parts(out, card, dtype, part_size)
    if not parts.readable:
        if not len(source):
            raise LandmarkRetrievalError("There are no photos to describe: give a source that holds some.")
        place = _device(device, rank)
        with parts.alone():
            _check_photos(out, fingerprint)
            if not parts.readable:
                write_json(out / SOURCE, fingerprint)
                parts.begin()
        work = _Work(parts, model, card, source, batch_size, workers, place, rank, world)
        try:
            work.do(title)
        finally:
            parts.release()
        with parts.alone():
            if not parts.readable:
                work.finish()
    parts.tidy()
    return DescriptorStore.open(out)


@torch.inference_mode()
def describe(model: nn.Module, images: Tensor, card: Mapping[str, Any]) -> Tensor:
    """Descriptors of unit length, float32 (B, D), of uint8 images (B, H, W, 3); mixed precision on a GPU.

    Images are those that the card's `resize` and `image_size` ask for (see `data.resizing.Resizing`). Where the card
    has `views`, as that of a store made with scales or flips, the descriptor is their mean: each of unit length, the
    sum scaled to unit length again.
    """
    pixels = normalize(images, card.get("mean", IMAGENET_MEAN), card.get("std", IMAGENET_STD))
    found = []
    for view in views_of(pixels, card):
        with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
            descriptors = model(view)
        found.append(F.normalize(descriptors.float()))
    return found[0] if len(found) == 1 else F.normalize(torch.stack(found).mean(0))


def broken_photos(out: str | Path) -> dict[str, str]:
    """The photos that `extract` could not decode, each with the reason."""
    path = Path(out) / BROKEN
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def rank_and_world(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """The number of this process and how many there are: as given, as torchrun says in the environment, or 0 of 1.

    Raises:
        LandmarkRetrievalError: no such process.
    """
    if rank is None and world is None and {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rank, world = rank or 0, 1 if world is None else world
    if not 0 <= rank < world:
        raise LandmarkRetrievalError(f"There is no process {rank} of {world}: count from 0, and give both numbers.")
    return rank, world


class _Work:
    """What one process does of an extraction."""

    def __init__(
        self,
        parts: Parts,
        model: nn.Module,
        card: Mapping[str, Any],
        source: PhotoSource,
        batch_size: int,
        workers: int | None,
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        self.parts, self.model, self.card, self.source = parts, model.to(device), card, source
        self.workers, self.device, self.rank, self.world = workers, device, rank, world
        self.resizing = Resizing(card)
        self.batch_size = batch_size if self.resizing.size else min(batch_size, _UNKNOWN_SIZES)
        self.most_pixels = batch_size * (self.resizing.size or _USUAL_SIDE) ** 2

    def do(self, title: str) -> None:
        """Make parts until all are there, by this process or another one."""
        count = -(-len(self.source) // self.parts.part_size)
        # each process begins elsewhere, so that they rarely ask for the same part
        order = sorted(range(count), key=lambda number: ((number - self.rank) % self.world, number))
        shown: set[int] = set()  # parts that the bar has counted
        with tqdm(total=len(self.source), desc=title, unit="photo", disable=self.rank != 0) as bar:
            while True:
                done = self.parts.done()
                for number in sorted(done - shown):
                    bar.update(len(self._range(number)))
                shown |= done
                missing = [number for number in order if number not in done]
                if not missing or self.parts.readable:
                    return
                first = next((number for number in missing if self.parts.claim(number)), None)
                if first is None:
                    bar.set_postfix_str("waiting for other processes")
                    time.sleep(_PAUSE)
                else:
                    self._describe(self._turns(first, missing), bar, shown)

    def finish(self) -> None:
        """Make the store of the parts, and list the broken photos."""
        records = self.parts.records()
        for number, record in records.items():
            whole = self._range(number)
            if (record.get("first"), record.get("stop")) != (whole.start, whole.stop):
                raise LandmarkRetrievalError(
                    f"Part {number} of {self.parts.folder} is not of photos {whole.start} to {whole.stop}: processes "
                    "with different options have written into it; delete it and start them with the same."
                )
        _note_broken(self.parts.folder, [(photo, why) for r in records.values() for photo, why in r["broken"]])
        if not any(record["count"] for record in records.values()):
            raise LandmarkRetrievalError(
                f"None of {len(self.source)} photos can be decoded, see {self.parts.folder / BROKEN}."
            )
        self.parts.finish()

    def _range(self, number: int) -> range:
        """The photos of a part."""
        size = self.parts.part_size
        return range(number * size, min((number + 1) * size, len(self.source)))

    def _turns(self, claimed: int, missing: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        """Ranges of photos, a batch each, of a part and of all that no other process takes in the meantime."""
        for number in missing:
            if number == claimed or self.parts.claim(number):
                whole = self._range(number)
                for first in whole[:: self.batch_size]:
                    stop, ahead = (min(first + n * self.batch_size, whole.stop) for n in (1, _AHEAD))
                    yield first, stop, ahead

    def _describe(self, turns: Iterator[tuple[int, int, int]], bar: Any, shown: set[int]) -> None:
        batches = loader(
            PhotoRanges(self.source, self.resizing),
            self.workers,
            self.device.type == "cuda",
            order=turns,
            ahead=4 if self.resizing.how == SQUASH else 2,  # photos of their own shape may be large
        )
        part = _Part(self.parts)
        for batch in batches:
            part.add(batch, self._descriptors(batch) if batch["ids"] else None)
            bar.update(batch["stop"] - batch["first"])
            number = batch["first"] // self.parts.part_size
            if batch["stop"] == self._range(number).stop:
                part.write(number, self._range(number))
                shown.add(number)
                self.parts.release(number)
                part = _Part(self.parts)

    def _descriptors(self, batch: Batch) -> Tensor:
        """(b, D), in the order of the batch, on the device."""
        pixels = batch["pixels"].to(self.device, non_blocking=True)
        order: list[int] = []
        found = []
        for numbers, images in images_by_shape(batch, pixels, self.most_pixels):
            order += numbers
            found.append(describe(self.model, images, self.card))
        together = torch.cat(found) if len(found) > 1 else found[0]
        return together if order == sorted(order) else together[np.argsort(order)]


class _Part:
    """Descriptors on their way into a part; each batch is looked at one batch later, so that nobody waits for a GPU."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._ids: list[str] = []
        self._rows: list[np.ndarray] = []
        self._broken: list[tuple[str, str]] = []
        self._last: tuple[list[str], Tensor] | None = None

    def add(self, batch: Batch, descriptors: Tensor | None) -> None:
        self._broken += batch["broken"]
        if descriptors is not None:
            self._settle()
            self._last = batch["ids"], descriptors

    def write(self, number: int, whole: range) -> None:
        self._settle()
        rows = np.concatenate(self._rows) if self._rows else np.empty((0, 0), self._parts.dtype)
        self._parts.write(number, self._ids, rows, first=whole.start, stop=whole.stop, broken=self._broken)

    def _settle(self) -> None:
        if self._last is not None:
            ids, descriptors = self._last
            dim = self._rows[0].shape[1] if self._rows else None
            self._rows.append(checked_rows(self._parts.folder, ids, descriptors, self._parts.dtype, dim))
            self._ids += ids
            self._last = None


def _device(device: str | None, rank: int) -> torch.device:
    if device is not None:
        return present_device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _check_photos(out: Path, fingerprint: str) -> None:
    # in this order: source.json is written first
    begun = any((out / name).exists() for name in (FINISHED, UNFINISHED))
    if (out / SOURCE).exists():
        if read_json(out / SOURCE, "note on the photos", f"delete {out}") != fingerprint:
            raise LandmarkRetrievalError(
                f"{out} holds descriptors of other photos: delete it, or choose another folder."
            )
    elif begun:
        raise LandmarkRetrievalError(
            f"The descriptors in {out} were not made from these photos by an extraction (it has no {SOURCE}): choose "
            "another folder."
        )


def _note_broken(out: Path, broken: Sequence[tuple[str, str]]) -> None:
    if broken:
        write_reasons(out / BROKEN, broken_photos(out) | dict(broken))
