"""Run stages one after another, each in processes of its own, from the hand-over of the one before."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmark_retrieval.errors import LandmarkRetrievalError, Terminated
from landmark_retrieval.training.configs import choices, conf_folder, plain, start_of
from landmark_retrieval.training.launchers import Launcher, LocalLauncher
from landmark_retrieval.training.ranks import Ranks, free_port

if TYPE_CHECKING:
    from landmark_retrieval.training.handoff import Handoff

_FINISHED = "finished"
_STAGE_KEYS = {"stage", "overrides"}


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
            f"{data['batch_size']}, lr {self.config['optimizer']['lr']:g}, from {start_of(self.config)} -> "
            f"{self.config['run_dir']}"
        )


def curricula() -> list[str]:
    """The names of all curricula, without those that are lists of others."""
    return [name for name in choices("curriculum") if "lists" not in _recipe(name)]


def listed(name: str, own: Path | None = None) -> list[str] | None:
    """The names in a list of curricula; None if `name` is a curriculum. `own`: as in `plan_curriculum`.

    Raises:
        LandmarkRetrievalError: neither is called so.
    """
    return _recipe(name, own).get("lists")


def plan_curriculum(name: str, overrides: Sequence[str] = (), own: Path | None = None) -> list[PlannedStage]:
    """Compose every stage of `conf/curriculum/<name>.yaml`: a mistake in the last one shows before the first runs.

    Args:
        name: of the curriculum; with a slash in it, a path below the config folder ("experiment/ablation/base").
        overrides: `key=value`, for every stage; they win over what the curriculum says.
        own: a folder with config groups beside those of the package: `stage`, `curriculum`, `model`, ...

    Raises:
        LandmarkRetrievalError: no such curriculum, or a list of them; an unknown key or a value of the wrong kind; a
            stage that follows one that is not before it, or writes into the folder of another.
    """
    if own and not own.is_dir():
        raise LandmarkRetrievalError(f"There is no folder {own}: name one that holds config groups, such as stage/.")
    recipe = _recipe(name, own)
    if own:
        path = str(own.absolute()).replace("\\", "\\\\").replace("'", "\\'")
        overrides = (f"hydra.searchpath=['file://{path}']", *overrides)
    if "lists" in recipe:
        raise LandmarkRetrievalError(
            f"{name} is a list of curricula and has no stages: choose one of {', '.join(recipe['lists'])}."
        )
    stages: list[PlannedStage] = []
    for stage in recipe["stages"]:
        words = (f"+stage={stage['stage']}", *recipe.get("overrides", ()), *stage.get("overrides", ()), *overrides)
        planned = PlannedStage(words, plain(words))
        _check_place(planned, stages, f"Stage {stage['stage']} of curriculum {name}", _path(name, own))
        stages.append(planned)
    return stages


def _check_place(stage: PlannedStage, before: Sequence[PlannedStage], what: str, path: Path) -> None:
    after, folder = stage.config["stage"]["after"], Path(stage.config["run_dir"])
    for earlier in before:
        if Path(earlier.config["run_dir"]) == folder:
            raise LandmarkRetrievalError(
                f"{what} writes into the folder of stage {earlier.name}, {folder}: keep ${{stage.name}} in run_dir, "
                f"and give each stage in {path} a stage.name of its own."
            )
    if after and not stage.config["stage"]["weights"]:
        parent = next((earlier for earlier in before if earlier.name == after), None)
        if parent is None:
            raise LandmarkRetrievalError(
                f"{what} follows {after}, which does not come before it: mend {path}, or set stage.after or "
                "stage.weights for it."
            )
        if Path(parent.config["run_dir"]) != folder.parent / after:
            raise LandmarkRetrievalError(
                f"{what} looks for what {after} hands over in {folder.parent / after}, which writes into "
                f"{parent.config['run_dir']}: put ${{stage.name}} at the end of run_dir."
            )


def run_curriculum(
    stages: Sequence[PlannedStage],
    say: Callable[[str], None] = print,
    after_stage: "Callable[[Handoff], None] | None" = None,
    launcher: Launcher | None = None,
) -> "list[Handoff]":
    """Run the stages in order, skipping those that are finished and unchanged.

    Under torchrun or srun each process calls this, and runs its process of each stage. The first one decides for all
    which stages are finished, and is the only one that says something.

    Args:
        stages: from `plan_curriculum`.
        say: receives a sentence about each stage.
        after_stage: called with each hand-over, in the first process.
        launcher: starts the stages; on this machine if None.

    Returns:
        The hand-over of each stage; of several processes, in the first one alone.

    Raises:
        LandmarkRetrievalError: a stage failed; it has said why.
        KeyboardInterrupt: Ctrl-C.
        Terminated: this process, or a stage, got SIGTERM; what is done is saved.
    """
    ranks = Ranks.here()
    if ranks.rank:
        say, after_stage = _silence, None
    handoffs: list[Handoff] = []
    launcher = launcher or LocalLauncher()
    with contextlib.closing(launcher), ranks.meeting() as meeting:
        for number, stage in enumerate(stages, 1):

            def decide(stage: PlannedStage = stage) -> str:
                return _FINISHED if _finished(stage.config) else free_port()

            decision = meeting.agree(f"stage {number}", decide)
            if decision == _FINISHED:
                say(f"[{number}/{len(stages)}] {stage.name} is finished: {stage.config['run_dir']}")
            else:
                say(f"[{number}/{len(stages)}] {stage.describe()}")
                following = stages[number].overrides if number < len(stages) else None
                environment = meeting.environment(decision)
                meanwhile = None if ranks.rank else _import_stage
                code = launcher.run(stage.overrides, stage.config, environment, say, following, meanwhile)
                _check(stage, code)
            if ranks.rank:
                continue
            # what resume=false does again is finished now all the same
            handoff = _finished({**stage.config, "resume": True})
            if not handoff:
                raise LandmarkRetrievalError(
                    f"Stage {stage.name} ended, but what is in {stage.config['run_dir']} is not its result: did "
                    "something else write there, or change its data? Run the curriculum again."
                )
            handoffs.append(handoff)
            if after_stage:
                after_stage(handoff)
    return handoffs


def _check(stage: PlannedStage, code: int) -> None:
    if code == 130:
        raise KeyboardInterrupt
    if code == 143:
        raise Terminated(f"stage {stage.name} was stopped by SIGTERM")
    if code:
        raise LandmarkRetrievalError(
            f"Stage {stage.name} ended with exit code {code}: mend what it says above and run the curriculum again; "
            "finished stages are kept."
        )


def _finished(config: dict[str, Any]) -> "Handoff | None":
    if not (Path(config["run_dir"]) / "handoff.json").exists():
        return None  # found out without the seconds that the next line takes
    from landmark_retrieval.training.stage import finished_handoff

    return finished_handoff(config)


def _import_stage() -> None:
    """What it takes to check a stage's result: seconds, which pass while the stage starts."""
    import landmark_retrieval.training.stage  # noqa: F401


