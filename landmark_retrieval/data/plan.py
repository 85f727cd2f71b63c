"""In which order the photos of an epoch come, and which process takes which: numbers alone, no files.

The photos are numbered through all shards. The order of an epoch is a function of (seed, epoch) and does not depend on
the number of processes or workers, so training can be repeated, split in another way, and taken up in the middle.
"""

from collections.abc import Sequence

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError

LANES = 64
BUFFER = 2000


class EpochPlan:
    """The order of one epoch over one or several sources of photos.

    The shards are put in an order drawn for this epoch, and the photos in each of them, too. The row of all photos is
    cut into `lanes` pieces of equal length, which are read side by side: photo `t` of lane `l` has place
    `t * lanes + l`. Within a lane a photo moves by at most `buffer` places. So about
    `lanes * (1 + buffer / photos per shard)` shards are in use at a time, the photos of a batch come from as many lanes
    as there are, and a process out of a number that divides `lanes` reads lanes of its own.

    Several sources are mixed by weight: in each lane a source has its share of the places, and goes on in the next
    epoch where its share of this one ends, so that each of its photos comes once before any comes again.

    Args:
        shards: for each source, the photos in each of its shards.
        seed: of the run.
        epoch: which one.
        weights: of the sources, their shares of the places; None: each photo of each source once an epoch.
        lanes: shards read side by side, at least.
        buffer: places.

    Attributes:
        photos: places in the epoch, as many as there are photos in all sources.

    Raises:
        LandmarkRetrievalError: no photos, or weights that are no shares.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[int]],
        seed: int = 0,
        epoch: int = 0,
        weights: Sequence[float] | None = None,
        lanes: int = LANES,
        buffer: int = BUFFER,
    ) -> None:
        sizes = [int(np.sum(source)) for source in shards]
        if not sizes or min(sizes) < 1:
            raise LandmarkRetrievalError("A training set without photos cannot be read: write its shards again.")
        if lanes < 1 or buffer < 1:
            raise LandmarkRetrievalError(
                f"data.lanes={lanes} with data.shuffle_buffer={buffer} is not possible: set at least 1."
            )
        if seed < 0:
            raise LandmarkRetrievalError(f"seed={seed} is not possible: it takes at least 0.")
        if weights is not None and (len(weights) != len(sizes) or not all(0 < w < np.inf for w in weights)):
            raise LandmarkRetrievalError(f"Sources are mixed by weights above 0, one for each, not {list(weights)}.")
        if weights is None:  # all are one source
            shards, sizes, weights = [[size for source in shards for size in source]], [sum(sizes)], [1.0]
        self.photos, self.lanes = sum(sizes), min(lanes, min(sizes))
        self._shards, self._sizes, self._shares = shards, sizes, np.asarray(weights, np.float64)
        if len(sizes) > 1:  # long enough for the shares to come out even
            self.lanes = min(self.lanes, max(1, self.photos // 256))
            if (self._shares / self._shares.sum()).min() * self.photos < 1:
                raise LandmarkRetrievalError(f"A weight is too small for a single photo an epoch: {list(weights)}.")
        self._seed, self._epoch, self._buffer = seed, epoch, buffer
        self._firsts = np.cumsum([0, *sizes])
        self._passes: dict[tuple[int, int], _Pass] = {}
        self._lanes: dict[int, np.ndarray] = {}

    def at(self, places: np.ndarray) -> np.ndarray:
        """The number of the photo at each of these places, both in [0, photos). Sources are numbered on one after the
        other."""
        rows, lanes = np.divmod(places, self.lanes)
        numbers = np.empty(len(places), np.int64)
        for lane in np.unique(lanes).tolist():
            here = lanes == lane
            numbers[here] = self.lane(lane)[rows[here]]
        return numbers

    def lane(self, lane: int) -> np.ndarray:
        """Numbers of the photos of a lane, in order, int32; kept once they are drawn."""
        if lane not in self._lanes:
            self._lanes[lane] = self._draw(lane)
        return self._lanes[lane]

    def _draw(self, lane: int) -> np.ndarray:
        length = _lane_length(self.photos, self.lanes, lane)
        if len(self._sizes) == 1:
            return self._pass(0, self._epoch).lane(lane)
        counts = self._counts(lane, length)
        rng = np.random.default_rng((self._seed, self._epoch, lane, 2))
        # each source evenly over the epoch, at a random place in each of its steps
        at = np.concatenate([(np.arange(count) + rng.random(count)) / max(count, 1) for count in counts])
        parts = [self._stretch(source, lane, int(count)) for source, count in enumerate(counts)]
        return np.concatenate(parts)[np.argsort(at, kind="stable")]

    def _counts(self, lane: int, length: int) -> list[int]:
        """Places of each source in a lane: what is due to it up to the end of the lane, less what was before."""
        start = _lane_start(self.photos, self.lanes, lane)
        # of sums over the sources, rounded, so that they make the lane whole
        borders = np.cumsum([0.0, *self._shares]) / self._shares.sum()
        borders[-1] = 1.0
        due = np.floor(borders * (start + length) + 0.5) - np.floor(borders * start + 0.5)
        counts = np.diff(due).astype(np.int64)
        while counts.min() < 0:  # two borders rounded apart, of sources with next to nothing in a lane
            counts[counts.argmax()] -= 1
            counts[counts.argmin()] += 1
        return counts.tolist()

    def _stretch(self, source: int, lane: int, count: int) -> np.ndarray:
        """The next `count` photos of a source in a lane, after those of the epochs before; through several passes where
        there are fewer."""
        size = _lane_length(self._sizes[source], self.lanes, lane)
        number, start = divmod(self._epoch * count, size)
        parts: list[np.ndarray] = [np.empty(0, np.int32)]
        while count:
            part = self._pass(source, number).lane(lane)[start : start + count]
            parts.append(part + np.int32(self._firsts[source]))
            number, start, count = number + 1, 0, count - len(part)
        return np.concatenate(parts)

    def _pass(self, source: int, number: int) -> "_Pass":
        if (source, number) not in self._passes:
            seeds = (self._seed, number, source)
            self._passes[source, number] = _Pass(self._shards[source], seeds, self.lanes, self._buffer)
        return self._passes[source, number]


class _Pass:
    """Once through the photos of one source."""

    def __init__(self, shards: Sequence[int], seeds: tuple[int, ...], lanes: int, buffer: int) -> None:
        self._seeds, self._lanes, self._buffer = seeds, lanes, buffer
        sizes = np.asarray(shards, np.int64)
        rng = np.random.default_rng((*seeds, 0))
        self._order = rng.permutation(len(sizes))
        self._ends = np.cumsum(sizes[self._order])
        self._numbered = np.cumsum(sizes) - sizes  # number of the first photo of each shard
        # one draw for each photo: the order in a shard that two lanes share has to be the same in both
        self._keys = rng.integers(0, 1 << 24, int(sizes.sum()), dtype=np.uint32)

    def lane(self, lane: int) -> np.ndarray:
        total = len(self._keys)
        length = _lane_length(total, self._lanes, lane)
        start = _lane_start(total, self._lanes, lane)
        if not length:
            return np.empty(0, np.int32)
        first, last = np.searchsorted(self._ends, (start, start + length - 1), side="right")
        ends = self._ends[first : last + 1]
        begin = self._ends[first - 1] if first else 0
        sizes = np.diff(ends, prepend=begin)
        turn = np.repeat(np.arange(len(sizes)), sizes)  # which of these shards
        numbers = np.arange(len(turn)) + np.repeat(
            self._numbered[self._order[first : last + 1]] - (ends - sizes - begin), sizes
        )
        # shard by shard, within a shard by key
        mixed = numbers[_order((turn << 24) + self._keys[numbers])][start - begin : start - begin + length]
        rng = np.random.default_rng((*self._seeds, lane, 1))
        fine = 16  # steps in a place, so that neighbours do not keep their order
        moved = np.arange(length) * fine + rng.integers(0, self._buffer * fine, length)
        return mixed[_order(moved)].astype(np.int32)


def _order(keys: np.ndarray) -> np.ndarray:
    """Like a stable argsort of whole numbers; several times faster, since numbers are sorted and nothing is compared
    through an index."""
    bits = max(1, len(keys) - 1).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        return np.argsort(keys, kind="stable")
    return np.sort((keys << bits) | np.arange(len(keys))) & ((1 << bits) - 1)


def own_places(step: int, batch_size: int, rank: int, world: int) -> np.ndarray:
    """The places in the epoch whose photos make the batch of one of `world` processes in a step.

    Every `world`-th of the `batch_size * world` of the step, so that all processes together take the same photos
    however many they are.
    """
    return (step * batch_size + np.arange(batch_size)) * world + rank


def steps(photos: int, batch_size: int, world: int) -> int:
    """Batches that each process makes in an epoch; photos that do not fill a batch of all processes are left out."""
    return photos // (batch_size * world)


def _lane_length(total: int, lanes: int, lane: int) -> int:
    return total // lanes + (lane < total % lanes)


def _lane_start(total: int, lanes: int, lane: int) -> int:
    return lane * (total // lanes) + min(lane, total % lanes)
