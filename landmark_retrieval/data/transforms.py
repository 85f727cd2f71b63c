"""From uint8 photos to what a model takes, on its device."""

from collections.abc import Sequence
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
    shift = _on(images.device, mean, dtype) * 255
    scale = 1 / (_on(images.device, std, dtype) * 255)
    # in place, in what `to` has made: two more copies of a batch would cost more than the arithmetic
    return pixels.sub_(shift).mul_(scale)


def _on(device: torch.device, values: Sequence[float], dtype: torch.dtype) -> Tensor:
    """One number per channel; by way of pinned memory, or the host would wait for what the GPU is at."""
    constant = torch.tensor(values, dtype=dtype).view(1, 3, 1, 1)
    return (constant.pin_memory() if device.type == "cuda" else constant).to(device, non_blocking=True)
