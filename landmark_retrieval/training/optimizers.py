"""The optimizer of a stage, and what it holds: nothing but the parameters that train in this epoch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from landmark_retrieval.errors import LandmarkRetrievalError

KINDS = ("adam", "sgd")


def make_optimizer(
    kind: str, groups: Sequence[dict[str, Any]], weight_decay: float, momentum: float = 0.0, fused: bool = True
) -> torch.optim.Optimizer:
    """Adam (Henkel 2021, section 2.3) or SGD with momentum (Yang et al. 2021, section 4.1).

    Args:
        kind: "adam" or "sgd".
        groups: `params`, possibly none, and `lr` of each group.
        weight_decay: of all groups.
        momentum: of SGD.
        fused: one kernel for all parameters, and `found_inf`, by which a step is left out without a look at its value.

    Raises:
        LandmarkRetrievalError: another kind, or a momentum for Adam.
    """
    if kind not in KINDS:
        raise LandmarkRetrievalError(f"optimizer.kind is {' or '.join(KINDS)}, not {kind!r}.")
    if kind == "sgd":
        optimizer: Any = torch.optim.SGD(list(groups), momentum=momentum, weight_decay=weight_decay, fused=fused)
        for group in optimizer.param_groups:
            _start_momentum(optimizer, group)
        return optimizer
    if momentum:
        raise LandmarkRetrievalError("optimizer.momentum is of optimizer.kind=sgd; Adam has its own: leave it out.")
    return torch.optim.Adam(list(groups), weight_decay=weight_decay, fused=fused)


def hold(optimizer: torch.optim.Optimizer, groups: Sequence[Sequence[nn.Parameter]]) -> None:
    """Let an optimizer hold these parameters, group by group, in place.

    Those that it held before keep their state, new ones begin without any, and those that it lets go lose theirs.
    """
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = list(parameters)
        _start_momentum(optimizer, group)
    held = {id(parameter) for parameter in held_by(optimizer)}
    for parameter in list(optimizer.state):
        if id(parameter) not in held:
            del optimizer.state[parameter]


def held_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that an optimizer holds, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _start_momentum(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """At zero, from where the first step is that of torch: left to itself, a first step that is left out would leave
    what was in the memory."""
    if isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
        for parameter in group["params"]:
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
