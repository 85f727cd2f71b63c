"""From uint8 photos to what a model takes, on its device."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(
    images: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: Any = torch.float32,
) -> Tensor:
    """uint8 (B, H, W, 3) -> `(images / 255 - mean) / std` as float (B, 3, H, W), channels_last in memory, on the same
    device."""  # NHWC seen as NCHW is channels_last: no copy
    pixels = images.permute(0, 3, 1, 2).to(dtype, copy=True)
    shift, scale = _constants(tuple(mean), tuple(std), dtype, images.device)
    # in place, in what `to` has made: two more copies of a batch would cost more than the arithmetic
    return pixels.sub_(shift).mul_(scale)


@lru_cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Kept on the device: to send them with each batch would make the host wait for what the device is at."""
    with torch.inference_mode(False):
        shift = torch.tensor(mean, dtype=dtype, device=device).view(1, 3, 1, 1) * 255
        scale = 1 / (torch.tensor(std, dtype=dtype, device=device).view(1, 3, 1, 1) * 255)
    return shift, scale
