"""Sub-center ArcFace as one autograd function that goes through the classes chunk by chunk.

Neither the normalised weight nor the matrix of all cosines exists at any time: a chunk's cosines are computed, used and
thrown away, and computed again for the gradients. The margin touches the target of each row only.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ReduceOp, all_reduce

# of a chunk's weight, what a CPU's cache holds; of its weight and of its cosines, what a GPU can spare
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 8 << 20, 128 << 20


class Split(NamedTuple):
    """How the classes are dealt out: this process holds those from `first` on.

    Attributes:
        first: number of the first class that the weight belongs to.
        group: process group among which the classes are split, or None.
        world: number of processes in it.
        rank: of this process in it.
    """

    first: int = 0
    group: Any = None
    world: int = 1
    rank: int = 0


class ArcFaceLoss(torch.autograd.Function):
    """Mean cross-entropy of sub-center ArcFace: `apply(unit, weight, labels, margins, scale, sub_centers, split)`.

    unit: embeddings of unit length, float32 or float64 (B, D); of all processes, if the classes are split.
    weight: (C * sub_centers, D), any float type; the centers of class c follow each other.
    labels: int64 (B,), numbers of classes.
    margins: radians (B,), of each row's own class, in the dtype of `unit`.

    The loss is the mean over the rows of this process; the gradients are those of the sum of all processes' losses for
    `unit`, and of their mean for `weight`, as DistributedDataParallel would give them.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        unit: Tensor,
        weight: Tensor,
        labels: Tensor,
        margins: Tensor,
        scale: float,
        sub_centers: int,
        split: Split,
    ) -> Tensor:
        with without_autocast(unit):
            classes = len(weight) // sub_centers
            labels = labels - split.first
            own = (labels >= 0) & (labels < classes)
            rows, cosine = _target_cosines(unit, weight, labels.clamp(0, classes - 1), sub_centers)
            inverse_norms = torch.empty(len(weight), dtype=unit.dtype, device=unit.device)
            largest = torch.full((len(unit),), -math.inf, dtype=unit.dtype, device=unit.device)
            total = torch.zeros_like(largest)
            for chunk in _chunks(unit, weight, labels, sub_centers):
                inverse_norms[chunk.rows] = chunk.inverse_norms()
                nearest, _ = chunk.nearest(unit, inverse_norms[chunk.rows])
                logits = chunk.without_targets(nearest.mul_(scale))
                now = torch.maximum(largest, logits.amax(0))
                # a chunk of nothing but targets leaves -inf here, of which nothing may be subtracted
                finite = now.clamp(min=-1e30)
                total = total * (largest - finite).exp() + (logits - finite).exp_().sum(0)
                largest = now
            if split.group is not None:
                cosine = torch.where(own, cosine, torch.zeros_like(cosine))
                all_reduce(cosine, group=split.group)
                overall = largest.clone()
                all_reduce(overall, ReduceOp.MAX, group=split.group)
                total = total * (largest - overall.clamp(min=-1e30)).exp()
                all_reduce(total, group=split.group)
                largest = overall
            shifted, slope = with_margin(cosine, margins)
            target = scale * shifted
            peak = torch.maximum(largest, target)
            others = total * (largest - peak).exp()
            # log1p where the target leads: a confident row keeps its digits
            sums = others + (target - peak).exp()
            losses = torch.where(target == peak, others.log1p(), sums.log() + (peak - target))
            inverse_total = 1 / sums
        ctx.save_for_backward(
            unit, weight, labels, own, rows, cosine, slope, losses, peak, inverse_total, inverse_norms
        )
        ctx.scale, ctx.sub_centers, ctx.split = scale, sub_centers, split
        return losses.chunk(split.world)[split.rank].mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():  # with create_graph=True
            raise RuntimeError("The loss of SubCenterArcFace has no second derivative: leave out create_graph=True.")
        unit, weight, labels, own, rows, cosine, slope, losses, peak, inverse_total, inverse_norms = ctx.saved_tensors
        with without_autocast(unit):
            factor = grad.to(unit.dtype) * ctx.scale * ctx.split.world / len(unit)
            for_unit, for_weight = ctx.needs_input_grad[:2]
            unit_grad = torch.zeros_like(unit) if for_unit else None
            weight_grad = torch.empty_like(weight) if for_weight else None
            for chunk in _chunks(unit, weight, labels, ctx.sub_centers):
                inverse = inverse_norms[chunk.rows]
                nearest, which = chunk.nearest(unit, inverse)
                share = chunk.without_targets(nearest * ctx.scale).sub_(peak).exp_().mul_(factor * inverse_total)
                chunk.backward(share, nearest, which, unit, inverse, unit_grad, weight_grad)
            # the target of each row, the same for one center
            share = torch.where(own, torch.expm1(-losses) * slope * factor, torch.zeros_like(slope))
            inverse = inverse_norms[rows]
            center = weight[rows].to(unit.dtype) * inverse[:, None]
            if unit_grad is not None:
                unit_grad.addcmul_(center, share[:, None])
            if weight_grad is not None:
                away = torch.addcmul(unit, center, cosine[:, None], value=-1).mul_((share * inverse)[:, None])
                weight_grad.index_add_(0, rows, away.to(weight.dtype))
                if ctx.split.world > 1:
                    weight_grad.div_(ctx.split.world)
        return unit_grad, weight_grad, None, None, None, None, None


