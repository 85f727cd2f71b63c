"""The materials of one landmark: colours and masonry shared by a style, window bays and ornaments of its own."""

from dataclasses import dataclass

import numpy as np

from . import openings, textures
from .geometry import Material
from .textures import Colour, mixed

# walls, trim, roofs: (blue, green, red); several styles draw from the same few so that colour alone tells little
_PALETTES: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((140, 180, 205), (165, 200, 220), (75, 90, 130)),
    ((150, 165, 170), (175, 190, 195), (95, 85, 80)),
    ((75, 90, 150), (170, 190, 205), (80, 75, 75)),
    ((205, 215, 222), (225, 230, 235), (120, 120, 115)),
    ((115, 155, 200), (195, 210, 220), (70, 85, 150)),
    ((110, 120, 125), (140, 150, 155), (110, 130, 95)),
)
_DOMES: tuple[Colour, ...] = (
    (130, 150, 110),
    (90, 170, 200),
    (170, 150, 130),
    (215, 220, 225),
    (150, 120, 80),
    (100, 110, 120),
)


@dataclass
class Style:
    """Materials by use, and the textures they point into."""

    atlas: textures.Atlas
    wall: Material
    base: Material
    bays: Material
    other_bays: Material
    arches: Material
    roof: Material
    dome: Material
    trim: Material
    column: Material
    frieze: Material
    glass: Material
    dark: Material
    clock: Material
    rose: Material
    door: Material


def _stonework(rng: np.random.Generator, colour: Colour) -> np.ndarray:
    """One of the ways to build a wall, in `colour`."""
    kind = int(rng.integers(5))
    if kind == 0:
        return textures.plaster(rng, colour)
    if kind == 1:
        return textures.rubble(rng, colour, stones=int(rng.integers(25, 60)))
    if kind == 2:
        return textures.banded(
            rng, colour, mixed(colour, (60, 70, 140), float(rng.uniform(0.2, 0.6))), int(rng.integers(4, 9))
        )
    rows = int(rng.choice([4, 6, 8, 12, 16]))
    return textures.masonry(
        rng,
        colour,
        rows=rows,
        columns=rows // 2,
        variation=float(rng.uniform(0.05, 0.22)),
        joint=float(rng.uniform(0.6, 1.2)),
    )


def style_of(style_seed: int, shape_rng: np.random.Generator) -> Style:
    """The materials of a landmark.

    Args:
        style_seed: decides colours and masonry; landmarks with the same style seed look alike.
        shape_rng: decides windows and ornaments, which differ even between look-alikes.
    """
    rng = np.random.default_rng(style_seed)
    wall_colour, trim_colour, roof_colour = _PALETTES[int(rng.integers(len(_PALETTES)))]
    shift = rng.normal(0, 6, 3)
    wall_colour = (wall_colour[0] + shift[0], wall_colour[1] + shift[1], wall_colour[2] + shift[2])
    dome_colour = _DOMES[int(rng.integers(len(_DOMES)))]
    wall = _stonework(rng, wall_colour)
    base = _stonework(rng, mixed(wall_colour, (60, 60, 60), 0.25))
    roof_kind, dome_kind = int(rng.integers(3)), int(rng.integers(3))
    roof = (
        textures.scales(rng, roof_colour, int(rng.integers(5, 10)), int(rng.integers(4, 9)))
        if roof_kind < 2
        else textures.fluted(rng, roof_colour, int(rng.integers(4, 9)))
    )
    dome = (
        textures.fluted(rng, dome_colour, 1)
        if dome_kind == 0
        else textures.scales(rng, dome_colour, 6, 5)
        if dome_kind == 1
        else textures.plaster(rng, dome_colour)
    )
    own = shape_rng
    first, second = (openings.SHAPES[int(own.integers(len(openings.SHAPES)))] for _ in range(2))
    accent = _DOMES[int(own.integers(len(_DOMES)))]
    glass = tuple(float(c) for c in np.array([150, 125, 90]) * own.uniform(0.5, 1.2))
    pictures = [
        wall,
        base,
        openings.windows(own, wall, trim_colour, first, large=float(own.uniform(0.3, 0.65))),
        openings.windows(own, wall, trim_colour, second, large=float(own.uniform(0.35, 0.8))),
        openings.blind_arches(wall, trim_colour, pointed=bool(own.random() < 0.5)),
        roof,
        dome,
        textures.plaster(own, trim_colour),
        textures.fluted(own, trim_colour, 2),
        openings.frieze(own, trim_colour, accent),
        openings.curtain(
            own, (glass[0], glass[1], glass[2]), trim_colour, int(own.integers(2, 7)), int(own.integers(2, 9))
        ),
        textures.plaster(own, (50, 50, 50)),
        openings.clock(own, trim_colour),
        openings.rose(own, wall, trim_colour),
        openings.door(own, wall, trim_colour, mixed((40, 60, 100), (50, 80, 40), float(own.random()))),
    ]
    bay = float(own.uniform(3.0, 5.5))
    coarse = float(rng.uniform(2.5, 6.0))
    sizes = [
        (coarse, coarse, False),
        (coarse * 1.4, coarse * 1.4, False),
        (bay, float(own.uniform(3.4, 5.5)), True),
        (bay * float(own.uniform(0.7, 1.3)), float(own.uniform(4.0, 7.0)), True),
        (bay, bay * 1.6, True),
        (3.0, 3.0, False),
        (2.2, 3.0, True),
        (5.0, 5.0, False),
        (1.0, 12.0, True),
        (4.0, 2.0, True),
        (bay * 1.5, bay * 1.5, True),
        (4.0, 4.0, False),
        (1.0, 1.0, True),
        (1.0, 1.0, True),
        (1.0, 1.0, True),
    ]
    materials = [Material(index, *size) for index, size in enumerate(sizes)]
    return Style(textures.atlas_of(pictures), *materials)
