"""Textured quadrilaterals in space and the builder that collects them. Metres, z up, right-handed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .textures import Atlas


class Material(NamedTuple):
    """Which texture a face wears and how large one repeat of it is.

    `whole` stretches the repeats so that a whole number of them fits a face (window bays are never cut in half).
    """

    texture: int
    width: float = 4.0
    height: float = 4.0
    whole: bool = False


@dataclass
class Mesh:
    """Flat faces with their texture coordinates.

    corners: float64 (F, 4, 3), counter-clockwise seen from outside; a triangle repeats its last corner.
    normals: float64 (F, 3), unit length. textures: int64 (F,).
    u, v: float64 (F, 3); point p of face f lies u[f] . (p - corners[f, 0]) texture repeats to the right, likewise v.
    """

    corners: np.ndarray
    normals: np.ndarray
    textures: np.ndarray
    u: np.ndarray
    v: np.ndarray

    def __len__(self) -> int:
        return len(self.corners)


@dataclass
class Model:
    """A mesh, the atlas its texture numbers belong to, and how far it reaches from the z axis and upwards (metres)."""

    mesh: Mesh
    atlas: Atlas
    radius: float
    height: float


def joined(meshes: list[Mesh]) -> Mesh:
    """One mesh with the faces of all `meshes` in order."""
    names = ("corners", "normals", "textures", "u", "v")
    return Mesh(*(np.concatenate([getattr(mesh, name) for mesh in meshes]) for name in names))


class MeshBuilder:
    """Collects faces; `placed` moves everything added inside its block."""

    def __init__(self) -> None:
        self._parts: list[Mesh] = []
        self._offset = np.zeros(3)
        self._turn = np.eye(3)

    @contextlib.contextmanager
    def placed(self, x: float = 0.0, y: float = 0.0, z: float = 0.0, turn: float = 0.0) -> Iterator[None]:
        """Inside the block the origin is at (x, y, z) of the present frame, turned by `turn` radians about z."""
        offset, rotation = self._offset, self._turn
        cos, sin = np.cos(turn), np.sin(turn)
        self._offset = offset + rotation @ np.array([x, y, z])
        self._turn = rotation @ np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        try:
            yield
        finally:
            self._offset, self._turn = offset, rotation

    def add(self, corners: np.ndarray, material: Material, *, whole_picture: bool = False) -> None:
        """Add faces that all wear one material.

        Args:
            corners: (n, 4, 3) or (4, 3), counter-clockwise from outside, the first edge at the bottom.
            whole_picture: show the texture exactly once on each face (clock faces, doors).
        """
        quads = np.asarray(corners, dtype=np.float64).reshape(-1, 4, 3) @ self._turn.T + self._offset
        normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
        area = np.linalg.norm(normals, axis=1)
        quads, normals, area = quads[area > 1e-9], normals[area > 1e-9], area[area > 1e-9]
        normals /= area[:, None]
        along = quads[:, 1] - quads[:, 0]
        short = np.linalg.norm(along, axis=1) < 1e-6  # the tip of an upside-down cone
        along[short] = (quads[:, 2] - quads[:, 3])[short]
        width = np.linalg.norm(along, axis=1)
        along /= np.maximum(width, 1e-9)[:, None]
        up = np.cross(normals, along)
        height = np.abs(np.einsum("fcd,fd->fc", quads - quads[:, :1], up)).max(axis=1)
        across, upward = width / material.width, height / material.height
        if material.whole:
            across, upward = np.maximum(np.round(across), 1.0), np.maximum(np.round(upward), 1.0)
        if whole_picture:
            across, upward = np.ones_like(across), np.ones_like(upward)
        u = along * (across / np.maximum(width, 1e-9))[:, None]
        v = up * (upward / np.maximum(height, 1e-9))[:, None]
        self._parts.append(Mesh(quads, normals, np.full(len(quads), material.texture), u, v))

    def mesh(self) -> Mesh:
        """Everything added so far."""
        return joined(self._parts)
