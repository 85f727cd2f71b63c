"""Photos -> batches of uint8 images, for training and for description, in DataLoader workers.

Which photos make a batch, and how each of them is augmented, does not depend on the number of workers or processes: a
worker reads and decodes the photos of its own batches only.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from landmark_retrieval.data.augmentation import training_transform
from landmark_retrieval.data.decode import BrokenPhotoError, decode, resize
from landmark_retrieval.data.mixture import Mixture
from landmark_retrieval.data.photos import Photo
from landmark_retrieval.data.plan import BUFFER, LANES, own_places, steps
from landmark_retrieval.errors import LandmarkRetrievalError

Batch = dict[str, Any]

# batches ahead of the one in hand for which shards that lie elsewhere are fetched
_AHEAD = 16


class PhotoSource(Protocol):
    """What can be described: a table of files, or a folder of shards."""

    def __len__(self) -> int: ...

    def photos(self, start: int = 0, stop: int | None = None) -> Iterator[Photo]:
        """Photos [start, stop), in an order that never changes."""
        ...

    def find(self, ids: Collection[str]) -> dict[str, bytes]:
        """The encoded photos of these ids, as far as they are here."""
        ...

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Say which photos will be asked for soon."""
        ...

    @property
    def fingerprint(self) -> str:
        """Says which photos these are and in which order."""
        ...


class TrainingBatches(IterableDataset[Batch]):
    """One epoch of augmented training batches of one process.

    Batches are dicts: `images` uint8 (B, side, side, 3), `labels` int64 (B,), `broken`, a list of (id, reason) of the
    photos that could not be decoded; another photo of the batch takes the place of each, so that the batch keeps its
    size. The photos left over at the end of the epoch, fewer than B for each process, are dropped, and all processes
    yield the same number of batches. All processes together take the photos that one process would take with the
    batch size `B * world`, augmented in the same way.

    Args:
        source: labelled photos.
        side: of the square images, pixels.
        batch_size: B, per process.
        epoch: which epoch; order and augmentation are drawn from (seed, epoch).
        seed: of the run.
        lanes: shards read side by side, at least; see `plan.EpochPlan`.
        shuffle_buffer: places by which a photo moves within its lane.
        rank: number of this process.
        world: number of processes.
        transforms: name of the augmentation, see `augmentation.training_transform`.

    Attributes:
        epoch: may be changed before an iteration begins.
        start: the same; batches of this epoch that have been seen already.

    Raises:
        LandmarkRetrievalError: fewer photos than one batch per process, or a batch with no photo that can be decoded.
    """

    def __init__(
        self,
        source: Mixture,
        side: int,
        batch_size: int,
        epoch: int = 0,
        seed: int = 0,
        lanes: int = LANES,
        shuffle_buffer: int = BUFFER,
        rank: int = 0,
        world: int = 1,
        transforms: str = "fast",
    ) -> None:
        _refuse_nothing(batch_size, side)
        self.batches = steps(len(source), batch_size, world)
        if not self.batches:
            raise LandmarkRetrievalError(
                f"{source} holds {len(source)} photos, which is not one batch of {batch_size} for each of "
                f"{world} processes: set a smaller data.batch_size."
            )
        self.source, self.side, self.batch_size = source, side, batch_size
        self.epoch, self.seed, self.rank, self.world, self.start = epoch, seed, rank, world, 0
        self.lanes, self.shuffle_buffer = lanes, shuffle_buffer
        self.transform = training_transform(transforms, side)
        source.plan(seed, epoch, lanes, shuffle_buffer)  # objects here, not in a worker, to what cannot be

    def __len__(self) -> int:
        """Batches of the whole epoch, those before `start` among them."""
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        plan = self.source.plan(self.seed, self.epoch, self.lanes, self.shuffle_buffer)
        first, stride = _share()
        own = range(self.start + first, self.batches, stride)
        for turn, step in enumerate(own):
            # the first time all of the next batches are new, afterwards only the last of them
            ahead = own[turn + _AHEAD :][:1] if turn else own[:_AHEAD]
            for later in ahead if self.source.remote else ():
                self.source.prefetch(plan.at(own_places(later, self.batch_size, self.rank, self.world)))
            places = own_places(step, self.batch_size, self.rank, self.world)
            yield self._batch(places, plan.at(places))

    def _batch(self, places: np.ndarray, numbers: np.ndarray) -> Batch:
        images = np.empty((self.batch_size, self.side, self.side, 3), np.uint8)
        labels = np.empty(self.batch_size, np.int64)
        good: list[int] = []
        broken: list[tuple[str, str]] = []
        for row, (place, number) in enumerate(zip(places.tolist(), numbers.tolist(), strict=True)):
            photo, label = self.source.labelled(number)
            try:
                images[row] = self.transform(photo.data, (self.seed, self.epoch, place))
            except BrokenPhotoError as error:
                broken.append((photo.id, str(error)))
                continue
            labels[row] = label
            good.append(row)
        if not good:
            raise LandmarkRetrievalError(
                f"None of {self.batch_size} photos in a row from {self.source} can be decoded, the first is "
                f"{broken[0][0]} ({broken[0][1]}): write the shards again."
            )
        for turn, row in enumerate(sorted(set(range(self.batch_size)) - set(good))):
            images[row], labels[row] = images[good[turn % len(good)]], labels[good[turn % len(good)]]
        return {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels), "broken": broken}


