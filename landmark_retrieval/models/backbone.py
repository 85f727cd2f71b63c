"""Convolutional feature maps from timm."""

from typing import Any

from torch import nn

from landmark_retrieval.models.imagenet import create_timm_model


def create_feature_backbone(
    name: str, pretrained: bool, stem_stride: int = 2, out_indices: tuple[int, ...] = (-2, -1)
) -> Any:
    """Feature maps of a timm convolutional network; what an EfficientNet has after the last of them is not kept.

    Returns a module: images (B, 3, H, W) -> one map (B, C, H/s, W/s) per index, with `feature_info.channels()` and,
    for a stem stride of 2, `feature_info.reduction()` saying C and s. With `stem_stride=1` the maps have twice the
    side.

    Args:
        name: a timm architecture that offers `features_only`.
        pretrained: see `create_timm_model`.
        stem_stride: 2, or 1 to drop the stride of the first convolution (Henkel 2021, section 2.3).
        out_indices: timm's numbers of the feature maps; the default is the last two, of strides 16 and 32.

    Raises:
        ValueError: no such architecture, no convolutional feature maps, or another stride.
        OSError: the ImageNet weights could not be had.
    """
    if stem_stride not in (1, 2):
        raise ValueError(f"stem_stride is 1 or 2, not {stem_stride}.")
    try:
        backbone = create_timm_model(name, pretrained, features_only=True, out_indices=out_indices)
    except (AttributeError, RuntimeError) as error:  # how timm says that it has no features_only for this one
        raise ValueError(
            f"timm's {name} offers no features_only: choose a convolutional backbone ({error})."
        ) from error
    # attention backbones answer with (B, H, W, C) or (B, N, C), which the convolutions here would misread
    if getattr(backbone, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(f"{name} gives {backbone.output_fmt} feature maps: choose a convolutional backbone.")
    if stem_stride == 1:
        drop_stem_stride(backbone, name)
    _drop_unused_stages(backbone)
    return backbone


def _drop_unused_stages(backbone: nn.Module) -> None:
    """Cut off what timm's EfficientNets build, and run, after the last feature map that is asked for."""
    last: str = backbone.feature_info.module_name()[-1]  # type: ignore[union-attr, operator]
    blocks = getattr(backbone, "blocks", None)
    if last.startswith("blocks.") and isinstance(blocks, nn.Sequential):
        backbone.blocks = blocks[: int(last.removeprefix("blocks.")) + 1]


def drop_stem_stride(backbone: nn.Module, name: str) -> None:
    """Set the stride of the first convolution from 2 to 1, in place. ValueError if its stride is not 2."""
    stem = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is None or stem.stride != (2, 2):
        raise ValueError(f"stem_stride=1 needs a first convolution of stride 2; {name} has {stem}.")
    stem.stride = (1, 1)
