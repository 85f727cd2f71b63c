"""Margins that grow as classes get rarer."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def dynamic_margins(
    class_counts: Sequence[int] | np.ndarray | Tensor, scale: float = 0.45, floor: float = 0.05
) -> np.ndarray:
    """ArcFace margins by class frequency: `u = n^(-1/4)`, stretched so that they run from `floor` to `floor + scale`.

    Args:
        class_counts: number of training images per class, (C,), >= 0.
        scale: difference between the rarest and the most frequent class, radians.
        floor: margin of the most frequent class, radians.

    Returns:
        float64 (C,) in [floor, floor + scale]. A class without images gets the largest margin, and does not move the
        others. If all counts are equal there is no rare class, and every margin is the middle, floor + scale / 2.

    Raises:
        ValueError: no class, or a negative count.

    Source: Ha et al. 2020 (arXiv 2010.05350), section 3.2; Henkel 2021, section 2.3.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"class_counts is one number per class, not an array of shape {counts.shape}.")
    if not (counts >= 0).all():
        raise ValueError(
            f"Class {int(np.argmin(counts))} has {counts.min()} images; a count cannot be negative or NaN."
        )
    seen = counts > 0
    rarity = np.ones_like(counts)  # of classes without images: the largest
    if seen.any():
        u = np.sqrt(1 / np.sqrt(counts[seen]))
        spread = u.max() - u.min()
        rarity[seen] = (u - u.min()) / spread if spread > 0 else 0.5
    return rarity * scale + floor


def eased(step: int, steps: int, start: float = 0.0) -> float:
    """The share of the margins in use at a step: from `start` to 1 in a straight line over `steps` steps.

    A function of the step alone, so it is right again after a resume. 1 throughout if `steps` is 0.
    """
    return 1.0 if step >= steps else start + (1 - start) * step / steps
