"""Boxes, turned bodies, roofs, walls with arches and other parts that buildings are put together from."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .geometry import Material, MeshBuilder

Pair = tuple[float, float]


def box(
    m: MeshBuilder, centre: Pair, size: Pair, z0: float, z1: float, wall: Material, top: Material | None = None
) -> None:
    """An upright box of `size` (along x, along y) from height z0 to z1; its roof wears `top`, the wall's by default."""
    frustum(m, centre, size, size, z0, z1, wall, wall if top is None else top)


def frustum(
    m: MeshBuilder, centre: Pair, low: Pair, high: Pair, z0: float, z1: float, wall: Material, top: Material | None
) -> None:
    """A box whose horizontal size goes from `low` at z0 to `high` at z1; `top` None leaves it open (a hipped roof)."""
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    base = np.column_stack([signs * low + np.array(centre), np.full(4, z0)])
    head = np.column_stack([signs * high + np.array(centre), np.full(4, z1)])
    following = np.roll(np.arange(4), -1)
    m.add(np.stack([base, base[following], head[following], head], axis=1), wall)
    if top is not None and min(high) > 0:
        m.add(head, top)


def turned(
    m: MeshBuilder,
    centre: Pair,
    profile: Sequence[Pair],
    sides: int,
    material: Material,
    *,
    top: Material | None = None,
) -> None:
    """A body of revolution: `profile` lists (radius, height) upwards, approximated by `sides` flat faces per ring."""
    angles = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    ring = np.column_stack([np.cos(angles), np.sin(angles), np.zeros(sides)])
    following = np.roll(np.arange(sides), -1)
    origin = np.array([centre[0], centre[1], 0.0])
    for (r0, z0), (r1, z1) in pairwise(profile):
        low, high = origin + ring * r0 + [0, 0, z0], origin + ring * r1 + [0, 0, z1]
        m.add(np.stack([low, low[following], high[following], high], axis=1), material)
    radius, z = profile[-1]
    if top is not None and radius > 0:
        rim, middle = origin + ring * radius + [0, 0, z], np.broadcast_to(np.add(origin, (0, 0, z)), (sides, 3))
        m.add(np.stack([rim, rim[following], middle, middle], axis=1), top)


def dome_profile(radius: float, z: float, height: float, *, bulge: float = 0.0, steps: int = 7) -> list[Pair]:
    """The profile of a dome: a half ellipse for `bulge` 0, more of an onion (wider than its base) towards 0.4."""
    angles = np.linspace(0, np.pi / 2, steps)
    radii = radius * (np.cos(angles) ** (1 + bulge) + bulge * np.sin(2 * angles) ** 2)
    return [(float(r), float(z + height * h)) for r, h in zip(radii, np.sin(angles) ** (1 + bulge), strict=True)]


