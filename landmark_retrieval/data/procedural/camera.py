"""A pinhole camera and what it makes of flat faces."""

from dataclasses import dataclass

import numpy as np

from .geometry import Mesh

NEAR = 0.5  # metres


@dataclass
class Camera:
    """Position (3,) in metres; `axes` (3, 3) rows right, down, forward; focal length and picture size in pixels."""

    position: np.ndarray
    axes: np.ndarray
    focal: float
    width: int
    height: int

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates (..., 2) and depths (...,) in metres of world points (..., 3)."""
        seen = (points - self.position) @ self.axes.T
        depth = seen[..., 2]
        scale = self.focal / np.maximum(depth, 1e-6)
        middle = np.array([self.width / 2, self.height / 2])
        return seen[..., :2] * scale[..., None] + middle, depth

    def rays(self) -> np.ndarray:
        """World directions of all pixel centres, float32 (height, width, 3), one metre deep along the view."""
        x = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.focal
        y = (np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2) / self.focal
        axes = self.axes.astype(np.float32)
        return x[None, :, None] * axes[0] + y[:, None, None] * axes[1] + axes[2]


def looking(position: np.ndarray, target: np.ndarray, roll: float, focal: float, width: int, height: int) -> Camera:
    """A camera at `position` with `target` in the middle of its picture, turned by `roll` radians about its axis."""
    forward = target - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    axes = np.stack([cos * right + sin * down, cos * down - sin * right, forward])
    return Camera(position, axes, focal, width, height)


@dataclass
class Seen:
    """Faces in a picture: which face of the mesh, its outline in pixels and three linear functions of the pixel.

    outlines: float64 (n, 5, 2), the last corners repeated.
    planes: float64 (n, 3, 3); with p = (x, y, 1), planes[i] @ p gives 1/depth, u/depth, v/depth.
    """

    faces: np.ndarray
    outlines: np.ndarray
    planes: np.ndarray


def _clipped(corners: np.ndarray) -> np.ndarray:
    """The part of a polygon (n, 3) in camera coordinates that lies beyond the near plane."""
    kept = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if start[2] >= NEAR:
            kept.append(start)
        if (start[2] >= NEAR) != (end[2] >= NEAR):
            kept.append(start + (end - start) * ((NEAR - start[2]) / (end[2] - start[2])))
    return np.array(kept).reshape(-1, 3)


def see(camera: Camera, mesh: Mesh) -> Seen:
    """The faces that turn their front to the camera and touch the picture."""
    corners = (mesh.corners - camera.position) @ camera.axes.T
    normals = mesh.normals @ camera.axes.T
    offset = np.einsum("fc,fc->f", normals, corners[:, 0])
    inside = corners[..., 2] >= NEAR
    candidates = np.flatnonzero((offset < -1e-6) & inside.any(axis=1))
    half = np.array([camera.width / 2, camera.height / 2])
    faces, outlines = [], []
    flat = corners[..., :2] / np.maximum(corners[..., 2:], NEAR) * camera.focal + half
    low, high = flat.min(axis=1), flat.max(axis=1)
    whole = inside.all(axis=1)
    touching = whole & (high >= 0).all(axis=1) & (low[:, 0] < camera.width) & (low[:, 1] < camera.height)
    for face in candidates:
        if touching[face]:
            outlines.append(flat[face][[0, 1, 2, 3, 3]])
        elif not whole[face]:
            part = _clipped(corners[face])
            part = part[np.minimum(np.arange(5), len(part) - 1)]
            outlines.append(part[:, :2] / part[:, 2:] * camera.focal + half)
        else:
            continue
        faces.append(face)
    chosen = np.array(faces, dtype=np.int64)
    # the ray through a pixel is pixel @ x, y, 1: its direction in camera coordinates
    pixel = np.array(
        [[1 / camera.focal, 0, -half[0] / camera.focal], [0, 1 / camera.focal, -half[1] / camera.focal], [0, 0, 1]]
    )
    inverse = normals[chosen] / offset[chosen, None] @ pixel
    planes = [inverse]
    for axis in (mesh.u, mesh.v):
        turned = axis[chosen] @ camera.axes.T
        planes.append(turned @ pixel - inverse * np.einsum("fc,fc->f", turned, corners[chosen, 0])[:, None])
    return Seen(chosen, np.array(outlines).reshape(-1, 5, 2), np.stack(planes, axis=1))