def _silence(sentence: str) -> None:
    pass


def _path(name: str, own: Path | None) -> Path:
    file = f"{name}.yaml" if "/" in name else f"curriculum/{name}.yaml"
    paths = [folder / file for folder in (own, conf_folder()) if folder]
    return next((path for path in paths if path.exists()), paths[-1])


def _recipe(name: str, own: Path | None = None) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = _path(name, own)
    if not path.exists():
        there = f" {own} has none of that name either." if own else ""
        raise LandmarkRetrievalError(
            f"There is no curriculum {name!r}: choose one of {', '.join(choices('curriculum'))}.{there}"
        )
    try:
        recipe: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException) as error:
        raise LandmarkRetrievalError(f"{path} is not a curriculum ({' '.join(str(error).split())}): mend it.") from None
    if not isinstance(recipe, dict) or not any(
        isinstance(recipe.get(key), list) and recipe[key] for key in ("stages", "lists")
    ):
        raise LandmarkRetrievalError(f"{path} names no stages: see docs/curriculum.md for what a curriculum holds.")
    if unknown := recipe.keys() - {"stages", "lists", "overrides"}:
        raise LandmarkRetrievalError(f"{path} has {', '.join(sorted(unknown))}; it holds `overrides` and `stages`.")
    for stage in recipe.get("stages", ()):
        if not isinstance(stage, dict) or not isinstance(stage.get("stage"), str) or stage.keys() - _STAGE_KEYS:
            raise LandmarkRetrievalError(f"{path}: {stage!r} is no stage; write `- stage: NAME`, and its overrides.")
    for part in (recipe, *recipe.get("stages", ())):
        overrides = part.get("overrides", [])
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise LandmarkRetrievalError(f"{path}: overrides are a list of key=value, not {overrides!r}.")
    return recipe
