"""The photos of a training set that a list keeps, as shards of their own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landmark_retrieval.data.importers.gldv2 import read_clean
from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.data.photos import Ids, PhotoTable
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.shards import write_shards


@dataclass(frozen=True)
class FilesOfShards:
    """`PhotoFiles` in shards: a photo number for each row."""

    photos: ShardedPhotos
    numbers: np.ndarray

    def read(self, row: int, photo: str) -> bytes:  # noqa: D102
        return self.photos.photo(int(self.numbers[row])).data

    def where(self, row: int, photo: str) -> str:  # noqa: D102
        return f"{photo} in {self.photos.place}"

    def stamp(self, row: int, photo: str) -> object:  # noqa: D102
        return self.photos.fingerprint, int(self.numbers[row])

    def take(self, rows: np.ndarray) -> "FilesOfShards":  # noqa: D102
        return FilesOfShards(self.photos, self.numbers[rows])


def shard_cleaned(photos: ShardedPhotos, listed: str | Path, out: str | Path) -> Manifest:
    """Write the photos that a list keeps as shards of their own, with the landmarks that have some.

    Args:
        photos: a training set.
        listed: in the form of train_clean.csv, as `cleaning.clean` writes it.
        out: folder of the shards; finished ones of the same photos stay.

    Raises:
        LandmarkRetrievalError: see `read_clean` and `write_shards`.
    """
    kept = Ids(photo for _, _, listed_photos in read_clean(listed) for photo in listed_photos)
    numbers = np.sort(photos.ids.rows(kept))
    numbers = numbers[numbers >= 0]
    classes, labels = np.unique(photos.labels[numbers], return_inverse=True)
    names = tuple(photos.manifest.classes[number] for number in classes.tolist())
    table = PhotoTable(photos.ids.take(numbers), FilesOfShards(photos, numbers), labels.astype(np.int32), names)
    return write_shards(table, out, title="photos that are kept")
