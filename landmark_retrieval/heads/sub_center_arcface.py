"""Sub-center ArcFace with a margin per class."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def arcface_logits(cosine: Tensor, labels: Tensor, margins: Tensor, scale: float) -> Tensor:
    """Scaled cosines with the margin added to the angle of each row's own class.

    `cos(theta + m)` where `cos(theta) > cos(pi - m)`, else `cos(theta) - m sin(pi - m)`, which keeps falling where the
    angle would pass pi. Finite everywhere, also for a cosine of exactly 1 or -1 and its gradient.

    Args:
        cosine: float32 or float64 (B, C), in [-1, 1] up to rounding.
        labels: int64 (B,), in [0, C).
        margins: (C,), radians in [0, pi).
        scale: > 0.

    Returns:
        (B, C) logits for a cross-entropy.

    Source: Deng et al. 2019 (ArcFace, arXiv 1801.07698), section 2, with the easy branch of its released code.
    """
    margin = margins[labels]
    target = cosine.gather(1, labels[:, None])[:, 0].clamp(-1, 1)
    # (1 - c)(1 + c) keeps the digits that 1 - c^2 loses near 1; the floor gives the square root a finite slope at 0
    sine = ((1 - target) * (1 + target)).clamp(min=1e-30).sqrt()
    shifted = target * margin.cos() - sine * margin.sin()
    fallback = target - margin * (math.pi - margin).sin()
    shifted = torch.where(target > (math.pi - margin).cos(), shifted, fallback)
    return scale * cosine.scatter(1, labels[:, None], shifted[:, None])


class SubCenterArcFace(nn.Module):
    """Embeddings and labels -> loss. Each class has several centers; the nearest one counts.

    Embeddings (B, embedding_dim), not necessarily normalised, and labels int64 (B,) -> mean cross-entropy, a scalar.
    Computed in float32 (float64 for float64 weights), also under autocast.

    Sources: Deng et al. 2020, "Sub-center ArcFace", section 3.2; Henkel 2021, section 2.3; Ha et al. 2020 (dynamic
        margins).

    Args:
        embedding_dim: length of the embeddings.
        num_classes: number of classes C.
        sub_centers: centers per class.
        scale: factor on the cosines.
        margins: radians in [0, pi): one for all classes, or one per class (see `dynamic_margins`).

    Attributes:
        weight: (num_classes * sub_centers, embedding_dim); the centers of class c are rows c * sub_centers and
            following.

    Raises:
        ValueError: margins of another length or outside [0, pi); embeddings or labels of another shape; on the CPU,
            where looking costs nothing, also labels outside [0, C).
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        sub_centers: int = 3,
        scale: float = 45.0,
        margins: float | Sequence[float] | np.ndarray | Tensor = 0.3,
    ) -> None:
        super().__init__()
        self.embedding_dim, self.num_classes, self.sub_centers, self.scale = (
            embedding_dim,
            num_classes,
            sub_centers,
            scale,
        )
        margins = torch.as_tensor(margins, dtype=torch.float64, device="cpu").detach()
        if margins.ndim and margins.shape != (num_classes,):
            raise ValueError(
                f"margins is one number or {num_classes}, one per class, not of shape {tuple(margins.shape)}."
            )
        if not ((margins >= 0) & (margins < math.pi)).all():
            raise ValueError("margins are radians in [0, pi).")
        # not a buffer: it follows the training set in use, not the weights, and keeps its digits whatever the dtype
        self.margins = margins.expand(num_classes).clone()
        self._margins_in_use: Tensor | None = None
        bound = 1 / math.sqrt(embedding_dim)
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centers, embedding_dim).uniform_(-bound, bound))

    def cosine(self, embeddings: Tensor) -> Tensor:
        """Cosine of each embedding with the nearest center of each class, (B, num_classes)."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(f"Expected embeddings of shape (B, {self.embedding_dim}), got {tuple(embeddings.shape)}.")
        with torch.autocast(embeddings.device.type, enabled=False):
            dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
            unit = F.normalize(embeddings.to(dtype))
            centers = F.normalize(self.weight.to(dtype))
            return (unit @ centers.T).view(len(unit), self.num_classes, self.sub_centers).max(-1).values

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(f"{len(embeddings)} embeddings need as many labels, got {tuple(labels.shape)}.")
        if (
            labels.device.type == "cpu"
            and len(labels)
            and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes
        ):
            raise ValueError(
                f"Labels run from {int(labels.min())} to {int(labels.max())}, the head has {self.num_classes} classes."
            )
        cosine = self.cosine(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.cross_entropy(arcface_logits(cosine, labels, self._margins_like(cosine), self.scale), labels)

    def _margins_like(self, cosine: Tensor) -> Tensor:
        held = self._margins_in_use
        if held is None or held.device != cosine.device or held.dtype != cosine.dtype:
            held = self._margins_in_use = self.margins.to(cosine.dtype).to(cosine.device)
        return held

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.embedding_dim}, {self.num_classes}, sub_centers={self.sub_centers}, scale={self.scale}"
