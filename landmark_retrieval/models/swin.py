"""Swin's stages over a grid of features, gathered into one vector: by their mean, or by a virtual token."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, window_partition, window_reverse
from torch import Tensor, nn

from landmark_retrieval.models.checkpointing import run_block
from landmark_retrieval.models.imagenet import create_timm_model

PATCH = 4  # px, the side of the patches that Swin itself cuts an image into


class SwinStages(nn.Module):
    """The stages of a timm Swin Transformer with its last LayerNorm: grid (B, g, g, C) -> one vector (B, D).

    Without a token the vector is the mean of the last grid. With a virtual token (1, 1, C), which may be learned, it is
    what has become of the token: it joins the attention of every window of every block, its copies are averaged over
    the windows after each block, and patch merging sees four copies of it. It has no place in the grid, so the relative
    position bias from and to it is 0, and it needs no weights but those of Swin.

    Sources: Liu et al. 2021 (arXiv 2103.14030) for Swin; Henkel 2021 (arXiv 2110.03786), section 2.2, for the token.
    """

    def __init__(self, swin: SwinTransformer) -> None:
        super().__init__()
        self.layers = swin.layers
        self.norm = swin.norm
        self.channels = (swin.embed_dim, swin.num_features)  # C, D

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:  # noqa: D102
        if token is None:
            return self.norm(self.layers(x)).mean((1, 2))
        token = token.expand(x.shape[0], -1, -1).to(x.dtype)  # `len` would fix the batch size of an export
        stage: Any
        for stage in self.layers:
            x, token = _merge(stage.downsample, x, token)
            for block in stage.blocks:
                x, token = run_block(block, _attend_and_mix, x, token)
        return self.norm(token)[:, 0]


def create_swin(name: str, pretrained: bool, grid: int | None = None) -> SwinTransformer:
    """timm's Swin Transformer of that name without its classifier, for a grid of `grid` x `grid` patches.

    Raises:
        ValueError: no such architecture, or not a Swin Transformer (version 1).
        OSError: the ImageNet weights could not be had.
    """
    with torch.device("meta"):
        plain = create_timm_model(name, False, num_classes=0)
    if not isinstance(plain, SwinTransformer):
        raise ValueError(f"{name} is not a Swin Transformer: choose one, e.g. swin_base_patch4_window7_224.")
    sizes = {} if grid is None else {"img_size": grid * PATCH}
    return create_timm_model(name, pretrained, num_classes=0, **sizes)


def smallest_grid(name: str) -> int:
    """The side of the smallest grid that whole windows cover in every stage; its multiples fit too."""
    with torch.device("meta"):
        swin = create_swin(name, False)
    stages: Any = swin.layers
    grid: int = swin.patch_embed.grid_size[0]  # type: ignore[index, assignment]
    return max(stage.blocks[0].window_size[0] * (grid // stage.output_resolution[0]) for stage in stages)


def _merge(downsample: nn.Module, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(downsample, nn.Identity):
        return x, token
    copies = token.unsqueeze(1).expand(-1, 2, 2, -1)  # a 2 x 2 patch of nothing but the token
    return downsample(x), downsample(copies).flatten(1, 2)


def _attend_and_mix(block: Any, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """A Swin block on the grid (B, H, W, C) and the token (B, 1, C), with the block's own weights."""
    batch, height, width, _ = x.shape
    attended, copies = _attend(block, block.norm1(x), block.norm1(token))
    windows = copies.shape[1]
    joint = torch.cat([x.flatten(1, 2), token.expand(-1, windows, -1)], 1)
    joint = joint + block.drop_path1(torch.cat([attended.flatten(1, 2), copies], 1))
    joint = joint + block.drop_path2(block.mlp(block.norm2(joint)))
    grid, copies = joint.split([height * width, windows], 1)
    return grid.reshape(batch, height, width, -1), copies.mean(1, keepdim=True)


def _attend(block: Any, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Attention within the (shifted) windows and a copy of the token in each: the grid, (B, windows, C) copies."""
    batch, height, width, channels = x.shape
    shift, attention = block.shift_size, block.attn
    if any(shift):
        x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    windows = window_partition(x, block.window_size).view(batch, -1, block.window_area, channels)
    copies = token.unsqueeze(1).expand(-1, windows.shape[1], -1, -1)
    qkv = attention.qkv(torch.cat([windows, copies], 2)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, area + 1, C / heads)
    bias = attention._get_rel_pos_bias()  # (1, heads, area, area)
    if block.attn_mask is not None:
        bias = bias + block.attn_mask.unsqueeze(1)  # (windows, heads, area, area)
    weights = (query * attention.scale @ key.mT + F.pad(bias, (0, 1, 0, 1))).softmax(-1)
    mixed = (attention.attn_drop(weights) @ value).transpose(2, 3).flatten(3)
    mixed = attention.proj_drop(attention.proj(mixed))
    patches, copies = mixed.split([block.window_area, 1], 2)
    patches = patches.reshape(-1, *block.window_size, channels)
    x = window_reverse(patches, block.window_size, height, width)
    if any(shift):
        x = torch.roll(x, shift, (1, 2))
    return x, copies.flatten(1, 2)
