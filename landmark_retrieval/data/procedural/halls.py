"""Broad landmarks: domed halls, churches, temples, palaces, castles."""

import numpy as np

from .geometry import MeshBuilder
from .solids import arcade, box, crenel_ring, crenels, dome_profile, frustum, gable, panel, turned
from .style import Style
from .towers import spire


def _steps(m: MeshBuilder, size: tuple[float, float], count: int, s: Style) -> float:
    """A stepped platform around `size`; its height."""
    for index in range(count):
        more = (count - index) * 1.2
        box(m, (0, 0), (size[0] + more, size[1] + more), index * 0.6, (index + 1) * 0.6, s.base)
    return count * 0.6


def domed_hall(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A block with a portal and a great dome on a drum, with smaller domes and minarets at the corners."""
    width, deep = float(rng.uniform(26, 46)), float(rng.uniform(22, 34))
    z = _steps(m, (width, deep), int(rng.integers(0, 5)), s)
    tall = float(rng.uniform(10, 18))
    box(m, (0, 0), (width, deep), z, z + tall, (s.bays, s.other_bays, s.arches)[int(rng.integers(3))], s.trim)
    box(m, (0, 0), (width * 1.03, deep * 1.03), z + tall, z + tall + 1.2, s.frieze, s.trim)
    portal, high = width * float(rng.uniform(0.2, 0.4)), tall * float(rng.uniform(0.9, 1.4))
    box(m, (0, -deep / 2), (portal, 5), z, z + high, s.wall, s.trim)
    panel(m, 0, -deep / 2 - 2.6, z, portal * 0.75, high * 0.85, s.door)
    if rng.random() < 0.4:
        crenels(m, (0, 0), (width, deep), z + tall + 1.2, 1.4, s.trim)
    top, radius = z + tall + 1.2, min(width, deep) * float(rng.uniform(0.22, 0.4))
    drum, bulge = radius * float(rng.uniform(0.2, 1.0)), float(rng.choice([0.0, 0.0, 0.15, 0.35]))
    swell = radius * float(rng.uniform(0.8, 1.4))
    turned(m, (0, 0), [(radius, top), (radius, top + drum)], 20, (s.bays, s.arches, s.other_bays)[int(rng.integers(3))])
    turned(m, (0, 0), dome_profile(radius * 1.03, top + drum, swell, bulge=bulge, steps=8), 20, s.dome)
    lantern = radius * float(rng.uniform(0.12, 0.25))
    peak = top + drum + swell
    turned(m, (0, 0), [(lantern, peak - 0.6), (lantern, peak + lantern * 2), (0.0, peak + lantern * 5)], 8, s.trim)
    small, kind = radius * float(rng.uniform(0.25, 0.5)), int(rng.integers(4))
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        if kind == 0:
            x, y = sx * (width / 2 - small), sy * (deep / 2 - small)
            turned(m, (x, y), [(small, top), (small, top + small)], 10, s.arches)
            turned(m, (x, y), dome_profile(small, top + small, small, bulge=bulge), 10, s.dome)
        elif kind == 1:
            x, y, slim = sx * (width / 2 + 3), sy * (deep / 2 + 3), float(1.2 + small * 0.15)
            tip = peak * 0.95
            turned(m, (x, y), [(slim, 0), (slim * 0.8, tip)], 9, s.wall)
            for part in (0.55, 0.9):
                turned(
                    m,
                    (x, y),
                    [(slim, tip * part), (slim * 1.6, tip * part + 1), (slim * 1.6, tip * part + 2)],
                    9,
                    s.trim,
                )
            turned(m, (x, y), [(slim, tip), (0.0, tip + slim * 4)], 9, s.roof)
        elif kind == 2 and sy < 0:
            box(m, (sx * width * 0.42, -deep / 2), (small * 2, small * 2), 0, top + small * 2, s.other_bays, s.trim)
            spire(
                m,
                sx * width * 0.42,
                -deep / 2,
                top + small * 2,
                small * 2,
                s,
                np.random.default_rng(int(small * 1e6)),
                4,
            )


def church(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A gabled nave with one or two front towers, a transept and a rose window."""
    width, long, tall = float(rng.uniform(10, 16)), float(rng.uniform(26, 48)), float(rng.uniform(11, 20))
    ridge = tall + width * float(rng.uniform(0.4, 0.9))
    with m.placed(turn=np.pi / 2):
        box(m, (0, 0), (long, width), 0, tall, s.bays)
        gable(m, (0, 0), (long, width + 0.8), tall, ridge, s.roof, s.wall)
        if rng.random() < 0.6:
            box(m, (0, 0), (long * 0.96, width * 1.7), 0, tall * 0.5, s.other_bays)
            frustum(m, (0, 0), (long * 0.98, width * 1.75), (long * 0.9, width), tall * 0.5, tall * 0.72, s.roof, None)
    if rng.random() < 0.6:
        across = width * float(rng.uniform(1.8, 2.6))
        box(m, (0, long * 0.15), (across, width * 0.8), 0, tall, s.bays)
        gable(m, (0, long * 0.15), (across, width * 0.8), tall, ridge * 0.97, s.roof, s.wall)
        if rng.random() < 0.5:
            with m.placed(0, long * 0.15):
                box(m, (0, 0), (width * 0.5,) * 2, tall, ridge + width * 0.4, s.arches)
                spire(m, 0, 0, ridge + width * 0.4, width * 0.5, s, rng, int(rng.integers(3)))
    front = -long / 2 - 0.2
    panel(m, 0, front, 0, width * 0.45, tall * 0.5, s.door)
    panel(m, 0, front, tall * 0.58, width * 0.5, width * 0.5, s.rose)
    kind, side = int(rng.integers(5)), width * float(rng.uniform(0.4, 0.6))
    height = ridge * float(rng.uniform(1.0, 1.8))
    wall = (s.bays, s.other_bays, s.arches)[int(rng.integers(3))]
    places = [-1.0, 1.0] if rng.random() < 0.5 else [float(rng.choice([-1.0, 0.0, 1.0]))]
    spire_seed = int(rng.integers(1 << 30))
    for sign in places:
        x, y = sign * (width / 2 + side * 0.3), front + side * (0.35 if sign else -0.45)
        lower = height * 0.7
        box(m, (x, y), (side, side), 0, lower, s.wall)
        box(m, (x, y), (side * 0.96, side * 0.96), lower, height, wall, s.trim)
        box(m, (x, y), (side * 1.08, side * 1.08), lower - 0.5, lower, s.trim)
        panel(m, x, y - side / 2 - 0.1, 0, side * 0.5, lower * 0.25, s.door)
        if spire_seed % 3 == 0:
            panel(m, x, y - side / 2 - 0.1, lower * 0.7, side * 0.7, side * 0.7, s.clock)
        spire(m, x, y, height, side, s, np.random.default_rng(spire_seed), kind)


def temple(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """Rows of columns around a cella on steps, under a pediment or an attic with a dome."""
    count, tall = int(rng.choice([4, 6, 8, 10])), float(rng.uniform(7, 13))
    gap = tall * float(rng.uniform(0.28, 0.42))
    width, deep = gap * (count - 1), gap * int(rng.integers(4, 10))
    z = _steps(m, (width + 3, deep + 3), int(rng.integers(3, 9)), s)
    radius = tall * float(rng.uniform(0.05, 0.075))
    box(m, (0, 0), (width - gap * 1.2, max(deep - gap * 1.6, 4.0)), z, z + tall, s.wall)
    panel(m, 0, -max(deep - gap * 1.6, 4.0) / 2 - 0.1, z, gap, tall * 0.7, s.door)
    xs = np.linspace(-width / 2, width / 2, count)
    spots = [(float(x), -deep / 2) for x in xs]
    if rng.random() < 0.7:
        rows = max(2, round(deep / gap))
        spots += [(sx * width / 2, float(y)) for sx in (-1, 1) for y in np.linspace(-deep / 2, deep / 2, rows + 1)[1:]]
    for x, y in spots:
        turned(m, (x, y), [(radius, z), (radius * 0.85, z + tall * 0.93)], 6, s.column)
        box(m, (x, y), (radius * 2.6, radius * 2.6), z + tall * 0.93, z + tall, s.trim)
    z += tall
    outer = (width + radius * 3, deep + radius * 3)
    band = tall * float(rng.uniform(0.12, 0.25))
    box(m, (0, 0), outer, z, z + band, s.frieze, s.trim)
    z += band
    roof = int(rng.integers(3))
    if roof < 2:
        with m.placed(0, 0, 0, np.pi / 2):
            gable(
                m,
                (0, 0),
                (outer[1] + 1, outer[0] + 1),
                z,
                z + outer[0] * float(rng.uniform(0.12, 0.25)),
                s.roof,
                s.trim,
            )
    if roof > 0:
        dome = min(width, deep) * float(rng.uniform(0.25, 0.4))
        turned(m, (0, 0), [(dome, z), (dome, z + dome * 0.6)], 18, s.arches)
        turned(m, (0, 0), dome_profile(dome, z + dome * 0.6, dome * float(rng.uniform(0.6, 1))), 18, s.dome, top=s.trim)


def palace(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A long front with a centre block, wings, corner pavilions and hipped roofs."""
    long, deep, tall = float(rng.uniform(44, 84)), float(rng.uniform(12, 18)), float(rng.uniform(9, 16))
    box(m, (0, 0), (long, deep), 0, tall * 0.4, s.other_bays if rng.random() < 0.5 else s.arches)
    box(m, (0, 0), (long, deep), tall * 0.4, tall, s.bays)
    slope = float(rng.uniform(2, 7))
    frustum(m, (0, 0), (long + 1, deep + 1), (long - 4, deep * 0.3), tall, tall + slope, s.roof, s.roof)
    centre, high = long * float(rng.uniform(0.14, 0.26)), tall * float(rng.uniform(1.1, 1.5))
    box(m, (0, -1.5), (centre, deep + 3), 0, high, s.other_bays, s.trim)
    kind = int(rng.integers(4))
    if kind == 0:
        with m.placed(turn=np.pi / 2):
            gable(m, (-1.5, 0), (deep + 3.5, centre + 1), high, high + centre * 0.25, s.roof, s.frieze)
    elif kind == 1:
        frustum(
            m, (0, -1.5), (centre + 1, deep + 4), (centre * 0.5, deep * 0.4), high, high + slope * 1.8, s.roof, s.trim
        )
    else:
        with m.placed(0, -1.5):
            spire(m, 0, 0, high, min(centre, deep), s, rng, 2 if kind == 2 else 4)
    panel(m, 0, -deep / 2 - 3.2, 0, centre * 0.4, tall * 0.4, s.door)
    for x in np.linspace(-centre * 0.42, centre * 0.42, int(rng.integers(2, 7))):
        turned(m, (float(x), -deep / 2 - 4), [(0.6, 0), (0.5, high * 0.8)], 6, s.column)
    box(m, (0, -deep / 2 - 3.6), (centre, 2.2), high * 0.8, high * 0.8 + 1, s.trim)
    pavilion, up, top = float(rng.uniform(8, 14)), tall * float(rng.uniform(1.0, 1.5)), int(rng.integers(5))
    spire_seed = int(rng.integers(1 << 30))
    for sign in (-1, 1):
        if rng.random() < 0.85:
            box(m, (sign * long / 2, -2), (pavilion, deep + 5), 0, up, s.bays, s.trim)
            if top == 3:
                frustum(m, (sign * long / 2, -2), (pavilion + 1, deep + 6), (1, deep * 0.5), up, up + 6, s.roof, s.roof)
            else:
                spire(m, sign * long / 2, -2, up, pavilion, s, np.random.default_rng(spire_seed), top)


def castle(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """Curtain walls between round or square corner towers, with a gate and a keep."""
    width, deep, tall = float(rng.uniform(28, 52)), float(rng.uniform(24, 40)), float(rng.uniform(7, 13))
    tooth = float(rng.uniform(1.1, 1.8))
    box(m, (0, 0), (width, deep), 0, tall, s.wall, s.base)
    crenels(m, (0, 0), (width, deep), tall, tooth, s.wall)
    round_shape, roof = rng.random() < 0.55, int(rng.integers(3))
    radius = float(rng.uniform(3, 5.5))
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x, y = sx * width / 2, sy * deep / 2
        up = tall * float(rng.uniform(1.2, 2.4))
        if round_shape:
            turned(
                m,
                (x, y),
                [(radius * 1.1, 0), (radius, up), (radius * 1.15, up + 1), (radius * 1.15, up + 2)],
                14,
                s.base,
                top=s.trim,
            )
            if roof == 0:
                crenel_ring(m, (x, y), radius * 1.15, up + 2, tooth, s.wall)
            else:
                turned(m, (x, y), [(radius * 1.3, up + 2), (0.0, up + 2 + radius * (1.2 + roof))], 14, s.roof)
        else:
            box(m, (x, y), (radius * 2,) * 2, 0, up, s.bays if roof == 2 else s.base, s.trim)
            spire(m, x, y, up, radius * 2, s, rng, 3 if roof == 0 else 0)
    gate = float(rng.uniform(7, 11))
    with m.placed(float(rng.uniform(-0.2, 0.2)) * width, -deep / 2):
        with m.placed(0, -1):
            arcade(m, gate, 5, 0, tall * 1.25, 1, s.wall, pier=0.5, spring=0.35)
        crenels(m, (0, -1), (gate, 5), tall * 1.25, tooth, s.wall)
    keep, high = float(rng.uniform(9, 15)), tall * float(rng.uniform(1.7, 3))
    x, y = float(rng.uniform(-0.25, 0.25)) * width, float(rng.uniform(0, 0.25)) * deep
    box(m, (x, y), (keep, keep * 0.9), tall * 0.5, high, s.other_bays, s.trim)
    spire(m, x, y, high, keep, s, rng, int(rng.choice([0, 2, 3])))
