"""Textures drawn on top of a wall: window bays, doors, clocks, rose windows, friezes."""

import cv2
import numpy as np

from .textures import SIDE, Colour, finished, grained, mixed

SHAPES = ("square", "round", "pointed", "twin", "wide", "slit", "triple")
_GLASS = ((70, 55, 40), (95, 85, 70), (50, 50, 55), (120, 100, 75))


def _outline(shape: str, x: float, y: float, w: float, h: float) -> np.ndarray:
    """The polygon of one opening with its lower middle at (x, y), int32 (n, 2)."""
    w /= 2
    if shape == "round":
        t = np.linspace(0, np.pi, 14)
        head = np.column_stack([x + w * np.cos(t), y - h + w - w * np.sin(t)])
    elif shape == "pointed":
        t = np.linspace(-1, 1, 15)
        head = np.column_stack([x - w * t, y - h + 1.6 * w * np.abs(t) ** 1.6])
    else:
        head = np.array([[x + w, y - h], [x - w, y - h]])
    return np.round(np.vstack([[[x + w, y]], head, [[x - w, y]]])).astype(np.int32)


def windows(rng: np.random.Generator, wall: np.ndarray, trim: Colour, shape: str, *, large: float = 0.5) -> np.ndarray:
    """One bay of a facade: the wall with a window of `shape` (one of SHAPES), its frame, bars and sill.

    `large` is the window's width relative to the bay, 0.2..0.9.
    """
    picture, glow = wall[..., :3].copy(), np.zeros((SIDE, SIDE), np.uint8)
    width, height = SIDE * large, SIDE * float(rng.uniform(0.5, 0.78))
    base = SIDE * 0.5 + height / 2
    outline = "round" if shape in ("triple", "twin") and rng.random() < 0.5 else shape
    if shape == "slit":
        width *= 0.3
    parts = {"twin": 2, "triple": 3}.get(shape, 1)
    glass = _GLASS[int(rng.integers(len(_GLASS)))]
    each = width / parts
    for index in range(parts):
        x = SIDE / 2 + (index - (parts - 1) / 2) * each
        frame = _outline(outline, x, base, each, height)
        pane = _outline(outline, x, base - 3, each - 12, height - 10)
        cv2.fillPoly(picture, [frame], mixed(trim, (0, 0, 0), 0.05))
        cv2.fillPoly(picture, [pane], glass)
        cv2.fillPoly(glow, [pane], 255)
        for part in range(1, int(rng.integers(1, 4))):
            y = int(base - height * part / 3)
            cv2.line(picture, (int(x - each / 2 + 6), y), (int(x + each / 2 - 6), y), trim, 2)
        cv2.line(picture, (int(x), int(base)), (int(x), int(base - height)), trim, 2)
    left, right = int(SIDE / 2 - width * 0.58), int(SIDE / 2 + width * 0.58)
    cv2.rectangle(picture, (left, int(base)), (right, int(base) + 5), mixed(trim, (255, 255, 255), 0.2), -1)
    cv2.rectangle(picture, (left, int(base) + 6), (right, int(base) + 8), mixed(trim, (0, 0, 0), 0.6), -1)
    if rng.random() < 0.5:  # a string course between storeys
        cv2.rectangle(picture, (0, SIDE - 7), (SIDE, SIDE), trim, -1)
        picture[SIDE - 2 :] //= 2
    if rng.random() < 0.4:  # pilasters between bays
        picture[:, :6] = picture[:, -6:] = trim
        picture[:, 6:8] //= 2
    if shape == "square" and rng.random() < 0.4:  # a pediment over the window
        tip = np.array([[left, base - height - 2], [right, base - height - 2], [SIDE / 2, base - height - 16]])
        cv2.fillPoly(picture, [tip.astype(np.int32)], mixed(trim, (0, 0, 0), 0.15))
    return finished(picture.astype(np.float32), glow)


