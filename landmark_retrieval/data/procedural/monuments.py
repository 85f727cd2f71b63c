"""Pagodas, pyramids, stupas, gates and wheels."""

import numpy as np

from .geometry import MeshBuilder
from .solids import arcade, beam, box, dome_profile, frustum, panel, turned
from .style import Style
from .towers import spire


def pagoda(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """Storeys with wide roofs, square or eight-sided, each smaller than the one below."""
    width, z = float(rng.uniform(12, 22)), 0.0
    for _ in range(int(rng.integers(1, 4))):
        box(m, (0, 0), (width * 1.6, width * 1.6), z, z + 1.2, s.base)
        z += 1.2
        width *= 0.93
    storeys, shrink = int(rng.integers(2, 8)), float(rng.uniform(0.78, 0.93))
    eaves, slope, lift = float(rng.uniform(1.3, 1.75)), float(rng.uniform(0.12, 0.3)), float(rng.uniform(0.25, 0.5))
    square = rng.random() < 0.6
    for storey in range(storeys):
        tall = width * lift * (1.3 if storey == 0 else 1.0)
        wall = s.arches if storey == 0 else s.bays
        after = width * shrink
        if square:
            box(m, (0, 0), (width, width), z, z + tall, wall)
            frustum(
                m,
                (0, 0),
                (width * eaves,) * 2,
                (width * 1.1,) * 2,
                z + tall,
                z + tall + width * slope * 0.5,
                s.roof,
                s.dark,
            )
            frustum(
                m,
                (0, 0),
                (width * 1.1,) * 2,
                (after,) * 2,
                z + tall + width * slope * 0.5,
                z + tall + width * slope * 1.3,
                s.roof,
                s.dark,
            )
            under = np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)]) * width * eaves / 2
            m.add(np.column_stack([under, np.full(4, z + tall)]), s.dark)
        else:
            turned(m, (0, 0), [(width * 0.54, z), (width * 0.54, z + tall)], 8, wall)
            turned(m, (0, 0), [(width * 0.5, z + tall), (width * 0.54 * eaves, z + tall + 0.05)], 8, s.dark)
            roof = [
                (width * 0.54 * eaves, z + tall),
                (width * 0.6, z + tall + width * slope * 0.5),
                (after * 0.54, z + tall + width * slope),
            ]
            turned(m, (0, 0), roof, 8, s.roof)
        z += tall + width * slope * (1.0 if not square else 1.2)
        width = after
    turned(
        m,
        (0, 0),
        [(width * 0.5, z - 0.2), (width * 0.12, z + width * 0.4), (width * 0.1, z + width), (0, z + width * 1.6)],
        8,
        s.dome,
    )


