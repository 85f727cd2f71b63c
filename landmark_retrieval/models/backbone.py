"""Convolutional feature maps from timm."""

from typing import Any

from torch import nn

from landmark_retrieval.models.imagenet import create_timm_model


def create_feature_backbone(name: str, pretrained: bool, stem_stride: int = 2) -> Any:
    """The last two feature maps of a timm convolutional network.

    Returns a module: (B, 3, H, W) -> [(B, C1, H/16, W/16), (B, C2, H/32, W/32)] for the usual networks, with
    `feature_info.channels()` = [C1, C2]. With `stem_stride=1` both maps have twice the side.

    Args:
        name: a timm architecture that offers `features_only`.
        pretrained: see `create_timm_model`.
        stem_stride: 2, or 1 to drop the stride of the first convolution (Henkel 2021, section 2.3).

    Raises:
        ValueError: no such architecture, no convolutional feature maps, or another stride.
        OSError: the ImageNet weights could not be had.
    """
    if stem_stride not in (1, 2):
        raise ValueError(f"stem_stride is 1 or 2, not {stem_stride}.")
    try:
        backbone = create_timm_model(name, pretrained, features_only=True, out_indices=(-2, -1))
    except (AttributeError, RuntimeError) as error:  # how timm says that it has no features_only for this one
        raise ValueError(
            f"timm's {name} offers no features_only: choose a convolutional backbone ({error})."
        ) from error
    # attention backbones answer with (B, H, W, C) or (B, N, C), which the convolutions here would misread
    if getattr(backbone, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(f"{name} gives {backbone.output_fmt} feature maps: choose a convolutional backbone.")
    if stem_stride == 1:
        drop_stem_stride(backbone, name)
    return backbone


def drop_stem_stride(backbone: nn.Module, name: str) -> None:
    """Set the stride of the first convolution from 2 to 1, in place. ValueError if its stride is not 2."""
    stem = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is None or stem.stride != (2, 2):
        raise ValueError(f"stem_stride=1 needs a first convolution of stride 2; {name} has {stem}.")
    stem.stride = (1, 1)
