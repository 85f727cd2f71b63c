"""Which photos a data set consists of: landmarks, how many photos of each, wrong labels, queries."""

import hashlib
from dataclasses import dataclass

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError

from .architecture import LandmarkSpec, landmark_specs

_CLASSES = 203094  # landmark ids look like those of Google Landmarks v2
_WRONG_LABELS = 0.05
_INDEX_NOTHING = 0.28  # part of the index photos that show no landmark
_TEST_UNSEEN, _TEST_TRAIN = 0.58, 0.25  # parts of the test photos; the rest shows no landmark
_CLEAN_PART = 0.9  # part of the rightly labelled photos that the clean list keeps


@dataclass(frozen=True)
class Parameters:
    """What decides every byte of a data set."""

    train_landmarks: int
    index_landmarks: int
    train_photos: int
    index_photos: int
    test_photos: int
    seed: int


@dataclass(frozen=True)
class Photo:
    """One photo: where it goes, what it shows (None: no landmark) and, for train, the landmark it is filed under."""

    id: str
    split: str
    shows: LandmarkSpec | None
    label: int | None
    seed: tuple[int, ...]


@dataclass
class Plan:
    """All photos of a data set in the order of the CSV files, and what the files say about them."""

    photos: list[Photo]
    train_ids: dict[LandmarkSpec, int]
    clean: dict[int, list[str]]

    def of(self, split: str) -> list[Photo]:
        """The photos of one split."""
        return [photo for photo in self.photos if photo.split == split]


def _long_tail(total: int, classes: int) -> list[int]:
    """Photo counts of train landmarks, largest first: a few large classes, a long tail, `total` together."""
    mean = total / classes
    fewest, most = max(2.0, 0.2 * mean), max(2.0, 2.1 * mean)
    rank = np.arange(classes) / max(classes - 1, 1)
    # the mean of (1 - t)^k over 0..1 is 1 / (k + 1)
    power = max((most - fewest) / max(mean - fewest, 1e-9) - 1, 0.0)
    counts = [max(2, int(c)) for c in fewest + (most - fewest) * (1 - rank) ** power]
    position = 0
    while sum(counts) != total:  # rounding left a few over or short
        step = 1 if sum(counts) < total else -1
        if step > 0 or counts[position % classes] > 2:
            counts[position % classes] += step
        position += 1
    return counts


def _spread(rng: np.random.Generator, total: int, classes: int, fewest: int) -> list[int]:
    """`total` photos over classes, unevenly, at least `fewest` each."""
    extra = rng.multinomial(total - fewest * classes, rng.dirichlet(np.full(classes, 4.0)))
    return [int(fewest + more) for more in extra]


def _check(p: Parameters) -> None:
    if p.train_landmarks < 2 or p.index_landmarks < 1:
        raise LandmarkRetrievalError("A data set needs at least 2 train landmarks and 1 index landmark.")
    if p.train_photos < 2 * p.train_landmarks:
        raise LandmarkRetrievalError(
            f"{p.train_photos} train photos are too few for {p.train_landmarks} landmarks: at least 2 each."
        )
    if round(p.index_photos * (1 - _INDEX_NOTHING)) < p.index_landmarks:
        raise LandmarkRetrievalError(
            f"{p.index_photos} index photos are too few for {p.index_landmarks} landmarks: at least 1.5 each."
        )
    if int(p.test_photos * _TEST_UNSEEN) < p.index_landmarks:
        raise LandmarkRetrievalError(
            f"{p.test_photos} test photos are too few for {p.index_landmarks} landmarks: at least 2 each."
        )
    if p.seed < 0:
        raise LandmarkRetrievalError(f"The seed must not be negative, and {p.seed} is.")


def plan(p: Parameters) -> Plan:
    """Lay out a data set.

    Raises:
        LandmarkRetrievalError: the numbers of photos and landmarks do not fit together.
    """
    _check(p)
    rng = np.random.default_rng([p.seed, 1])
    train = landmark_specs(p.seed, p.train_landmarks)
    # pairs of near-twins stay on one side
    unseen = landmark_specs(p.seed, p.index_landmarks, first=p.train_landmarks + p.train_landmarks % 2)
    numbers = sorted(int(n) for n in rng.choice(_CLASSES, p.train_landmarks, replace=False))
    train_ids = dict(zip(train, numbers, strict=True))

    shown: list[tuple[str, LandmarkSpec | None, int | None]] = []
    counts = rng.permutation(_long_tail(p.train_photos, p.train_landmarks))
    for spec, count in zip(train, counts, strict=True):
        shown += [("train", spec, train_ids[spec])] * int(count)
    wrong = rng.choice(p.train_photos, max(1, round(_WRONG_LABELS * p.train_photos)), replace=False)
    for order, position in enumerate(wrong):
        split, right, label = shown[position]
        others = [other for other in train if other != right]
        shown[position] = (split, others[int(rng.integers(len(others)))] if order % 2 else None, label)
    nothing = round(_INDEX_NOTHING * p.index_photos)
    for hidden, count in zip(unseen, _spread(rng, p.index_photos - nothing, len(unseen), 1), strict=True):
        shown += [("index", hidden, None)] * count
    shown += [("index", None, None)] * nothing
    queries, recognised = int(_TEST_UNSEEN * p.test_photos), int(_TEST_TRAIN * p.test_photos)
    for hidden, count in zip(unseen, _spread(rng, queries, len(unseen), 1), strict=True):
        shown += [("test", hidden, None)] * count
    shown += [("test", train[int(rng.integers(len(train)))], None) for _ in range(recognised)]
    shown += [("test", None, None)] * (p.test_photos - queries - recognised)

    photos = []
    for number, (split, shows, label) in enumerate(shown):
        name = hashlib.sha256(f"{p.seed}/{split}/{number}".encode()).hexdigest()[:16]
        photos.append(Photo(name, split, shows, label, (p.seed, 2, number)))
    shuffled = [photos[int(i)] for i in rng.permutation(len(photos))]

    clean: dict[int, list[str]] = {}
    tail = sorted(train, key=lambda spec: sum(photo.label == train_ids[spec] for photo in photos))
    dropped = {train_ids[spec] for spec in tail[: len(train) // 8]}
    for photo in shuffled:
        if (
            photo.label is None
            or photo.label in dropped
            or photo.shows is None
            or train_ids[photo.shows] != photo.label
        ):
            continue
        if rng.random() < _CLEAN_PART:
            clean.setdefault(photo.label, []).append(photo.id)
    return Plan(shuffled, train_ids, dict(sorted(clean.items())))
