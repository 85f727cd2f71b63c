"""Which landmarks there are and how one is built from its two seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import bridges, halls, monuments, towers
from .geometry import MeshBuilder, Model
from .style import Style, style_of

FAMILIES: dict[str, Callable[[MeshBuilder, Style, np.random.Generator], None]] = {
    "clock_tower": towers.clock_tower,
    "domed_hall": halls.domed_hall,
    "church": halls.church,
    "arch_bridge": bridges.arch_bridge,
    "pagoda": monuments.pagoda,
    "palace": halls.palace,
    "stone_tower": towers.round_tower,
    "temple": halls.temple,
    "castle": halls.castle,
    "stupa": monuments.stupa,
    "city_gate": monuments.gate,
    "lighthouse": towers.lighthouse,
    "skyscraper": towers.skyscraper,
    "suspension_bridge": bridges.suspension_bridge,
    "pyramid": monuments.pyramid,
    "column": towers.column,
    "observation_tower": towers.observation_tower,
    "great_wheel": monuments.wheel,
}
_STYLES_PER_FAMILY = 2


@dataclass(frozen=True)
class LandmarkSpec:
    """A landmark before it is built: its readable name, its family and the seeds of its style and its shape."""

    name: str
    family: str
    style_seed: int
    shape_seed: int


def landmark_specs(seed: int, count: int, *, first: int = 0) -> list[LandmarkSpec]:
    """`count` different landmarks, numbered from `first` in a list without end that depends on `seed` only.

    Neighbours in pairs share family and style (near-twins); each family has few styles, so look-alikes follow later.
    """
    names = list(FAMILIES)
    specs = []
    for number in range(first, first + count):
        pair = number // 2
        order = np.random.default_rng([seed, 11, pair // len(names)]).permutation(len(names))
        family = int(order[pair % len(names)])
        rng = np.random.default_rng([seed, 12, number])
        style = int(np.random.default_rng([seed, 13, pair]).integers(_STYLES_PER_FAMILY))
        style_seed = int(np.random.default_rng([seed, 14, family, style]).integers(1 << 62))
        name = f"{names[family]}_{number:02d}"
        specs.append(LandmarkSpec(name, names[family], style_seed, int(rng.integers(1 << 62))))
    return specs


@lru_cache(maxsize=3)
def built(spec: LandmarkSpec) -> Model:
    """The landmark's mesh and textures, standing on z = 0 around the origin with its front towards -y."""
    rng = np.random.default_rng([spec.shape_seed, 1])
    style = style_of(spec.style_seed, np.random.default_rng([spec.shape_seed, 2]))
    builder = MeshBuilder()
    FAMILIES[spec.family](builder, style, rng)
    mesh = builder.mesh()
    reach = np.linalg.norm(mesh.corners[..., :2], axis=2).max()
    return Model(mesh, style.atlas, float(reach), float(mesh.corners[..., 2].max()))
