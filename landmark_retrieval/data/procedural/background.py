"""What stands behind everything: sky, clouds, hills, a skyline; drawn by direction, so they turn with the camera."""

from dataclasses import dataclass

import cv2
import numpy as np

from .light import Light


@dataclass
class Horizon:
    """Silhouettes around the horizon, the farthest first.

    layers: tangent of the elevation for each degree of azimuth, float64 (n, 360). colours: float64 (n, 3).
    """

    layers: np.ndarray
    colours: np.ndarray


def random_horizon(rng: np.random.Generator) -> Horizon:
    """Up to three layers of hills, woods or buildings, the farthest first."""
    layers, colours = [], []
    for depth in range(int(rng.integers(1, 4))):
        kind, high = int(rng.integers(3)), float(rng.uniform(0.01, 0.09))
        if kind == 0 or depth == 0:  # hills
            angles = np.deg2rad(np.arange(360))
            line = sum(np.sin(angles * k + rng.uniform(0, 6.28)) * rng.uniform(0.2, 1) / k**0.8 for k in range(1, 14))
            layers.append(high * (1 + 0.6 * np.asarray(line)) * (2.0 if depth == 0 else 1.0))
            colours.append(rng.uniform((70, 90, 60), (130, 130, 110)))
        elif kind == 1:  # a skyline
            blocks = np.repeat(rng.uniform(0.2, 1.4, 180) ** 2, rng.integers(1, 4, 180))[:360]
            layers.append(high * np.resize(blocks, 360))
            colours.append(rng.uniform((90, 90, 90), (150, 150, 150)))
        else:  # woods
            layers.append(high * 0.6 * (1 + 0.35 * rng.uniform(-1, 1, 360)))
            colours.append(rng.uniform((30, 60, 40), (60, 100, 70)))
    return Horizon(np.array(layers), np.array(colours))


def _clouds(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Cloud density, float32 (height, width), about -1..1, stretched along the horizon."""
    total = np.zeros((height, width), np.float32)
    for octave, weight in ((3, 1.0), (6, 0.55), (13, 0.3), (28, 0.16)):
        coarse = rng.uniform(-1, 1, (octave * 2, octave)).astype(np.float32)
        total += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return total


def draw_background(rays: np.ndarray, horizon: Horizon, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Sky, clouds and silhouettes for all pixels.

    Args:
        rays: float32 (H, W, 3) world directions.

    Returns:
        float32 (H, W, 3), blue, green, red in 0..255.
    """
    height, width = rays.shape[:2]
    picture = cv2.resize(_sky(rays[::2, ::2], light, rng), (width, height), interpolation=cv2.INTER_LINEAR)
    rise = rays[..., 2] / (np.hypot(rays[..., 0], rays[..., 1]) + 1e-6)
    # what lies deeper is covered by the ground
    rows, columns = np.nonzero((rise < horizon.layers.max()) & (rise > -0.2))
    low, seen = rise[rows, columns], rays[rows, columns]
    degree = np.rad2deg(np.arctan2(seen[:, 1], seen[:, 0])) % 360
    fog = 0.35 if light.kind != "fog" else 0.9
    tint = (light.ambient + 0.6 * light.sunlight).astype(np.float32)
    for depth, (layer, colour) in enumerate(zip(horizon.layers, horizon.colours, strict=True)):
        below = low < np.interp(degree, np.arange(361), np.append(layer, layer[0]))
        haze = fog * (1 - depth * 0.25)
        picture[rows[below], columns[below]] = colour * tint * (1 - haze) + np.asarray(light.horizon) * haze
        if light.night and depth:
            lit = below & (rng.random(len(below)) > 0.985)
            picture[rows[lit], columns[lit]] = (120, 190, 235)
    return picture


def _sky(rays: np.ndarray, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Gradient, clouds, the sun's glow or stars; float32 (H, W, 3) for rays (H, W, 3)."""
    height, width = rays.shape[:2]
    flat = np.hypot(rays[..., 0], rays[..., 1]) + 1e-6
    rise = rays[..., 2] / flat
    up = np.clip(rise, 0, 1.2)[..., None] / 1.2
    part = np.sqrt(up)
    picture = np.asarray(light.horizon, np.float32) * (1 - part) + np.asarray(light.zenith, np.float32) * part
    if light.clouds > 0.05:
        density = np.clip((_clouds(rng, width, height) + 2.2 * light.clouds - 1.3) * 1.4, 0, 1)[..., None]
        shade = 1 - 0.22 * np.clip(density - 0.5, 0, 1)
        picture = picture * (1 - 0.85 * density) + np.asarray(light.cloud_colour, np.float32) * shade * 0.85 * density
    towards = (rays @ light.sun.astype(np.float32)) / np.linalg.norm(rays, axis=2)
    if light.shadows:
        glow = np.clip(towards, 0, 1) ** 60
        picture += glow[..., None] * np.array([110, 160, 200], np.float32)
    elif light.kind == "night" and rng.random() < 0.5:
        picture += (rng.random((height, width, 1)) > 0.998).astype(np.float32) * 150
    return picture
