"""Sub-center ArcFace with a margin per class."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmark_retrieval.heads.chunked import ArcFaceLoss, Split, nearest_centers, without_autocast
from landmark_retrieval.heads.margins import eased


class SubCenterArcFace(nn.Module):
    """Embeddings and labels -> loss. Each class has several centers; the nearest one counts.

    Embeddings (B, embedding_dim), not necessarily normalised, and labels int64 (B,) -> mean cross-entropy, a scalar.
    Computed in float32 (float64 for float64 weights), also under autocast, chunk by chunk of the classes: what it needs
    besides the weight and its gradient does not grow with the number of classes times the batch.

    Sources: Deng et al. 2020, "Sub-center ArcFace", section 3.2; Henkel 2021, section 2.3; Ha et al. 2020 (dynamic
        margins).

    Args:
        embedding_dim: length of the embeddings.
        num_classes: number of classes C.
        sub_centers: centers per class.
        scale: factor on the cosines.
        margins: radians in [0, pi): one for all classes, or one per class (see `dynamic_margins`).
        easy_steps: let the margins grow from `easy_start` of their size to the whole of it over so many steps; 0 for
            whole margins from the start. The trainer says which step it is (`at_step`).
        easy_start: in [0, 1].

    Attributes:
        weight: (num_classes * sub_centers, embedding_dim); the centers of class c are rows c * sub_centers and
            following.
        refuse_not_finite: on the CPU, whether embeddings that are not finite are an error, as they are by default, or
            give a loss that is not finite, as on a GPU.

    Raises:
        ValueError: margins of another length or outside [0, pi); an empty batch; embeddings or labels of another shape;
            on the CPU, where looking costs nothing, also labels outside [0, C) and embeddings that are not finite.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        sub_centers: int = 3,
        scale: float = 45.0,
        margins: float | Sequence[float] | np.ndarray | Tensor = 0.3,
        easy_steps: int = 0,
        easy_start: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding_dim, self.num_classes, self.sub_centers = embedding_dim, num_classes, sub_centers
        self.scale, self.easy_steps, self.easy_start = scale, easy_steps, easy_start
        self.refuse_not_finite = True
        margins = torch.as_tensor(margins, dtype=torch.float64, device="cpu").detach()
        if margins.ndim and margins.shape != (num_classes,):
            raise ValueError(
                f"margins is one number or {num_classes}, one per class, not of shape {tuple(margins.shape)}."
            )
        if not ((margins >= 0) & (margins < math.pi)).all():
            raise ValueError("margins are radians in [0, pi).")
        if easy_steps < 0 or not 0 <= easy_start <= 1:
            raise ValueError(f"easy_steps is at least 0 and easy_start in [0, 1], not {easy_steps} and {easy_start}.")
        # not a buffer: it follows the training set in use, not the weights, and keeps its digits whatever the dtype
        self.margins = margins.expand(num_classes).clone()
        self._margins_in_use: Tensor | None = None
        self._ease = eased(0, easy_steps, easy_start)
        bound = 1 / math.sqrt(embedding_dim)
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centers, embedding_dim).uniform_(-bound, bound))

    def at_step(self, step: int) -> None:
        """Take the margins of this step of the training, counted from 0."""
        self._ease = eased(step, self.easy_steps, self.easy_start)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        self._check(embeddings, labels)
        return self._loss(self._unit(embeddings), labels, Split())

    def cosine(self, embeddings: Tensor) -> Tensor:
        """Cosine of each embedding with the nearest center of each class, (B, num_classes); differentiable."""
        return self._cosine(embeddings, self.weight)

    @torch.no_grad()
    def nearest_class(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The class whose center is nearest: cosines (B,) and numbers of classes int64 (B,)."""
        unit = self._unit(embeddings)
        best = torch.full((len(unit),), -math.inf, dtype=unit.dtype, device=unit.device)
        label = torch.zeros(len(unit), dtype=torch.int64, device=unit.device)
        with without_autocast(unit):
            for classes, cosines in nearest_centers(unit, self.weight, self.sub_centers):
                value, place = cosines.max(0)
                label = torch.where(value > best, place + classes.start, label)
                best = torch.maximum(best, value)
        return best, label

    def full_weight(self) -> Tensor:
        """The weight of all classes, (num_classes * sub_centers, embedding_dim), wherever it lies."""
        return self.weight.detach()

    def _loss(
        self, unit: Tensor, labels: Tensor, split: Split, weight: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """The loss over the whole weight, or over some of it, where the label of each row stands at its place."""
        margins = self._margins_like(unit)[labels] * self._ease
        weight, places = (self.weight, labels) if weight is None else (weight, places)
        loss: Any = ArcFaceLoss.apply(unit, weight, places, margins, self.scale, self.sub_centers, split)
        return loss

    def _cosine(self, embeddings: Tensor, weight: Tensor) -> Tensor:
        unit = self._unit(embeddings)
        with without_autocast(unit):
            cosines = unit @ F.normalize(weight.to(unit)).T
        return cosines.view(len(unit), -1, self.sub_centers).max(-1).values

    def _unit(self, embeddings: Tensor) -> Tensor:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(f"Expected embeddings of shape (B, {self.embedding_dim}), got {tuple(embeddings.shape)}.")
        with without_autocast(embeddings):
            dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
            return F.normalize(embeddings.to(dtype))

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(f"{len(embeddings)} embeddings need as many labels, got {tuple(labels.shape)}.")
        if not len(labels):
            raise ValueError("There is no loss of an empty batch: leave it out.")
        if labels.device.type != "cpu":
            return
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"Labels run from {int(labels.min())} to {int(labels.max())}, the head has {self.num_classes} classes."
            )
        if self.refuse_not_finite and not embeddings.isfinite().all():
            bad = (~embeddings.isfinite().all(1)).nonzero()[0].item()
            raise ValueError(
                f"Embedding {bad} of the batch is not finite: lower the learning rate, or look at its photo."
            )

    def _margins_like(self, unit: Tensor) -> Tensor:
        held = self._margins_in_use
        if held is None or held.device != unit.device or held.dtype != unit.dtype:
            held = self._margins_in_use = self.margins.to(unit.dtype).to(unit.device)
        return held

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        self._check_rows(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _check_rows(self, state_dict: Any, prefix: str) -> None:
        held = state_dict.get(f"{prefix}weight")
        rows = self.num_classes * self.sub_centers
        if held is not None and len(held) != rows:
            raise ValueError(
                f"The checkpoint's head has {len(held)} centers, this one {rows} ({self.num_classes} classes of "
                f"{self.sub_centers}): to keep the rest of the checkpoint and start the head afresh, delete "
                f"{prefix}weight from it and load it with strict=False; a stage hands over by the names of its classes."
            )

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.embedding_dim}, {self.num_classes}, sub_centers={self.sub_centers}, scale={self.scale}"
