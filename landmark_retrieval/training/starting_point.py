"""The model and the head that a stage begins with: from ImageNet, or from what the stage before handed over."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.heads import SubCenterArcFace, dynamic_margins
from landmark_retrieval.training.handoff import Handoff
from landmark_retrieval.training.parameter_table import Origin
from landmark_retrieval.zoo.saved_model import construct, load_weights

HEADS = ("same", "by_name", "fresh")
# of the head's config, what says how the trainer deals it out
SHARDING = ("sharded", "sample_rate")


def starting_point(
    config: dict[str, Any], parent: Handoff | None, classes: list[str], class_counts: tuple[int, ...]
) -> tuple[Any, SubCenterArcFace, Origin]:
    """Make the model and the head of a stage.

    Args:
        config: of the stage, whole.
        parent: what the stage before handed over; None to start from ImageNet, or at random.
        classes: names, in the order of their labels.
        class_counts: photos of each class.

    Returns:
        The model, the head, and where their parameters come from.

    Raises:
        LandmarkRetrievalError: surgery that does not fit, a model or classes other than those handed over, weights
            that are damaged, or arguments that model or head refuse.
    """
    stage = config["stage"]
    if stage["surgery"] and not parent:
        raise LandmarkRetrievalError(
            f"stage.surgery={stage['surgery']} changes the model of an earlier stage, and stage {stage['name']} starts "
            "from none: set stage.after or stage.weights, or leave it out."
        )
    if parent is None:
        model = build(config["model"], pretrained=config["model"]["pretrained"])
        head = _head(config, model, classes, class_counts)
        return model, head, Origin({*_sizes(model), "head.weight"}, "No stage before this one.")
    if stage["surgery"]:
        model, new, dropped = _after_surgery(config, parent)
    else:
        model, new, dropped = build(config["model"], pretrained=False), [], {}
        _load(model, parent)
    head = _head(config, model, classes, class_counts)
    common, lost = _carry_head(stage["head"], parent, head, classes)
    fresh = head.weight.numel() // len(classes) * (len(classes) - common)
    changed = f" (changed by {stage['surgery']})" if stage["surgery"] else ""
    summary = (
        f"Carried over from {parent.stage}: the model{changed}, and the head's centers of {common} of {len(classes)} "
        "classes."
    )
    return model, head, Origin({*new}, summary, dropped | lost, {"head.weight": fresh})


def build(config: dict[str, Any], **more: Any) -> Any:
    """Make the object that `_target_` names. LandmarkRetrievalError if there is none or it refuses the arguments."""
    module, _, name = config["_target_"].rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LandmarkRetrievalError(
            f"There is no {config['_target_']} ({error}): mend `_target_` in the config, or install what it needs."
        ) from error
    return make(factory, **{key: value for key, value in config.items() if key != "_target_"} | more)


def make(factory: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Call `factory`. LandmarkRetrievalError with its reason if it refuses the arguments."""
    try:
        return factory(*arguments, **more)
    except LandmarkRetrievalError:
        raise
    except (TypeError, ValueError, OSError, RuntimeError, MisconfigurationException) as error:
        raise LandmarkRetrievalError(f"{getattr(factory, '__name__', factory)}: {error}") from error


def model_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Of the model's config, the arguments of its constructor that say what it is."""
    return {key: value for key, value in config["model"].items() if key not in ("_target_", "pretrained")}


def _head(config: dict[str, Any], model: Any, classes: list[str], counts: tuple[int, ...]) -> SubCenterArcFace:
    margins = config["head"]["margins"]
    return build(
        {key: value for key, value in config["head"].items() if key not in SHARDING},
        embedding_dim=model.embedding_dim,
        num_classes=len(classes),
        margins=dynamic_margins(counts) if margins == "dynamic" else margins,
    )


def _load(model: nn.Module, parent: Handoff) -> None:
    """Into a model of the same shape."""
    state, wanted = load_weights(parent.folder, parent.card), model.state_dict()
    unlike = sorted(
        key
        for key in wanted.keys() | state.keys()
        if key not in state or key not in wanted or state[key].shape != wanted[key].shape
    )
    if unlike:
        methods = ", ".join(_surgeries(model))
        advice = f", or say how the one becomes the other with stage.surgery ({methods})" if methods else ""
        raise LandmarkRetrievalError(
            f"Stage {parent.stage} in {parent.folder} hands over another model ({len(unlike)} tensors differ, the "
            f"first is {unlike[0]}): choose the same `model` in both stages{advice}."
        )
    model.load_state_dict(state)


