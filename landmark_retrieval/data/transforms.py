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
    pixels = images.permute(0, 3, 1, 2).to(dtype)
    shift = torch.tensor(mean, dtype=dtype, device=images.device).view(1, 3, 1, 1) * 255
    scale = 1 / (torch.tensor(std, dtype=dtype, device=images.device).view(1, 3, 1, 1) * 255)
    return (pixels - shift) * scale
