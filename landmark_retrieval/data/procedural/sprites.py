"""Flat things that stand in a scene or in its way: trees, people, lamps, cars, buses, flags.

A sprite is uint8 (height, width, 4): blue, green, red, opacity. Its lower edge stands on the ground.
"""

from collections.abc import Callable

import cv2
import numpy as np

from .textures import mixed


def _blank(height: int, width: int) -> np.ndarray:
    return np.zeros((max(height, 4), max(width, 4), 4), np.uint8)


def _colour(rng: np.random.Generator, low: int = 20, high: int = 220) -> tuple[int, int, int, int]:
    blue, green, red = (int(c) for c in rng.integers(low, high, 3))
    return (blue, green, red, 255)


def tree(rng: np.random.Generator, height: int) -> np.ndarray:
    """A broad-leaved tree of leaf clumps that are lighter towards the upper left."""
    width = int(height * rng.uniform(0.6, 1.0))
    image = _blank(height, width)
    trunk = (40, 55, 70, 255)
    cv2.line(image, (width // 2, height), (width // 2, height // 2), trunk, max(1, height // 22))
    leaf = mixed((25, 70, 45), (50, 130, 110), float(rng.random()))
    clumps = 70
    spread = rng.normal(0, 0.2, (clumps, 2))
    order = np.argsort(spread[:, 0] * 0.5 - spread[:, 1] * 0.2)[::-1]
    for x, y in spread[order]:
        centre = (int(width * (0.5 + np.clip(x, -0.36, 0.36))), int(height * (0.4 + np.clip(y, -0.3, 0.28))))
        tone = float(np.clip(0.95 - 1.1 * y - 0.5 * x + rng.normal(0, 0.12), 0.45, 1.6))
        colour = (int(leaf[0] * tone), int(leaf[1] * tone), int(leaf[2] * tone), 255)
        cv2.circle(image, centre, max(1, int(height * rng.uniform(0.025, 0.09))), colour, -1)
    return image


def conifer(rng: np.random.Generator, height: int) -> np.ndarray:
    """A fir or a cypress."""
    width = int(height * rng.uniform(0.2, 0.5))
    image = _blank(height, width)
    for part in range(9):
        y0, y1, w = int(height * part / 10.5), int(height * (part + 2.2) / 10.5), width * (part + 2) / 22
        tone = rng.uniform(0.6, 1.2)
        points = np.array([(width // 2, y0), (int(width / 2 + w), y1), (int(width / 2 - w), y1)])
        cv2.fillPoly(image, [points], (int(45 * tone), int(85 * tone), int(50 * tone), 255))
    cv2.line(image, (width // 2, height), (width // 2, int(height * 0.85)), (35, 50, 65, 255), max(1, width // 10))
    return image


def person(rng: np.random.Generator, height: int) -> np.ndarray:
    """A standing figure."""
    width = max(4, int(height * 0.42))
    image, scale, x = _blank(height, width), height / 100, width // 2
    skin = (*mixed((90, 120, 180), (170, 195, 230), float(rng.random())), 255.0)
    shirt, legs = _colour(rng), _colour(rng, 20, 110)
    stride = int(scale * rng.uniform(3, 9))
    thick = max(1, int(9 * scale))
    cv2.line(image, (x, int(52 * scale)), (x - stride, int(97 * scale)), legs, thick)
    cv2.line(image, (x, int(52 * scale)), (x + stride, int(97 * scale)), legs, thick)
    cv2.ellipse(image, (x, int(37 * scale)), (max(1, int(11 * scale)), max(2, int(21 * scale))), 0, 0, 360, shirt, -1)
    for sign in (-1, 1):
        hand = (x + int(sign * scale * rng.uniform(12, 17)), int(scale * rng.uniform(30, 58)))
        cv2.line(image, (x + int(sign * 9 * scale), int(24 * scale)), hand, shirt, max(1, int(6 * scale)))
    cv2.circle(image, (x, int(9 * scale)), max(1, int(8 * scale)), skin, -1)
    cv2.ellipse(
        image,
        (x, int(7 * scale)),
        (max(1, int(8 * scale)), max(1, int(7 * scale))),
        0,
        180,
        360,
        _colour(rng, 10, 120),
        -1,
    )
    return image


def lamp(rng: np.random.Generator, height: int) -> np.ndarray:
    """A street lamp with one or two arms, or a flag pole."""
    width = max(6, int(height * 0.3))
    image, x, thick = _blank(height, width), width // 2, max(1, height // 45)
    cv2.line(image, (x, height), (x, 0), (45, 45, 45, 255), thick)
    if rng.random() < 0.3:
        cv2.rectangle(image, (x, 0), (width - 1, int(height * 0.13)), _colour(rng), -1)
        return image
    for sign in (-1, 1) if rng.random() < 0.5 else (1,):
        end = (x + sign * int(width * 0.4), int(height * 0.03))
        cv2.line(image, (x, int(height * 0.12)), end, (45, 45, 45, 255), thick)
        cv2.circle(image, end, max(1, height // 28), (215, 235, 240, 255), -1)
    return image


def car(rng: np.random.Generator, height: int) -> np.ndarray:
    """A car from the side."""
    width = int(height * 2.8)
    image, paint = _blank(height, width), _colour(rng)
    body = np.array(
        [(0.02, 0.85), (0.02, 0.5), (0.2, 0.42), (0.32, 0.06), (0.7, 0.06), (0.82, 0.42), (0.98, 0.52), (0.98, 0.85)]
    )
    cv2.fillPoly(image, [(body * (width, height)).astype(np.int32)], paint)
    glass = np.array([(0.26, 0.42), (0.35, 0.13), (0.67, 0.13), (0.76, 0.42)])
    cv2.fillPoly(image, [(glass * (width, height)).astype(np.int32)], (80, 65, 55, 255))
    for x in (0.2, 0.8):
        cv2.circle(image, (int(width * x), int(height * 0.84)), max(1, int(height * 0.16)), (25, 25, 25, 255), -1)
    return image


def bus(rng: np.random.Generator, height: int) -> np.ndarray:
    """A bus from the side with a row of windows and a stripe."""
    width = int(height * rng.uniform(2.2, 3.2))
    image, paint = _blank(height, width), _colour(rng, 60, 230)
    cv2.rectangle(image, (0, 0), (width, int(height * 0.88)), paint, -1)
    cv2.rectangle(image, (0, int(height * 0.58)), (width, int(height * 0.68)), _colour(rng), -1)
    count = int(rng.integers(4, 8))
    for index in range(count):
        x0, x1 = int(width * (index + 0.1) / count), int(width * (index + 0.9) / count)
        cv2.rectangle(image, (x0, int(height * 0.14)), (x1, int(height * 0.5)), (85, 75, 65, 255), -1)
    for part in (0.18, 0.8):
        cv2.circle(image, (int(width * part), int(height * 0.88)), max(1, int(height * 0.12)), (25, 25, 25, 255), -1)
    return image


# what may stand around a landmark: drawing function, height range in metres
STANDING: tuple[tuple[Callable[[np.random.Generator, int], np.ndarray], float, float], ...] = (
    (tree, 6.0, 14.0),
    (conifer, 5.0, 14.0),
    (person, 1.5, 1.9),
    (lamp, 5.0, 8.0),
    (car, 1.4, 1.7),
    (bus, 2.9, 3.4),
)


def paste(
    picture: np.ndarray, sprite: np.ndarray, x: float, y: float, gain: np.ndarray, visible: np.ndarray | None = None
) -> None:
    """Lay a sprite over a picture with the middle of its lower edge at pixel (x, y).

    Args:
        picture: float32 (H, W, 3), changed in place. gain: (3,) light on the sprite. visible: optional bool (H, W).
    """
    height, width = sprite.shape[:2]
    left, top = round(x - width / 2), round(y - height)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + width, picture.shape[1]), min(top + height, picture.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    part = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    opacity = part[..., 3:].astype(np.float32) / 255
    if visible is not None:
        opacity = opacity * visible[y0:y1, x0:x1, None]
    region = picture[y0:y1, x0:x1]
    region += (part[..., :3] * gain.astype(np.float32) - region) * opacity


def selfie(rng: np.random.Generator, picture: np.ndarray, gain: np.ndarray) -> None:
    """One or two people close to the camera: large heads and shoulders at the lower edge."""
    height, width = picture.shape[:2]
    for _ in range(int(rng.integers(1, 3))):
        size, x = height * float(rng.uniform(0.2, 0.36)), int(width * rng.uniform(0.1, 0.9))
        y = int(height - size * rng.uniform(0.6, 1.5))
        sprite = _blank(height, width)
        skin = mixed((90, 120, 180), (170, 195, 230), float(rng.random()))
        cv2.ellipse(sprite, (x, int(y + size * 1.25)), (int(size * 0.8), int(size * 0.75)), 0, 0, 360, _colour(rng), -1)
        cv2.ellipse(
            sprite,
            (x, int(y - size * 0.05)),
            (int(size * 0.37), int(size * 0.48)),
            0,
            0,
            360,
            _colour(rng, 10, 110),
            -1,
        )
        cv2.ellipse(sprite, (x, int(y + size * 0.06)), (int(size * 0.29), int(size * 0.4)), 0, 0, 360, (*skin, 255), -1)
        if rng.random() < 0.4:
            for sign in (-1, 1):
                cv2.circle(sprite, (int(x + sign * size * 0.13), y), max(1, int(size * 0.1)), (30, 25, 25, 255), -1)
        sprite = cv2.GaussianBlur(sprite, (0, 0), 1.2)
        paste(picture, sprite, width / 2, height, gain)
