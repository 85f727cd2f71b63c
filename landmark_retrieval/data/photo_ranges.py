"""Ranges of photos -> batches of uint8 images of any shape, for description, in DataLoader workers."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from landmark_retrieval.data.batches import Batch, PhotoSource, counted_part
from landmark_retrieval.data.decode import BrokenPhotoError
from landmark_retrieval.data.resizing import Resizing


class PhotoRanges(Dataset[Batch]):
    """The photos [first, stop) of a source as one batch: `ranges[first, stop, ahead]`.

    A batch is a dict: `first` and `stop`, `ids` list of b, `pixels` uint8, those of all b images one after the other,
    `shapes` list of b (height, width), and `broken`, a list of (id, reason) of the photos that cannot be decoded. See
    `images_by_shape`. `ahead` says up to which photo the next batches will go, for shards that lie elsewhere.

    Args:
        source: photos.
        resizing: what is done to each of them; boxes are cut out before.
    """

    def __init__(self, source: PhotoSource, resizing: Resizing) -> None:
        self.source, self.resizing = source, resizing

    def __getitem__(self, turn: tuple[int, int, int]) -> Batch:
        first, stop, ahead = turn
        self.source.prefetch(range(first, ahead))
        batch: Batch = {"first": first, "stop": stop, "ids": [], "shapes": [], "broken": []}
        pixels = [np.empty(0, np.uint8)]
        for photo in self.source.photos(first, stop):
            try:
                image = self.resizing(counted_part(photo))
            except BrokenPhotoError as error:
                batch["broken"].append((photo.id, str(error)))
                continue
            batch["ids"].append(photo.id)
            batch["shapes"].append(image.shape[:2])
            pixels.append(image.reshape(-1))
        # one tensor whatever the shapes: each tensor that a worker hands over takes an open file
        batch["pixels"] = torch.from_numpy(np.concatenate(pixels))
        return batch


def images_by_shape(batch: Batch, pixels: Tensor, at_most: int) -> Iterator[tuple[list[int], Tensor]]:
    """The images of a batch of `PhotoRanges` in groups of equal shape.

    Args:
        batch: from `PhotoRanges`.
        pixels: its pixels, on the device where the groups are wanted.
        at_most: pixels a group; an image that has more makes a group of its own.

    Yields:
        Which images of the batch they are, and uint8 (n, H, W, 3).
    """
    places: dict[tuple[int, int], list[int]] = {}
    for number, shape in enumerate(batch["shapes"]):
        places.setdefault(tuple(shape), []).append(number)
    starts = np.cumsum([0, *(height * width * 3 for height, width in batch["shapes"])]).tolist()
    for (height, width), numbers in places.items():
        size = max(1, at_most // (height * width))
        for group in (numbers[start : start + size] for start in range(0, len(numbers), size)):
            if group[-1] - group[0] + 1 == len(group):  # they lie one after the other: no copy
                yield group, pixels[starts[group[0]] : starts[group[-1] + 1]].view(-1, height, width, 3)
            else:
                images = [pixels[starts[number] : starts[number + 1]].view(height, width, 3) for number in group]
                yield group, torch.stack(images)
