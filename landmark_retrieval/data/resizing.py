"""How photos get the size that a model's card asks for: squashed to a square, or in a shape of their own."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from landmark_retrieval.data.decode import resize as squash
from landmark_retrieval.errors import LandmarkRetrievalError

SQUASH = "squash"
RESIZES = (SQUASH, "longest_side", "shortest_side", "original")


class Resizing:
    """What the keys `resize` and `image_size` of a card do to photos.

    `resize` is "squash" (cards without the key): to a square of `image_size` px; "longest_side" or "shortest_side": to
    that length, the other side in proportion; "original": left as they are, or where `image_size` is given, those with
    a longer side scaled down to it. By area where photos shrink, bilinear where they grow.

    Args:
        card: of the model.

    Raises:
        LandmarkRetrievalError: another way to resize, or no image size where one is needed.
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        self.how = card.get("resize", SQUASH)
        self.size: int | None = card.get("image_size")
        if self.how not in RESIZES:
            raise LandmarkRetrievalError(
                f"Photos cannot be resized by {self.how!r}: the card's `resize` is one of {', '.join(RESIZES)}."
            )
        if (self.size is None and self.how != "original") or (self.size is not None and self.size < 1):
            raise LandmarkRetrievalError(
                f"An image size of {self.size} px is not possible with resize {self.how!r}: set at least 1."
            )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> (h, w, 3)."""
        if self.how == SQUASH:
            assert self.size is not None
            return squash(image, self.size)
        height, width = image.shape[:2]
        wanted = self.shape(height, width)
        if wanted == (height, width):
            return image
        shrinks = wanted[0] <= height and wanted[1] <= width
        return cv2.resize(image, wanted[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what becomes of a photo, each at least 1 px."""
        if self.size is None:
            return height, width
        if self.how == SQUASH:
            return self.size, self.size
        side = min(height, width) if self.how == "shortest_side" else max(height, width)
        if self.how == "original" and side <= self.size:
            return height, width
        return max(1, round(height * self.size / side)), max(1, round(width * self.size / side))
