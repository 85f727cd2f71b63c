"""The architectures that have a name: of Table 1 of Henkel 2021, of the DOLG paper, and small ones for a laptop."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError

HENKEL = "Henkel 2021 (arXiv 2110.03786)"
DOLG = "Yang et al. 2021 (arXiv 2108.02927)"


@dataclass(frozen=True)
class Architecture:
    """How a model is built, and what it takes.

    Attributes:
        name: what people call it.
        model: class of `landmark_retrieval.models`.
        arguments: of its constructor, without `pretrained`.
        image_size: side of the square images that it is meant for, px.
        about: what it is, and the source.
        published: what its authors reached with weights of their own, in their words; nothing measured here.
    """

    name: str
    model: str
    arguments: Mapping[str, Any]
    image_size: int
    about: str
    published: str | None = None


def _table_1(retrieval: str, recognition: str) -> str:
    return (
        f"private scores of the original weights on Kaggle, Google Landmarks 2021: retrieval mAP@100 {retrieval}, "
        f"recognition GAP {recognition} ({HENKEL}, Table 1)"
    )


def _noisy_student(size: str) -> str:
    return f"tf_efficientnet_{size}.ns_jft_in1k"


def _dolg(size: str, dilations: list[int], image_size: int, published: str, stem_stride: int = 2) -> Architecture:
    return Architecture(
        f"dolg_efficientnet_{size}",
        "DOLGNet",
        {"backbone": _noisy_student(size), "embedding_dim": 512, "dilations": dilations, "stem_stride": stem_stride}
        | {"fusion": "orthogonal"},
        image_size,
        f"DOLG on EfficientNet-{size.upper()}; {HENKEL}, section 2.1",
        published,
    )


_SWIN_BASE = {
    224: "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    384: "swin_base_patch4_window12_384.ms_in22k_ft_in1k",
}


def _hybrid(
    size: str, swin: int, image_size: int, cnn_blocks: int, published: str, stem_stride: int = 2
) -> Architecture:
    return Architecture(
        f"hybrid_efficientnet_{size}_swin_base_{swin}",
        "HybridSwinNet",
        _hybrid_arguments(_noisy_student(size), _SWIN_BASE[swin], image_size, cnn_blocks, stem_stride),
        image_size,
        f"Hybrid-Swin-Transformer, EfficientNet-{size.upper()} and Swin-B/{swin}; {HENKEL}, section 2.2",
        published,
    )


def _hybrid_arguments(cnn: str, transformer: str, image_size: int, cnn_blocks: int, stem_stride: int) -> dict[str, Any]:
    return {
        "cnn": cnn,
        "transformer": transformer,
        "image_size": image_size,
        "cnn_blocks": cnn_blocks,
        "stem_stride": stem_stride,
        "aggregation": "token",
        "position_embedding": True,
        "embedding_dim": 512,
    }


def _gem(size: str, image_size: int, published: str) -> Architecture:
    return Architecture(
        f"gem_efficientnet_{size}",
        "GeMNet",
        {"backbone": _noisy_student(size), "embedding_dim": 512},
        image_size,
        f"EfficientNet-{size.upper()}, GeM pooling and a neck, as in the ensemble of {HENKEL}",
        published,
    )


def _dolg_resnet(depth: int, multi_atrous: bool, published: str) -> Architecture:
    return Architecture(
        f"dolg_resnet{depth}{'_ma' if multi_atrous else ''}",
        "DOLGResNet",
        {"depth": depth, "multi_atrous": multi_atrous, "embedding_dim": 512},
        512,
        f"DOLG on ResNet-{depth}, {'with' if multi_atrous else 'without'} the multi-atrous block; {DOLG}, section 3",
        published,
    )


def _revisited(oxford: str, paris: str, where: str) -> str:
    return (
        "mAP of the original weights, Medium/Hard, five scales, official query crop: "
        f"ROxford {oxford}, RParis {paris} ({where})"
    )


_AUTHORS = "README of github.com/feymanpriv/DOLG"


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        _dolg("b5", [6, 12, 18], 768, _table_1("0.478", "0.476")),
        _dolg("b6", [3, 6, 9], 768, _table_1("0.474", "0.476")),
        _dolg("b7", [3, 6, 9], 448, _table_1("0.470", "0.465"), stem_stride=1),
        _hybrid("b3", 224, 896, 3, _table_1("0.481", "0.462")),
        _hybrid("b5", 224, 448, 3, _table_1("0.476", "0.462"), stem_stride=1),
        _hybrid("b6", 384, 384, 1, _table_1("0.487", "0.467")),
        _gem("b3", 768, _table_1("not given", "0.463")),
        _gem("b5", 704, _table_1("0.459", "not given")),
        _gem("b6", 512, _table_1("0.454", "0.470")),
        _dolg_resnet(50, False, _revisited("81.20/62.55", "90.07/79.20", _AUTHORS)),
        _dolg_resnet(101, False, _revisited("82.37/64.93", "90.97/81.71", _AUTHORS)),
        _dolg_resnet(50, True, _revisited("80.50/58.82", "89.81/77.70", DOLG)),
        _dolg_resnet(101, True, _revisited("81.50/61.10", "91.02/80.30", DOLG)),
        Architecture(
            "dolg_efficientnet_lite0",
            "DOLGNet",
            {"backbone": "tf_efficientnet_lite0", "embedding_dim": 512, "dilations": [6, 12, 18], "stem_stride": 2}
            | {"fusion": "orthogonal"},
            256,
            "DOLG on EfficientNet-Lite0, for a laptop",
        ),
        Architecture(
            "hybrid_efficientnet_lite0_swin_tiny_224",
            "HybridSwinNet",
            _hybrid_arguments("tf_efficientnet_lite0", "swin_tiny_patch4_window7_224.ms_in1k", 224, 1, 2),
            224,
            "Hybrid-Swin-Transformer, EfficientNet-Lite0 and Swin-T, for a laptop",
        ),
        Architecture(
            "gem_efficientnet_lite0",
            "GeMNet",
            {"backbone": "tf_efficientnet_lite0", "embedding_dim": 512},
            256,
            "EfficientNet-Lite0, GeM pooling and a neck, for a laptop",
        ),
    )
}


def find_architecture(name: str) -> Architecture:
    """The architecture of a name. LandmarkRetrievalError with the nearest names if there is none."""
    if name not in ARCHITECTURES:
        raise LandmarkRetrievalError(f"There is no model called {name!r}: {near(name, ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def near(name: str, names: Iterable[str]) -> str:
    """Advice for somebody who mistyped a name."""
    close = difflib.get_close_matches(name.lower(), list(names), 3, 0.5)
    listing = "`landmark-retrieval zoo list` shows all"
    return f"did you mean {' or '.join(close)}? {listing}" if close else listing
