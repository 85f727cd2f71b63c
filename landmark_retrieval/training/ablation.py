"""Does each idea help? Runs that differ by one thing, at the same budget of photos and with several seeds each, and the
figures of them."""

import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json, write_json
from landmark_retrieval.training.ablation_plan import (
    CLEANED_SHARDS,
    Choice,
    Run,
    cleaned_folder,
    plan_run,
    plan_runs,
    plan_variant,
)
from landmark_retrieval.training.ablation_questions import BASE, CLEANED, MEASUREMENTS
from landmark_retrieval.training.ablation_table import SEEDLESS, markdown
from landmark_retrieval.training.curriculum import run_curriculum

if TYPE_CHECKING:
    from landmark_retrieval.training.ablation_measures import Yardstick
    from landmark_retrieval.training.handoff import Handoff

FIGURES_FILE, TABLE_FILE = "ablation.json", "ablation.md"


def run_ablation(
    choice: Choice,
    out: str | Path,
    overrides: Sequence[str],
    non_landmark: str | None = None,
    command: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Train what is not trained yet, measure what is not measured yet, and write the tables after each run.

    Interrupted, the same call carries on. A run that fails is named, and the others go on.

    Args:
        choice: what there is to do.
        out: gets `ablation.json` (every figure of every seed), `ablation.md` (a table for each question), and the runs,
            descriptors and figures that these are made of.
        overrides: `key=value` for every stage, `data.root` among them.
        non_landmark: photos of no landmark, for the post-processing of recognition; None takes index photos that are
            right for no query.
        command: that makes this call, for the tables.
        say: receives sentences.

    Returns:
        What failed, each with the reason.

    Raises:
        LandmarkRetrievalError: no such data; `out` holds the figures of other data or settings; see also `plan_runs`.
        KeyboardInterrupt: Ctrl-C.
        Terminated: SIGTERM during a stage.
    """
    from landmark_retrieval.training.ablation_measures import Yardstick

    out = Path(out)
    base = plan_run(BASE, 0, out, overrides).stages[0].config
    bank = base["data"]["train_set"]
    if not isinstance(bank, str):
        raise LandmarkRetrievalError(
            "The ablations need one training set whose photos vote: leave out data.train_set, or name one set."
        )
    yardstick = Yardstick.open(base["data"]["root"], bank, non_landmark, out / "measured")
    runs = plan_runs(choice, out, overrides)
    _check_sets(runs, yardstick)
    return _Study(choice, out, overrides, yardstick, base, command, say).run(runs)


class _Study:
    def __init__(
        self,
        choice: Choice,
        out: Path,
        overrides: Sequence[str],
        yardstick: "Yardstick",
        base: dict[str, Any],
        command: str,
        say: Callable[[str], None],
    ) -> None:
        from landmark_retrieval.retrieval.steps import digest
        from landmark_retrieval.training.stage import comparable

        self.choice, self.out, self.overrides, self.say = choice, out, overrides, say
        self.yardstick = yardstick
        self.base = base
        self.finished: dict[tuple[str, int], tuple[Run, Handoff]] = {}
        settings = digest(yardstick.fingerprint, comparable(base))
        self.results = self._earlier(settings) or {"format": 1, "settings": settings, "measurements": {}}
        data = {"root": yardstick.root, "queries": len(yardstick.benchmark.solution.relevant)}
        data |= {"index": len(yardstick.benchmark.index), "bank": yardstick.bank_set}
        data |= {"bank_photos": len(yardstick.bank), "non_landmark": yardstick.about_non_landmarks()}
        self.results |= {"command": command, "data": data, "failed": {}, "left_out": {}}

    def run(self, runs: Sequence[Run]) -> dict[str, str]:
        for name in self.choice.measurements:
            if reason := self.yardstick.obstacle(MEASUREMENTS[name]):
                self.results["left_out"][name] = reason
                self.say(f"{name} is left out: {reason}")
        self._measure([name for name in self.choice.measurements if not MEASUREMENTS[name].runs], None)
        budget = next((run.seen for run in runs if run.variant == BASE), None)
        budget = plan_run(BASE, 0, self.out, self.overrides).seen if budget is None else budget
        for number, run in enumerate(runs, 1):
            self.say(f"\n=== {number} of {len(runs)}: {run.name} ===")
            with self._noting_failures(run.name):
                if run.variant == CLEANED:
                    self._clean(run.seed)
                    run = plan_variant(run.variant, run.seed, self.out, self.overrides, budget)
                handoff = run_curriculum(run.stages, self.say)[-1]
                self.finished[run.variant, run.seed] = run, handoff
                self._forget_others(run, handoff.card["weights_sha256"])
                self._measure(self._newly_possible(run), run.seed)
            self._write()
        self._write()
        self.say(f"\n{self.out / TABLE_FILE} and {self.out / FIGURES_FILE} hold what there is.")
        return dict(self.results["failed"])

    def _newly_possible(self, run: Run) -> Iterator[str]:
        for name in self.choice.measurements:
            needed = MEASUREMENTS[name].runs
            if run.variant in needed and all((other, run.seed) in self.finished for other in needed):
                yield name

    def _measure(self, names: "Collection[str] | Iterator[str]", seed: int | None) -> None:
        from landmark_retrieval.training.ablation_measures import Measured

        for name in names:
            if name in self.results["left_out"]:
                continue
            runs = [self.finished[run, seed] for run in MEASUREMENTS[name].runs if seed is not None]
            what = name if seed is None else f"{name}, seed {seed}"
            with self._noting_failures(f"measurement {what}"):
                folders = {run.variant: run.folder for run, _ in runs}
                weights = {run.variant: handoff.card["weights_sha256"] for run, handoff in runs}
                found = Measured(self.yardstick, folders, weights).figures(name)
                trained = [
                    shlex.join(["python", "-m", "landmark_retrieval.train", *stage.overrides])
                    for run, _ in runs
                    for stage in run.stages
                ]
                seen = {run.seen for run, _ in runs}
                record = {
                    **found,
                    "photos_seen": seen.pop() if len(seen) == 1 else None,
                    "weights": weights,
                    "commands": [*trained, *found["commands"]],
                }
                self.results["measurements"].setdefault(name, {})[SEEDLESS if seed is None else str(seed)] = record
                figures = "  ".join(f"{key} {value:.4f}" for key, value in found["figures"].items())
                self.say(f"{what}: {figures}")
        if seed is None:
            self._write()

    def _forget_others(self, run: Run, weights: str) -> None:
        """Drop figures of what this run was before it was trained again."""
        for name, seeds in self.results["measurements"].items():
            held = seeds.get(str(run.seed), {}).get("weights", {})
            if held.get(run.variant, weights) != weights:
                del seeds[str(run.seed)]
                self.say(f"{name}, seed {run.seed}: the figures of an earlier {run.variant} are dropped")

    def _clean(self, seed: int) -> None:
        """Shards of the photos that the sub-centers of base leave."""
        from landmark_retrieval.training.ablation_cleaning import shard_cleaned
        from landmark_retrieval.training.cleaning import clean

        if (BASE, seed) not in self.finished:
            raise LandmarkRetrievalError(f"It needs {BASE} of the same seed, which has failed.")
        run, _ = self.finished[BASE, seed]
        folder = cleaned_folder(self.out, seed, run.folder)
        assert folder is not None
        done = clean(run.folder, self.yardstick.root, folder, self.yardstick.bank_set)
        self.say(f"{folder}: {done.kept:,} of {done.photos:,} photos are kept")
        shard_cleaned(self.yardstick.bank, folder / "train_clean.csv", folder / CLEANED_SHARDS)

    def _noting_failures(self, what: str) -> "_Noting":
        return _Noting(what, self.results["failed"], self.say)

    def _earlier(self, settings: str) -> dict[str, Any] | None:
        path = self.out / FIGURES_FILE
        if not path.exists():
            return None
        held = read_json(path, "figures of ablations", "delete it, and run the same again")
        if not isinstance(held, dict) or not isinstance(held.get("measurements"), dict):
            raise LandmarkRetrievalError(f"{path} holds no figures of ablations: delete it, or choose another --out.")
        if held.get("settings") != settings:
            raise LandmarkRetrievalError(
                f"{path} holds the figures of other photos, or of base with other settings: choose another --out, or "
                "delete it (what is trained and measured there is kept, as far as it is the same)."
            )
        return held

    def _write(self) -> None:
        seeds = self.results["measurements"]
        ordered = {name: dict(sorted(seeds[name].items())) for name in MEASUREMENTS if seeds.get(name)}
        self.results["measurements"] = ordered
        write_json(self.out / FIGURES_FILE, self.results)
        with open_replacing(self.out / TABLE_FILE) as file:
            file.write(markdown(self.results))


class _Noting:
    """Notes what a person could mend, and lets the rest go on."""

    def __init__(self, what: str, failed: dict[str, str], say: Callable[[str], None]) -> None:
        self.what, self.failed, self.say = what, failed, say

    def __enter__(self) -> None:
        self.failed.pop(self.what, None)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, LandmarkRetrievalError):
            return False
        self.failed[self.what] = str(error)
        self.say(f"FAILED: {self.what}: {error}")
        return True


def _check_sets(runs: Sequence[Run], yardstick: "Yardstick") -> None:
    """Refuse data without a training set that a run needs, before hours are spent."""
    from landmark_retrieval.data.dataset import train_place

    for run in runs:
        for stage in run.stages:
            wanted = stage.config["data"]["train_set"]
            for name in [wanted] if isinstance(wanted, str) else wanted:
                train_place(yardstick.benchmark.place, name).manifest()
