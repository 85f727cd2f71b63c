"""Checkpoints of other code -> weights of our models.

Names are renamed one by one. What a source holds besides the network (its head, buffers that are computed anew, layers
that it builds and never runs) is dropped by name and counted; any other tensor that is left over or missing is an
error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import sha256_of
from landmark_retrieval.zoo.fit import guess, misfit
from landmark_retrieval.zoo.records import IMAGENET_MEAN, IMAGENET_STD
from landmark_retrieval.zoo.registry import find_architecture
from landmark_retrieval.zoo.rules import Rules, Source, rules_for
from landmark_retrieval.zoo.saved_model import construct, load_tensors, save_model, save_tensors

HEAD = "head.safetensors"
_PREFIXES = ("module.", "model.", "_orig_mod.")  # of DDP, Lightning, torch.compile


@dataclass(frozen=True)
class Conversion:
    """Converted weights, and an account of the tensors that are not among them.

    Attributes:
        state: ready for `load_state_dict(..., strict=True)`.
        head: weight of the head, (classes * centers, D), if the source has one.
        dropped: why -> how many tensors were dropped.
        filled: our names that were filled with zeros.
    """

    state: dict[str, Tensor]
    head: Tensor | None
    dropped: dict[str, int]
    filled: list[str]


def convert_state_dict(state_dict: Mapping[str, Any], source: Source, model: nn.Module) -> dict[str, Tensor]:
    """Weights of other code, in the names of our model.

    The numbers are not touched, so feed the model what the source feeds its own: feymanpriv_dolg takes B, G, R.

    Args:
        state_dict: a state dict, or a whole checkpoint that holds one as "model", "model_state" or "state_dict".
            Prefixes of wrappers ("module.") are stripped; the head and the optimizer are left out.
        source: "henkel2021" is ChristofHenkel/kaggle-landmark-2021-1st-place, "feymanpriv_dolg" is feymanpriv/DOLG.
        model: what the weights are for. To compute what the released code of henkel2021 computes, a DOLGNet needs
            fusion="released2021" and a HybridSwinNet aggregation="mean" (a position embedding is filled with zeros).

    Returns:
        What `model.load_state_dict(..., strict=True)` takes.

    Raises:
        LandmarkRetrievalError: an unknown source, a model that it has no weights for, no state dict, or any tensor left
            over, missing, or of another shape.
    """
    return convert(state_dict, source, model).state


def convert(state_dict: Mapping[str, Any], source: str, model: nn.Module) -> Conversion:
    """As `convert_state_dict`, with an account of what was left out."""
    rules = rules_for(source, type(model).__name__)
    given = unwrap(state_dict)
    wanted = model.state_dict()
    stages = {_cnn_stage(key) for key in wanted}
    state: dict[str, Tensor] = {}
    left_over: dict[str, Tensor] = {}
    dropped: dict[str, int] = {}
    for key, value in given.items():
        ours = _renamed(key, rules)
        why = next((why for pattern, why in rules.drop.items() if re.match(pattern, key)), None)
        if _cnn_stage(ours) not in stages:
            why = "CNN stages after the cut, which the source builds and never runs"
        if why:
            dropped[why] = dropped.get(why, 0) + 1
        elif ours in state or (not ours and key != rules.head):
            left_over[key] = value
        elif ours:
            state[ours] = value
    filled = [key for key in rules.zeros if key in wanted and key not in state]
    state |= {key: torch.zeros(wanted[key].shape, dtype=wanted[key].dtype) for key in filled}
    if "token" in wanted:
        raise LandmarkRetrievalError(
            f"Weights of {source} have no virtual token, and none can be made up: build the {type(model).__name__} "
            "with aggregation='mean'."
        )
    if unlike := misfit(state, model, list(left_over)):
        ours_already = given.keys() <= wanted.keys()
        advice = "they have our names already, so load them as they are" if ours_already else None
        raise LandmarkRetrievalError(
            f"The weights of {source} do not fit this {type(model).__name__}: {unlike}; "
            f"{advice or guess(left_over | state, **rules.arguments)}."
        )
    return Conversion(state, given.get(rules.head), dropped, filled)


def unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without prefixes of wrappers. LandmarkRetrievalError if there is none."""
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        state = next((checkpoint[k] for k in ("model", "model_state", "state_dict") if k in checkpoint), checkpoint)
    named = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        kind = f"keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else type(state).__name__
        raise LandmarkRetrievalError(
            f"There is no state dict in the checkpoint (found {kind}): give a dict of tensors, or one that holds it as "
            "'model', 'model_state' or 'state_dict'."
        )
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def read_foreign(path: Path) -> Any:
    """What a checkpoint of other code holds; nothing in it is executed.

    Raises:
        LandmarkRetrievalError: no such file, a damaged one, or one that holds more than tensors and plain values.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LandmarkRetrievalError(f"There is no checkpoint {path}: name another file.") from None
    except Exception as error:  # a damaged pickle makes its reader raise anything
        if isinstance(error, OSError) and error.filename:
            raise  # it cannot be opened
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise LandmarkRetrievalError(
                f"{path} holds {refused[1]}, and reading that could run foreign code: where you trust it, load it and "
                "save the state dict alone, `torch.save({'model': state_dict}, FILE)`."
            ) from None
        raise LandmarkRetrievalError(
            f"{path} is damaged, cut short, or no checkpoint ({_first_line(error)}): fetch it once more."
        ) from None


def convert_checkpoint(
    file: str | Path,
    source: str,
    name: str,
    out: str | Path,
    keep_head: bool = False,
    image_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Conversion:
    """Convert a checkpoint of other code to a folder that `load_model` takes.

    What differs between the released code and the papers is chosen as in the released code. Where that takes B, G, R,
    the first convolution is turned round, so that the model takes R, G, B like all others.

    Args:
        file: as the source's code saved it, or its state dict alone, or a .safetensors file.
        source: see `convert_state_dict`.
        name: of an architecture of the zoo.
        out: folder for model.safetensors and model.json, and head.safetensors.
        keep_head: also write the head's weight, (classes * sub-centers, D).
        image_size: px, in place of the architecture's.
        overrides: arguments of the constructor in place of the zoo's.

    Returns:
        An account of the tensors.

    Raises:
        LandmarkRetrievalError: a file that is missing, damaged or would run code, weights of another model, or no head
            where it is asked for.
    """
    file, out = Path(file), Path(out)
    architecture = find_architecture(name)
    rules = rules_for(source, architecture.model)
    arguments = {**architecture.arguments, **rules.arguments, **(overrides or {})}
    if image_size and "image_size" in arguments:
        arguments["image_size"] = image_size
    model = construct(name, architecture.model, arguments)
    done = convert(read_foreign(file), source, model)
    if keep_head and done.head is None:
        raise LandmarkRetrievalError(f"{file} has no head ({rules.head}): leave out --keep-head.")
    model.load_state_dict(done.state)
    if rules.bgr:
        stem = model.get_parameter(rules.bgr)
        stem.data = stem.data.flip(1)
    (out / HEAD).unlink(missing_ok=True)
    if keep_head and done.head is not None:
        save_tensors(out / HEAD, {"weight": done.head})
    card = {
        "name": name,
        "architecture": architecture.model,
        "arguments": arguments,
        **{"image_size": architecture.image_size, **rules.card},
        **({"image_size": image_size} if image_size else {}),
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "interpolation": "area",
        "licence": rules.licence,
        "source": f"weights of {source}, converted",
        "classes": None if done.head is None else len(done.head) // rules.centers,
        "converted_from": {
            "file": file.name,
            "sha256": sha256_of(file),
            "source": source,
            "images": rules.images,
            "turned_to_rgb": bool(rules.bgr),
            "zeros": done.filled,
        },
    }
    save_model(out, model, card)
    return done


def _renamed(key: str, rules: Rules) -> str | None:
    for pattern, ours in rules.rename.items():
        if found := re.match(pattern, key):
            return found.expand(ours) + key[found.end() :]
    return None


def _cnn_stage(key: str | None) -> str | None:
    """The stage of the CNN in a hybrid that a tensor of ours belongs to."""
    found = re.match(r"patch_embedding\.cnn\.blocks\.\d+\.", key or "")
    return found[0] if found else None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
