"""Where the time of the input goes, step by step."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import cv2
import numpy as np
import torch

from landmark_retrieval.data.augmentation import training_transform
from landmark_retrieval.data.batches import TrainingBatches, loader
from landmark_retrieval.data.decode import BrokenPhotoError, covering_scale, decode_stored
from landmark_retrieval.data.headers import read_header
from landmark_retrieval.data.mixture import Mixture
from landmark_retrieval.data.transforms import normalize
from landmark_retrieval.errors import LandmarkRetrievalError


@dataclass(frozen=True)
class InputTimes:
    """What `measure_input` found.

    Attributes:
        steps: milliseconds per photo of each step, in the order in which they come.
        alone: photos per second of one process that does all of them.
        workers: decoding processes of the loader.
        loaded: photos per second that come out of the loader, to the device.
        photos: that were measured.
        broken: of those, photos that cannot be decoded.
        bytes_per_photo: encoded, in the middle.
    """

    steps: dict[str, float]
    alone: float
    workers: int
    loaded: float
    photos: int
    broken: int
    bytes_per_photo: float


def measure_input(
    source: Mixture,
    side: int,
    batch_size: int = 64,
    batches: int = 20,
    workers: int = 2,
    transforms: str = "fast",
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> InputTimes:
    """Time the way from shards to batches on a device.

    Args:
        source: labelled photos.
        side: of the square images, pixels.
        batch_size: photos.
        batches: to measure, at least 1; the first one of the loader warms up.
        workers: decoding processes of the loader.
        transforms: name of the augmentation, see `augmentation.training_transform`.
        device: "cuda", "cpu", ...; a GPU where there is one if None.
        say: receives a sentence about each part.

    Raises:
        LandmarkRetrievalError: fewer than two batches; as `batches.TrainingBatches`.
    """
    made = TrainingBatches(source, side, batch_size, transforms=transforms)
    batches = min(batches, len(made) - 1)
    if batches < 1:
        raise LandmarkRetrievalError(
            f"There is nothing to time: {source} makes {len(made)} batches of {batch_size}, of which at least 2 are "
            "needed. Set a smaller --batch-size, and --batches above 0."
        )
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # of another epoch than the loader's: it should not find what has just been read
    numbers = source.plan(0, 1).at(np.arange(batches * batch_size)).tolist()
    say(f"{len(numbers):,} photos one by one ...")
    with _one_thread():
        steps, sizes, broken = _one_by_one(source, numbers, side, transforms)
        image = torch.zeros(batch_size, side, side, 3, dtype=torch.uint8)
        steps["to the device, normalised"] = 1e3 * _seconds_on(target, image) / batch_size
    alone = 1e3 / sum(steps.values())
    say(f"{len(numbers):,} photos through a loader with {workers} workers ...")
    loaded = _loaded(made, workers, batches, target)
    return InputTimes(steps, alone, workers, loaded, len(numbers), broken, float(np.median(sizes)))


def _one_by_one(
    source: Mixture, numbers: list[int], side: int, transforms: str
) -> tuple[dict[str, float], list[int], int]:
    """Milliseconds per photo of each step, bytes of each photo, and how many are broken."""
    transform = training_transform(transforms, side)
    reading, decoding, whole = [], [], []
    sizes, broken = [], 0
    for number in numbers:
        started = time.perf_counter()
        photo, _ = source.labelled(number)
        read = time.perf_counter()
        sizes.append(len(photo.data))
        try:
            header = read_header(photo.data)
            decode_stored(photo.data, header, covering_scale(side / min(header.height, header.width)), channels=4)
            decoded = time.perf_counter()
            transform(photo.data, (0, 0, number))
        except BrokenPhotoError:
            broken += 1
            continue
        reading.append(read - started)
        decoding.append(decoded - read)
        whole.append(time.perf_counter() - decoded)
    if not whole:
        return {}, sizes, broken
    read, decoded, made = (1e3 * fmean(times) for times in (reading, decoding, whole))
    return {"reading": read, "decoding": decoded, "augmenting": max(0.0, made - decoded)}, sizes, broken


def _seconds_on(device: torch.device, images: torch.Tensor) -> float:
    pinned = images.pin_memory() if device.type == "cuda" else images
    for turn in range(4):  # the first one warms up
        if turn == 1:
            _wait(device)
            started = time.perf_counter()
        normalize(pinned.to(device, non_blocking=True))
    _wait(device)
    return (time.perf_counter() - started) / 3


def _loaded(made: TrainingBatches, workers: int, batches: int, device: torch.device) -> float:
    """Photos per second from the first batch on."""
    count, started = 0, 0.0
    for batch in islice(loader(made, workers, device.type == "cuda"), batches + 1):
        normalize(batch["images"].to(device, non_blocking=True))
        if started:
            count += len(batch["labels"])
        else:
            started = time.perf_counter()
    _wait(device)
    return count / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker, where each photo has one thread."""
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