def gable(m: MeshBuilder, centre: Pair, size: Pair, z0: float, z1: float, roof: Material, wall: Material) -> None:
    """A gabled roof over `size` with its ridge along x at height z1; the two triangles wear `wall`."""
    (cx, cy), (w, d) = centre, (size[0] / 2, size[1] / 2)
    a, b, c, e = ((cx + sx * w, cy + sy * d, z0) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    left, right = (cx - w, cy, z1), (cx + w, cy, z1)
    m.add(np.array([[a, b, right, left], [c, e, left, right]]), roof)
    m.add(np.array([[b, c, right, right], [e, a, left, left]]), wall)


def panel(m: MeshBuilder, x: float, y: float, z: float, width: float, height: float, picture: Material) -> None:
    """One upright picture facing -y, its lower edge's middle at (x, y, z): a door, a clock, a rose window."""
    w = width / 2
    corners = [(x - w, y, z), (x + w, y, z), (x + w, y, z + height), (x - w, y, z + height)]
    m.add(np.array(corners), picture, whole_picture=True)


def crenels(m: MeshBuilder, centre: Pair, size: Pair, z: float, tooth: float, wall: Material) -> None:
    """Battlements along the rim of a rectangular roof at height z."""
    (cx, cy), (w, d) = centre, size
    for length, other, turn in ((w, d, 0.0), (d, w, np.pi / 2), (w, d, np.pi), (d, w, 1.5 * np.pi)):
        count = max(2, min(12, int(length / (2 * tooth))))
        with m.placed(cx, cy, z, turn):
            for x in np.linspace(-length / 2 + tooth / 2, length / 2 - tooth / 2, count)[:-1]:
                box(m, (float(x), -other / 2 + tooth * 0.3), (tooth, tooth * 0.6), 0, tooth * 1.2, wall)


def crenel_ring(m: MeshBuilder, centre: Pair, radius: float, z: float, tooth: float, wall: Material) -> None:
    """Battlements around a round tower's rim."""
    count = max(6, min(14, int(np.pi * radius / tooth)))
    for angle in 2 * np.pi * np.arange(count) / count:
        with m.placed(centre[0], centre[1], z, float(angle)):
            box(m, (radius - tooth * 0.3, 0), (tooth * 0.6, tooth), 0, tooth * 1.2, wall)


def beam(m: MeshBuilder, start: Sequence[float], end: Sequence[float], thickness: float, material: Material) -> None:
    """A square bar between two points (cables, struts, railings), without its two ends."""
    p, q = np.array(start, dtype=float), np.array(end, dtype=float)
    along = (q - p) / max(float(np.linalg.norm(q - p)), 1e-9)
    side = np.cross(along, [0.0, 0.0, 1.0]) if abs(along[2]) < 0.95 else np.array([1.0, 0.0, 0.0])
    side *= thickness / 2 / np.linalg.norm(side)
    over = np.cross(side, along)
    offsets = [side + over, -side + over, -side - over, side - over]
    m.add(
        np.array([[p + b, p + a, q + a, q + b] for a, b in zip(offsets, offsets[1:] + offsets[:1], strict=True)]),
        material,
    )


def arcade(
    m: MeshBuilder,
    length: float,
    depth: float,
    z0: float,
    z1: float,
    bays: int,
    wall: Material,
    *,
    pier: float = 0.3,
    spring: float = 0.5,
    pointed: float = 0.0,
    top: Material | None = None,
) -> None:
    """A wall along x with `bays` arched openings through its whole depth, centred on the origin.

    Args:
        pier: part of a bay's width taken by masonry. spring: part of the height at which the arches begin to curve.
        pointed: 0 for round arches, up to 1 for pointed ones. top: material of the upper face, the wall's by default.
    """
    bay, steps = length / bays, 6
    half = bay * (1 - pier) / 2
    start = z0 + spring * (z1 - z0)
    rise = min(half * (1 + 0.5 * pointed), (z1 - start) * 0.9)
    t = np.linspace(-1, 1, steps + 1)
    curve = start + rise * ((1 - pointed) * np.sqrt(1 - t**2) + pointed * (1 - np.abs(t) ** 1.5))
    outlines: list[tuple[float, float, float, float]] = []  # x from, x to, underside at both
    inner: list[np.ndarray] = []
    y0, y1 = -depth / 2, depth / 2
    for index in range(bays):
        left = -length / 2 + index * bay
        middle = left + bay / 2
        xs = middle + t * half
        outlines += [(left, xs[0], z0, z0), (xs[-1], left + bay, z0, z0)]
        outlines += list(zip(xs[:-1], xs[1:], curve[:-1], curve[1:], strict=True))
        for xa, xb, za, zb in zip(xs[:-1], xs[1:], curve[:-1], curve[1:], strict=True):
            inner.append(np.array([(xa, y1, za), (xb, y1, zb), (xb, y0, zb), (xa, y0, za)]))
        a, b = xs[0], xs[-1]
        inner.append(np.array([(a, y0, z0), (a, y1, z0), (a, y1, start), (a, y0, start)]))
        inner.append(np.array([(b, y1, z0), (b, y0, z0), (b, y0, start), (b, y1, start)]))
    front = [np.array([(xa, y0, za), (xb, y0, zb), (xb, y0, z1), (xa, y0, z1)]) for xa, xb, za, zb in outlines]
    back = [np.array([(xb, y1, zb), (xa, y1, za), (xa, y1, z1), (xb, y1, z1)]) for xa, xb, za, zb in outlines]
    m.add(np.array(front + back + inner), wall)
    w = length / 2
    m.add(np.array([[(-w, y0, z1), (w, y0, z1), (w, y1, z1), (-w, y1, z1)]]), wall if top is None else top)
    m.add(np.array([[(w, y0, z0), (w, y1, z0), (w, y1, z1), (w, y0, z1)]]), wall)
    m.add(np.array([[(-w, y1, z0), (-w, y0, z0), (-w, y0, z1), (-w, y1, z1)]]), wall)
