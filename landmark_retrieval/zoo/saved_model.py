"""A model on disk: `model.safetensors` and `model.json`, the card that says how to build it and what it takes."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from landmark_retrieval import models
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, replacing, sha256_of, write_json
from landmark_retrieval.zoo.fit import guess, misfit

WEIGHTS, CARD = "model.safetensors", "model.json"
ADVICE = (
    "name a folder with model.json and model.safetensors (the run folder of a finished stage is one), weights of the "
    "zoo (`landmark-retrieval zoo list --pretrained`), hf-hub:OWNER/NAME, or `imagenet`"
)


def save_model(folder: str | Path, model: torch.nn.Module, card: dict[str, Any]) -> dict[str, Any]:
    """Write a model's weights and its card; the card comes last, so where it stands the weights are whole.

    Args:
        folder: made if needed.
        model: its parameters and buffers are saved.
        card: `architecture` (a class of `landmark_retrieval.models`), `arguments` (of its constructor), `image_size`
            (side of the square images, pixels), and whatever else is worth knowing.

    Returns:
        The card with `weights_sha256` and `weights_size` (bytes) added.
    """
    folder = Path(folder)
    (folder / CARD).unlink(missing_ok=True)
    save_tensors(folder / WEIGHTS, model.state_dict())
    size = (folder / WEIGHTS).stat().st_size
    card = {**card, "weights_sha256": sha256_of(folder / WEIGHTS), "weights_size": size}
    write_json(folder / CARD, card)
    return card


def load_saved(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model in a folder, as its card says.

    Raises:
        LandmarkRetrievalError: no such folder, a damaged card, or weights that are not those of the card.
    """
    card = read_card(folder)
    state = load_weights(folder, card)
    kind, arguments = card.get("architecture"), card.get("arguments")
    if kind not in models.__all__:
        reason = f"there is no architecture {kind!r}"
    elif not isinstance(arguments, dict):
        reason = "it has no arguments"
    else:
        model = construct(f"The model in {folder}", kind, arguments)
        unlike = misfit(state, model)
        if unlike is None:
            model.load_state_dict(state)
            return model, card
        reason = f"{unlike}; {guess(state)}"
    raise LandmarkRetrievalError(f"The model in {folder} cannot be built from its card ({reason}): {ADVICE}.")


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a folder. LandmarkRetrievalError if there is none, or none that can be read."""
    card = read_json(folder / CARD, "model card", ADVICE)
    if not isinstance(card, dict):
        raise LandmarkRetrievalError(f"The model card {folder / CARD} is damaged: {ADVICE}.")
    return card


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
    return load_tensors(path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file. LandmarkRetrievalError if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise LandmarkRetrievalError(f"There are no weights at {path}: name another file.") from None
    except SafetensorError as error:
        raise LandmarkRetrievalError(f"The weights {path} are damaged ({error}): copy them once more.") from None


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a .safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)


def construct(name: str, kind: str, arguments: Mapping[str, Any], pretrained: bool = False) -> Any:
    """An untrained model, or one whose backbone comes from ImageNet.

    Args:
        name: for errors.
        kind: class of `landmark_retrieval.models`.
        arguments: of its constructor, without `pretrained`.
        pretrained: start from ImageNet weights.

    Raises:
        LandmarkRetrievalError: arguments that the class does not take, or ImageNet weights that could not be had.
    """
    made = getattr(models, kind)
    known = [key for key in inspect.signature(made).parameters if key != "pretrained"]
    if unknown := [key for key in arguments if key not in known]:
        raise LandmarkRetrievalError(
            f"{name} takes no {', '.join(unknown)}: the arguments of {kind} are {', '.join(known)}."
        )
    try:
        return made(**arguments, pretrained=pretrained)
    except (TypeError, ValueError, RuntimeError, AttributeError, OSError) as error:
        raise LandmarkRetrievalError(f"{name}: {error}") from error
