"""Pictures of no landmark: streets of plain houses, open country, things on a table, walls close up."""

from itertools import pairwise

import cv2
import numpy as np

from . import openings, textures
from .camera import Camera, looking
from .geometry import Material, MeshBuilder, Model
from .site import Site, house, site_of
from .solids import box


def street(rng: np.random.Generator, width: int, height: int) -> tuple[Model, Site, Camera]:
    """Plain houses along a road, scattered over a field, or none at all, with a camera among them.

    The model's parts are drawn afresh for every picture: nothing here is seen twice.
    """
    tone = textures.mixed((110, 150, 190), (190, 195, 200), float(rng.random()))
    wall = textures.plaster(rng, tone)
    shape = openings.SHAPES[int(rng.integers(len(openings.SHAPES)))]
    pictures = [
        openings.windows(rng, wall, (215, 215, 215), shape, large=float(rng.uniform(0.3, 0.7))),
        textures.scales(rng, textures.mixed((60, 70, 130), (110, 110, 110), float(rng.random())), 6, 5),
        textures.masonry(rng, (90, 110, 160), rows=8, columns=4, variation=0.15, joint=0.75),
    ]
    bays, roof, bricks = Material(0, 3.2, 3.2, True), Material(1, 2.5, 2.5), Material(2, 3, 3)
    m = MeshBuilder()
    kind = int(rng.integers(3))
    if kind == 0:
        for index in range(int(rng.integers(4, 9))):
            for side in (-1, 1):
                if rng.random() < 0.85:
                    with m.placed(
                        side * float(rng.uniform(13, 18)),
                        index * 19.0 - 20,
                        0,
                        np.pi / 2 if rng.random() < 0.7 else 0.1,
                    ):
                        house(m, rng, bays, roof)
    elif kind == 1:
        for _ in range(int(rng.integers(2, 7))):
            with m.placed(float(rng.uniform(-35, 35)), float(rng.uniform(0, 60)), 0, float(rng.uniform(0, 3.1))):
                house(m, rng, bays, roof)
    box(m, (0, float(rng.uniform(70, 160))), (float(rng.uniform(5, 60)), 0.6), 0, float(rng.uniform(0.6, 2.5)), bricks)
    model = Model(m.mesh(), textures.atlas_of(pictures), 40.0, 14.0)
    site = site_of(rng, 45.0, model.atlas, over_water=False)
    position = np.array([rng.uniform(-4, 4), rng.uniform(-75, -45), rng.choice([1.7, 1.7, 6.0, 20.0])])
    target = np.array([rng.uniform(-12, 12), 0.0, rng.uniform(1.0, 9.0)])
    return (
        model,
        site,
        looking(
            position,
            target,
            float(rng.normal(0, 0.03)),
            min(width, height) * float(rng.uniform(0.8, 1.6)),
            width,
            height,
        ),
    )


def _wall_close_up(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A surface filling the picture, seen at a slant."""
    colour = tuple(float(c) for c in rng.uniform(60, 210, 3))
    base = (colour[0], colour[1], colour[2])
    kind = int(rng.integers(4))
    if kind == 0:
        texture = textures.rubble(rng, base)
    elif kind == 1:
        texture = textures.masonry(rng, base, rows=8, columns=4, variation=0.2, joint=0.7)
    elif kind == 2:
        texture = openings.frieze(rng, base, (60, 80, 120))
    else:
        texture = textures.scales(rng, base, 7, 6)
    tiles = np.tile(texture[..., :3], (3, 3, 1))
    side = float(tiles.shape[0])
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    moved = corners * (width * 1.6 / side, height * 1.6 / side) - (width * 0.3, height * 0.3)
    moved = moved + rng.uniform(-0.2, 0.2, (4, 2)) * (width, height)
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    return cv2.warpPerspective(tiles, matrix, (width, height), borderMode=cv2.BORDER_REFLECT).astype(np.float32)


def still_life(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Objects on a table or a wall close up, float32 (height, width, 3) in 0..255."""
    if rng.random() < 0.35:
        return _wall_close_up(rng, width, height)
    picture = np.empty((height, width, 3), np.float32)
    edge = int(height * rng.uniform(0.4, 0.7))
    picture[:edge] = rng.uniform(60, 225, 3)
    picture[edge:] = rng.uniform(40, 200, 3)
    texture = textures.noise(rng, 8)
    picture *= 1 + 0.15 * cv2.resize(texture, (width, height))[..., None]
    for _ in range(int(rng.integers(1, 7))):
        colour = rng.uniform(30, 235, 3)
        x, y = width * float(rng.uniform(0.1, 0.9)), height * float(rng.uniform(0.55, 0.95))
        tall = height * float(rng.uniform(0.15, 0.6))
        rows = np.linspace(0, 1, 40)
        wave = 0.6 + 0.4 * np.sin(rows * rng.uniform(1, 7) + rng.uniform(0, 6))
        outline = tall * float(rng.uniform(0.15, 0.45)) * wave
        for row, half in zip(rows, outline, strict=True):
            level = int(y - row * tall)
            thick = int(tall / 40) + 1
            across = np.linspace(-1, 1, 9)
            for a, b in pairwise(across):
                shade = 0.45 + 0.75 * (1 - abs((a + b) / 2 + 0.35)) + 0.08 * row
                spot = (int(x + a * half), level - thick), (int(x + b * half), level)
                cv2.rectangle(picture, *spot, tuple(float(c) for c in np.clip(colour * shade, 0, 255)), -1)
    return picture
