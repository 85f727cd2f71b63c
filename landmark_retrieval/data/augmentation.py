"""Encoded photos -> augmented square pictures for training: one recipe, made in two ways.

The recipe, of Henkel 2021 (arXiv 2110.03786), section 2.3, and its released code: flip left-right (half of the photos);
JPEG compression of quality 99 or 100 (half); shift by up to 0.2 of the width and height, scale by 0.8 to 1.2 and turn
by up to 10 degrees about the middle, black where nothing comes from the photo (7 of 10); squash to a square; one black
hole of 0.2 to 0.4 of the side (half). Normalisation comes later, on the device.

`AlbumentationsTransform` does these steps one after another on the whole photo. `FastTransform` decodes no more pixels
than needed and samples them once; it leaves out the compression, which at that quality does not show after the squash.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from landmark_retrieval.data.decode import covering_scale, decode, decode_stored, turns
from landmark_retrieval.data.headers import read_header
from landmark_retrieval.data.smoothing import smooth
from landmark_retrieval.errors import LandmarkRetrievalError

FLIP, MOVE, HOLE = 0.5, 0.7, 0.5
"""Shares of the photos that are flipped, that are shifted, scaled and turned, and that get a hole."""

SHIFT, SCALE, DEGREES, HOLE_SIDE = (-0.2, 0.2), (0.8, 1.2), (-10.0, 10.0), (0.2, 0.4)
"""Ranges drawn from evenly: shares of width and height, factor, degrees, shares of the side."""

TRANSFORMS = ("fast", "albumentations")
"""Names for `training_transform`."""


class TrainingTransform(Protocol):
    """Makes the training picture of a photo; can be pickled."""

    def __call__(self, data: bytes, seed: Sequence[int]) -> np.ndarray:
        """Decode and augment one photo.

        Args:
            data: a JPEG, PNG or WebP, encoded.
            seed: numbers of at least 0; all draws depend on them alone.

        Returns:
            uint8 (side, side, 3), RGB.

        Raises:
            BrokenPhotoError: not a whole photo.
        """
        ...


def training_transform(name: str, side: int) -> TrainingTransform:
    """One of TRANSFORMS by name, for pictures of `side` x `side` pixels.

    Raises:
        LandmarkRetrievalError: an unknown name.
    """
    if name == "fast":
        return FastTransform(side)
    if name == "albumentations":
        return AlbumentationsTransform(side)
    raise LandmarkRetrievalError(f"There is no training transform {name!r}: choose one of {', '.join(TRANSFORMS)}.")


@dataclass(frozen=True)
class Move:
    """Shift, scale and rotation about the middle of the upright photo.

    Attributes:
        shift_x: to the right, in widths of the photo.
        shift_y: down, in heights of the photo.
        scale: above 1 enlarges.
        degrees: counterclockwise.
    """

    shift_x: float
    shift_y: float
    scale: float
    degrees: float


@dataclass(frozen=True)
class Augmentation:
    """What was drawn for one picture.

    Attributes:
        flip: mirror left-right, before the move.
        move: None leaves the photo in place.
        hole: pixels (left, top, right, bottom) of the finished picture, right and bottom excluded; None for no hole.
    """

    flip: bool = False
    move: Move | None = None
    hole: tuple[int, int, int, int] | None = None


def draw(rng: np.random.Generator, side: int) -> Augmentation:
    """Draw an augmentation for a picture of `side` x `side` pixels: 11 numbers of `rng`, whatever comes out."""
    u = rng.random(11).tolist()
    move = hole = None
    if u[1] < MOVE:
        move = Move(_between(SHIFT, u[2]), _between(SHIFT, u[3]), _between(SCALE, u[4]), _between(DEGREES, u[5]))
    if u[6] < HOLE:
        height, width = int(side * _between(HOLE_SIDE, u[7])), int(side * _between(HOLE_SIDE, u[8]))
        top, left = int(u[9] * (side - height + 1)), int(u[10] * (side - width + 1))
        hole = (left, top, left + width, top + height)
    return Augmentation(u[0] < FLIP, move, hole)


def augment(data: bytes, augmentation: Augmentation, side: int) -> np.ndarray:
    """Decode a photo and apply what was drawn, in one sampling.

    A JPEG is decoded at the smallest fast scale that still has a pixel for every pixel of the picture, enlargement
    included. What then is still too fine for the picture is smoothed before it is sampled.

    Args:
        data: a JPEG, PNG or WebP, encoded.
        augmentation: what to do.
        side: of the square picture, pixels.

    Returns:
        uint8 (side, side, 3), RGB.

    Raises:
        BrokenPhotoError: not a whole photo.
    """
    header = read_header(data)
    across, mirror, invert = turns(header.orientation)
    height, width = (header.width, header.height) if across else (header.height, header.width)
    need = side * (augmentation.move.scale if augmentation.move else 1) / min(height, width)
    # with four bytes a pixel the sampling takes half the time that it takes with three
    image, scale = decode_stored(data, header, covering_scale(need), channels=4)

    # edges of pixels: those of the picture -> upright photo -> as it is stored -> as it is decoded
    path = _inverse(augmentation.move, width, height) @ np.diag((width / side, height / side, 1))
    if augmentation.flip != mirror:
        path = np.array(((-1, 0, width), (0, 1, 0), (0, 0, 1))) @ path
    if invert:
        path = np.array(((1, 0, 0), (0, -1, height), (0, 0, 1))) @ path
    if across:
        path = path[(1, 0, 2), :]
    image, path = smooth(image, path[:2] * (scale / 8), scale, moved=augmentation.move is not None)
    # edges -> centers, which is what pixels are counted by
    path[:, 2] += path[:, :2].sum(1) / 2 - 0.5
    sampled = cv2.warpAffine(
        image,
        path,
        (side, side),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        # without a move nothing lies outside, except half a pixel where the photo is smaller than the picture
        borderMode=cv2.BORDER_CONSTANT if augmentation.move else cv2.BORDER_REPLICATE,
    )
    picture = cv2.cvtColor(sampled, cv2.COLOR_RGBA2RGB)
    if augmentation.hole:
        left, top, right, bottom = augmentation.hole
        picture[top:bottom, left:right] = 0
    return picture


@dataclass(frozen=True)
class FastTransform:
    """The recipe in one sampling (`augment`) of a photo that is decoded no larger than needed.

    Attributes:
        side: of the square pictures, pixels.
    """

    side: int

    def __call__(self, data: bytes, seed: Sequence[int]) -> np.ndarray:  # noqa: D102
        return augment(data, draw(np.random.default_rng(seed), self.side), self.side)


class AlbumentationsTransform:
    """The recipe step by step, with albumentations.

    Args:
        side: of the square pictures, pixels.
    """

    def __init__(self, side: int) -> None:
        # it asks the network for its newest version otherwise
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A

        self.compose = A.Compose(
            [
                A.HorizontalFlip(p=FLIP),
                A.ImageCompression(quality_range=(99, 100), p=0.5),
                A.Affine(
                    translate_percent=SHIFT,
                    scale=SCALE,
                    keep_ratio=True,
                    rotate=DEGREES,
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=0,
                    p=MOVE,
                ),
                A.Resize(side, side, interpolation=cv2.INTER_AREA),
                # the released hole is 0.4 of the side around a random point, cut off where it leaves the image
                A.CoarseDropout(
                    num_holes_range=(1, 1), hole_height_range=HOLE_SIDE, hole_width_range=HOLE_SIDE, fill=0, p=HOLE
                ),
            ],
            save_applied_params=True,
        )

    def __call__(self, data: bytes, seed: Sequence[int]) -> np.ndarray:  # noqa: D102
        return self.applied(decode(data), seed)[0]

    def applied(self, image: np.ndarray, seed: Sequence[int]) -> tuple[np.ndarray, dict[str, dict]]:
        """Augment uint8 (H, W, 3): the picture, and the parameters of each step that was applied, by its name."""
        # one seed each: Compose would give all the same one, and flipped photos would always be shifted ones too
        seeds = np.random.SeedSequence(seed).generate_state(len(self.compose.transforms))
        for transform, number in zip(self.compose.transforms, seeds.tolist(), strict=True):
            transform.set_random_seed(number)
        made = self.compose(image=image)
        return made["image"], dict(made["applied_transforms"])


def _between(limits: tuple[float, float], u: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * u


def _inverse(move: Move | None, width: int, height: int) -> np.ndarray:
    """From where in the photo (pixels) each point of the moved photo comes: (3, 3)."""
    if move is None:
        return np.eye(3)
    angle = math.radians(move.degrees)
    cos, sin = math.cos(angle) / move.scale, math.sin(angle) / move.scale
    x, y = width / 2, height / 2
    from_x, from_y = x + move.shift_x * width, y + move.shift_y * height
    return np.array(
        (
            (cos, -sin, x - cos * from_x + sin * from_y),
            (sin, cos, y - sin * from_x - cos * from_y),
            (0, 0, 1),
        )
    )