def with_margin(cosine: Tensor, margins: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine of the angle widened by the margin, and its derivative with respect to the cosine.

    `cos(theta + m)` where `cos(theta) > cos(pi - m)`, else `cos(theta) - m sin(pi - m)`, which keeps falling where the
    angle would pass pi. At |cos(theta)| = 1, where the slope has no bound, it is cos(m).

    Source: Deng et al. 2019 (ArcFace, arXiv 1801.07698), section 2, with the easy branch of its released code.
    """
    cosine = cosine.clamp(-1, 1)
    square = (1 - cosine) * (1 + cosine)  # keeps the digits that 1 - c^2 loses near 1
    sine = square.clamp(min=1e-30).sqrt()
    easy = cosine <= (math.pi - margins).cos()
    shifted = torch.where(
        easy, cosine - margins * (math.pi - margins).sin(), cosine * margins.cos() - sine * margins.sin()
    )
    steep = torch.where(square > 1e-30, cosine / sine * margins.sin(), torch.zeros_like(cosine))
    return shifted, torch.where(easy, torch.ones_like(cosine), margins.cos() + steep)


def without_autocast(x: Tensor) -> Any:
    """A context in which autocast leaves the dtypes of operations on the device of `x` alone."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def nearest_centers(unit: Tensor, weight: Tensor, sub_centers: int) -> Iterator[tuple[slice, Tensor]]:
    """Chunk by chunk: which classes, and the cosine of each row with their nearest centers, (classes, B)."""
    for chunk in _chunks(unit, weight, None, sub_centers):
        nearest, _ = chunk.nearest(unit, chunk.inverse_norms())
        yield chunk.classes, nearest


class _Chunk:
    """Some of the classes: their centers, and what is computed with them. Cosines stand as (centers, B)."""

    def __init__(self, first: int, count: int, weight: Tensor, labels: Tensor | None, sub_centers: int, dtype: Any):
        self.classes = slice(first, first + count)
        self.rows = slice(first * sub_centers, (first + count) * sub_centers)
        self.weight = weight[self.rows].to(dtype)
        self.sub_centers = sub_centers
        self.labels = None if labels is None else labels - first

    def inverse_norms(self) -> Tensor:
        """One over the length of each center, (centers,)."""
        return torch.linalg.vector_norm(self.weight, dim=1).clamp_(min=1e-12).reciprocal_()

    def nearest(self, unit: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine with the nearest center of each class, and which (the first of equal ones), both (classes, B)."""
        cosines = torch.mm(self.weight, unit.T).mul_(inverse[:, None])
        cosines = cosines.view(-1, self.sub_centers, len(unit))
        best, which = cosines[:, 0], torch.zeros(cosines[:, 0].shape, dtype=torch.uint8, device=unit.device)
        for k in range(1, self.sub_centers):
            which.masked_fill_(cosines[:, k] > best, k)
            best = torch.maximum(best, cosines[:, k])
        return best.contiguous(), which

    def without_targets(self, logits: Tensor) -> Tensor:
        """-inf where a row's own class stands, in place."""
        assert self.labels is not None
        here = (self.labels >= 0) & (self.labels < len(logits))
        place = self.labels.clamp(0, len(logits) - 1)[None]
        return logits.scatter_(0, place, logits.gather(0, place).masked_fill_(here[None], -math.inf))

    def backward(
        self,
        share: Tensor,
        nearest: Tensor,
        which: Tensor,
        unit: Tensor,
        inverse: Tensor,
        unit_grad: Tensor | None,
        weight_grad: Tensor | None,
    ) -> None:
        """Add the gradient of the embeddings and write that of these centers, where they are wanted.

        share: gradient of the loss with respect to the cosine with the nearest center of each class, (classes, B).
        """
        chosen = [which == k for k in range(self.sub_centers)]
        per_center = torch.stack([share * mask for mask in chosen], 1).view(-1, len(unit))
        per_center *= inverse[:, None]
        if unit_grad is not None:
            unit_grad.addmm_(per_center.T, self.weight)
        if weight_grad is None:
            return
        turned = nearest.mul_(share)
        along = torch.stack([(turned * mask).sum(1) for mask in chosen], 1).view(-1)
        out = weight_grad[self.rows]
        grad = torch.mm(per_center, unit, out=out if out.dtype == unit.dtype else None)
        # what lies along the center itself does not turn it: subtract (grad . w / |w|) w / |w|, where
        # grad . w / |w| is the sum of share times cosine, over |w|
        grad.addcmul_(self.weight, along.mul_(inverse.square())[:, None], value=-1)
        if grad is not out:
            out.copy_(grad)


def _chunks(unit: Tensor, weight: Tensor, labels: Tensor | None, sub_centers: int) -> Iterator[_Chunk]:
    classes = len(weight) // sub_centers
    cpu = unit.device.type == "cpu"
    most, width = (CPU_CHUNK_BYTES, weight.shape[1]) if cpu else (GPU_CHUNK_BYTES, max(weight.shape[1], len(unit)))
    size = max(1, most // (sub_centers * width * unit.element_size()))
    for first in range(0, classes, size):
        yield _Chunk(first, min(size, classes - first), weight, labels, sub_centers, unit.dtype)


def _target_cosines(unit: Tensor, weight: Tensor, labels: Tensor, sub_centers: int) -> tuple[Tensor, Tensor]:
    """The row of the weight that is nearest among those of each embedding's class, and the cosine with it."""
    centers = torch.arange(sub_centers, device=labels.device)
    rows = labels[:, None] * sub_centers + centers
    held = weight[rows].to(unit.dtype)
    inverse = torch.linalg.vector_norm(held, dim=2).clamp_(min=1e-12).reciprocal_()
    cosine, which = (torch.einsum("bd,bkd->bk", unit, held) * inverse).max(1)
    return rows.gather(1, which[:, None])[:, 0], cosine
