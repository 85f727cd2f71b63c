"""Whether tensors are those of a model, and if not, in what they differ and whose they may be."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landmark_retrieval import models
from landmark_retrieval.zoo.registry import ARCHITECTURES

# names that tell where tensors come from; the first that fits counts
_CONVERT = "convert them with `landmark-retrieval zoo convert FILE --source"
_MARKS = {
    "globalmodel.": f"they are those of feymanpriv/DOLG: {_CONVERT} feymanpriv_dolg --model dolg_resnet50` (or 101)",
    "mam.": f"they are those of DOLG by Henkel 2021: {_CONVERT} henkel2021 --model dolg_efficientnet_b5` (or b6, b7)",
    "backbone.patch_embed.": f"they are those of Hybrid-Swin by Henkel 2021: {_CONVERT} henkel2021 --model hybrid_...`",
}
_CLASSES = {
    "patch_embedding.": "HybridSwinNet",
    "neck.weight": "DOLGResNet",
    "attention.": "DOLGNet",
    "global_pool.": "GeMNet",
}


def misfit(state: Mapping[str, Tensor], model: nn.Module, left_over: Sequence[str] = ()) -> str | None:
    """What keeps `model.load_state_dict(state, strict=True)` from working, with the first names; None if nothing.

    Args:
        state: name -> tensor.
        model: that they should be for.
        left_over: tensors besides, that nobody knows what to do with.
    """
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    missing = [key for key in wanted if key not in state]
    left_over = [*left_over, *(key for key in state if key not in wanted)]
    found = ((missing, "missing"), (left_over, "left over"), (other, "of another shape"))
    if not any(names for names, _ in found):
        return None
    return ", ".join(f"{len(names)} tensors {what}{_first(names)}" for names, what in found if names)


def guess(state: Mapping[str, Tensor], **arguments: Any) -> str:
    """Whose the tensors may be, as advice.

    Args:
        state: in the names of this package or of a source that can be converted.
        arguments: of the constructor, that the model would be built with besides its own.
    """
    if advice := next((advice for mark, advice in _MARKS.items() if any(key.startswith(mark) for key in state)), None):
        return advice
    kind = next((kind for mark, kind in _CLASSES.items() if any(key.startswith(mark) for key in state)), None)
    for architecture in ARCHITECTURES.values():
        if architecture.model == kind:
            with torch.device("meta"):
                candidate = getattr(models, kind)(**{**architecture.arguments, **arguments})
            if misfit(state, candidate) is None:
                return f"they fit {architecture.name}: name that model"
    if kind:
        return f"they look like a {kind} with other arguments: give those it was made with"
    return "they are those of no model of this package: name another file"


def _first(names: list[str], at_most: int = 3) -> str:
    return f" ({', '.join(names[:at_most])}{', ...' if len(names) > at_most else ''})"
