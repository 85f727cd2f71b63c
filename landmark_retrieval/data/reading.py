"""Shards -> photos, each one by its number, from any place in them."""

import bisect
import json
import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from landmark_retrieval.data.manifest import SAMPLES, Manifest, Shard, samples_type
from landmark_retrieval.data.photos import Ids, Photo
from landmark_retrieval.data.places import LocalPlace, Place
from landmark_retrieval.errors import LandmarkRetrievalError

_OPEN_SHARDS = 192  # per process and source: about as many as are in use at a time


class ShardedPhotos:
    """The photos in a folder of shards, numbered in the order they were written.

    Every photo is read from its own place in its shard, so each process and worker reads the bytes of its own photos
    only, in any order. Can be passed on to worker processes.

    Args:
        place: the folder of shards; a path, or a place that fetches them first.
        manifest: of the folder.

    Attributes:
        name: of the folder.
    """

    def __init__(self, place: Place | Path, manifest: Manifest) -> None:
        self.place: Place = LocalPlace(place) if isinstance(place, Path) else place
        self.manifest = manifest
        self._ends = list(accumulate(shard.photos for shard in manifest.shards))
        self._opened: tuple[np.ndarray, _OpenFiles] | None = None

    @classmethod
    def open(cls, place: Place | str | Path) -> "ShardedPhotos":
        """Open a folder of shards. LandmarkRetrievalError if its manifest or a shard is missing or damaged."""
        place = LocalPlace(Path(place)) if isinstance(place, str | Path) else place
        manifest = place.manifest()
        place.check(manifest)
        return cls(place, manifest)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # open files stay in their process

    @property
    def name(self) -> str:  # noqa: D102
        return self.place.name

    @property
    def fingerprint(self) -> str:
        """Says which photos these are and in which order."""
        return self.manifest.fingerprint

    @property
    def ids(self) -> Ids:
        """The id of each photo."""
        return Ids(self._samples["id"])

    @property
    def labels(self) -> np.ndarray:
        """int32 (n,): the class of each photo, -1 where it has none."""
        return np.asarray(self._samples["label"])

    def photos(self, start: int = 0, stop: int | None = None) -> Iterator[Photo]:
        """The photos [start, stop) in the order they were written."""
        yield from map(self.photo, range(start, len(self) if stop is None else min(stop, len(self))))

    def photo(self, number: int) -> Photo:
        """One photo. LandmarkRetrievalError where its shard is not what the manifest says, or cannot be read."""
        shard = self._shard_of(number)
        identity, start, size, about, label = self._samples[number].item()
        # header, photo, padding, header, JSON
        second = BLOCKSIZE + -(-size // BLOCKSIZE) * BLOCKSIZE
        length = second + BLOCKSIZE + about
        try:
            data = self._files.read(shard, start * BLOCKSIZE, length)
        except OSError as error:
            raise LandmarkRetrievalError(
                f"Shard {self.place.where(shard.file)} cannot be read ({error.strerror or error}): mend that and run "
                "the same again."
            ) from error
        if len(data) < length:
            raise self._damaged(shard, f"it ends inside photo {number}")
        try:
            said = json.loads(data[second + BLOCKSIZE :])
        except ValueError as error:
            raise self._damaged(shard, f"{type(error).__name__}: {error}") from error
        identity = identity.decode()
        if not isinstance(said, dict) or (said.get("id"), said.get("label", -1)) != (identity, label):
            raise self._damaged(shard, f"it holds something else where photo {identity} should be")
        box = tuple(said["box"]) if "box" in said else None
        return Photo(identity, None if label < 0 else label, data[BLOCKSIZE : BLOCKSIZE + size], box)

    def find(self, ids: Collection[str]) -> dict[str, bytes]:
        """The encoded photos of these ids, as far as they are here."""
        rows = self.ids.rows(ids).tolist()
        return {photo: self.photo(row).data for photo, row in zip(ids, rows, strict=True) if row >= 0}

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Say which photos will be asked for soon, so that shards which lie elsewhere are fetched in the background."""
        if self.place.remote:
            wanted = dict.fromkeys(bisect.bisect(self._ends, number) for number in numbers)
            self.place.prefetch(self.manifest.shards[place] for place in wanted)

    @property
    def _samples(self) -> np.ndarray:
        return self._open()[0]

    @property
    def _files(self) -> "_OpenFiles":
        return self._open()[1]

    def _open(self) -> tuple[np.ndarray, "_OpenFiles"]:
        if self._opened is None:
            path = self.place.file(SAMPLES, *self.manifest.samples)
            try:
                samples = np.load(path, mmap_mode="r")
                whole = samples.dtype == samples_type(samples.dtype["id"].itemsize) and len(samples) == len(self)
            except (OSError, ValueError, KeyError, EOFError):
                whole = False
            if not whole:
                raise LandmarkRetrievalError(f"{path} is damaged: write the shards again, or copy it once more.")
            self._opened = samples, _OpenFiles(self.place)
        return self._opened

    def _shard_of(self, number: int) -> Shard:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.manifest.shards[bisect.bisect(self._ends, number)]

    def _damaged(self, shard: Shard, what: str) -> LandmarkRetrievalError:
        return LandmarkRetrievalError(
            f"Shard {self.place.where(shard.file)} is damaged ({what}): write the shards again, or copy it once more."
        )


class Selection:
    """Some photos of a source, in a given order."""

    def __init__(self, source: ShardedPhotos, numbers: np.ndarray) -> None:
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def photos(self, start: int = 0, stop: int | None = None) -> Iterator[Photo]:
        """The photos [start, stop) of the selection."""
        yield from (self.source.photo(int(number)) for number in self.numbers[start:stop])

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Say which photos of the selection will be asked for soon."""
        self.source.prefetch(self.numbers[list(numbers)].tolist() if self.source.place.remote else ())

    def find(self, ids: Collection[str]) -> dict[str, bytes]:
        """The encoded photos of these ids, as far as they are in the source."""
        return self.source.find(ids)

    @property
    def fingerprint(self) -> str:
        """Says which photos these are and in which order."""
        return f"{self.source.fingerprint} {self.numbers.tolist()}"


class _OpenFiles:
    """The shards in use, as open files; the one that was used longest ago is closed first."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: Shard, offset: int, length: int) -> bytes:
        if self._place.remote:
            # not kept open: the cache could not make room by deleting it
            number = self._place.open(shard)
            try:
                return os.pread(number, length, offset)
            finally:
                os.close(number)
        held = self._open.get(shard.file)
        if held is None:
            if len(self._open) >= _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            held = self._open[shard.file] = self._place.open(shard)
        self._open.move_to_end(shard.file)
        return os.pread(held, length, offset)

    def __del__(self) -> None:
        for number in self._open.values():
            os.close(number)
