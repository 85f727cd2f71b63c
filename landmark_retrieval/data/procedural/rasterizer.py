"""A z-buffer: which face is nearest at each pixel, and where the sun's light arrives."""

import cv2
import numpy as np

from .geometry import Mesh

_FRACTION_BITS = 4


def nearest(
    outlines: np.ndarray, nearness: np.ndarray, width: int, height: int, *, least: float = -np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Draw convex polygons into a z-buffer.

    Args:
        outlines: (n, k, 2) corners of polygons in pixels; one with fewer corners repeats its last.
        nearness: (n, 3), linear in (x, y, 1); the greatest value at a pixel wins.
        least: what is not nearer than this is not drawn.

    Returns:
        int32 (height, width) number of the winning polygon, -1 for none, and float32 (height, width) its nearness.
    """
    winner = np.full((height, width), -1, np.int32)
    best = np.full((height, width), least, np.float32)
    xs, ys = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    mask = np.zeros((height, width), np.uint8)
    planes = nearness.astype(np.float32)
    limit = 1 << 22  # keeps far-away corners within OpenCV's fixed-point numbers
    low = np.maximum(np.floor(outlines.min(axis=1)), 0).astype(int).tolist()
    high = np.minimum(np.ceil(outlines.max(axis=1)) + 1, (width, height)).astype(int).tolist()
    fixed = np.round(np.clip(outlines - 0.5, -limit, limit) * (1 << _FRACTION_BITS)).astype(np.int32)
    for number, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True)):
        if x0 >= x1 or y0 >= y1:
            continue
        region = mask[y0:y1, x0:x1]
        region[:] = 0
        corner = (x0 << _FRACTION_BITS, y0 << _FRACTION_BITS)
        cv2.fillConvexPoly(
            region, fixed[number] - np.array(corner, np.int32), 1, lineType=cv2.LINE_8, shift=_FRACTION_BITS
        )
        a, b, c = planes[number]
        value = a * xs[x0:x1] + (b * ys[y0:y1] + c)
        old = best[y0:y1, x0:x1]
        won = (value > old) & (region > 0)
        np.copyto(old, value, where=won)
        winner[y0:y1, x0:x1][won] = number
    return winner, best


class SunMap:
    """What the sun sees within `radius` metres of `centre`: points farther from the sun than its map lie in shadow."""

    def __init__(self, mesh: Mesh, sun: np.ndarray, centre: np.ndarray, radius: float, side: int = 200) -> None:
        across = np.cross([0.0, 0.0, 1.0], sun)
        across /= np.linalg.norm(across)
        self._axes = np.stack([across, np.cross(sun, across)])  # (2, 3)
        self._sun, self._scale, self._side = sun, side / (2 * radius), side
        self._shift = side / 2 - self._axes @ centre * self._scale
        lit = np.flatnonzero(mesh.normals @ sun > 0.02)
        flat = mesh.corners[lit] @ (self._axes.T * self._scale) + self._shift
        # on a face's plane n . p = c the height towards the sun is linear in the map's two coordinates
        normals = mesh.normals[lit]
        towards = normals @ sun
        slope = -(normals @ self._axes.T) / towards[:, None] / self._scale
        constant = np.einsum("fc,fc->f", normals, mesh.corners[lit, 0]) / towards - slope @ self._shift
        _, self._height = nearest(flat, np.column_stack([slope, constant]), side, side)
        self._bias = 2.5 * radius / side

    def lit(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """bool (n,): whether sunlight reaches points (n, 3), which belong to faces with unit `normals` (n, 3)."""
        moved = points + normals * np.float32(self._bias)
        spot = (moved @ self._axes.T * self._scale + self._shift).astype(np.int64)
        inside = ((spot >= 0) & (spot < self._side)).all(axis=1)
        spot = np.clip(spot, 0, self._side - 1)
        return (self._height[spot[:, 1], spot[:, 0]] <= moved @ self._sun + self._bias) | ~inside
