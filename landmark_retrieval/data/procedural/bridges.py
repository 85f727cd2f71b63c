"""Arch bridges and suspension bridges."""

import numpy as np

from .geometry import MeshBuilder
from .solids import arcade, beam, box, frustum, turned
from .style import Style
from .towers import spire


def arch_bridge(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """One or two tiers of arches carrying a road, with towers or lamps on it."""
    length, bays = float(rng.uniform(60, 110)), int(rng.integers(2, 8))
    deep, tall = float(rng.uniform(6, 10)), float(rng.uniform(9, 20))
    pier, spring = float(rng.uniform(0.12, 0.35)), float(rng.uniform(0.1, 0.5))
    arcade(
        m,
        length,
        deep,
        0,
        tall,
        bays,
        s.wall,
        pier=pier,
        spring=spring,
        top=s.base,
        pointed=float(rng.choice([0, 0, 0.6])),
    )
    z = tall
    if rng.random() < 0.35 and bays < 6:
        arcade(m, length, deep * 0.7, tall, tall * 1.5, bays * 2, s.wall, pier=0.3, spring=0.4, top=s.base)
        z = tall * 1.5
    for sy in (-1, 1):
        box(m, (0, sy * deep * 0.34 if z > tall else sy * (deep / 2)), (length, 0.5), z, z + 1.2, s.trim)
    kind, high = int(rng.integers(3)), z + float(rng.uniform(6, 14))
    places = [-0.5, 0.5] if kind == 0 else [float(rng.choice([-0.5, 0.0, 0.5]))] if kind == 1 else []
    for place in places:
        x = place * length * 0.96
        box(m, (x, 0), (deep * 0.9, deep * 1.15), 0, high, s.bays, s.trim)
        spire(
            m,
            x,
            0,
            high,
            deep * 0.9,
            s,
            np.random.default_rng(int(length * 1e6)),
            int(rng.choice([0, 3])) if kind else 0,
        )
    if kind == 2:
        for x in np.linspace(-length / 2, length / 2, bays + 1):
            turned(m, (float(x), -deep / 2), [(0.35, z), (0.2, z + 4), (0.6, z + 4.4), (0.0, z + 5)], 6, s.dark)
            turned(m, (float(x), -deep / 2), [(pier * 8, 0), (pier * 6, z * 0.6), (0.1, z * 0.75)], 6, s.base)


def suspension_bridge(m: MeshBuilder, s: Style, rng: np.random.Generator) -> None:
    """Two pylons, main cables or stays, hangers and a deck."""
    span, deck, wide = float(rng.uniform(70, 120)), float(rng.uniform(8, 14)), float(rng.uniform(8, 12))
    high = deck + span * float(rng.uniform(0.16, 0.34))
    reach = span * float(rng.uniform(0.75, 0.95))
    box(m, (0, 0), (2 * reach, wide), deck - 1.6, deck, s.dark if rng.random() < 0.5 else s.trim, s.base)
    stays, masonry = rng.random() < 0.45, rng.random() < 0.5
    thick, ties = float(rng.uniform(2, 4)), int(rng.integers(1, 4))
    metal = s.roof if rng.random() < 0.5 else s.trim
    for x in (-span / 2, span / 2):
        if masonry:
            with m.placed(x, 0, 0, np.pi / 2):
                box(m, (0, 0), (wide * 1.5, thick * 1.6), 0, deck, s.base)
                arcade(
                    m,
                    wide * 1.5,
                    thick * 1.4,
                    deck,
                    high,
                    2 if ties > 1 else 1,
                    s.wall,
                    pier=0.45,
                    spring=0.6,
                    pointed=float(ties % 2),
                )
                box(m, (0, 0), (wide * 1.6, thick * 1.7), high, high + 1.5, s.trim)
        else:
            for sy in (-1.0, 1.0):
                frustum(
                    m, (x, sy * wide * 0.55), (thick, thick), (thick * 0.6, thick * 0.6), 0, high + 1, metal, s.trim
                )
            for part in np.linspace(0.0, 1.0, ties + 1)[1:]:
                box(m, (x, 0), (thick * 0.6, wide), deck + (high - deck) * part - 2, deck + (high - deck) * part, metal)
    for sy in (-0.5, 0.5):
        y = sy * wide
        if stays:
            for x in (-span / 2, span / 2):
                for part in np.linspace(0.2, 1, 6):
                    for sign in (-1.0, 1.0):
                        end = (x + sign * part * (span / 2 if sign * x < 0 else reach - span / 2), y, deck)
                        beam(m, (x, y, deck + (high - deck) * (0.5 + 0.5 * part)), end, 0.35, s.trim)
            continue
        xs = np.concatenate([[-reach], np.linspace(-span / 2, span / 2, 13), [reach]])
        zs = deck + 1 + (high - deck - 1) * np.minimum((2 * xs / span) ** 2, 1.0)
        zs[[0, -1]] = deck
        for a in range(len(xs) - 1):
            beam(m, (xs[a], y, zs[a]), (xs[a + 1], y, zs[a + 1]), 0.6, metal)
            if a > 0:
                beam(m, (xs[a], y, deck), (xs[a], y, zs[a]), 0.25, s.trim)
