"""Steps whose loss or gradient is not a finite number: left out and counted, without making the host wait."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from landmark_retrieval.files import replacing


class StepGuard:
    """Leaves out bad steps: weights, optimizer state and BatchNorm statistics stay as they were before them.

    A step is bad if its loss, or the norm of its gradients (in float32), is not a finite number, in any process. All of
    it is arithmetic on the device; only `in_a_row` and `skipped` are to be looked at, now and then.

    Attributes:
        skipped: bad steps so far, a float32 scalar.
        in_a_row: bad steps since the last good one, a float32 scalar.
        bad_loss: whether a loss of this step, in this process, was not finite.
        norm: of the last step's gradients, multiplied by the loss scale under float16.
    """

    def __init__(self) -> None:
        self.skipped, self.in_a_row, self.norm = torch.zeros(()), torch.zeros(()), torch.zeros(())
        self.bad_loss = torch.zeros((), dtype=torch.bool)
        self._before: list[tuple[Tensor, Tensor]] = []

    def before_step(self, batchnorms: Mapping[str, Any], device: torch.device) -> None:
        """Remember the statistics that the forward pass will change, at the first batch of a step."""
        self._before = [
            (statistics, statistics.clone())
            for norm in batchnorms.values()
            if norm.training
            for statistics in (norm.running_mean, norm.running_var)
        ]
        self.skipped, self.in_a_row = self.skipped.to(device), self.in_a_row.to(device)
        self.bad_loss = torch.zeros((), dtype=torch.bool, device=device)

    def see_loss(self, loss: Tensor) -> None:
        """Take in the loss of a batch."""
        self.bad_loss = self.bad_loss | ~loss.detach().isfinite()

    @torch.no_grad()
    def see_gradients(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Decide about the step, before the optimizer takes it; 1.0 if it is to be left out, a float32 scalar."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(self.skipped)
        bad = (self.bad_loss | ~self.norm.isfinite()).float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # a split head has gradients that only one process knows
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        for statistics, before in self._before:
            statistics.copy_(torch.where(bad.bool(), before, statistics))
        self._before = []
        self.skipped = self.skipped + bad
        self.in_a_row = (self.in_a_row + bad) * bad
        return bad

    def state_dict(self) -> dict[str, float]:  # noqa: D102
        return {"skipped": float(self.skipped), "in_a_row": float(self.in_a_row)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:  # noqa: D102
        self.skipped, self.in_a_row = torch.tensor(state["skipped"]), torch.tensor(state["in_a_row"])


def save_batch(folder: Path, name: str, images: Tensor, labels: Tensor, about: Mapping[str, Any]) -> None:
    """Write NAME.pt (images uint8 (B, S, S, 3), labels, and what is said about them) and NAME.png, its photos row by
    row."""
    images, labels = images.cpu(), labels.cpu()
    with replacing(folder / f"{name}.pt") as temporary:
        torch.save({**about, "images": images, "labels": labels}, temporary)
    columns = int(np.ceil(np.sqrt(len(images))))
    missing = -len(images) % columns
    tiles = np.concatenate([images.numpy(), np.zeros((missing, *images.shape[1:]), np.uint8)])
    rows = [np.concatenate(list(row), 1) for row in np.split(tiles, len(tiles) // columns)]
    sheet = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    with replacing(folder / f"{name}.png") as temporary:
        temporary.write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
