"""A model on disk: `model.safetensors` and `model.json`, the card that says how to build it and what it takes."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from landmark_retrieval import models
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, replacing, sha256_of, write_json

WEIGHTS, CARD = "model.safetensors", "model.json"

# what a model gets that was trained on nothing but ImageNet: a baseline that needs no files of ours
IMAGENET_CARD = {
    "architecture": "GeMNet",
    "arguments": {"backbone": "tf_efficientnet_lite0", "embedding_dim": None},
    "image_size": 256,
    "trained_on": "ImageNet",
    "weights_sha256": None,
}


def save_model(folder: str | Path, model: torch.nn.Module, card: dict[str, Any]) -> dict[str, Any]:
    """Write a model's weights and its card; the card comes last, so where it stands the weights are whole.

    Args:
        folder: made if needed.
        model: its parameters and buffers are saved.
        card: `architecture` (a class of `landmark_retrieval.models`), `arguments` (of its constructor), `image_size`
            (side of the square images, pixels), and whatever else is worth knowing.

    Returns:
        The card with `weights_sha256` added.
    """
    folder = Path(folder)
    (folder / CARD).unlink(missing_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        save_file({key: value.contiguous().cpu() for key, value in model.state_dict().items()}, temporary)
    card = {**card, "weights_sha256": sha256_of(folder / WEIGHTS)}
    write_json(folder / CARD, card)
    return card


def load_model(where: str | Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Load a saved model, ready to describe photos.

    Args:
        where: a folder with model.json and model.safetensors (the run folder of a finished stage is one), or
            "imagenet" for EfficientNet-Lite0 with ImageNet weights and GeM pooling, not trained on landmarks.

    Returns:
        The model in eval mode, and its card.

    Raises:
        LandmarkRetrievalError: no such folder, a damaged card, weights that are not those of the card, or ImageNet
            weights that could not be had.
    """
    if str(where) == "imagenet":
        arguments: Any = IMAGENET_CARD["arguments"]
        try:
            return models.GeMNet(**arguments, pretrained=True).eval(), dict(IMAGENET_CARD)
        except OSError as error:
            raise LandmarkRetrievalError(str(error)) from error
    folder = Path(where)
    advice = "name the run folder of a finished stage, or `imagenet`"
    card = read_json(folder / CARD, "model card", advice)
    state = load_weights(folder, card)
    try:
        architecture = getattr(models, card["architecture"])
        model = architecture(**card["arguments"])
        model.load_state_dict(state)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise LandmarkRetrievalError(
            f"The model in {folder} cannot be built from its card ({reason}): {advice}."
        ) from error
    return model.eval(), card


def load_weights(folder: Path, card: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a saved model. LandmarkRetrievalError if they are missing, damaged, or not those of the card."""
    path = folder / WEIGHTS
    if not path.exists():
        raise LandmarkRetrievalError(
            f"There are no weights at {path}, though {folder / CARD} describes them: copy them there."
        )
    if sha256_of(path) != card.get("weights_sha256"):
        raise LandmarkRetrievalError(
            f"The weights {path} are not those that {folder / CARD} describes: copy both once more."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise LandmarkRetrievalError(f"The weights {path} are damaged ({error}): copy them once more.") from None