def _after_surgery(config: dict[str, Any], parent: Handoff) -> tuple[Any, list[str], dict[str, int]]:
    """The model handed over, changed into the one of this stage; what is new of it, and what was dropped."""
    name, wanted, kind = config["stage"]["surgery"], model_arguments(config), parent.card["architecture"]
    model = construct(f"The model of stage {parent.stage}", kind, parent.card["arguments"])
    methods = _surgeries(model)
    if name not in methods:
        raise LandmarkRetrievalError(
            f"stage.surgery: {kind} has no {name!r}; it has {', '.join(methods) or 'none: leave it out'}."
        )
    _load(model, parent)
    before = _sizes(model)
    method = getattr(model, name)
    known = inspect.signature(method).parameters
    arguments = {key: value for key, value in wanted.items() if key in known}
    # what the CNN brings is all that is new
    new = make(method, **arguments, pretrained=config["model"]["pretrained"] in (True, "cnn"))
    unlike = [
        f"{key} {model.arguments.get(key)}, not {value}"
        for key, value in wanted.items()
        if model.arguments.get(key) != value
    ]
    if unlike:
        raise LandmarkRetrievalError(
            f"stage.surgery={name} on the model of stage {parent.stage} makes one of {'; '.join(unlike)}: mend the "
            "`model` and data.image_size of the stage, or take another surgery."
        )
    after = _sizes(model)
    dropped = {key: size for key, size in before.items() if key not in after or key in new}
    return model, new, dropped


def _surgeries(model: nn.Module) -> list[str]:
    return [name for name in ("replace_patch_embedding", "insert_cnn_block") if hasattr(model, name)]


def _carry_head(mode: str, parent: Handoff, head: SubCenterArcFace, classes: list[str]) -> tuple[int, dict[str, int]]:
    """Take over the centers of the classes that both stages know, by name, in place; how many these are, and the
    numbers of those that were dropped."""
    if mode not in HEADS:
        raise LandmarkRetrievalError(f"stage.head is {', '.join(HEADS[:-1])} or {HEADS[-1]}, not {mode!r}.")
    held = parent.head_weight()
    if mode == "fresh":
        return 0, {"head.weight": held.numel()}
    if mode == "same":
        _refuse_other_classes(parent, classes)
    width = head.weight.shape[1]
    if held.shape[1] != width or len(held) != head.sub_centers * len(parent.classes):
        raise LandmarkRetrievalError(
            f"Stage {parent.stage} in {parent.folder} hands over a head of {len(held) // len(parent.classes)} centers "
            f"of {held.shape[1]} numbers per class, this stage has {head.sub_centers} of {width}: set "
            "head.sub_centers as there, or stage.head=fresh."
        )
    rows = {name: row for row, name in enumerate(parent.classes)}
    common = [(new, rows[name]) for new, name in enumerate(classes) if name in rows]
    if common:
        new, old = map(list, zip(*common, strict=True))
        weight = head.weight.data.view(len(classes), head.sub_centers, width)
        weight[new] = held.view(len(parent.classes), head.sub_centers, width)[old].to(weight)
    dropped = (len(parent.classes) - len(common)) * head.sub_centers * width
    return len(common), {"head.weight": dropped} if dropped else {}


def _refuse_other_classes(parent: Handoff, classes: list[str]) -> None:
    added, gone = sorted({*classes} - {*parent.classes}), sorted({*parent.classes} - {*classes})
    if not added and not gone:
        return
    differences = [
        f"{len(names):,} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for names, what in ((added, "new"), (gone, "gone"))
        if names
    ]
    raise LandmarkRetrievalError(
        f"The classes are not those of stage {parent.stage} in {parent.folder}: "
        f"{' and '.join(differences)}. stage.head=by_name takes over the centers of the "
        "others by their names, stage.head=fresh none."
    )


def _sizes(model: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}
