"""The runs of the ablations: what is chosen, planned, and brought to the same budget of photos."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmark_retrieval.columns import aligned
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json
from landmark_retrieval.training.ablation_questions import (
    BASE,
    CLEANED,
    FOLDER,
    MEASUREMENTS,
    QUESTIONS,
    VARIANTS,
    is_hybrid,
)
from landmark_retrieval.training.configs import plain
from landmark_retrieval.training.curriculum import PlannedStage, plan_curriculum
from landmark_retrieval.training.plan_table import FINISHED, processes, rows

CLEANED_SHARDS = "train_cleaned"
_OWN_KEYS = ("seed", "run_dir", "resume")
# runs are measured when they are done
_UNVALIDATED = "trainer.check_val_every_n_epoch=1000000"


@dataclass(frozen=True)
class Choice:
    """What is asked for.

    Attributes:
        variants: to be trained, in order.
        measurements: to be made, in order.
        seeds: of each variant, how many.
    """

    variants: tuple[str, ...]
    measurements: tuple[str, ...]
    seeds: Mapping[str, int]

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Variant and seed of each run: all variants with one seed before the next, so that tables fill evenly."""
        most = max(self.seeds.values(), default=0)
        return [(name, seed) for seed in range(most) for name in self.variants if seed < self.seeds[name]]


