"""Tall landmarks: clock towers, round towers, lighthouses, observation towers, skyscrapers, columns."""

import numpy as np

from .geometry import Material, MeshBuilder
from .solids import beam, box, crenel_ring, crenels, dome_profile, frustum, panel, turned
from .style import Style

_TURNS = (0.0, np.pi / 2, np.pi, 1.5 * np.pi)


def spire(
    m: MeshBuilder, x: float, y: float, z: float, width: float, s: Style, rng: np.random.Generator, kind: int
) -> None:
    """Top a square tower of `width` at height z: kind 0 pyramid, 1 octagonal spire, 2 dome, 3 battlements, 4 onion."""
    if kind == 0:
        frustum(m, (x, y), (width * 1.1,) * 2, (0.0, 0.0), z, z + width * rng.uniform(0.6, 2.2), s.roof, None)
    elif kind == 1:
        turned(m, (x, y), [(width * 0.52, z), (0.0, z + width * rng.uniform(1.5, 3.5))], 8, s.roof)
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            corner = (x + sx * width * 0.44, y + sy * width * 0.44)
            turned(m, corner, [(width * 0.1, z), (width * 0.1, z + width * 0.3), (0.0, z + width * 0.7)], 6, s.trim)
    elif kind == 2:
        turned(m, (x, y), [(width * 0.42, z), (width * 0.42, z + width * 0.25)], 12, s.wall)
        turned(m, (x, y), dome_profile(width * 0.44, z + width * 0.25, width * rng.uniform(0.4, 0.7)), 12, s.dome)
        turned(m, (x, y), [(width * 0.05, z), (0.0, z + width * 1.3)], 6, s.dark)
    elif kind == 3:
        crenels(m, (x, y), (width, width), z, width / 8, s.wall)
    else:
        high = width * rng.uniform(0.7, 1.2)
        turned(m, (x, y), dome_profile(width * 0.42, z, high, bulge=0.35), 12, s.dome)
        turned(m, (x, y), [(width * 0.03, z + high * 0.95), (0.0, z + high * 1.3)], 5, s.dark)


