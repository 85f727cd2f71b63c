"""What is trained on: one folder of shards, or several mixed by weight."""

from collections.abc import Mapping, Sequence

import numpy as np

from landmark_retrieval.data.dataset import train_place
from landmark_retrieval.data.photos import Photo
from landmark_retrieval.data.places import Place
from landmark_retrieval.data.plan import BUFFER, LANES, EpochPlan
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.remote.cache import Cache
from landmark_retrieval.errors import LandmarkRetrievalError

TrainSet = str | Sequence[str] | Mapping[str, float]


class Mixture:
    """Labelled photos of one or several sources, numbered on from one to the next.

    The classes of the first source keep their numbers; classes that only later sources have follow.

    Args:
        sources: labelled photos.
        weights: shares of the photos of an epoch; None: each photo once an epoch.

    Attributes:
        classes: name of each class.
        class_counts: photos per class, in all sources.

    Raises:
        LandmarkRetrievalError: a source without labels.
    """

    def __init__(self, sources: Sequence[ShardedPhotos], weights: Sequence[float] | None = None) -> None:
        self.sources, self.weights = tuple(sources), weights
        numbers: dict[str, int] = {}
        self._labels: list[list[int]] = []
        for source in sources:
            if not source.manifest.classes:
                raise LandmarkRetrievalError(f"{source.place} holds photos without labels: they cannot be trained on.")
            self._labels.append([numbers.setdefault(name, len(numbers)) for name in source.manifest.classes])
        self.classes = tuple(numbers)
        counts = np.zeros(len(numbers), np.int64)
        for source, labels in zip(sources, self._labels, strict=True):
            np.add.at(counts, labels, source.manifest.class_counts)
        self.class_counts = tuple(counts.tolist())
        self._firsts = np.cumsum([0, *map(len, sources)]).tolist()

    @classmethod
    def open(cls, root: Place, train_set: TrainSet, cache: Cache | None = None) -> "Mixture":
        """Open training sets below `root`: one by its name, several (each photo once an epoch), or several with their
        weights. `cache` takes those that are at URLs elsewhere."""
        weights = [float(weight) for weight in train_set.values()] if isinstance(train_set, Mapping) else None
        return cls([ShardedPhotos.open(place) for place in _places(root, train_set, cache)], weights)

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def name(self) -> str:
        """Of the sources."""
        return "+".join(source.name for source in self.sources)

    def __str__(self) -> str:
        return " and ".join(str(source.place) for source in self.sources)

    @property
    def remote(self) -> bool:
        """Whether any of the shards have to be fetched."""
        return any(source.place.remote for source in self.sources)

    def plan(self, seed: int, epoch: int, lanes: int = LANES, buffer: int = BUFFER) -> EpochPlan:
        """The order in which an epoch takes the photos."""
        sizes = [[shard.photos for shard in source.manifest.shards] for source in self.sources]
        return EpochPlan(sizes, seed, epoch, self.weights, lanes, buffer)

    def labelled(self, number: int) -> tuple[Photo, int]:
        """One photo, and its class among those of all sources."""
        source = int(np.searchsorted(self._firsts, number, side="right")) - 1
        photo = self.sources[source].photo(number - self._firsts[source])
        assert photo.label is not None
        return photo, self._labels[source][photo.label]

    def bytes_in_use(self, lanes: int, buffer: int) -> int:
        """About how many bytes of shards that lie elsewhere are read side by side."""
        remote = [source.manifest for source in self.sources if source.place.remote]
        held = sum(shard.bytes for manifest in remote for shard in manifest.shards)
        count = sum(len(manifest.shards) for manifest in remote)
        photos = sum(manifest.photos for manifest in remote)
        return int(min(held, lanes * (held / count + buffer * held / photos))) if remote else 0

    def prefetch(self, numbers: np.ndarray) -> None:
        """Say which photos will be asked for soon."""
        for place, source in enumerate(self.sources):
            first, end = self._firsts[place], self._firsts[place + 1]
            source.prefetch((numbers[(first <= numbers) & (numbers < end)] - first).tolist())


def train_fingerprint(root: Place, train_set: TrainSet, cache: Cache | None = None) -> str:
    """Says which photos training sets hold and in which order, from their manifests alone."""
    return "+".join(place.manifest().fingerprint for place in _places(root, train_set, cache))


def _places(root: Place, train_set: TrainSet, cache: Cache | None) -> list[Place]:
    names = [train_set] if isinstance(train_set, str) else list(train_set)
    if not names:
        raise LandmarkRetrievalError("data.train_set names no training set: set one, or several.")
    return [train_place(root, name, cache) for name in names]
