"""Shards -> photos, in an order that depends on seed and epoch alone."""

import json
import random
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from landmark_retrieval.data.manifest import Manifest, Shard
from landmark_retrieval.data.photos import SUFFIXES, Photo
from landmark_retrieval.errors import LandmarkRetrievalError

T = TypeVar("T")


@dataclass(frozen=True)
class ShardedPhotos:
    """The photos in a folder of shards, readable in the order they were written or mixed."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> "ShardedPhotos":
        """Open a folder of shards. LandmarkRetrievalError if its manifest or a shard is missing or damaged."""
        manifest = Manifest.read(folder)
        manifest.check_files(folder)
        return cls(Path(folder), manifest)

    def __len__(self) -> int:
        return self.manifest.photos

    def photos(self, start: int = 0, stop: int | None = None) -> Iterator[Photo]:
        """The photos [start, stop) in the order they were written; shards before `start` are not opened."""
        stop = len(self) if stop is None else stop
        first = 0
        for shard in self.manifest.shards:
            if first < stop and first + shard.photos > start:
                yield from islice(self._read([shard]), max(0, start - first), stop - first)
            first += shard.photos

    def find(self, ids: Collection[str]) -> dict[str, bytes]:
        """The encoded photos of these ids, as far as they are here; goes through the shards once."""
        return {photo.id: photo.data for photo in self.photos() if photo.id in ids}

    @property
    def fingerprint(self) -> str:
        """Says which photos these are and in which order."""
        return self.manifest.fingerprint

    def mixed(self, shards: list[Shard], seed: int, buffer: int) -> Iterator[Photo]:
        """The photos of these shards, mixed by a buffer of `buffer` photos; the same seed gives the same order."""
        from webdataset.filters import shuffle

        return shuffle(buffer, initial=buffer, rng=random.Random(seed))(self._read(shards))

    def labels(self) -> Iterator[tuple[str, int | None]]:
        """Id and class of each photo in the order they were written; the photos are skipped, not read."""
        return self._each(self.manifest.shards, _labels_in)

    def _read(self, shards: list[Shard]) -> Iterator[Photo]:
        return self._each(shards, _photos_in)

    def _each(self, shards: Iterable[Shard], entries: Callable[[Path], Iterator[T]]) -> Iterator[T]:
        """What `entries` finds in the shards, one for each photo."""
        for shard in shards:
            path = self.folder / shard.file
            read = 0
            try:
                for entry in entries(path):
                    yield entry
                    read += 1
            except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
                if isinstance(error, LandmarkRetrievalError):
                    raise
                raise _damaged(path, f"{type(error).__name__}: {error}") from error
            if read != shard.photos:
                raise _damaged(path, f"{read} photos instead of {shard.photos}")


def epoch_shards(shards: tuple[Shard, ...], seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[Shard]:
    """The shards that one of `world` processes reads in an epoch: a share of a permutation drawn from (seed, epoch).

    Raises:
        LandmarkRetrievalError: fewer shards than processes.
    """
    if len(shards) < world:
        raise LandmarkRetrievalError(
            f"{len(shards)} shards cannot be split over {world} processes: write them again with a smaller "
            "--photos-per-shard, or use fewer devices."
        )
    order = np.random.default_rng((seed, epoch)).permutation(len(shards))
    return [shards[i] for i in order[rank::world]]


def _photos_in(path: Path) -> Iterator[Photo]:
    from webdataset.tariterators import tarfile_to_samples

    for sample in tarfile_to_samples()([{"url": str(path)}]):
        about = json.loads(sample["json"])
        data = next(sample[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in sample)
        yield Photo(about["id"], about.get("label"), data)


def _labels_in(path: Path) -> Iterator[tuple[str, int | None]]:
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.name.endswith(".json"):
                file = tar.extractfile(member)
                assert file is not None
                about = json.load(file)
                yield about["id"], about.get("label")


def _damaged(path: Path, what: str) -> LandmarkRetrievalError:
    return LandmarkRetrievalError(f"Shard {path} is damaged ({what}): write the shards again, or copy it once more.")
