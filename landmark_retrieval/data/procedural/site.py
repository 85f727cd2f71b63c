"""Where a building stands: ground, water, neighbouring houses and the horizon around it."""

from dataclasses import dataclass

import numpy as np

from . import openings, textures
from .background import Horizon, random_horizon
from .geometry import Material, Mesh, MeshBuilder, Model, joined
from .solids import box, frustum, gable
from .textures import Colour

GROUNDS = ("paving", "grass", "asphalt", "sand", "water")
_HOUSE_COLOURS: tuple[Colour, ...] = (
    (150, 190, 215),
    (120, 150, 200),
    (180, 185, 190),
    (90, 105, 160),
    (200, 205, 205),
    (150, 160, 150),
    (170, 150, 140),
)
_FAR = 3000.0  # metres


@dataclass
class Site:
    """Surroundings of a building of a given reach: all in one atlas with the building's textures first."""

    ground: Mesh
    houses: list[tuple[np.ndarray, float, Mesh]]  # middle (2,), radius, faces
    horizon: Horizon
    atlas: textures.Atlas
    water: int
    kind: str


def _ground_picture(rng: np.random.Generator, kind: str) -> np.ndarray:
    """The texture of one kind of ground."""
    tone = float(rng.uniform(0.75, 1.2))
    if kind == "paving":
        colours = textures.mixed((120, 135, 145), (165, 185, 195), float(rng.random()))
        cells = int(rng.choice([2, 4, 8]))
        return textures.checker(
            rng, colours, textures.mixed(colours, (110, 110, 110), float(rng.uniform(0, 0.6))), cells
        )
    plain: dict[str, Colour] = {
        "grass": (60, 105, 90),
        "asphalt": (95, 95, 95),
        "sand": (130, 175, 200),
        "water": (110, 95, 60),
    }
    blue, green, red = plain[kind]
    return textures.finished(textures.grained(rng, (blue * tone, green * tone, red * tone), 0.22))


def house(m: MeshBuilder, rng: np.random.Generator, bays: Material, roof: Material) -> float:
    """A plain house around the origin; its radius in metres."""
    width, deep, tall = float(rng.uniform(9, 22)), float(rng.uniform(8, 14)), float(rng.uniform(6, 20))
    box(m, (0, 0), (width, deep), 0, tall, bays, roof)
    kind = int(rng.integers(3))
    if kind == 0:
        gable(m, (0, 0), (width + 0.6, deep + 0.8), tall, tall + deep * 0.4, roof, bays)
    elif kind == 1:
        frustum(m, (0, 0), (width + 0.8, deep + 0.8), (width * 0.6, 0.2), tall, tall + deep * 0.35, roof, roof)
    return float(np.hypot(width, deep) / 2)


def site_of(rng: np.random.Generator, reach: float, atlas: textures.Atlas, *, over_water: bool) -> Site:
    """Surroundings for a building.

    Args:
        reach: the building's radius in metres; `atlas` its textures. over_water: a bridge, with water below and banks.
    """
    kind = "water" if over_water else str(rng.choice(GROUNDS, p=[0.38, 0.3, 0.13, 0.09, 0.10]))
    near = kind if over_water or kind != "water" else "paving"
    shore = ("grass", "sand", "paving")[int(rng.integers(3))]
    first = len(atlas.pixels) // atlas.stride
    pictures = [
        _ground_picture(rng, near),
        _ground_picture(rng, "water"),
        _ground_picture(rng, shore),
        _ground_picture(rng, "paving"),
    ]
    materials: list[tuple[Material, Material]] = []
    for _ in range(3):
        colour = _HOUSE_COLOURS[int(rng.integers(len(_HOUSE_COLOURS)))]
        wall = (
            textures.plaster(rng, colour)
            if rng.random() < 0.6
            else textures.masonry(rng, colour, rows=12, columns=6, variation=0.1, joint=0.8)
        )
        shape = openings.SHAPES[int(rng.integers(len(openings.SHAPES)))]
        number = first + len(pictures)
        pictures.append(openings.windows(rng, wall, (210, 215, 220), shape, large=float(rng.uniform(0.3, 0.6))))
        pictures.append(textures.scales(rng, textures.mixed((70, 80, 140), (100, 100, 100), float(rng.random())), 6, 5))
        materials.append((Material(number, float(rng.uniform(2.5, 4)), 3.2, True), Material(number + 1, 2.5, 2.5)))
    m = MeshBuilder()
    size = float(rng.uniform(2.0, 5.0))
    plain, water, edge, path = (
        Material(first, size, size),
        Material(first + 1, 9, 9),
        Material(first + 2, 6, 6),
        Material(first + 3, 3, 3),
    )

    def flat(x0: float, x1: float, y0: float, y1: float, z: float, material: Material) -> None:
        m.add(np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]), material)

    if over_water:
        flat(-_FAR, _FAR, -_FAR, _FAR, 0, water)
        for sign in (-1.0, 1.0):
            box(m, (sign * (reach * 0.9 + 150), 0), (300, 1200), -1, float(rng.uniform(1, 4)), edge)
    elif kind == "water":
        box(m, (0, 300 - reach * 1.4), (1200, 600), -2, 0, plain)
        flat(-_FAR, _FAR, -_FAR, _FAR, -1.2, water)
    else:
        flat(-_FAR, _FAR, -_FAR, _FAR, 0, plain)
        if rng.random() < 0.5:
            wide = float(rng.uniform(4, 10))
            flat(-wide / 2, wide / 2, -reach * 8, 0, 0.04, path)
        elif rng.random() < 0.4:
            flat(-reach * 0.4, reach * 0.4, -reach * 3.2, -reach * 1.2, 0.04, water)
    ground = m.mesh()
    houses = []
    for _ in range(0 if over_water else int(rng.integers(0, 8))):
        angle, away = float(rng.uniform(0, 2 * np.pi)), reach * float(rng.uniform(1.6, 4.0)) + 8
        if kind == "water":
            angle = abs(angle) / 2
        one, middle = MeshBuilder(), np.array([np.cos(angle), np.sin(angle)]) * away
        with one.placed(float(middle[0]), float(middle[1]), 0, float(rng.uniform(0, 2 * np.pi))):
            radius = house(one, rng, *materials[int(rng.integers(3))])
        houses.append((middle, radius, one.mesh()))
    joined_atlas = textures.joined_atlas(atlas, textures.atlas_of(pictures))
    return Site(ground, houses, random_horizon(rng), joined_atlas, first + 1, kind)


def with_surroundings(model: Model, site: Site, position: np.ndarray, rng: np.random.Generator) -> Model:
    """The building, its ground and those neighbours that do not stand in the way of a camera at `position` (3,)."""
    ahead = -position[:2]
    distance = float(np.linalg.norm(ahead))
    meshes = [model.mesh, site.ground]
    for middle, radius, mesh in site.houses:
        offset = middle - position[:2]
        along = float(offset @ ahead) / distance
        aside = float(np.hypot(*(offset - ahead / distance * along)))
        room = radius + model.radius * (0.9 if rng.random() < 0.5 else 0.4)
        blocks = along < distance and aside < room * max(along, 0.0) / distance + radius
        if not blocks and np.hypot(*offset) > radius + 3:
            meshes.append(mesh)
    return Model(joined(meshes), site.atlas, model.radius, model.height)
