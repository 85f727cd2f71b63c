"""Time of day and weather: sun, sky colours, haze."""

from dataclasses import dataclass

import numpy as np

from .textures import Colour, mixed


@dataclass
class Light:
    """Everything about the light of one photo.

    sun: unit vector (3,) towards it. sunlight, ambient: blue, green, red gains (3,).
    zenith, horizon, cloud_colour: blue, green, red in 0..255.
    clouds: cover, 0..1. haze: metres until 63 % of the light is lost. night: lamps are on. shadows: the sun casts them.
    """

    kind: str
    sun: np.ndarray
    sunlight: np.ndarray
    ambient: np.ndarray
    zenith: Colour
    horizon: Colour
    clouds: float
    cloud_colour: Colour
    haze: float
    night: bool
    shadows: bool


def random_light(rng: np.random.Generator, reach: float) -> Light:
    """Weather for one photo of something `reach` metres across: sunny, overcast, golden hour, dusk, night or fog."""
    kind = str(
        rng.choice(["sunny", "overcast", "golden", "dusk", "night", "fog"], p=[0.42, 0.22, 0.12, 0.07, 0.11, 0.06])
    )
    angle = rng.uniform(0, 2 * np.pi)
    elevation = np.deg2rad({"sunny": rng.uniform(25, 70), "golden": rng.uniform(6, 18)}.get(kind, rng.uniform(30, 70)))
    sun = np.array([np.cos(angle) * np.cos(elevation), np.sin(angle) * np.cos(elevation), np.sin(elevation)])
    haze = float(reach * rng.uniform(15, 60))
    sunlight, ambient = np.array([0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0])
    zenith: Colour = (190, 130, 70)
    horizon: Colour = (235, 215, 190)
    clouds, cloud_colour = float(rng.uniform(0, 0.65)), (245.0, 245.0, 245.0)
    if kind == "sunny":
        sunlight, ambient = np.array([0.66, 0.76, 0.84]), np.array([0.6, 0.55, 0.52])
        zenith = mixed((150, 90, 30), (225, 170, 110), float(rng.random()))
    elif kind == "overcast":
        sunlight, ambient = np.full(3, 0.12), np.array([0.8, 0.78, 0.76])
        grey = float(rng.uniform(130, 225))
        zenith, horizon, clouds = (grey, grey * 0.98, grey * 0.95), (grey * 1.06, grey * 1.06, grey * 1.05), 0.9
        cloud_colour = (grey * 0.8, grey * 0.79, grey * 0.77)
    elif kind == "golden":
        sunlight, ambient = np.array([0.35, 0.7, 1.1]), np.array([0.55, 0.5, 0.5])
        zenith, horizon = (170, 110, 80), (120, 180, 250)
        cloud_colour = (140, 170, 250)
    elif kind == "dusk":
        sunlight, ambient = np.array([0.08, 0.05, 0.1]), np.array([0.5, 0.36, 0.33])
        zenith, horizon = (110, 60, 40), mixed((120, 120, 220), (170, 110, 120), float(rng.random()))
        cloud_colour = (110, 80, 110)
    elif kind == "night":
        ambient = np.array([0.2, 0.14, 0.13])
        zenith, horizon, clouds = (35, 18, 10), mixed((60, 35, 25), (40, 50, 70), float(rng.random())), 0.2
        cloud_colour = (45, 35, 35)
    else:
        sunlight, ambient = np.full(3, 0.06), np.array([0.78, 0.77, 0.76])
        grey = float(rng.uniform(165, 230))
        zenith = horizon = cloud_colour = (grey, grey, grey * 0.98)
        clouds, haze = 0.0, float(reach * rng.uniform(1.5, 5))
    return Light(
        kind,
        sun,
        sunlight,
        ambient,
        zenith,
        horizon,
        clouds,
        cloud_colour,
        haze,
        kind in ("night", "dusk"),
        kind in ("sunny", "golden"),
    )
