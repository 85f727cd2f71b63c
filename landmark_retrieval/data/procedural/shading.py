"""From the z-buffer to colours: textures, sun and shade, lit windows, haze, reflections in water."""

from dataclasses import dataclass

import numpy as np

from .camera import Camera, see
from .geometry import Model
from .light import Light
from .rasterizer import SunMap, nearest
from .textures import LEVELS, SIDE

_FARTHEST = 6000.0  # metres


@dataclass
class Floodlight:
    """Lamps at night: a colour gain (3,), the height up the walls they reach (metres), the part of lit windows 0..1."""

    colour: np.ndarray
    reach: float
    windows: float


def render(
    camera: Camera,
    rays: np.ndarray,
    model: Model,
    light: Light,
    lamps: Floodlight,
    background: np.ndarray,
    *,
    water: int,
    around: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a model over a background.

    Args:
        rays: world directions of the camera's pixels, float32 (H, W, 3).
        background: float32 (H, W, 3), changed in place.
        water: texture number of water surfaces, which mirror what stands above them.
        around: metres around the origin within which things cast shadows.

    Returns:
        The picture, float32 (H, W, 3) in 0..255, and the depth in metres, float32 (H, W), infinite in the sky.
    """
    mesh = model.mesh
    seen = see(camera, mesh)
    winner, inverse = nearest(seen.outlines, seen.planes[:, 0], camera.width, camera.height, least=1 / _FARTHEST)
    depth = np.full(winner.shape, np.inf, np.float32)
    rows, columns = np.nonzero(winner >= 0)
    number = winner[rows, columns]
    z = 1 / inverse[rows, columns]
    depth[rows, columns] = z
    spots = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], axis=1).astype(np.float32)
    planes = seen.planes.astype(np.float32)
    u = np.einsum("nk,nk->n", planes[number, 1], spots) * z
    v = np.einsum("nk,nk->n", planes[number, 2], spots) * z
    face = seen.faces[number]
    density = np.maximum(np.linalg.norm(mesh.u, axis=1), np.linalg.norm(mesh.v, axis=1)).astype(np.float32)[seen.faces]
    texels = density[number] * z * (SIDE / camera.focal)
    level = np.clip(np.round(np.log2(np.maximum(texels, 1e-3)) - 0.1), 0, LEVELS - 1).astype(np.int64)
    texture = mesh.textures[seen.faces][number]
    sample = model.atlas.sample(texture, u, v, level)
    colour = sample[:, :3].astype(np.float32)
    rays = rays[rows, columns]
    points = rays * z[:, None] + camera.position.astype(np.float32)

    normals = mesh.normals.astype(np.float32)[seen.faces]
    facing = np.clip(normals @ light.sun.astype(np.float32), 0, None)[number]
    if light.shadows:
        sun_map = SunMap(mesh, light.sun, np.array([0.0, 0.0, model.height / 3]), around)
        sunny = np.flatnonzero(facing > 0.02)
        facing[sunny] *= sun_map.lit(points[sunny], normals[number[sunny]])
    open_sky = (0.72 + 0.28 * normals[:, 2])[number]
    gain = facing[:, None] * light.sunlight.astype(np.float32) + open_sky[:, None] * light.ambient.astype(np.float32)
    height = points[:, 2]
    upright = 1 - np.abs(normals[:, 2])[number]
    gain *= (1 - 0.22 * upright * np.exp(-np.maximum(height, 0) / 1.5))[:, None]  # dirt and less sky near the ground
    if light.night:
        near = np.hypot(points[:, 0], points[:, 1]) < model.radius * 1.15
        up = np.exp(-np.maximum(height, 0) / lamps.reach) * (0.25 + upright) * near
        gain += up[:, None] * lamps.colour.astype(np.float32)
    colour *= gain
    panes = sample[:, 3].astype(np.float32) / 255
    if light.night:
        cells = np.floor(u) * 12.9898 + np.floor(v) * 78.233 + face * 37.719
        chance = np.abs(np.sin(cells) * 43758.5453) % 1
        lit = (panes * (chance < lamps.windows))[:, None]
        colour = colour * (1 - lit) + lit * np.array([110, 190, 245], np.float32) * (0.6 + 0.4 * chance[:, None])
    else:
        shine = (
            panes * 0.3 * (1 - np.abs(np.einsum("nk,nk->n", rays, normals[number])) / np.linalg.norm(rays, axis=1))
        )[:, None]
        colour = colour * (1 - shine) + np.asarray(light.horizon, np.float32) * shine
    clear = np.exp(-z / np.float32(light.haze))[:, None]
    background[rows, columns] = colour * clear + np.asarray(light.horizon, np.float32) * (1 - clear)
    surface = np.zeros(winner.shape, bool)
    surface[rows, columns] = texture == water
    if surface.any():
        _mirror(background, surface)
    return background, depth


def _mirror(picture: np.ndarray, surface: np.ndarray) -> None:
    """Let water show what stands above its far edge, upside down and rippled."""
    height, width = surface.shape
    first = np.where(surface.any(axis=0), surface.argmax(axis=0), height)
    rows, columns = np.nonzero(surface)
    ripple = np.sin(rows * 2.1 + 0.35 * np.sin(columns * 0.21)) * (rows - first[columns]) * 0.05
    wobble = np.clip(columns + np.round(2 * np.sin(rows * 1.3 + columns * 0.07)).astype(int), 0, width - 1)
    source = np.clip(2 * first[columns] - rows - 1 + ripple.astype(int), 0, height - 1)
    steep = np.clip(rows / height - 0.35, 0.15, 0.6)[:, None].astype(np.float32)
    seen = picture[source, wobble]
    dark = np.where(surface[source, wobble], 0.8, 1.0)[:, None]
    picture[rows, columns] = seen * (0.86 - 0.5 * steep) * dark + picture[rows, columns] * (0.1 + 0.5 * steep)
