"""Photos -> batches of uint8 images, for training and for description, in DataLoader workers.

Every worker of a process goes through the same photos in the same order and decodes only the batches that are its
own, so the batches do not depend on the number of workers. Each photo comes once.
"""

import multiprocessing
import os
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from landmark_retrieval.data.decode import BrokenPhotoError, decode, resize
from landmark_retrieval.data.photos import Photo
from landmark_retrieval.data.reading import ShardedPhotos, epoch_shards
from landmark_retrieval.data.transforms import TrainingTransform
from landmark_retrieval.errors import LandmarkRetrievalError

Batch = dict[str, Any]


class PhotoSource(Protocol):
    """What can be described: a table of files, or a folder of shards."""

    def __len__(self) -> int: ...

    def photos(self, start: int = 0, stop: int | None = None) -> Iterator[Photo]:
        """Photos [start, stop), in an order that never changes."""
        ...

    def find(self, ids: Collection[str]) -> dict[str, bytes]:
        """The encoded photos of these ids, as far as they are here."""
        ...

    @property
    def fingerprint(self) -> str:
        """Says which photos these are and in which order."""
        ...


class TrainingBatches(IterableDataset[Batch]):
    """One epoch of augmented training batches of one process.

    Batches are dicts: `images` uint8 (B, side, side, 3), `labels` int64 (B,). The photos left over at the end of the
    epoch, fewer than B, are dropped, and all processes yield the same number of batches. A broken photo is counted in
    `broken`, and another photo of its batch takes its place, so that the batch keeps its size.

    Args:
        source: labelled photos.
        side: of the square images, pixels.
        batch_size: B, per process.
        epoch: which epoch; shards, order and augmentation are drawn from (seed, epoch).
        seed: of the run.
        shuffle_buffer: photos among which the next one is drawn; they are held encoded.
        rank: number of this process.
        world: number of processes.

    Attributes:
        broken: shared counter of photos that could not be decoded.

    Raises:
        LandmarkRetrievalError: fewer photos than one batch per process, fewer shards than processes, or a batch with no
            photo that can be decoded.
    """

    def __init__(
        self,
        source: ShardedPhotos,
        side: int,
        batch_size: int,
        epoch: int = 0,
        seed: int = 0,
        shuffle_buffer: int = 1000,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or side < 1:
            raise LandmarkRetrievalError(
                f"A batch of {batch_size} photos of {side} pixels is not possible: set at least 1."
            )
        shares = [epoch_shards(source.manifest.shards, seed, epoch, other, world) for other in range(world)]
        self.batches = min(sum(shard.photos for shard in share) for share in shares) // batch_size
        if not self.batches:
            raise LandmarkRetrievalError(
                f"{source.folder} holds {len(source)} photos, which is not one batch of {batch_size} for each of "
                f"{world} processes: set a smaller data.batch_size."
            )
        self.source, self.side, self.batch_size = source, side, batch_size
        self.epoch, self.seed, self.shuffle_buffer, self.rank = epoch, seed, shuffle_buffer, rank
        self.shards = shares[rank]
        self.broken = multiprocessing.get_context("spawn").Value("q", 0)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        photos = self.source.mixed(self.shards, hash((self.seed, self.epoch, self.rank)), self.shuffle_buffer)
        transform = TrainingTransform(self.side)
        for number, chunk in islice(_own_chunks(photos, self.batch_size), _own_count(self.batches)):
            transform.seed(self.seed, self.epoch, self.rank, number)
            good = []
            for photo in chunk:
                try:
                    good.append((transform(decode(photo.data)), photo.label))
                except BrokenPhotoError:
                    with self.broken.get_lock():
                        self.broken.value += 1
            if not good:
                raise LandmarkRetrievalError(
                    f"None of {len(chunk)} photos in a row from {self.source.folder} can be decoded: write the shards "
                    "again."
                )
            filled = [good[i % len(good)] for i in range(self.batch_size)]
            yield {
                "images": torch.from_numpy(np.stack([image for image, _ in filled])),
                "labels": torch.tensor([label for _, label in filled], dtype=torch.int64),
            }


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
        whole = -(-(len(self.source) - self.start) // self.batch_size)
        return len(range(self.rank, whole, self.world))

    def __iter__(self) -> Iterator[Batch]:
        photos = self.source.photos(self.start)
        for number, chunk in _own_chunks(photos, self.batch_size, self.rank, self.world):
            first = self.start + number * self.batch_size
            batch: Batch = {"ids": [], "positions": [], "broken": []}
            images = []
            for position, photo in enumerate(chunk, first):
                try:
                    images.append(resize(decode(photo.data), self.side))
                except BrokenPhotoError as error:
                    batch["broken"].append((photo.id, str(error)))
                    continue
                batch["ids"].append(photo.id)
                batch["positions"].append(position)
            shape = (0, self.side, self.side, 3)
            batch["images"] = torch.from_numpy(np.stack(images)) if images else torch.empty(shape, dtype=torch.uint8)
            yield batch


def loader(batches: IterableDataset[Batch], workers: int | None, pin_memory: bool = False) -> DataLoader[Batch]:
    """A DataLoader over ready-made batches; as many workers as cores, at most 8, if None."""
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )


def _own_chunks(photos: Iterator[Photo], size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, list[Photo]]]:
    """Number and photos of the chunks that this process (`rank` of `world`) and this DataLoader worker have to make."""
    worker = get_worker_info()
    turn, of = (worker.id, worker.num_workers) if worker else (0, 1)
    number = 0
    while chunk := list(islice(photos, size)):
        if number % world == rank and number // world % of == turn:
            yield number, chunk
        number += 1


def _own_count(batches: int) -> int:
    """How many of a process's batches this DataLoader worker makes."""
    worker = get_worker_info()
    return len(range(worker.id, batches, worker.num_workers)) if worker else batches
