"""Which of a class's sub-centers is the dominant one, how far images lie from it, and a head without the others.

The sub-centers that are not dominant collect wrongly labelled images while a head is trained. Afterwards the images far
from the dominant center, and the other centers, are dropped and the net is trained again.

Source: Deng et al. 2020, "Sub-center ArcFace" (ECCV 2020), section 3.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def center_cosines(embeddings: Tensor, labels: Tensor, weight: Tensor, sub_centers: int) -> Tensor:
    """Cosine of each embedding with the centers of its own class.

    Of a large training set, call it batch by batch: what it returns is small enough to be kept.

    Args:
        embeddings: (N, D), not necessarily normalised.
        labels: int64 (N,), numbers of classes in [0, C).
        weight: (C * sub_centers, D), of the head; the centers of a class follow each other.
        sub_centers: centers per class.

    Returns:
        float32 (N, sub_centers) in [-1, 1]; float64 for float64 embeddings.

    Raises:
        ValueError: shapes that do not fit each other, or a label outside [0, C).
    """
    centers = _by_class(weight, sub_centers)
    if embeddings.ndim != 2 or embeddings.shape[1] != centers.shape[2] or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"Embeddings (N, {centers.shape[2]}) and labels (N,) are needed, not {tuple(embeddings.shape)} and "
            f"{tuple(labels.shape)}."
        )
    _check_labels(labels, len(centers))
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    own = F.normalize(centers[labels].to(dtype), dim=2)
    return torch.einsum("nd,nkd->nk", F.normalize(embeddings.to(dtype)), own).clamp_(-1, 1)


def dominant_centers(cosines: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """How many images are nearest to each center, and for each class the center to which most are.

    Args:
        cosines: (N, sub_centers), of images with the centers of their own class; see `center_cosines`.
        labels: int64 (N,), numbers of classes in [0, num_classes).
        num_classes: number of classes C.

    Returns:
        counts: int64 (C, sub_centers). Counts of parts of a training set add up.
        dominant: int64 (C,) in [0, sub_centers), the first of equal ones. A class without images, whose counts are all
            0, has center 0.

    Raises:
        ValueError: shapes that do not fit each other, or a label outside [0, C).
    """
    if cosines.ndim != 2 or labels.shape != cosines.shape[:1]:
        raise ValueError(
            f"Cosines (N, sub_centers) and labels (N,) are needed, not {tuple(cosines.shape)} and "
            f"{tuple(labels.shape)}."
        )
    _check_labels(labels, num_classes)
    sub_centers = cosines.shape[1]
    counts = torch.bincount(labels * sub_centers + cosines.argmax(1), minlength=num_classes * sub_centers)
    counts = counts.view(num_classes, sub_centers)
    return counts, counts.argmax(1)


def drop_sub_centers(weight: Tensor, sub_centers: int, dominant: Tensor) -> Tensor:
    """The weight of a head with one center per class, the dominant one.

    Args:
        weight: (C * sub_centers, D), of a head with `sub_centers` centers per class.
        sub_centers: centers per class.
        dominant: int64 (C,) in [0, sub_centers), the center to keep of each class; see `dominant_centers`.

    Returns:
        (C, D), a copy in the dtype of `weight`: what `SubCenterArcFace(D, C, sub_centers=1).weight` takes.

    Raises:
        ValueError: shapes that do not fit each other, or a number outside [0, sub_centers).
    """
    centers = _by_class(weight.detach(), sub_centers)
    if dominant.shape != (len(centers),):
        raise ValueError(f"dominant is one number for each of {len(centers)} classes, not {tuple(dominant.shape)}.")
    if not ((dominant >= 0) & (dominant < sub_centers)).all():
        raise ValueError(f"dominant holds numbers of centers in [0, {sub_centers}).")
    return centers[torch.arange(len(centers), device=weight.device), dominant.to(weight.device)]


def _by_class(weight: Tensor, sub_centers: int) -> Tensor:
    if weight.ndim != 2 or sub_centers < 1 or len(weight) % sub_centers:
        raise ValueError(f"A weight of shape {tuple(weight.shape)} is not that of classes with {sub_centers} centers.")
    return weight.view(-1, sub_centers, weight.shape[1])


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"Labels run from {int(labels.min())} to {int(labels.max())}, there are {classes} classes.")
