"""Gradient checkpointing: the blocks of a network are computed again in backward, instead of kept since forward.

Chen et al. 2016 (arXiv 1604.06174). What is kept of a block is its input alone. Outputs, gradients and BatchNorm
statistics are those without it: the second time draws the same random numbers, and counts for no statistics.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from timm.models import _efficientnet_blocks, convnext, regnet, resnet, swin_transformer
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

BLOCKS = (
    _efficientnet_blocks.DepthwiseSeparableConv,
    _efficientnet_blocks.InvertedResidual,
    _efficientnet_blocks.EdgeResidual,
    _efficientnet_blocks.UniversalInvertedResidual,
    _efficientnet_blocks.MobileAttention,
    resnet.BasicBlock,
    resnet.Bottleneck,
    regnet.Bottleneck,
    regnet.PreBottleneck,
    convnext.ConvNeXtBlock,
    swin_transformer.SwinTransformerBlock,
)


def checkpoint_blocks(network: nn.Module, enable: bool = True) -> None:
    """Let the blocks of a network be computed again in backward, or no longer, in place.

    Names, parameters and buffers stay as they are; a deep copy does as the original. Hooks on modules within a block
    are called twice a step. Without gradients, and in evaluation mode, nothing changes.

    Raises:
        ValueError: the network has none of the blocks that are known here, unless `enable` is false.
    """
    blocks = list(_blocks(network))
    if enable and not blocks:
        raise ValueError(
            f"There are no blocks to checkpoint in {type(network).__name__}: choose a backbone of the EfficientNet, "
            "MobileNetV3, ResNet, RegNet, ConvNeXt or Swin families, or leave gradient checkpointing off."
        )
    for block in blocks:
        if enable:
            # hides the class's own, so that no module is put around the block and names stay; a partial is copied and
            # pickled along with its block
            block.forward = partial(_forward, block)
        elif _is_checkpointed(block):
            del block.forward


def run_block(block: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(block, *inputs)`, computed again in backward if `checkpoint_blocks` has said so of the block."""
    if not _is_checkpointed(block) or not block.training or not torch.is_grad_enabled():
        return function(block, *inputs)
    # not reentrant: it takes inputs without gradients (after frozen layers), and DistributedDataParallel takes it
    if torch.compiler.is_compiling():  # writes statistics once, whatever is computed twice, and takes no context
        return checkpoint(function, block, *inputs, use_reentrant=False)
    return checkpoint(function, block, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))


def _is_checkpointed(block: nn.Module) -> bool:
    return getattr(vars(block).get("forward"), "func", None) is _forward


def _forward(block: nn.Module, *inputs: Any) -> Any:
    return run_block(block, type(block).forward, *inputs)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks: one within another would be computed a third time."""
    if isinstance(module, BLOCKS):
        yield module
        return
    for child in module.children():
        yield from _blocks(child)


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """Around the block in forward, and around it in backward."""
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorm in training updates others than its own statistics, which it then does not read."""
    held = [
        (module._buffers, dict(module._buffers))
        for module in block.modules()
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
    ]
    try:
        for buffers, own in held:
            # tensors, not None: autograd must find as many as in forward
            buffers.update({name: torch.zeros_like(value) for name, value in own.items() if value is not None})
        yield
    finally:
        for buffers, own in held:
            buffers.update(own)
