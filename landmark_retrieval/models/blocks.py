"""The building blocks of DOLG: GeM pooling, dilated convolutions, spatial attention, orthogonal fusion, the neck.

What must not overflow or lose digits (powers, norms, projections) is computed in at least float32, also under autocast.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fusion = Literal["orthogonal", "released2021"]

SMALLEST_SIDE = 32  # the stride of the deepest feature map
LARGEST_VALUE = (
    20.0  # no normalisation in use leaves values beyond it, no photo of 0 to 255 but a black one stays below
)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself if it is float32 or float64, else as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def without_autocast(x: Tensor) -> Any:
    """A context in which autocast leaves the dtypes of operations on the device of `x` alone."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


class GeM(nn.Module):
    """Generalized-mean pooling, `mean(max(x, eps)^p)^(1/p)` over the positions, with a learnable p.

    (B, C, h, w) -> (B, C). Source: Radenovic et al. 2018, "Fine-tuning CNN image retrieval with no human annotation",
    section 3.2.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), float(p)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        with without_autocast(x):
            return at_least_float32(x).clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)


class MultiAtrous(nn.Module):
    """Three dilated 3x3 convolutions side by side, joined by a 1x1 convolution and ReLU.

    (B, in_channels, h, w) -> (B, out_channels, h, w). Source: DOLG (Yang et al. 2021), section 3.2, in the form of
    Henkel 2021: no image-pooling branch, no branch of its own for 1x1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dilations: Sequence[int], hidden_channels: int = 512
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=d, dilation=d) for d in dilations
        )
        self.join = nn.Conv2d(hidden_channels * len(dilations), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return F.relu(self.join(torch.cat([branch(x) for branch in self.branches], 1)))


class AtrousPyramid(nn.Module):
    """Image average, 1x1 and three dilated 3x3 convolutions side by side, joined by a 1x1 convolution and ReLU.

    (B, in_channels, h, w) -> (B, out_channels, h, w). Source: DOLG (Yang et al. 2021), section 3.2, with the channels
    and dilations of its released code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int] = (6, 12, 18),
        hidden_channels: int = 512,
    ) -> None:
        super().__init__()
        self.pool = nn.Conv2d(in_channels, hidden_channels, 1)
        self.point = nn.Conv2d(in_channels, hidden_channels, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=d, dilation=d) for d in dilations
        )
        self.join = nn.Conv2d(hidden_channels * (2 + len(dilations)), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        average = F.relu(self.pool(x.mean((2, 3), keepdim=True))).expand(-1, -1, *x.shape[2:])
        return F.relu(self.join(torch.cat([average, self.point(x), *(branch(x) for branch in self.branches)], 1)))


class SpatialAttention(nn.Module):
    """L2-normalised features and how much each position counts.

    (B, C, h, w) -> features (B, C, h, w) with unit length at each position, weights (B, 1, h, w) >= 0.
    Source: DOLG (Yang et al. 2021), section 3.2: the features are normalised before the ReLU, the weights see them
        after it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        x = self.norm(self.project(x))
        weights = F.softplus(self.score(F.relu(x)))
        return F.normalize(at_least_float32(x), dim=1), weights


class OrthogonalFusion(nn.Module):
    """Join a global descriptor with the part of the local features that is orthogonal to it.

    Local features averaged over the positions (B, C) and global descriptor (B, C) -> (B, 2C), [orthogonal part,
    global].
    The projection is linear, so projecting the average equals averaging the projections and the (B, 2C, h, w) map of
    the papers is never built. Source: DOLG (Yang et al. 2021), section 3.3.

    Args:
        mode: "orthogonal" subtracts (l.g / |g|^2) g, as both papers say. "released2021" divides by |g| alone, as the
            released code of Henkel 2021 does; its result is not orthogonal, it is here for checkpoints trained that
            way.
    """

    def __init__(self, mode: Fusion = "orthogonal") -> None:
        super().__init__()
        if mode not in ("orthogonal", "released2021"):
            raise ValueError(f"fusion is 'orthogonal' or 'released2021', not {mode!r}.")
        self.mode = mode

    def forward(self, local: Tensor, global_: Tensor) -> Tensor:  # noqa: D102
        with without_autocast(local):
            local, global_ = at_least_float32(local), at_least_float32(global_)
            direction = F.normalize(global_, dim=1)  # unit vector; 0 where the global descriptor is 0
            along = (local * direction).sum(1, keepdim=True)
            projection = along * (direction if self.mode == "orthogonal" else global_)
            return torch.cat([local - projection, global_], 1)

    def extra_repr(self) -> str:  # noqa: D102
        return f"mode={self.mode!r}"


def neck(in_features: int, embedding_dim: int) -> nn.Sequential:
    """Linear, BatchNorm, PReLU: (B, in_features) -> (B, embedding_dim). Source: Henkel 2021, section 2.1."""
    return nn.Sequential(nn.Linear(in_features, embedding_dim), nn.BatchNorm1d(embedding_dim), nn.PReLU())


def is_neck(module: object) -> TypeGuard[nn.Sequential]:
    """Whether a module is one that `neck` has made."""
    kinds = (nn.Linear, nn.BatchNorm1d, nn.PReLU)
    return isinstance(module, nn.Sequential) and tuple(map(type, module)) == kinds


@torch.no_grad()
def linear_neck(weight: Tensor, bias: Tensor) -> nn.Sequential:
    """A neck that, in eval mode, computes `weight @ x + bias`: (B, in_features) -> (B, D) for weight (D, in_features).

    Its BatchNorm and PReLU let everything through.
    """
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    norm, activation = nn.BatchNorm1d(weight.shape[0]), nn.PReLU()
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    norm.weight.fill_((1 + norm.eps) ** 0.5)
    activation.weight.fill_(1.0)
    return nn.Sequential(linear, norm, activation).eval()


def check_images(images: Tensor, training: bool, side: int | None = None) -> None:
    """Refuse what is not a batch of normalised RGB images.

    Args:
        images: float (B, 3, H, W), each side at least 32 px.
        training: whether the network is in training mode. The range of values is not looked at in training on a GPU,
            which would have to wait for it.
        side: the one side that the network takes; any if None.

    Raises:
        ValueError: other shape, type or side, or values far outside of what ImageNet's mean and standard deviation
            leave (about -2.2 to 2.7), as an image of 0 to 255 has them.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"Expected normalised float images of shape (B, 3, H, W), got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    height, width = images.shape[2:]
    if side is not None and (height, width) != (side, side):
        raise ValueError(f"This network takes images of {side} x {side} px, not {height} x {width}: resize them.")
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(f"Images of {height} x {width} px are too small: at least {SMALLEST_SIDE} px a side.")
    if torch.compiler.is_compiling() or images.device.type == "meta" or (training and images.device.type != "cpu"):
        return
    if images.numel() and images.detach().abs().amax() > LARGEST_VALUE:
        raise ValueError(
            f"The images hold values up to {images.detach().abs().amax():.0f}: give (pixels / 255 - mean) / std, with "
            "ImageNet's mean and std, not pixels of 0 to 255."
        )