def clock_tower(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A square shaft in storeys, narrower upwards, with clocks or arches near the top and a spire."""
    width = float(rng.uniform(7, 13))
    z, storeys = 0.0, int(rng.integers(3, 6))
    clock_at = int(rng.integers(storeys // 2, storeys))
    has_clock = rng.random() < 0.75
    for storey in range(storeys):
        tall = width * float(rng.uniform(0.7, 1.7))
        wall = (s.wall, s.bays, s.other_bays, s.arches)[int(rng.integers(4))]
        if storey == clock_at and has_clock:
            tall, wall = width * 1.1, s.wall
        box(m, (0, 0), (width, width), z, z + tall, s.base if storey == 0 else wall, s.trim)
        for turn in _TURNS:
            with m.placed(0, 0, 0, turn):
                if storey == clock_at and has_clock:
                    panel(m, 0, -width / 2 - 0.1, z + tall * 0.5 - width * 0.36, width * 0.72, width * 0.72, s.clock)
                elif storey == 0:
                    panel(m, 0, -width / 2 - 0.1, 0, width * 0.5, tall * 0.7, s.door)
        z += tall
        box(m, (0, 0), (width * 1.1, width * 1.1), z, z + width * 0.08, s.trim)
        z += width * 0.08
        width *= float(rng.uniform(0.8, 1.0))
    spire(m, 0, 0, z, width, s, rng, int(rng.integers(5)))
    if rng.random() < 0.5:  # a lower wing beside the tower
        long = float(rng.uniform(14, 30))
        side = float(rng.choice([-1, 1]))
        box(m, (side * (long / 2 + 4), 0), (long, 10), 0, float(rng.uniform(7, 12)), s.bays, s.roof)


def round_tower(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A round keep, tapered or leaning outwards in galleries, with battlements or a cone."""
    radius, z = float(rng.uniform(5, 10)), 0.0
    for storey in range(int(rng.integers(2, 6))):
        tall = float(rng.uniform(5, 14))
        wall = (s.wall, s.bays, s.arches)[int(rng.integers(3))] if storey else s.base
        narrow = radius * float(rng.uniform(0.82, 1.0))
        turned(
            m,
            (0, 0),
            [(radius, z), (narrow, z + tall), (narrow * 1.1, z + tall), (narrow * 1.1, z + tall + 1)],
            18,
            wall,
        )
        turned(m, (0, 0), [(narrow * 1.1, z + tall + 0.9), (narrow * 1.1, z + tall + 1)], 18, s.trim, top=s.trim)
        radius, z = narrow, z + tall + 1
    kind = int(rng.integers(3))
    if kind == 0:
        crenel_ring(m, (0, 0), radius * 1.1, z, 1.1, s.wall)
    elif kind == 1:
        turned(m, (0, 0), [(radius * 1.2, z), (0.0, z + radius * rng.uniform(1.2, 3))], 18, s.roof)
    else:
        turned(m, (0, 0), dome_profile(radius, z, radius * float(rng.uniform(0.7, 1.2))), 18, s.dome)
    with m.placed(turn=float(rng.uniform(-0.4, 0.4))):
        box(m, (0, -radius - 2), (4, 3), 0, 5, s.wall, s.roof)
        panel(m, 0, -radius - 3.6, 0, 2.5, 4, s.door)


def lighthouse(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A tapered shaft with rings or stripes, a gallery, a lantern and a keeper's house."""
    low, tall = float(rng.uniform(3.5, 6)), float(rng.uniform(22, 45))
    high, rings = low * float(rng.uniform(0.5, 0.8)), int(rng.integers(1, 7))
    heights, radii = np.linspace(0, tall, rings + 1), np.linspace(low, high, rings + 1)
    pair = (s.trim, s.roof) if rng.random() < 0.6 else (s.wall, s.bays)
    for index in range(rings):
        turned(m, (0, 0), [(radii[index], heights[index]), (radii[index + 1], heights[index + 1])], 16, pair[index % 2])
    wide = high * float(rng.uniform(1.2, 1.7))
    turned(m, (0, 0), [(high, tall - 1), (wide, tall), (wide, tall + 1)], 16, s.dark, top=s.trim)
    glass = tall + 1 + float(rng.uniform(2, 4))
    turned(m, (0, 0), [(high * 0.7, tall + 1), (high * 0.7, glass)], 10, s.glass)
    turned(m, (0, 0), dome_profile(high * 0.85, glass, high * float(rng.uniform(0.5, 1.3))), 10, s.dome)
    size = (float(rng.uniform(8, 16)), float(rng.uniform(7, 10)))
    centre = (float(rng.choice([-1, 1])) * (low + size[0] / 2), float(rng.uniform(-3, 3)))
    box(m, centre, size, 0, 4.5, s.bays)
    frustum(m, centre, (size[0] + 1, size[1] + 1), (size[0] * 0.6, 0.1), 4.5, 8, s.roof, s.roof)


def observation_tower(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A thin shaft or three legs carrying one or two pods and a mast."""
    tall, waist = float(rng.uniform(60, 110)), float(rng.uniform(2, 4))
    if rng.random() < 0.5:
        turned(m, (0, 0), [(waist * 2.2, 0), (waist * 1.2, tall * 0.3), (waist, tall)], 12, s.trim)
    else:
        spread = float(rng.uniform(8, 16))
        for angle in 2 * np.pi * np.arange(3) / 3 + 0.3:
            foot, knee = (
                np.array([np.cos(angle), np.sin(angle)]) * spread,
                np.array([np.cos(angle), np.sin(angle)]) * waist,
            )
            beam(m, (*foot, 0.0), (*knee, tall * 0.55), 2.2, s.trim)
            beam(m, (*knee, tall * 0.55), (*(knee * 1.8), tall), 2.0, s.trim)
        turned(m, (0, 0), [(waist * 0.5, 0), (waist * 0.5, tall)], 8, s.dark)
    z = tall * float(rng.uniform(0.75, 0.95))
    for _ in range(int(rng.integers(1, 3))):
        wide, thick = float(rng.uniform(8, 15)), float(rng.uniform(4, 9))
        turned(m, (0, 0), [(waist, z - thick), (wide, z), (wide, z + 2)], 18, s.trim)
        turned(m, (0, 0), [(wide * 0.95, z + 2), (wide * 0.9, z + thick)], 18, s.glass)
        turned(m, (0, 0), [(wide, z + thick), (waist, z + thick * float(rng.uniform(1.2, 2)))], 18, s.dome)
        z += thick * 2.2
    turned(m, (0, 0), [(waist * 0.6, z - 6), (0.3, z + tall * float(rng.uniform(0.1, 0.4)))], 8, s.dark)
    turned(m, (0, 0), [(14, 0), (14, 4)], 16, s.glass, top=s.roof)


def skyscraper(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """Stepped, tapered or twin office towers with a crown."""
    facade = (s.glass, s.bays, s.other_bays)[int(rng.integers(3))]
    size = np.array([rng.uniform(18, 32), rng.uniform(16, 28)])
    box(m, (0, 0), (float(size[0] * 1.5), float(size[1] * 1.4)), 0, float(rng.uniform(6, 14)), s.arches, s.trim)
    places = [(-size[0] * 0.6, 0.0), (size[0] * 0.6, 0.0)] if rng.random() < 0.25 else [(0.0, 0.0)]
    steps, step_tall, shrink = int(rng.integers(1, 5)), float(rng.uniform(18, 40)), float(rng.uniform(0.6, 0.9))
    crown, taper = int(rng.integers(4)), float(rng.choice([1.0, 1.0, 0.75]))
    for x, y in places:
        now, z = size * (0.75 if len(places) == 2 else 1.0), 0.0
        for _ in range(steps):
            after = now * taper
            low, high = (float(now[0]), float(now[1])), (float(after[0]), float(after[1]))
            frustum(m, (float(x), y), low, high, z, z + step_tall, facade, s.trim)
            now, z = after * shrink, z + step_tall
        width = float(min(now))
        if crown == 0:
            turned(m, (float(x), y), [(width * 0.1, z), (0.1, z + width * 2)], 6, s.dark)
        elif crown < 3:
            spire(m, float(x), y, z, width, s, rng, crown - 1)


def column(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A monument: stepped base, pedestal, an obelisk or a column with a figure on top."""
    size, z = float(rng.uniform(8, 15)), 0.0
    for _ in range(int(rng.integers(2, 5))):
        box(m, (0, 0), (size, size), z, z + 0.8, s.base)
        size, z = size * 0.88, z + 0.8
    width = size * float(rng.uniform(0.4, 0.7))
    tall = width * float(rng.uniform(0.8, 1.8))
    box(m, (0, 0), (width, width), z, z + tall, (s.wall, s.frieze, s.arches)[int(rng.integers(3))], s.trim)
    z += tall
    box(m, (0, 0), (width * 1.2, width * 1.2), z, z + 0.7, s.trim)
    z += 0.7
    shaft, radius = float(rng.uniform(14, 34)), width * float(rng.uniform(0.25, 0.4))
    if rng.random() < 0.4:
        frustum(m, (0, 0), (radius * 1.8,) * 2, (radius * 1.2,) * 2, z, z + shaft, s.wall, s.trim)
        frustum(m, (0, 0), (radius * 1.2,) * 2, (0, 0), z + shaft, z + shaft + radius * 1.6, s.trim, None)
    else:
        material: Material = (s.column, s.frieze, s.wall)[int(rng.integers(3))]
        turned(m, (0, 0), [(radius, z), (radius * 0.8, z + shaft)], 12, material)
        z += shaft
        box(m, (0, 0), (radius * 2.4, radius * 2.4), z, z + radius * 0.6, s.trim)
        figure = float(rng.uniform(3, 7))
        z += radius * 0.6
        turned(
            m,
            (0, 0),
            [(figure * 0.2, z), (figure * 0.12, z + figure * 0.4), (figure * 0.2, z + figure * 0.7)],
            7,
            s.dome,
        )
        turned(m, (0, 0), dome_profile(figure * 0.11, z + figure * 0.7, figure * 0.3), 7, s.dome)
        if rng.random() < 0.6:
            beam(m, (0, 0, z + figure * 0.6), (figure * 0.5, 0, z + figure * float(rng.uniform(0.4, 1.1))), 0.6, s.dome)
    for x in (-1, 1):
        if rng.random() < 0.6:
            box(m, (x * size * 0.9, -size * 0.5), (2.5, 3.5), 0, 3.5, s.wall, s.trim)
