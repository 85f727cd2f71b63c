"""The views of a photo that its descriptor is the mean of: several scales, and the mirror image."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from landmark_retrieval.data.resizing import SQUASH, Resizing
from landmark_retrieval.errors import LandmarkRetrievalError

DOLG_SCALES = (0.3535, 0.5, 0.7071, 1.0, 1.4142)
"""Of the original size; Yang et al. 2021 (arXiv 2108.02927) and their released code."""

VIEWS = "views"
SMALLEST_SIDE = 32  # px, of what networks take


def card_with_views(
    card: Mapping[str, Any], scales: Sequence[float] | None = None, flip: bool | None = None
) -> dict[str, Any]:
    """A card that says of which views a descriptor is made, so that others are never compared with it.

    Args:
        card: of the model, or of a store.
        scales: of the images that the model's card asks for; if None what the card says, or else the image itself.
        flip: whether each is described mirrored, too; if None what the card says, or else not.

    Returns:
        The card with `views`: {"scales": [...], "flip": ...}; without it where there is but the one view. `resize` is
        left out where it is what cards without it mean.

    Raises:
        LandmarkRetrievalError: no scale, or one that is not above 0.
    """
    said = card.get(VIEWS, {})
    chosen = [float(scale) for scale in (said.get("scales", [1.0]) if scales is None else scales)]
    mirrored = bool(said.get("flip", False) if flip is None else flip)
    if not chosen or not all(0 < scale < float("inf") for scale in chosen):
        raise LandmarkRetrievalError(f"Photos cannot be described at the scales {chosen}: give numbers above 0.")
    views = {VIEWS: {"scales": chosen, "flip": mirrored}} if chosen != [1.0] or mirrored else {}
    return {k: v for k, v in card.items() if k != VIEWS and (k, v) != ("resize", SQUASH)} | views


def card_as_asked(
    card: Mapping[str, Any],
    image_size: int | None = None,
    resize: str | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
) -> dict[str, Any]:
    """A card with other images than its own, where something is asked for.

    Args:
        card: of the model.
        image_size: px, see `Resizing`. With `resize` "original" instead of another way and no size, photos of any size
            are left as they are.
        resize: see `Resizing`.
        scales: see `card_with_views`.
        flip: see `card_with_views`.

    Raises:
        LandmarkRetrievalError: see `Resizing` and `card_with_views`.
    """
    changed = dict(card)
    if resize == "original" != card.get("resize", SQUASH):
        changed["image_size"] = None  # the side of a square says nothing about the largest photos
    changed |= {"resize": resize} if resize else {}
    changed |= {"image_size": image_size} if image_size is not None else {}
    Resizing(changed)
    return card_with_views(changed, scales, flip)


def views_of(images: Tensor, card: Mapping[str, Any]) -> Iterator[Tensor]:
    """The views of images (B, 3, H, W) that a card asks for: at each scale the image, then its mirror image.

    Scaled bilinearly, without smoothing, to round(H * scale) and round(W * scale) px as in the released code of DOLG;
    no side gets smaller than SMALLEST_SIDE.
    """
    views = card.get(VIEWS, {})
    for scale in views.get("scales", (1.0,)):
        size = [max(SMALLEST_SIDE, round(side * scale)) for side in images.shape[2:]]
        same = size == list(images.shape[2:])
        view = images if same else F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        yield view
        if views.get("flip"):
            yield view.flip(3)


def check_size(model: nn.Module, card: Mapping[str, Any]) -> None:
    """Refuse images of other sizes than the one size that some models are made for.

    Raises:
        LandmarkRetrievalError: the model takes one size only and the card asks for others; see also `Resizing`.
    """
    resizing, side = Resizing(card), getattr(model, "image_size", None)
    scales = card.get(VIEWS, {}).get("scales", [1.0])
    if side is not None and (resizing.how != SQUASH or resizing.size != side or scales != [1.0]):
        raise LandmarkRetrievalError(
            f"{type(model).__name__} is made for squares of {side} px; it cannot describe photos with resize "
            f"{resizing.how!r} at {resizing.size} px and the scales {scales}: use resize {SQUASH!r}, {side} px and one "
            "scale (flips are possible), or another model."
        )
