"""Models by name, with weights from wherever they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo.checkpoints import PIP, Checkpoint, check_installed, read_checkpoint, read_record
from landmark_retrieval.zoo.fit import guess, misfit
from landmark_retrieval.zoo.hub import PREFIX, fetch_from_hub
from landmark_retrieval.zoo.records import IMAGENET_MEAN, IMAGENET_STD, Weights, find, released
from landmark_retrieval.zoo.registry import ARCHITECTURES, Architecture
from landmark_retrieval.zoo.saved_model import CARD, construct, load_saved

_ALIASES = {"imagenet": "gem_efficientnet_lite0.imagenet"}

# what a card and `pretrained_cfg` say about weights, as long as nothing is known
_FACTS: dict[str, Any] = {
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
    "interpolation": "area",
    **dict.fromkeys(("classes", "licence", "source", "figure", "command")),
}
# arguments that make a model another one; the others are details, which a card knows better
_IDENTITY = ("backbone", "cnn", "transformer", "depth", "multi_atrous")


def create_model(
    name: str,
    pretrained: bool | Literal["imagenet"] = False,
    checkpoint: str | Path | None = None,
    **overrides: Any,
) -> nn.Module:
    """Make a model of the zoo: images (B, 3, H, W) -> descriptors (B, D), not L2-normalised.

    Args:
        name: of an architecture (see `list_models`), or `architecture.tag` for certain weights of it.
        pretrained: True loads the weights of the tag (of the architecture's first tag, if the name has none).
            "imagenet" only starts the backbone from ImageNet, and leaves the rest at random.
        checkpoint: weights of one's own: a folder written by `save_model` (the run folder of a stage is one), a
            .safetensors file, `hf-hub:OWNER/NAME[@REVISION]`, or an https URL of a .safetensors file, with
            `#sha256=HEX` at its end if it shall be checked. A card beside the weights has the last word on how the
            model computes (embedding_dim, fusion, ...), except for `overrides`.
        overrides: arguments of the model's constructor, in place of the zoo's.

    Returns:
        The model, in training mode as torch makes it: call `.eval()` before describing photos. Its `pretrained_cfg` is
        a dict with name, image_size (px), resize ("squash" to a square of that size, or another way, see
        `records.Weights`), mean, std (R, G, B, of images in 0..1), interpolation ("area": by area where images shrink,
        bilinear where they grow), classes, licence, source, sha256, size (bytes), figure, command; None where nothing
        is known.

    Raises:
        LandmarkRetrievalError: an unknown name (with the nearest ones), arguments that the model does not take, no
            released weights, weights that cannot be fetched, are damaged, or are those of another model.
    """
    model, card = _create(name, pretrained, checkpoint, overrides)
    return _configured(model, card)


def load_model(where: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model with its weights, ready to describe photos.

    Args:
        where: a folder with model.json and model.safetensors (the run folder of a finished stage is one), weights of
            the zoo (see `list_models`), `hf-hub:OWNER/NAME[@REVISION]`, or "imagenet" for EfficientNet-Lite0 with
            ImageNet weights and GeM pooling, not trained on landmarks.

    Returns:
        The model in eval mode, and its card.

    Raises:
        LandmarkRetrievalError: no such folder or name, a damaged card, weights that are not those of the card, or
            weights that could not be had.
    """
    text = str(where)
    name = _ALIASES.get(text, text)
    if text.startswith(PREFIX):
        model, card = load_saved(fetch_from_hub(text))
    elif name.partition(".")[0] in ARCHITECTURES and not (Path(where) / CARD).exists():
        model, card = _create(name, True, None, {})
    else:
        model, card = load_saved(Path(where))
    return _configured(model, card).eval(), card


def count_parameters(name: str) -> int:
    """The number of parameters of a model, without spending memory on it. Errors as `create_model`."""
    with torch.device("meta"):
        model, _ = _create(name, False, None, {})
    return sum(parameter.numel() for parameter in model.parameters())


def _create(
    name: str, pretrained: bool | str, checkpoint: str | Path | None, overrides: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    architecture, record = find(name)
    if pretrained not in (True, False, "imagenet"):
        raise LandmarkRetrievalError(f"pretrained is True, False or 'imagenet', not {pretrained!r}.")
    if pretrained and checkpoint is not None:
        raise LandmarkRetrievalError(
            f"{name} cannot start from pretrained={pretrained!r} and from {checkpoint} at once: give one of the two."
        )
    if pretrained is True:
        record = released(architecture, record)
        card = _card(architecture, record, overrides) | _facts(record)
        if str(record.location).startswith(PIP):
            return _from_package(record, card, overrides)
        return _with_weights(record.name, card, read_record(record), overrides)
    card = _card(architecture, record, overrides)
    if checkpoint is not None:
        return _with_weights(name, card, read_checkpoint(checkpoint), overrides)
    model, card = _built(name, card, bool(pretrained))
    return model, card | {"source": "backbone from ImageNet, the rest at random" if pretrained else None}


def _card(architecture: Architecture, record: Weights | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What the zoo knows without any weights."""
    return {
        "name": record.name if record else architecture.name,
        "architecture": architecture.model,
        "arguments": {**architecture.arguments, **(record.arguments if record else {}), **overrides},
        "image_size": (record and record.image_size) or architecture.image_size,
        **_FACTS,
        # cards without the key mean a square
        **({"resize": record.resize} if record and record.resize != "squash" else {}),
        "weights_sha256": None,
        "weights_size": None,
    }


def _facts(record: Weights) -> dict[str, Any]:
    facts = {key: getattr(record, key) for key in _FACTS}
    return facts | {"mean": list(record.mean), "std": list(record.std)}


def _built(name: str, card: dict[str, Any], imagenet: bool = False) -> tuple[Any, dict[str, Any]]:
    model = construct(name, card["architecture"], card["arguments"], imagenet)
    # a hybrid is made for one size, and says which
    return model, card | {"image_size": getattr(model, "image_size", card["image_size"])}


def _from_package(record: Weights, card: dict[str, Any], overrides: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model that is nothing but ImageNet weights, from an installed package or else from timm's hub."""
    if overrides:
        raise LandmarkRetrievalError(
            f"{record.name} is what it is, {', '.join(overrides)} would leave layers at random: use "
            "pretrained='imagenet' if that is meant."
        )
    if check_installed(record):
        card |= {"weights_sha256": record.sha256, "weights_size": record.size}
    else:
        source = f"ImageNet weights of {card['arguments']['backbone']} from timm's hub, GeM pooling, no neck"
        card |= {"source": source, "figure": None, "command": None}
    return _built(record.name, card, imagenet=True)


def _with_weights(
    name: str, card: dict[str, Any], checkpoint: Checkpoint, overrides: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    card = card | {"source": card["source"] or str(checkpoint.file)}
    if checkpoint.card is not None:
        card = _joined(name, card, checkpoint, overrides)
    model, card = _built(name, card)
    if unlike := misfit(checkpoint.state, model):
        raise LandmarkRetrievalError(
            f"The weights {checkpoint.file} are not those of {name}: {unlike}; {guess(checkpoint.state)}."
        )
    model.load_state_dict(checkpoint.state)
    return model, card | {"weights_sha256": checkpoint.sha256, "weights_size": checkpoint.file.stat().st_size}


def _joined(name: str, card: dict[str, Any], checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The zoo's card and that of the weights: the latter knows better, but must be that of the same model."""
    own = checkpoint.card or {}
    arguments = own.get("arguments", {})
    if own.get("architecture") != card["architecture"] or any(
        _stem(arguments[key]) != _stem(card["arguments"][key])
        for key in _IDENTITY
        if key in arguments and key in card["arguments"] and key not in overrides
    ):
        raise LandmarkRetrievalError(
            f"The weights {checkpoint.file} are those of {own.get('name') or own.get('architecture')} "
            f"({', '.join(f'{key} {arguments[key]}' for key in _IDENTITY if key in arguments)}), not of {name}; "
            f"{guess(checkpoint.state)}."
        )
    known = {key: value for key, value in own.items() if value is not None}
    return {**card, **known, "name": card["name"], "arguments": {**card["arguments"], **arguments, **overrides}}


def _stem(value: Any) -> Any:
    """A backbone's name without its tag: which ImageNet weights it started from does not matter any more."""
    return value.partition(".")[0] if isinstance(value, str) else value


def _configured(model: Any, card: Mapping[str, Any]) -> Any:
    model.pretrained_cfg = {
        "name": card.get("name"),
        "image_size": card.get("image_size"),
        "resize": card.get("resize", "squash"),
        **{key: card.get(key, default) for key, default in _FACTS.items()},
        "mean": tuple(card.get("mean", IMAGENET_MEAN)),
        "std": tuple(card.get("std", IMAGENET_STD)),
        "sha256": card.get("weights_sha256"),
        "size": card.get("weights_size"),
    }
    return model