def pyramid(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """Stepped terraces or smooth sides with a stair and a shrine on top."""
    base, tall, steps = float(rng.uniform(34, 60)), float(rng.uniform(16, 36)), int(rng.integers(1, 9))
    top = base * float(rng.uniform(0.1, 0.35))
    if steps == 1:
        frustum(m, (0, 0), (base, base), (top * 0.02, top * 0.02), 0, tall, s.wall, None)
        panel(m, 0, -base / 2 - 0.3, 0, 6, 6, s.door)
        return
    widths, heights = np.linspace(base, top, steps + 1), np.linspace(0, tall, steps + 1)
    lean = float(rng.uniform(0.0, 0.8))
    alternate = rng.random() < 0.5
    for index in range(steps):
        low = float(widths[index])
        high = float(low + (widths[index + 1] - low) * lean)
        wall = (s.base, s.frieze)[index % 2] if alternate else s.wall
        frustum(m, (0, 0), (low, low), (high, high), float(heights[index]), float(heights[index + 1]), wall, s.trim)
    stair = float(rng.uniform(4, 8))
    for turn in (0.0, np.pi) if rng.random() < 0.5 else (0.0, np.pi / 2, np.pi, 1.5 * np.pi):
        with m.placed(turn=float(turn)):
            for sign in (-1, 1):
                beam(m, (sign * stair / 2, -base / 2 - 1, 0.3), (sign * stair / 2, -top / 2, tall + 0.3), 1.1, s.trim)
            w = stair / 2
            m.add(
                np.array(
                    [
                        (-w, -base / 2 - 1, 0.1),
                        (w, -base / 2 - 1, 0.1),
                        (w, -top / 2, tall + 0.1),
                        (-w, -top / 2, tall + 0.1),
                    ]
                ),
                s.roof,
            )
    shrine, high = top * 0.7, top * float(rng.uniform(0.4, 0.9))
    box(m, (0, 0), (shrine, shrine), tall, tall + high, s.arches, s.trim)
    spire(m, 0, 0, tall + high, shrine, s, rng, int(rng.choice([0, 2, 3])))


def stupa(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """Terraces, a bell or hemisphere, a square block and a ringed spire."""
    base, z = float(rng.uniform(22, 40)), 0.0
    square = rng.random() < 0.5
    for _ in range(int(rng.integers(1, 5))):
        tall = float(rng.uniform(1, 3))
        if square:
            box(m, (0, 0), (base, base), z, z + tall, s.frieze, s.trim)
        else:
            turned(m, (0, 0), [(base / 2, z), (base / 2, z + tall)], 20, s.arches, top=s.trim)
        base, z = base * float(rng.uniform(0.8, 0.92)), z + tall
    radius, high, bell = base * 0.47, base * float(rng.uniform(0.35, 0.6)), rng.random() < 0.5
    if bell:
        parts = np.linspace(0, 1, 9)
        profile = [(float(radius * (1 - 0.78 * t**0.6)), float(z + high * 1.5 * t)) for t in parts]
        turned(m, (0, 0), profile, 18, s.dome)
        z, radius = z + high * 1.5, radius * 0.3
    else:
        turned(m, (0, 0), dome_profile(radius, z, high), 20, s.trim)
        z, radius = z + high * 0.96, radius * float(rng.uniform(0.2, 0.35))
    box(
        m, (0, 0), (radius * 1.7, radius * 1.7), z, z + radius * 1.3, s.rose if rng.random() < 0.5 else s.frieze, s.dome
    )
    z += radius * 1.3
    rings, tip = int(rng.integers(4, 10)), radius * float(rng.uniform(2.5, 5))
    for index in range(rings):
        r0, r1 = radius * (1 - index / rings), radius * (1 - (index + 1) / rings)
        turned(m, (0, 0), [(r0, z + tip * index / rings), (max(r1, 0.1), z + tip * (index + 0.8) / rings)], 10, s.dome)
    count, reach = int(rng.choice([0, 4, 8])), base * 0.62
    for angle in 2 * np.pi * np.arange(count) / max(count, 1) + np.pi / 4:
        x, y = float(reach * np.cos(angle)), float(reach * np.sin(angle))
        turned(m, (x, y), [(2.0, 0), (2.0, 3.5), (0.8, 6), (0.0, 9)], 8, s.trim)


def gate(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A triumphal arch with one or three openings, columns, an attic and statues or turrets."""
    bays = int(rng.choice([1, 1, 3, 5]))
    length, deep, tall = (
        float(rng.uniform(13, 18)) * (1 + 0.25 * (bays - 1)),
        float(rng.uniform(5, 10)),
        float(rng.uniform(12, 20)),
    )
    pointed = float(rng.choice([0.0, 0.0, 1.0]))
    spring = float(rng.uniform(0.45, 0.65))
    arcade(m, length, deep, 0, tall, bays, s.wall, pier=float(rng.uniform(0.35, 0.6)), spring=spring, pointed=pointed)
    box(m, (0, 0), (length * 1.05, deep * 1.1), tall, tall + 1.2, s.trim)
    attic = tall * float(rng.uniform(0.12, 0.4))
    box(m, (0, 0), (length * float(rng.uniform(0.6, 1.0)), deep), tall + 1.2, tall + 1.2 + attic, s.frieze, s.trim)
    top = tall + 1.2 + attic
    kind, minaret = int(rng.integers(4)), tall * float(rng.uniform(1.2, 2.0))
    if kind == 1:
        for x in np.linspace(-length * 0.35, length * 0.35, int(rng.integers(1, 5))):
            turned(m, (float(x), 0), [(0.9, top), (0.5, top + 1.6), (0.9, top + 2.6), (0.0, top + 3.8)], 7, s.dome)
    elif kind == 2:
        for sx in (-1, 1):
            for sy in (-1, 1):
                x, y = sx * length / 2, sy * deep / 2
                turned(m, (x, y), [(1.7, 0), (1.4, minaret)], 9, s.bays)
                turned(m, (x, y), [(1.4, minaret * 0.7), (2.2, minaret * 0.72), (2.2, minaret * 0.75)], 9, s.trim)
                turned(m, (x, y), dome_profile(1.5, minaret, 2.4, bulge=0.3), 9, s.dome)
    elif kind == 3:
        spire(m, 0, 0, top, min(length, deep) * 0.9, s, rng, int(rng.choice([0, 2, 4])))
    bay, columns = length / bays, rng.random() < 0.7
    for index in range(bays + 1) if columns else ():
        for sy in (-1, 1):
            spot = (-length / 2 + index * bay * 0.999, sy * (deep / 2 + 0.7))
            box(m, spot, (1.9, 1.6), 0, 2.2, s.base, s.trim)
            turned(m, spot, [(0.7, 2.2), (0.6, tall)], 7, s.column)


def wheel(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """A great wheel with spokes and cabins on two legs."""
    radius, thick = float(rng.uniform(20, 34)), float(rng.uniform(1.5, 4))
    hub, count = radius + float(rng.uniform(4, 9)), int(rng.integers(10, 20))
    angles = 2 * np.pi * np.arange(count) / count
    metal = (s.trim, s.roof, s.dome)[int(rng.integers(3))]
    rims = [1.0, float(rng.uniform(0.75, 0.9))] if rng.random() < 0.6 else [1.0]
    for sy in (-0.5, 0.5):
        y = sy * thick
        for rim in rims:
            points = [(radius * rim * np.cos(a), y, hub + radius * rim * np.sin(a)) for a in angles]
            for p, q in zip(points, points[1:] + points[:1], strict=True):
                beam(m, p, q, 0.7, metal)
        for a in angles:
            beam(m, (0, y, hub), (radius * np.cos(a), y, hub + radius * np.sin(a)), 0.35, s.trim)
        foot = radius * float(rng.uniform(0.35, 0.6))
        for sign in (-1, 1):
            beam(m, (sign * foot, sy * thick * 3, 0), (0, y, hub), 1.6, metal)
    size = radius * float(rng.uniform(0.09, 0.14))
    for index, a in enumerate(angles):
        spot = (float(radius * 1.06 * np.cos(a)), 0.0)
        z = float(hub + radius * 1.06 * np.sin(a))
        box(m, spot, (size, size), z - size, z, (s.glass, s.roof)[index % 2], s.dome)
    box(m, (0, 0), (radius * 1.1, thick * 4), 0, 4, s.bays, s.roof)