def curtain(rng: np.random.Generator, glass: Colour, frame: Colour, columns: int, rows: int) -> np.ndarray:
    """A glass front: panes of slightly different tone in a thin frame."""
    tones = cv2.resize(
        rng.uniform(0.75, 1.2, (rows, columns)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST
    )
    picture = grained(rng, glass, 0.05) * tones[..., None]
    glow = np.full((SIDE, SIDE), 255, np.uint8)
    thick = int(rng.integers(2, 7))
    for bars, horizontal in ((rows, True), (columns, False)):
        for index in range(bars):
            start = index * SIDE // bars
            span = (slice(start, start + thick), slice(None)) if horizontal else (slice(None), slice(start, start + 3))
            picture[span] = frame
            glow[span] = 0
    return finished(picture, glow)


def blind_arches(wall: np.ndarray, trim: Colour, *, pointed: bool, depth: float = 0.45) -> np.ndarray:
    """One arch of an arcade whose inside lies in shade."""
    picture = wall[..., :3].copy()
    shape = "pointed" if pointed else "round"
    cv2.fillPoly(picture, [_outline(shape, SIDE / 2, SIDE, SIDE * 0.84, SIDE * 0.92)], trim)
    inside = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(inside, [_outline(shape, SIDE / 2, SIDE, SIDE * 0.66, SIDE * 0.82)], 255)
    picture[inside > 0] = (wall[..., :3][inside > 0] * depth).astype(np.uint8)
    return finished(picture.astype(np.float32), (inside // 3).astype(np.uint8))


def door(rng: np.random.Generator, wall: np.ndarray, trim: Colour, wood: Colour) -> np.ndarray:
    """A portal: receding frames around a wooden door, round or pointed."""
    picture = wall[..., :3].copy()
    shape = "pointed" if rng.random() < 0.5 else "round"
    for ring in range(3):
        size = SIDE * (1 - 0.17 * ring)
        cv2.fillPoly(picture, [_outline(shape, SIDE / 2, SIDE, size, size)], mixed(trim, (0, 0, 0), 0.25 * (ring % 2)))
    cv2.fillPoly(picture, [_outline(shape, SIDE / 2, SIDE, SIDE * 0.5, SIDE * 0.56)], wood)
    cv2.line(picture, (SIDE // 2, SIDE), (SIDE // 2, SIDE // 2), mixed(wood, (0, 0, 0), 0.5), 2)
    return finished(picture.astype(np.float32))


def clock(rng: np.random.Generator, wall: Colour) -> np.ndarray:
    """A clock face on its wall; the hands stand at a fixed time for each clock."""
    picture = grained(rng, wall).astype(np.uint8)
    glow = np.zeros((SIDE, SIDE), np.uint8)
    dial, ink = ((235, 240, 245), (30, 25, 20)) if rng.random() < 0.6 else ((60, 35, 20), (90, 200, 230))
    middle = (SIDE // 2, SIDE // 2)
    cv2.circle(picture, middle, 60, ink, -1)
    cv2.circle(picture, middle, 54, dial, -1)
    cv2.circle(glow, middle, 54, 255, -1)
    for hour in range(12):
        direction = np.array([np.sin(hour * np.pi / 6), -np.cos(hour * np.pi / 6)])
        a, b = ((64 + direction * radius).astype(int) for radius in (40, 50))
        cv2.line(picture, tuple(map(int, a)), tuple(map(int, b)), ink, 4)
    for length, angle in ((28, rng.uniform(0, 6.28)), (44, rng.uniform(0, 6.28))):
        cv2.line(picture, middle, (int(64 + length * np.sin(angle)), int(64 - length * np.cos(angle))), ink, 5)
    return finished(picture.astype(np.float32), glow)


def rose(rng: np.random.Generator, wall: np.ndarray, trim: Colour) -> np.ndarray:
    """A round window with petals of coloured glass."""
    picture, glow = wall[..., :3].copy(), np.zeros((SIDE, SIDE), np.uint8)
    petals = int(rng.choice([6, 8, 12, 16]))
    cv2.circle(picture, (64, 64), 62, trim, -1)
    for ring, radius in ((20, 8), (44, 11)):
        for angle in 2 * np.pi * np.arange(petals) / petals:
            spot = (int(64 + ring * np.cos(angle)), int(64 + ring * np.sin(angle)))
            colour = tuple(int(c) for c in rng.integers(20, 130, 3))
            cv2.circle(picture, spot, radius if ring > 30 else 5, colour, -1)
            cv2.circle(glow, spot, radius if ring > 30 else 5, 255, -1)
    cv2.circle(picture, (64, 64), 9, (60, 50, 90), -1)
    return finished(picture.astype(np.float32), glow)


def frieze(rng: np.random.Generator, stone: Colour, accent: Colour) -> np.ndarray:
    """An ornamental band: dentils, diamonds, discs or a meander."""
    picture = grained(rng, stone).astype(np.uint8)
    dark = mixed(accent, (0, 0, 0), 0.3)
    kind, count = int(rng.integers(4)), int(rng.integers(2, 6))
    step = SIDE / count
    cv2.rectangle(picture, (0, 0), (SIDE, 14), mixed(stone, (255, 255, 255), 0.3), -1)
    cv2.rectangle(picture, (0, SIDE - 14), (SIDE, SIDE), mixed(stone, (0, 0, 0), 0.3), -1)
    for index in range(count):
        x = int((index + 0.5) * step)
        w = int(step * 0.32)
        if kind == 0:
            cv2.rectangle(picture, (x - w, 30), (x + w, 96), dark, -1)
        elif kind == 1:
            cv2.fillPoly(picture, [np.array([(x - w, 64), (x, 24), (x + w, 64), (x, 104)])], dark)
        elif kind == 2:
            cv2.circle(picture, (x, 64), w, dark, -1)
            cv2.circle(picture, (x, 64), w // 2, mixed(stone, accent, 0.5), -1)
        else:
            cv2.polylines(
                picture, [np.array([(x - w, 100), (x - w, 28), (x + w, 28), (x + w, 72), (x, 72)])], False, dark, 7
            )
    return finished(picture.astype(np.float32))
