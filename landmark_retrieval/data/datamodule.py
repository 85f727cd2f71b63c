"""The LightningDataModule: shards for training; query and index photos for validation."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from landmark_retrieval.data.batches import Batch, PhotoBatches, TrainingBatches, loader
from landmark_retrieval.data.dataset import (
    RECOGNITION_SOLUTION,
    RETRIEVAL_SOLUTION,
    open_queries_and_index,
    train_folder,
)
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.solutions import Solution, read_recognition_solution


class LandmarkDataModule(pl.LightningDataModule):
    """Landmark photos in shards, as `landmark-retrieval shard` writes them.

    Training batches are dicts of `images` uint8 (B, S, S, 3) and `labels` int64 (B,); see `batches.TrainingBatches`.
    Where the data has `index` and `test` shards and a retrieval solution, there are two validation loaders, query
    photos and index photos; see `batches.PhotoBatches`. The trainer has to reload the training loader each epoch
    (`reload_dataloaders_every_n_epochs=1`).

    Args:
        root: folder with `train_c` or the like, or `train`, and perhaps `index` and `test`.
        train_set: "c", "x" or "full" of GLDv2; data without these sets has one, used whatever is asked for.
        image_size: side of the square training images, pixels.
        batch_size: per process.
        validation_image_size: as `image_size` if None.
        validation_batch_size: per process.
        num_workers: processes that decode, per training process; None: one per core, at most 8.
        shuffle_buffer: photos among which the next one is drawn.
        seed: of order and augmentation.

    Attributes:
        train: the photos to train on, with `manifest.classes` and `manifest.class_counts`.
        query, index: photos for validation, or None.
        retrieval_solution, recognition_solution: what is right, or None.

    Raises:
        LandmarkRetrievalError: no such folder or training set; a missing or damaged manifest, shard or solution.
    """

    def __init__(
        self,
        root: str | Path,
        train_set: str = "c",
        image_size: int = 256,
        batch_size: int = 64,
        validation_image_size: int | None = None,
        validation_batch_size: int = 64,
        num_workers: int | None = None,
        shuffle_buffer: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.image_size, self.batch_size = image_size, batch_size
        self.validation_image_size = validation_image_size or image_size
        self.validation_batch_size = validation_batch_size
        self.num_workers, self.shuffle_buffer, self.seed = num_workers, shuffle_buffer, seed

        self.train = ShardedPhotos.open(train_folder(root, train_set))
        self.query = self.index = None
        self.retrieval_solution: Solution[str] | None = None
        self.recognition_solution: Solution[int] | None = None
        if (self.root / RETRIEVAL_SOLUTION).exists():
            self.query, self.index, self.retrieval_solution = open_queries_and_index(self.root)
            if (self.root / RECOGNITION_SOLUTION).exists():
                recognition = read_recognition_solution(self.root / RECOGNITION_SOLUTION)
                # without a single labelled query there is nothing to recognise
                self.recognition_solution = recognition if any(recognition.relevant.values()) else None
        self._epoch_batches: TrainingBatches | None = None

    @property
    def broken_photos(self) -> int:
        """Photos of the current epoch that this process could not decode."""
        return self._epoch_batches.broken.value if self._epoch_batches else 0

    def train_dataloader(self) -> DataLoader[Batch]:  # noqa: D102
        rank, world = self._rank_and_world()
        self._epoch_batches = TrainingBatches(
            self.train,
            self.image_size,
            self.batch_size,
            self.trainer.current_epoch if self.trainer else 0,
            self.seed,
            self.shuffle_buffer,
            rank,
            world,
        )
        return loader(self._epoch_batches, self.num_workers, self._pin_memory())

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

    def _pin_memory(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
