"""What a submission takes: a table of its steps, with photos, operations and hours."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landmark_retrieval.columns import aligned
from landmark_retrieval.retrieval.extract import PART_SIZE
from landmark_retrieval.retrieval.members import Load, Photos, Wanted, card_of, folder_of, store_of
from landmark_retrieval.retrieval.parts import Parts
from landmark_retrieval.retrieval.views import views_of

# px, of photos that are described as they are
USUAL_SIDE = 1024


@dataclass(frozen=True)
class Machine:
    """What the hours are reckoned with.

    Attributes:
        cores: that decode.
        decoded_per_core: photos a second.
        network_tflops: 10^12 operations a second of the GPU in networks.
        product_tflops: the same in float32 matrix products.
        limit_hours: there are so many.
    """

    cores: int
    decoded_per_core: float
    network_tflops: float
    product_tflops: float
    limit_hours: float

    def describing(self, photos: int, operations: float) -> float:
        """Hours to describe photos: decoding and the network run side by side, the slower one counts."""
        decoding = photos / (self.cores * self.decoded_per_core)
        return max(decoding, photos * operations / (self.network_tflops * 1e12)) / 3600

    def products(self, rows: int, others: int, dim: int) -> float:
        """Hours for all dot products of two sets of rows."""
        return 2.0 * rows * others * dim / (self.product_tflops * 1e12) / 3600


def plan(wanted: Sequence[Wanted], load: Load, photos: Mapping[str, Photos], out: Path, dtype: str, on: Machine) -> str:
    """The steps of a submission as a table; descriptors that are finished are left out of the hours.

    Args:
        wanted: the models.
        load: how to load one.
        photos: the sets that are described.
        out: of the submission.
        dtype: of the descriptors.
        on: the machine.
    """
    table = [("model", "step", "photos", "to do", "GFLOP each", "hours")]
    total = 0.0
    dims = []
    for one in wanted:
        model, card = load(one.model)
        card = card_of(one, card)
        folder = folder_of(one, card, out)
        operations, dim = cost(model, card)
        dims.append(dim)
        for name, source in photos.items():
            left = len(source) - _done(store_of(folder, name, source, dtype), card, dtype, len(source))
            hours = on.describing(left, operations)
            total += hours
            table.append((one.model, name, f"{len(source):,}", f"{left:,}", f"{operations / 1e9:.1f}", f"{hours:.2f}"))
    steps = []
    if "index" in photos:
        if "train" in photos:
            steps = [("votes for test", "test", "train"), ("votes for index", "index", "train")]
        steps.append(("ranked lists", "test", "index"))
    else:
        steps = [("candidates", "test", "train")]
        if "non_landmark" in photos:
            steps += [("likeness to non-landmarks", name, "non_landmark") for name in ("train", "test")]
    for step, name, others in steps:
        hours = sum(on.products(len(photos[name]), len(photos[others]), dim) for dim in dims)
        total += hours
        table.append(("all", step, f"{len(photos[name]):,}", "", "", f"{hours:.2f}"))
    fits = "fits into" if total <= on.limit_hours else "does NOT fit into"
    lines = "\n".join(aligned(table, right=(2, 3, 4, 5)))
    return (
        f"{lines}\n\n{total:.1f} hours, which {fits} {on.limit_hours:g} h, reckoned with {on.cores} cores "
        f"that decode {on.decoded_per_core:g} photos/s each and a GPU of {on.network_tflops:g} TFLOP/s in networks and "
        f"{on.product_tflops:g} in matrix products (plan.*: set what yours does)."
    )


def cost(model: nn.Module, card: Mapping[str, Any]) -> tuple[float, int]:
    """Operations to describe one photo, all views of it, and the length of the descriptor. Nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    shape_only = copy.deepcopy(model).to("meta")
    side = int(card["image_size"] or USUAL_SIDE)
    image = torch.empty(1, 3, side, side, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        found = [shape_only(view) for view in views_of(image, card)]
    return float(counter.get_total_flops()), int(found[0].shape[1])


def _done(folder: Path, card: dict[str, Any], dtype: str, count: int) -> int:
    parts = Parts(folder, card, dtype, PART_SIZE)
    return count if parts.finished else min(count, len(parts.done()) * parts.part_size)
