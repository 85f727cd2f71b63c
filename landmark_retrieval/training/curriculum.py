"""Run stages one after another, each in a process of its own, from the hand-over of the one before."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.configs import choices, compose, conf_folder
from landmark_retrieval.training.handoff import Handoff


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a chain: the overrides that compose its config, and the config."""

    overrides: tuple[str, ...]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.config["stage"]["name"]

    def describe(self) -> str:
        """One line for a person."""
        stage, data = self.config["stage"], self.config["data"]
        epochs = stage["stop"] or stage["epochs"]
        return (
            f"{self.name}: {epochs} epochs of set {data['train_set']} at {data['image_size']} px, batch "
            f"{data['batch_size']}, lr {self.config['optimizer']['lr']:g}, from {stage['after'] or 'ImageNet'} -> "
            f"{self.config['run_dir']}"
        )


def plan_curriculum(name: str, overrides: Sequence[str] = ()) -> list[PlannedStage]:
    """Compose every stage of `conf/curriculum/<name>.yaml`: a mistake in the last one shows before the first runs.

    Args:
        name: of the curriculum.
        overrides: `key=value`, for every stage; they win over what the curriculum says.

    Raises:
        LandmarkRetrievalError: no such curriculum; an unknown key; a stage that follows one that is not before it.
    """
    from omegaconf import OmegaConf

    path = conf_folder() / "curriculum" / f"{name}.yaml"
    if not path.exists():
        raise LandmarkRetrievalError(
            f"There is no curriculum {name!r}: choose one of {', '.join(choices('curriculum'))}."
        )
    recipe: Any = OmegaConf.to_container(OmegaConf.load(path))
    stages: list[PlannedStage] = []
    for stage in recipe["stages"]:
        own = (f"+stage={stage['stage']}", *recipe.get("overrides", ()), *stage.get("overrides", ()), *overrides)
        config: Any = OmegaConf.to_container(compose(own), resolve=True)
        after = config["stage"]["after"]
        if after and not config["stage"]["weights"] and after not in [earlier.name for earlier in stages]:
            raise LandmarkRetrievalError(
                f"Stage {stage['stage']} of curriculum {name} follows {after}, which does not come before it: mend "
                f"{path}, or set stage.after or stage.weights for it."
            )
        stages.append(PlannedStage(own, config))
    return stages


def run_curriculum(
    stages: Sequence[PlannedStage],
    say: Callable[[str], None] = print,
    after_stage: Callable[[Handoff], None] | None = None,
) -> list[Handoff]:
    """Run the stages in order, skipping those that are finished and unchanged.

    Args:
        stages: from `plan_curriculum`.
        say: receives a sentence about each stage.
        after_stage: called with each hand-over.

    Returns:
        The hand-over of each stage.

    Raises:
        LandmarkRetrievalError: a stage failed; it has said why.
    """
    from landmark_retrieval.training.stage import finished_handoff

    handoffs: list[Handoff] = []
    for number, stage in enumerate(stages, 1):
        handoff = finished_handoff(stage.config)
        if handoff:
            say(f"[{number}/{len(stages)}] {stage.name} is finished: {handoff.folder}")
        else:
            say(f"[{number}/{len(stages)}] {stage.describe()}")
            command = [sys.executable, "-m", "landmark_retrieval.train", *stage.overrides]
            code = subprocess.run(command, check=False, env=_environment()).returncode
            if code == 130:
                raise KeyboardInterrupt
            handoff = finished_handoff(stage.config)
            if code or not handoff:
                raise LandmarkRetrievalError(
                    f"Stage {stage.name} ended with exit code {code}: mend what it says above and run the curriculum "
                    "again; finished stages are kept."
                )
        handoffs.append(handoff)
        if after_stage:
            after_stage(handoff)
    return handoffs


def _environment() -> dict[str, str]:
    """On a CPU, let glibc keep large blocks: giving them back to the system costs a quarter of a step."""
    import torch

    if torch.cuda.is_available():
        return dict(os.environ)
    return {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30), **os.environ}
