"""The LightningDataModule: shards for training; query and index photos for validation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from landmark_retrieval.data.batches import Batch, PhotoBatches, PhotoSource, TrainingBatches, loader
from landmark_retrieval.data.dataset import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION, open_queries_and_index
from landmark_retrieval.data.mixture import Mixture, TrainSet
from landmark_retrieval.data.places import place
from landmark_retrieval.data.plan import BUFFER, LANES
from landmark_retrieval.data.reading import Selection, ShardedPhotos
from landmark_retrieval.data.remote.cache import Cache
from landmark_retrieval.data.solutions import Solution, read_recognition_solution
from landmark_retrieval.errors import LandmarkRetrievalError

VALIDATION_INDEX = ("matching", "all")


class LandmarkDataModule(pl.LightningDataModule):
    """Landmark photos in shards, as `landmark-retrieval shard` writes them.

    Training batches are dicts of `images` uint8 (B, S, S, 3), `labels` int64 (B,) and `broken`; see
    `batches.TrainingBatches`. Where the data has `index` and `test` shards and a retrieval solution, there are two
    validation loaders, query photos and index photos; see `batches.PhotoBatches`. A run that is taken up in the middle
    of an epoch goes on with the next batch that it has not seen, whatever the number of workers.

    Args:
        root: folder or URL with `train_c` or the like, or `train`, and perhaps `index` and `test`.
        train_set: "c", "x" or "full" of GLDv2; data without these sets has one, used whatever is asked for. Several
            names: each photo once an epoch. Names with weights ({"x": 4, "wit": 1}): shares of the photos. A name with
            a slash in it is the path or URL of a folder of shards.
        image_size: side of the square training images, pixels.
        batch_size: per process.
        validation_image_size: as `image_size` if None.
        validation_batch_size: per process.
        validation_index: "matching", only the index photos that are right for some query, or "all".
        transforms: the augmentation, "fast" or "albumentations"; see `augmentation.training_transform`.
        num_workers: processes that decode, per training process; None: one per core, at most 8.
        lanes: shards read side by side, at least; see `plan.EpochPlan`.
        shuffle_buffer: places by which a photo moves within its lane.
        cache_dir: takes the shards of a URL; None: `$LANDMARK_RETRIEVAL_CACHE`, or a folder in the home directory.
        cache_gb: how many 10^9 bytes of them to keep.
        seed: of order and augmentation.

    Attributes:
        train: the photos to train on, with `classes` and `class_counts`.
        query, index: photos for validation, or None.
        retrieval_solution, recognition_solution: what is right, or None.

    Raises:
        LandmarkRetrievalError: no such folder or training set; a missing or damaged manifest, shard or solution; a
            choice that there is not.
    """

    def __init__(
        self,
        root: str | Path,
        train_set: TrainSet = "c",
        image_size: int = 256,
        batch_size: int = 64,
        validation_image_size: int | None = None,
        validation_batch_size: int = 64,
        validation_index: str = "matching",
        transforms: str = "fast",
        num_workers: int | None = None,
        lanes: int = LANES,
        shuffle_buffer: int = BUFFER,
        cache_dir: str | Path | None = None,
        cache_gb: float = 100.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if validation_index not in VALIDATION_INDEX:
            raise LandmarkRetrievalError(
                f"data.validation_index is {validation_index!r}: choose {' or '.join(VALIDATION_INDEX)}."
            )
        self.cache = Cache.default(cache_dir, cache_gb)
        self.root = place(root, self.cache)
        self.image_size, self.batch_size = image_size, batch_size
        self.validation_image_size = validation_image_size or image_size
        self.validation_batch_size = validation_batch_size
        self.num_workers, self.transforms, self.seed = num_workers, transforms, seed
        self.lanes, self.shuffle_buffer = lanes, shuffle_buffer

        self.train = Mixture.open(self.root, train_set, self.cache)
        self.query: ShardedPhotos | None = None
        self.index: PhotoSource | None = None
        self.retrieval_solution: Solution[str] | None = None
        self.recognition_solution: Solution[int] | None = None
        if self.root.has(RETRIEVAL_SOLUTION):
            self.query, index, self.retrieval_solution = open_queries_and_index(self.root)
            self.index = index
            if validation_index == "matching":
                self.index = _matching(index, self.retrieval_solution)
            if self.root.has(RECOGNITION_SOLUTION):
                recognition = read_recognition_solution(self.root.file(RECOGNITION_SOLUTION))
                # without a single labelled query there is nothing to recognise
                self.recognition_solution = recognition if any(recognition.relevant.values()) else None

    def train_dataloader(self) -> DataLoader[Batch]:  # noqa: D102
        rank, world = self._rank_and_world()
        nodes = self.trainer.num_nodes if self.trainer else 1
        needed = self.train.bytes_in_use(self.lanes, self.shuffle_buffer) / nodes
        if needed > self.cache.limit_bytes:
            raise LandmarkRetrievalError(
                f"Shards of about {needed / 1e9:.1f} GB are read side by side, more than data.cache_gb="
                f"{self.cache.limit_bytes / 1e9:g}: they would be fetched again and again. Raise it, or set smaller "
                "data.lanes or data.shuffle_buffer."
            )
        batches = TrainingBatches(
            self.train,
            self.image_size,
            self.batch_size,
            seed=self.seed,
            lanes=self.lanes,
            shuffle_buffer=self.shuffle_buffer,
            rank=rank,
            world=world,
            transforms=self.transforms,
        )
        return loader(batches, self.num_workers, self._pin_memory(), self._epoch_and_start)

    def val_dataloader(self) -> list[DataLoader[Batch]]:  # noqa: D102
        rank, world = self._rank_and_world()
        return [
            loader(
                PhotoBatches(source, self.validation_image_size, self.validation_batch_size, rank=rank, world=world),
                self.num_workers,
                self._pin_memory(),
            )
            for source in (self.query, self.index)
            if source is not None
        ]

    def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:  # noqa: D102
        # ids stay lists of strings; only tensors travel
        return {
            key: value.to(device, non_blocking=True) if hasattr(value, "to") else value for key, value in batch.items()
        }

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _epoch_and_start(self) -> tuple[int, int]:
        """The epoch that begins or goes on now, and its batches that were seen before the run was taken up."""
        if not self.trainer:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _pin_memory(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _matching(index: ShardedPhotos, solution: Solution[str]) -> Selection:
    """The index photos that are right for some query: most of GLDv2's are not, and to describe them takes hours."""
    right = {photo for images in solution.relevant.values() for photo in images}
    rows = index.ids.rows(sorted(right))
    if not (rows >= 0).any():
        raise LandmarkRetrievalError(
            f"No index photo of {index.place} is right for any query: take the solution that belongs to these shards, "
            "or set data.validation_index=all."
        )
    return Selection(index, np.sort(rows[rows >= 0]))
