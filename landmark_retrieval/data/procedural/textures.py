"""Procedural textures: masonry, window bays, roofs, ground; stacked with their mip levels into one atlas.

A texture is uint8 (128, 128, 4): blue, green, red and a mask of what shines at night (panes, 255). Row 0 is the top.
"""

from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 128
LEVELS = 6
Colour = tuple[float, float, float]  # blue, green, red in 0..255


@dataclass
class Atlas:
    """All mip levels of all textures, flattened: texture t, level l starts at pixel t * stride + starts[l]."""

    pixels: np.ndarray  # uint8 (n, 4)
    starts: np.ndarray  # int64 (LEVELS,)
    stride: int

    def sample(self, texture: np.ndarray, u: np.ndarray, v: np.ndarray, level: np.ndarray) -> np.ndarray:
        """uint8 (n, 4) at repeats (u, v), v upwards, of mip `level` (integers 0..LEVELS-1); all arguments (n,)."""
        side = SIDE >> level
        column = np.minimum(((u - np.floor(u)) * side).astype(np.int64), side - 1)
        row = side - 1 - np.minimum(((v - np.floor(v)) * side).astype(np.int64), side - 1)
        return self.pixels[texture * self.stride + self.starts[level] + row * side + column]


def atlas_of(textures: list[np.ndarray]) -> Atlas:
    """Stack textures with their mip levels."""
    sizes = [(SIDE >> level) ** 2 for level in range(LEVELS)]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    flat = []
    for texture in textures:
        for level in range(LEVELS):
            side = SIDE >> level
            flat.append(cv2.resize(texture, (side, side), interpolation=cv2.INTER_AREA).reshape(-1, 4))
    return Atlas(np.concatenate(flat), starts, sum(sizes))


def joined_atlas(first: Atlas, second: Atlas) -> Atlas:
    """One atlas in which the second's textures follow the first's."""
    return Atlas(np.concatenate([first.pixels, second.pixels]), first.starts, first.stride)


def mixed(a: Colour, b: Colour, part: float) -> Colour:
    """The colour `part` of the way from `a` to `b`."""
    return (a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part, a[2] + (b[2] - a[2]) * part)


def noise(rng: np.random.Generator, cells: int, side: int = SIDE) -> np.ndarray:
    """Smooth tileable noise, float32 (side, side), about -1..1."""
    coarse = np.pad(rng.uniform(-1, 1, (cells, cells)).astype(np.float32), 2, mode="wrap")
    scale = side // cells
    fine = cv2.resize(coarse, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return fine[2 * scale : 2 * scale + side, 2 * scale : 2 * scale + side]


def grained(rng: np.random.Generator, colour: Colour, amount: float = 0.12) -> np.ndarray:
    """A plain surface with stains and grain, float32 (128, 128, 3)."""
    tone = 0.5 * noise(rng, 4) + 0.3 * noise(rng, 16) + 0.35 * noise(rng, 64)
    return np.asarray(colour, dtype=np.float32) * (1 + amount * tone)[..., None]


def finished(picture: np.ndarray, glow: np.ndarray | None = None) -> np.ndarray:
    """A texture from float (128, 128, 3) colours and an optional (128, 128) mask of shining parts."""
    mask = np.zeros((SIDE, SIDE), np.uint8) if glow is None else glow
    return np.dstack([np.clip(picture, 0, 255).astype(np.uint8), mask])


def plaster(rng: np.random.Generator, colour: Colour) -> np.ndarray:
    """Stained plaster, concrete or smooth stone."""
    return finished(grained(rng, colour, float(rng.uniform(0.08, 0.25))))


def masonry(
    rng: np.random.Generator, colour: Colour, *, rows: int, columns: int, variation: float, joint: float
) -> np.ndarray:
    """Courses of bricks or blocks, every other course shifted; `joint` is the joints' brightness over the stone's."""
    picture = grained(rng, colour)
    tall, wide = SIDE / rows, SIDE / columns
    for row in range(rows):
        y0, y1 = int(row * tall), int((row + 1) * tall)
        shift = int(wide * (0.5 * (row % 2)))
        for column in range(columns):
            span = np.arange(int(column * wide), int((column + 1) * wide)) + shift
            picture[y0:y1, span % SIDE] *= 1 + variation * rng.uniform(-1, 1)
            picture[y0:y1, span[0] % SIDE] *= joint
        picture[y0] *= joint
    return finished(picture)


def rubble(rng: np.random.Generator, colour: Colour, *, stones: int = 40) -> np.ndarray:
    """Irregular stones with dark joints."""
    seeds = rng.uniform(0, SIDE, (stones, 2))
    tiled = np.concatenate([np.add(seeds, (dx, dy)) for dx in (-SIDE, 0, SIDE) for dy in (-SIDE, 0, SIDE)]).astype(
        np.float32
    )
    grid = np.arange(0, SIDE, 2, dtype=np.float32)
    distance = (grid[None, :, None] - tiled[:, 0]) ** 2 + (grid[:, None, None] - tiled[:, 1]) ** 2
    two = np.argpartition(distance, 1, axis=2)[..., :2]
    near = np.sqrt(np.take_along_axis(distance, two, axis=2))
    tones = 1 + 0.25 * rng.uniform(-1, 1, stones)
    stone = tones[two[..., 0] % stones] * np.where(np.abs(near[..., 1] - near[..., 0]) < 2.5, 0.55, 1.0)
    return finished(grained(rng, colour) * cv2.resize(stone.astype(np.float32), (SIDE, SIDE))[..., None])


def banded(rng: np.random.Generator, first: Colour, second: Colour, bands: int) -> np.ndarray:
    """Level stripes of two colours."""
    stripe = (np.arange(SIDE) * bands // SIDE) % 2
    weight = stripe.astype(np.float32)[:, None, None]
    return finished(grained(rng, first) * (1 - weight) + grained(rng, second) * weight)


def scales(rng: np.random.Generator, colour: Colour, rows: int, columns: int) -> np.ndarray:
    """Roof tiles: rows of rounded scales that darken towards their upper edge."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    row = np.floor(y * rows)
    across = (x * columns + 0.5 * (row % 2)) % 1
    down = (y * rows) % 1
    shade = 0.6 + 0.5 * down * (1 - 0.6 * np.abs(2 * across - 1) ** 2)
    tone = rng.uniform(0.85, 1.15, (rows, columns)).astype(np.float32)
    column = (np.floor(x * columns + 0.5 * (row % 2)) % columns).astype(int)
    return finished(grained(rng, colour) * (shade * tone[row.astype(int) % rows, column])[..., None])


def fluted(rng: np.random.Generator, colour: Colour, flutes: int) -> np.ndarray:
    """Upright rounded grooves: columns, ribbed domes, standing seams."""
    shade = 0.72 + 0.3 * np.abs(np.sin(np.pi * flutes * np.arange(SIDE) / SIDE))
    return finished(grained(rng, colour) * shade[None, :, None].astype(np.float32))


def checker(rng: np.random.Generator, first: Colour, second: Colour, cells: int) -> np.ndarray:
    """A chequered or paved surface."""
    index = np.arange(SIDE) * cells // SIDE
    weight = ((index[:, None] + index[None, :]) % 2).astype(np.float32)[..., None]
    picture = grained(rng, first) * (1 - weight) + grained(rng, second) * weight
    joints = (np.arange(SIDE) * cells) % SIDE < cells
    picture[joints] *= 0.8
    picture[:, joints] *= 0.8
    return finished(picture)
