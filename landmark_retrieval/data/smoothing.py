"""Blur that makes one sampling of a photo as smooth as the step-by-step recipe."""

import math

import cv2
import numpy as np


def smooth(image: np.ndarray, path: np.ndarray, scale: int, moved: bool) -> tuple[np.ndarray, np.ndarray]:
    """Blur a decoded photo so that bilinear samples of it look like those of the whole photo, averaged by area.

    Variances of the blurs, in square pixels of `image`, of which a pixel of the whole photo measures p = scale / 8:
    averaging by area has (step^2 + p^2) / 12 where samples are `step` apart, and a move before it, interpolated,
    p^2 / 6; against that, a single bilinear sampling has 1 / 6, and decoding at a fraction of the size, which cuts off
    what is too fine, hardly any. The blur here makes up for the difference. Where many pixels go into a sample, most of
    them are averaged by area before that.

    Args:
        image: uint8 (h, w, C), decoded at a fraction of its size.
        path: (2, 3), affine map from places in the sampled picture to places in `image`; in both, pixel 0 goes from
            0 to 1.
        scale: of `image`, in eighths of the whole photo.
        moved: whether the photo would have been moved, which interpolates it, before it is averaged.

    Returns:
        The blurred image, uint8 (h', w', C), smaller where many of its pixels would go into one sample, and the path
        into it.
    """
    steps = np.hypot(path[:, 0], path[:, 1])
    parts = np.array((scale / 8, scale / 8))
    done = np.zeros(2)  # 12 times the variance of averaging by area
    if steps.max() >= 4:  # by area first: the longer the kernel, the slower the blur
        height, width = image.shape[:2]
        factors = np.maximum((steps / 2).astype(int), 1)
        size = -(-width // factors[0]), -(-height // factors[1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        shrunk = np.array(size) / (width, height)
        steps, parts, path, done = steps * shrunk, parts * shrunk, path * shrunk[:, None], 1 - shrunk**2
    variances = (steps**2 + (3 if moved else 1) * parts**2 - 2 - done) / 12
    (size_x, spread_x), (size_y, spread_y) = (_kernel(variance) for variance in variances.tolist())
    if size_x == size_y == 1:
        return image, path
    blurred = cv2.GaussianBlur(image, (size_x, size_y), spread_x, sigmaY=spread_y, borderType=cv2.BORDER_REPLICATE)
    return blurred, path


def _kernel(variance: float) -> tuple[int, float]:
    """Length and spread of the sampled Gaussian of this variance."""
    if variance < 0.05:
        return 1, 1.0
    if variance < 0.5:  # so narrow that its three weights have another variance than the continuous one
        return 3, math.sqrt(-0.5 / math.log(variance / (2 * (1 - variance))))
    spread = math.sqrt(variance)
    return 1 + 2 * math.ceil(2.5 * spread), spread