@dataclass(frozen=True)
class Run:
    """A variant with a seed.

    Attributes:
        variant: its name.
        seed: of all its stages.
        stages: planned, at the common budget.
        seen: photos that it trains on, repetitions counted; None if the data is not there.
        state: finished, carries on, to do, ...; see `plan_table.Row`.
    """

    variant: str
    seed: int
    stages: tuple[PlannedStage, ...]
    seen: int | None
    state: str

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Of the last stage."""
        return Path(self.stages[-1].config["run_dir"])


def choose(only: Collection[str] = (), seeds: int = 3, hybrid_seeds: int = 1) -> Choice:
    """What there is to do.

    Args:
        only: names of questions, which stand for all that they compare, and of variants; empty for everything.
        seeds: of each variant.
        hybrid_seeds: of the Hybrid-Swin-Transformers; 0 leaves them out.

    Raises:
        LandmarkRetrievalError: an unknown name (with the nearest ones), or no seed.
    """
    for option, count, least in (("--seeds", seeds, 1), ("--hybrid-seeds", hybrid_seeds, 0)):
        if count < least:
            raise LandmarkRetrievalError(f"{option} {count} is too few: take at least {least}.")
    questions = {question.name: question for question in QUESTIONS}
    wanted: set[str] = set()
    for name in only or questions:
        if name in questions:
            wanted |= {row.measurement for row in questions[name].rows}
        elif name in VARIANTS:
            wanted.add(name)
        else:
            known = [*questions, *VARIANTS]
            near = difflib.get_close_matches(name, known, 2, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}."
            raise LandmarkRetrievalError(f"There is no question or variant {name!r}: {hint}")
    if not hybrid_seeds:
        wanted = {name for name in wanted if not any(map(is_hybrid, MEASUREMENTS[name].runs))}
        if not wanted:
            raise LandmarkRetrievalError("--hybrid-seeds 0 leaves nothing to run of what --only names.")
    trained = {run for name in wanted for run in MEASUREMENTS[name].runs}
    trained |= {BASE} if CLEANED in trained else set()
    variants = tuple(name for name in VARIANTS if name in trained)
    return Choice(
        variants,
        tuple(name for name in MEASUREMENTS if name in wanted | trained),
        {name: hybrid_seeds if is_hybrid(name) else seeds for name in variants},
    )


def plan_run(variant: str, seed: int, out: Path, overrides: Sequence[str], budget: int | None = None) -> Run:
    """Plan the stages of a run.

    Args:
        variant: see `VARIANTS`.
        seed: of it.
        out: of the ablations.
        overrides: `key=value` for every stage.
        budget: photos to train on, repetitions counted: the last stage ends there. None leaves it as it is written.

    Raises:
        LandmarkRetrievalError: see `plan_curriculum`.
    """
    folder = f"{_quoted(out / 'runs' / variant / f'seed{seed}')[:-1]}/${{stage.name}}'"
    words = [_UNVALIDATED, *overrides, f"seed={seed}", f"run_dir={folder}"]
    stages = plan_curriculum(f"{FOLDER}/{variant}", words)
    if budget is not None:
        stages = _at_budget(stages, budget)
    plan = rows([stage.config for stage in stages])
    seen = [_seen(stage.config, row.photos) for stage, row in zip(stages, plan, strict=True)]
    states = {row.state for row in plan}
    state = states.pop() if len(states) == 1 else next(row.state for row in plan if row.state != FINISHED)
    return Run(variant, seed, tuple(stages), None if None in seen else sum(filter(None, seen)), state)


def plan_variant(variant: str, seed: int, out: Path, overrides: Sequence[str], budget: int | None) -> Run:
    """As `plan_run`; what is trained on the cleaned photos takes those, if they are there already."""
    words = list(overrides)
    if variant == CLEANED:
        base = plan_run(BASE, seed, out, overrides)
        folder = cleaned_folder(out, seed, base.folder)
        # before base is trained it is not known how many photos are kept; as many are seen as by base all the same
        if folder is not None and (folder / CLEANED_SHARDS / "manifest.json").exists():
            words.append(f"data.train_set={_quoted(folder / CLEANED_SHARDS)}")
    return plan_run(variant, seed, out, words, budget)


def cleaned_folder(out: Path, seed: int, base: Path) -> Path | None:
    """Where the photos go that a run of base leaves; None where it is not finished."""
    if not (base / "model.json").exists():
        return None
    card = read_json(base / "model.json", "card of a finished stage", "run the ablations again")
    return out / "cleaned" / f"seed{seed}-{card['weights_sha256'][:8]}"


def plan_runs(choice: Choice, out: Path, overrides: Sequence[str]) -> list[Run]:
    """Plan all runs, at the budget of `base`.

    Raises:
        LandmarkRetrievalError: an override of what the ablations set themselves; see also `plan_curriculum`.
    """
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in _OWN_KEYS:
            raise LandmarkRetrievalError(
                f"{override}: the ablations set {key} themselves: use --seeds, --out, or another folder."
            )
    budget = plan_run(BASE, 0, out, overrides).seen
    return [plan_variant(variant, seed, out, overrides, budget) for variant, seed in choice.runs]


def describe_plan(runs: Sequence[Run], choice: Choice) -> str:
    """The plan as a table."""
    lines = [["#", "run", "stages", "px", "photos seen", "state"]]
    for number, run in enumerate(runs, 1):
        sizes = dict.fromkeys(str(stage.config["data"]["image_size"]) for stage in run.stages)
        seen = "?" if run.seen is None else f"{run.seen:,}"
        lines.append([str(number), run.name, str(len(run.stages)), ", ".join(sizes), seen, run.state])
    left = [run for run in runs if run.state != FINISHED]
    totals = [("all", runs)] + ([("left", left)] if 0 < len(left) < len(runs) else [])
    for title, part in totals:
        total = None if any(run.seen is None for run in part) else sum(run.seen or 0 for run in part)
        lines.append(["", f"{title}: {len(part)} runs", "", "", "?" if total is None else f"{total:,}", ""])
    return "\n".join([*aligned(lines, right={0, 2, 4}), f"Measured: {', '.join(choice.measurements)}"])


def _at_budget(stages: Sequence[PlannedStage], budget: int) -> list[PlannedStage]:
    """The last stage shortened or lengthened, so that all see so many photos, as exactly as batches allow."""
    plan = rows([stage.config for stage in stages])
    seen = [_seen(stage.config, row.photos) for stage, row in zip(stages, plan, strict=True)]
    last, photos = stages[-1], plan[-1].photos
    if None in seen or not photos or sum(filter(None, seen)) == budget:
        return list(stages)
    size = _step(last.config)
    batches, whole = (budget - sum(filter(None, seen[:-1]))) // size, photos // size
    if batches < 1 or whole < 1:
        return list(stages)  # the plan shows what it sees
    had = last.config["stage"]["stop"] or last.config["stage"]["epochs"]
    epochs = math.ceil(batches / whole)
    words = [f"stage.epochs={epochs}", "stage.stop=null"]
    words.append(f"stage.warmup_epochs={last.config['stage']['warmup_epochs'] * epochs / had:g}")
    each = round(batches / epochs)
    words.append(f"trainer.limit_train_batches={each if each < whole else 1.0}")
    overrides = (*last.overrides, *words)
    return [*stages[:-1], PlannedStage(overrides, plain(overrides))]


def _seen(config: dict[str, Any], photos: int | None) -> int | None:
    """Photos that a stage trains on, repetitions counted; those that do not fill a batch are left out."""
    if photos is None:
        return None
    batches, limit = photos // _step(config), config["trainer"]["limit_train_batches"]
    if isinstance(limit, float):
        batches = int(batches * limit)
    elif limit is not None:
        batches = min(batches, limit)
    return batches * _step(config) * (config["stage"]["stop"] or config["stage"]["epochs"])


def _step(config: dict[str, Any]) -> int:
    """Photos of a batch of all processes."""
    trainer, count = config["trainer"], processes(config)
    if count is None:  # devices: auto
        gpus = 0
        if trainer["accelerator"] in ("auto", "gpu", "cuda"):
            import torch

            gpus = torch.cuda.device_count()
        count = max(1, gpus) * trainer["num_nodes"]
    return config["data"]["batch_size"] * count


def _quoted(path: Path) -> str:
    """A path as a value of Hydra."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
