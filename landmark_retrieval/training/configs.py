"""Where the Hydra groups are, and how a config is composed with errors a person can act on."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError

_NUMBERS = ("stage.epochs", "data.image_size", "data.batch_size", "optimizer.lr")
_STAGE: dict[str, Any] = {
    "after": None,
    "weights": None,
    "stop": None,
    "warmup_epochs": 1,
    "freeze": [],
    "freeze_batchnorm": [],
    "surgery": None,
    "head": "same",
    "ema": None,
}
"""What a stage is if it does not say."""


def conf_folder() -> Path:
    """The folder of the Hydra groups: inside the package once installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def compose(overrides: Sequence[str], config: str = "train") -> Any:
    """Compose a config as `python -m landmark_retrieval.train OVERRIDES` does; an OmegaConf DictConfig.

    Args:
        overrides: group=name and key=value.
        config: which one, "train" or "submit".

    Raises:
        LandmarkRetrievalError: an unknown key, group or choice; the message has the nearest known names.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return hydra_compose(config, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise LandmarkRetrievalError(_sentence(error, overrides, config)) from error


def plain(overrides: Sequence[str]) -> dict[str, Any]:
    """As `compose`, as plain Python types.

    Raises:
        LandmarkRetrievalError: see `compose`; also a reference to a key that there is not, no stage, or a value of the
            wrong kind where numbers are needed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    composed = compose(overrides)
    try:
        config: Any = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise LandmarkRetrievalError(_sentence(error, overrides)) from error
    return checked(config)


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """A config with what its stage leaves out.

    Raises:
        LandmarkRetrievalError: no stage, a key that stages do not have, or no number where one is needed.
    """
    if not config["stage"]:
        raise no_stage()
    config = {**config, "stage": {**_STAGE, **config["stage"]}}
    known = ("name", "epochs", *_STAGE)
    for key in config["stage"]:
        if key not in known:
            near = difflib.get_close_matches(key, known, 2)
            raise LandmarkRetrievalError(
                f"A stage has no key {key!r}: {f'did you mean {near[0]}?' if near else 'it has ' + ', '.join(known)}"
            )
    for key in ("stage.name", *_NUMBERS):
        group, _, name = key.partition(".")
        value = config[group].get(name)
        if key == "stage.name":
            if not isinstance(value, str):
                raise LandmarkRetrievalError("The stage has no name: set stage.name.")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise LandmarkRetrievalError(f"{key} is a number, not {value!r}.")
    return config


def start_of(config: dict[str, Any]) -> str:
    """What a stage starts from: another one, a folder, ImageNet or nothing; and the surgery."""
    stage = config["stage"]
    start = stage["weights"] or stage["after"] or ("ImageNet" if config["model"].get("pretrained") else "scratch")
    return f"{start} + {stage['surgery']}" if stage["surgery"] else str(start)


def no_stage() -> LandmarkRetrievalError:
    """The error for a config without a stage."""
    return LandmarkRetrievalError(f"No stage was chosen: add +stage=NAME, one of {', '.join(choices('stage'))}.")


def choices(group: str) -> list[str]:
    """The names in a config group."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def _sentence(error: Exception, overrides: Sequence[str], config: str = "train") -> str:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        near = difflib.get_close_matches(key, _known_keys(config), 3)
        advice = f"did you mean {' or '.join(near)}?" if near else "see `--cfg job` for all keys."
        return f"There is no config key {key!r}: {advice}"
    if match := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        group, name = match.groups()
        return f"There is no {group} {name!r}: choose one of {', '.join(choices(group)) or 'none'}."
    if match := re.search(r"Could not override '?([^'\n]+)'?\.\s*No match", text):
        return f"There is no config group {match.group(1)!r}: the groups are {', '.join(_groups())}."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"The config {' '.join(overrides)!r} does not compose: {' '.join(lines[:3])}"


def _groups() -> list[str]:
    return sorted(path.name for path in conf_folder().iterdir() if path.is_dir())


def _known_keys(name: str) -> list[str]:
    from omegaconf import DictConfig

    def walk(config: Any, prefix: str) -> list[str]:
        keys: list[str] = []
        for key in config:
            keys.append(f"{prefix}{key}")
            if isinstance(config._get_node(key), DictConfig):
                keys += walk(config._get_node(key), f"{prefix}{key}.")
        return keys

    return walk(compose([f"+stage={choices('stage')[0]}"] if name == "train" else [], name), "")
