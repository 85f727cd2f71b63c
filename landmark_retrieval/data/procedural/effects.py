"""What a camera and an editor do to a picture: blur, noise, exposure, toning, borders, stamps, JPEG."""

import cv2
import numpy as np


def expose(picture: np.ndarray, rng: np.random.Generator, *, dark: bool) -> np.ndarray:
    """Automatic exposure with its errors, white balance, contrast, saturation, vignette; float32 (H, W, 3) in and out.

    `dark` scenes are left darker than others.
    """
    # a camera aims at a medium grey, but not all the way, and leaves the night dark
    wanted = 62.0 if dark else 122.0
    gain = float(np.exp(rng.normal(0, 0.13))) * (wanted / max(float(picture.mean()), 12.0)) ** 0.7
    if rng.random() < 0.08:
        gain *= float(rng.uniform(1.3, 1.8))
    picture = picture * (gain * (1 + rng.normal(0, 0.05, 3))).astype(np.float32)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + (picture - grey) * np.float32(rng.uniform(0.7, 1.45))
    picture = 118 + (picture - 118) * np.float32(rng.uniform(0.8, 1.25)) + np.float32(rng.normal(0, 5))
    if rng.random() < 0.4:
        height, width = picture.shape[:2]
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        picture = picture * (1 - np.float32(rng.uniform(0.1, 0.45)) * (x**2 + y**2) / 2)[..., None]
    return np.clip(picture, 0, 255)


def tone(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Now and then grey-scale, sepia, a colour filter or posterised colours, like postcards and drawings."""
    chance = float(rng.random())
    if chance > 0.115:
        return picture
    grey = picture @ np.array([0.114, 0.587, 0.299], np.float32)
    if chance < 0.05:
        return np.repeat(grey[..., None], 3, axis=2)
    if chance < 0.08:
        return np.clip(grey[..., None] * np.array([0.72, 0.9, 1.06], np.float32), 0, 255)
    if chance < 0.1:
        return np.clip(picture * rng.uniform(0.7, 1.25, 3).astype(np.float32), 0, 255)
    edges = cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 1.2), cv2.CV_32F, ksize=3)
    return np.clip(np.round(picture / 48) * 48 - 9 * np.abs(edges)[..., None], 0, 255)


def blur(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A lens out of focus or a shaken camera, on some photos."""
    chance = float(rng.random())
    if chance < 0.14:
        return cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.7, 2.2)))
    if chance < 0.2:
        length, angle = int(rng.integers(4, 10)), float(rng.uniform(0, np.pi))
        kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
        dx, dy = round(length / 2 * np.cos(angle)), round(length / 2 * np.sin(angle))
        cv2.line(kernel, (length - dx, length - dy), (length + dx, length + dy), 1.0)
        return cv2.filter2D(picture, -1, kernel / kernel.sum())
    return picture


def grain(picture: np.ndarray, rng: np.random.Generator, *, dark: bool) -> np.ndarray:
    """Sensor noise, stronger in dark scenes."""
    strength = float(rng.uniform(2, 9) if dark else rng.uniform(0.3, 4))
    field = rng.standard_normal(picture.shape[:2], dtype=np.float32)
    return np.clip(picture + strength * field[..., None], 0, 255)


def stamp(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Now and then a watermark, a date or a border; uint8 (H, W, 3) in and out."""
    height, width = picture.shape[:2]
    chance = float(rng.random())
    if chance < 0.05:
        text = "".join(rng.choice(list("abcdefghiklmnoprstuvw"), int(rng.integers(4, 9))))
        layer = picture.copy()
        spot = (int(width * rng.uniform(0.0, 0.4)), int(height * rng.uniform(0.2, 0.95)))
        cv2.putText(
            layer, text, spot, cv2.FONT_HERSHEY_DUPLEX, float(rng.uniform(0.6, 1.6)), (255, 255, 255), 1, cv2.LINE_AA
        )
        return cv2.addWeighted(layer, 0.6, picture, 0.4, 0)
    if chance < 0.08:
        date = f"{rng.integers(1, 29):02d}.{rng.integers(1, 13):02d}.{rng.integers(1998, 2020)}"
        cv2.putText(
            picture, date, (width - 92, height - 8), cv2.FONT_HERSHEY_PLAIN, 0.9, (40, 130, 250), 1, cv2.LINE_AA
        )
    elif chance < 0.13:
        side = int(rng.integers(4, 22))
        shade = int(rng.choice([0, 255, 235]))
        wide = side if rng.random() < 0.6 else 0
        return cv2.copyMakeBorder(picture, side, side, wide, wide, cv2.BORDER_CONSTANT, value=(shade, shade, shade))
    return picture


def encoded(picture: np.ndarray, rng: np.random.Generator) -> bytes:
    """JPEG bytes of a quality between 55 and 94."""
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 95))])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG picture")
    return bytes(data)
