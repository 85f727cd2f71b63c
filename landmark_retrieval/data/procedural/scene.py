"""One photo of a landmark, or of none, from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from . import effects, sprites
from .architecture import LandmarkSpec, built
from .background import draw_background
from .camera import Camera, looking
from .geometry import Model
from .light import Light, random_light
from .scenery import still_life, street
from .shading import Floodlight, render
from .site import Site, site_of, with_surroundings

_SUPERSAMPLING = 1.3
_OVER_WATER = ("arch_bridge", "suspension_bridge")


@dataclass
class Frame:
    """Size of the finished photo in pixels."""

    width: int
    height: int


def _random_frame(rng: np.random.Generator) -> Frame:
    """Landscape mostly, sometimes portrait or square; the short side has 200 to 240 pixels."""
    short = int(rng.integers(200, 241))
    long = int(short * rng.choice([1.0, 4 / 3, 1.5], p=[0.12, 0.55, 0.33]))
    return Frame(short, long) if rng.random() < 0.3 else Frame(long, short)


@lru_cache(maxsize=3)
def _site(spec: LandmarkSpec) -> Site:
    model = built(spec)
    rng = np.random.default_rng([spec.shape_seed, 3])
    return site_of(rng, model.radius, model.atlas, over_water=spec.family in _OVER_WATER)


def _view(model: Model, frame: Frame, rng: np.random.Generator, *, over_water: bool) -> Camera:
    """Where the photographer stands: mostly in front and at eye level, sometimes behind, above, very near or far."""
    width, height = round(frame.width * _SUPERSAMPLING), round(frame.height * _SUPERSAMPLING)
    short = min(width, height)
    focal = short * float(np.exp(rng.normal(0.25, 0.35)))
    azimuth = float(rng.normal(0, 0.7)) if rng.random() < 0.8 else float(rng.uniform(-np.pi, np.pi))
    if over_water:
        azimuth = float(np.clip(azimuth, -1.2, 1.2)) + (np.pi if rng.random() < 0.3 else 0.0)
    share = float(np.exp(rng.normal(-0.12, 0.33)))  # the landmark's size relative to the picture
    detail = rng.random() < 0.16
    if detail:
        share *= float(rng.uniform(1.8, 3.2))
    extent = max(model.radius * 1.7 / width, model.height / height)
    distance = max(extent * focal / share, model.radius * 1.25 + 3)
    focal = max(focal, short * 0.55)
    above = float(rng.choice([1.7, rng.uniform(3, 12), model.height * rng.uniform(0.3, 1.2)], p=[0.6, 0.22, 0.18]))
    if over_water:
        above += 4
    position = np.array([np.sin(azimuth) * distance, -np.cos(azimuth) * distance, above])
    target = np.array([0.0, 0.0, model.height * float(rng.uniform(0.36, 0.6))])
    side = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    if detail:
        corners = model.mesh.corners[int(rng.integers(len(model.mesh)))].mean(axis=0)
        target = 0.5 * corners + 0.5 * np.array([0, 0, model.height * 0.6])
    else:
        target = target + side * float(rng.normal(0, 0.13)) * width * distance / focal
    return looking(position, target, float(rng.normal(0, 0.03)), focal, width, height)


def _stand_things(
    picture: np.ndarray, depth: np.ndarray, camera: Camera, model: Model, light: Light, rng: np.random.Generator
) -> None:
    """Trees, people, lamps and vehicles on the ground, behind what is nearer than they are."""
    gain = light.ambient + 0.6 * light.sunlight + (np.array([0.12, 0.16, 0.2]) if light.night else 0.0)
    things = []
    crowd = rng.dirichlet([0.8] * len(sprites.STANDING))
    forward = camera.axes[2].copy()
    forward[2] = 0
    forward /= np.linalg.norm(forward)
    right = np.array([forward[1], -forward[0], 0.0])
    distance = float(np.hypot(*camera.position[:2]))
    for _ in range(int(rng.integers(0, 16))):
        away = distance * float(rng.choice([rng.uniform(0.12, 0.8), rng.uniform(0.5, 1.8)]))
        aside = away * float(rng.normal(0, 0.45)) * camera.width / camera.focal
        spot = np.array([camera.position[0], camera.position[1], 0.0]) + forward * away + right * aside
        if np.hypot(spot[0], spot[1]) > model.radius * 0.9:
            things.append((away, spot, int(rng.choice(len(crowd), p=crowd))))
    for _, spot, kind in sorted(things, key=lambda thing: -thing[0]):
        draw, low, high = sprites.STANDING[kind]
        pixel, far = camera.project(spot)
        tall = float(rng.uniform(low, high)) * camera.focal / max(float(far), 1.0)
        if far < 1.5 or not 4 <= tall <= (1.3 if high > low * 1.3 else 0.7) * camera.height:
            continue
        sprite = draw(rng, int(tall))
        clear = np.exp(-float(far) / light.haze)
        sprite[..., :3] = (
            sprite[..., :3] * clear + np.asarray(light.horizon) / np.maximum(gain, 0.2) * (1 - clear) * 0.8
        )
        sprites.paste(picture, sprite, float(pixel[0]), float(pixel[1]), gain, depth > far - 0.5)
    if rng.random() < 0.05:
        sprites.selfie(rng, picture, gain)
    elif rng.random() < 0.1:  # leaves or a pole right in front of the lens
        close = (sprites.tree, sprites.lamp, sprites.person)[int(rng.integers(3))]
        sprite = cv2.GaussianBlur(close(rng, int(camera.height * rng.uniform(0.7, 1.3))), (0, 0), 2.0)
        sprites.paste(
            picture,
            sprite,
            camera.width * float(rng.choice([0.05, 0.2, 0.8, 0.95])),
            camera.height * float(rng.uniform(0.9, 1.3)),
            gain,
        )


def _developed(picture: np.ndarray, frame: Frame, rng: np.random.Generator, *, dark: bool) -> bytes:
    """From the rendered picture to JPEG bytes."""
    picture = cv2.resize(picture, (frame.width, frame.height), interpolation=cv2.INTER_AREA)
    picture = effects.blur(picture, rng)
    picture = effects.grain(effects.tone(effects.expose(picture, rng, dark=dark), rng), rng, dark=dark)
    return effects.encoded(effects.stamp(picture.astype(np.uint8), rng), rng)


def _rendered(model: Model, site: Site, camera: Camera, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Building, surroundings, weather and passers-by; the picture at the camera's size and whether it is dark."""
    light = random_light(rng, max(model.radius, model.height / 2) * 2)
    warm = rng.uniform((0.2, 0.45, 0.6), (0.6, 0.8, 1.1))
    colour = warm if rng.random() < 0.75 else rng.uniform(0.1, 0.9, 3)
    lamps = Floodlight(
        colour * float(rng.uniform(0.5, 1.2)), model.height * float(rng.uniform(0.3, 1.2)), float(rng.uniform(0.1, 0.8))
    )
    rays = camera.rays()
    background = draw_background(rays, site.horizon, light, rng)
    around = max(model.radius, model.height) * 1.5
    whole = with_surroundings(model, site, camera.position, rng)
    picture, depth = render(camera, rays, whole, light, lamps, background, water=site.water, around=around)
    _stand_things(picture, depth, camera, model, light, rng)
    return picture, light.night


def landmark_photo(spec: LandmarkSpec, seed: Sequence[int]) -> bytes:
    """JPEG bytes of one photo of a landmark; everything about it but the landmark comes from `seed`."""
    rng = np.random.default_rng(seed)
    frame = _random_frame(rng)
    model = built(spec)
    camera = _view(model, frame, rng, over_water=spec.family in _OVER_WATER)
    picture, dark = _rendered(model, _site(spec), camera, rng)
    return _developed(picture, frame, rng, dark=dark)


def other_photo(seed: Sequence[int]) -> bytes:
    """JPEG bytes of a photo without any landmark: a plain street, open country, an object on a table, a wall."""
    rng = np.random.default_rng(seed)
    frame = _random_frame(rng)
    width, height = round(frame.width * _SUPERSAMPLING), round(frame.height * _SUPERSAMPLING)
    if rng.random() < 0.3:
        return _developed(still_life(rng, width, height), frame, rng, dark=False)
    model, site, camera = street(rng, width, height)
    picture, dark = _rendered(model, site, camera, rng)
    return _developed(picture, frame, rng, dark=dark)
