"""Training augmentation, and the step from uint8 photos to what a model takes."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TrainingTransform:
    """The augmentation of Henkel 2021: uint8 RGB (H, W, 3) of any size -> uint8 (side, side, 3).

    Horizontal flip, JPEG compression, shift, scale and rotation with a black border, resize to a square, one cutout
    hole.
    Normalisation comes later, on the device (`normalize`). Source: Henkel 2021 (arXiv 2110.03786), section 2.3, and
    its code.
    """

    def __init__(self, side: int) -> None:
        # it asks the network for its newest version otherwise
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A
        import cv2

        self._compose = A.Compose(
            [
                A.HorizontalFlip(p=0.5),
                A.ImageCompression(quality_range=(99, 100), p=0.5),
                A.Affine(
                    translate_percent=(-0.2, 0.2),
                    scale=(0.8, 1.2),
                    keep_ratio=True,
                    rotate=(-10, 10),
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=0,
                    p=0.7,
                ),
                A.Resize(side, side, interpolation=cv2.INTER_AREA),
                # the released hole is 0.4 of the side around a random point, cut off where it leaves the image
                A.CoarseDropout(
                    num_holes_range=(1, 1), hole_height_range=(0.2, 0.4), hole_width_range=(0.2, 0.4), fill=0, p=0.5
                ),
            ]
        )

    def seed(self, *numbers: int) -> None:
        """Make the next draws depend on these numbers alone."""
        # one seed each: Compose would give all the same one, and flipped photos would always be shifted ones too
        seeds = np.random.SeedSequence(numbers).generate_state(len(self._compose.transforms))
        for transform, seed in zip(self._compose.transforms, seeds.tolist(), strict=True):
            transform.set_random_seed(seed)

    def __call__(self, image: np.ndarray) -> np.ndarray:  # noqa: D102
        return self._compose(image=image)["image"]


def normalize(
    images: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: Any = torch.float32,
) -> Tensor:
    """uint8 (B, H, W, 3) -> `(images / 255 - mean) / std` as float (B, 3, H, W), channels_last in memory, on the same
    device."""  # NHWC seen as NCHW is channels_last: no copy
    pixels = images.permute(0, 3, 1, 2).to(dtype)
    shift = torch.tensor(mean, dtype=dtype, device=images.device).view(1, 3, 1, 1) * 255
    scale = 1 / (torch.tensor(std, dtype=dtype, device=images.device).view(1, 3, 1, 1) * 255)
    return (pixels - shift) * scale