class PhotoBatches(IterableDataset[Batch]):
    """Every photo of a source once, resized to a square, for description.

    Batches are dicts: `images` uint8 (b, side, side, 3), `ids` list of b, `positions` list of b (numbers of the photos
    in the source), `broken` list of (id, reason). b is at most the batch size, and less where photos are broken.

    Args:
        source: photos.
        side: of the square images, pixels.
        batch_size: at most so many photos a batch.
        start: leave out the photos before this one.
        rank: number of this process; batches are dealt out in turn.
        world: number of processes.

    Raises:
        LandmarkRetrievalError: fewer photos than processes.
    """

    def __init__(
        self, source: PhotoSource, side: int, batch_size: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        _refuse_nothing(batch_size, side)
        left = len(source) - start
        if left < world:
            raise LandmarkRetrievalError(
                f"{left} photos cannot be dealt out to {world} processes: use fewer devices for so few photos."
            )
        # every process gets at least one batch, or it would wait for the others for ever
        self.batch_size = min(batch_size, left // world)
        self.source, self.side = source, side
        self.start, self.rank, self.world = start, rank, world

    def __len__(self) -> int:
        return len(range(self.rank, self._whole, self.world))

    @property
    def _whole(self) -> int:
        """Batches of all processes."""
        return -(-(len(self.source) - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        turn, stride = _share()
        for number in range(self.rank + turn * self.world, self._whole, stride * self.world):
            first = self.start + number * self.batch_size
            later = first + _AHEAD * stride * self.world * self.batch_size
            self.source.prefetch(range(first, min(later, len(self.source))))
            batch: Batch = {"ids": [], "positions": [], "broken": []}
            images = []
            for position, photo in enumerate(self.source.photos(first, first + self.batch_size), first):
                try:
                    images.append(resize(counted_part(photo), self.side))
                except BrokenPhotoError as error:
                    batch["broken"].append((photo.id, str(error)))
                    continue
                batch["ids"].append(photo.id)
                batch["positions"].append(position)
            shape = (0, self.side, self.side, 3)
            batch["images"] = torch.from_numpy(np.stack(images)) if images else torch.empty(shape, dtype=torch.uint8)
            yield batch


def default_workers() -> int:
    """One decoding process per core, at most 8."""
    return min(8, os.cpu_count() or 1)


def loader(
    batches: Dataset[Batch],
    workers: int | None,
    pin_memory: bool = False,
    at: Callable[[], tuple[int, int]] | None = None,
    order: Iterable[Any] | None = None,
    ahead: int = 4,
) -> DataLoader[Batch]:
    """A DataLoader over ready-made batches.

    Args:
        batches: `TrainingBatches`, `PhotoBatches`, or `photo_ranges.PhotoRanges`.
        workers: processes; `default_workers` if None, 0 for none.
        pin_memory: for a copy to the GPU that waits for nothing.
        at: asked for epoch and start of `TrainingBatches` when an iteration begins.
        order: what `PhotoRanges` are asked for, one after the other.
        ahead: batches that each process has ready.
    """
    workers = default_workers() if workers is None else workers
    if workers < 0:
        raise LandmarkRetrievalError(
            f"{workers} decoding processes (data.num_workers) are not possible: set at least 0."
        )
    made = _Loader(
        batches,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=ahead if workers else None,
        worker_init_fn=one_thread,
    )
    made.at = at
    return made


def one_thread(_: int = 0) -> None:
    """Let OpenCV work in this process alone: there is one for each core already."""
    cv2.setNumThreads(0)


class _Loader(DataLoader[Batch]):
    """Begins when the first batch is asked for, and says what to do when a worker was ended from outside."""

    at: Callable[[], tuple[int, int]] | None = None

    def __iter__(self) -> Any:
        if self.at is not None:
            # a trainer may make its loader before it knows where it is taken up
            self.dataset.epoch, self.dataset.start = self.at()  # type: ignore[attr-defined]
        iterator = super().__iter__()
        try:
            yield from iterator
        except (RuntimeError, EOFError, ConnectionError) as error:
            # the last two where it was killed while it handed a batch over
            told = isinstance(error, RuntimeError) and not re.search(r"DataLoader worker \(pid", str(error))
            if told or not self.num_workers or "Caught" in str(error):  # an error of the worker's own
                raise
            reason = str(error).partition("\n")[0] or "it was killed"
            raise LandmarkRetrievalError(
                f"A decoding process ended early ({reason}), perhaps for lack of memory: run again, with a smaller "
                "data.num_workers or data.batch_size."
            ) from error


def counted_part(photo: Photo) -> np.ndarray:
    """The pixels of a photo, or of its box."""
    image = decode(photo.data)
    if photo.box is None:
        return image
    left, top, right, bottom = photo.box
    part = image[max(0, top) : bottom, max(0, left) : right]
    if not part.size:
        raise BrokenPhotoError(f"its box {photo.box} lies outside of {image.shape[1]} x {image.shape[0]} pixels")
    return part


def _refuse_nothing(batch_size: int, side: int) -> None:
    if batch_size < 1 or side < 1:
        raise LandmarkRetrievalError(
            f"A batch of {batch_size} photos of {side} pixels is not possible: set at least 1."
        )


def _share() -> tuple[int, int]:
    """The first of a process's batches that this DataLoader worker makes, and in which steps it goes on."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)
