"""The figures of the ablations as Markdown: means over seeds, their spread, and what it lets one say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from landmark_retrieval.training.ablation_questions import FIGURES, QUESTIONS, Question

SEEDLESS = "-"
"""Stands for the seed where nothing was drawn at random."""

NO_DIFFERENCE = "no difference that these seeds could show"
ONE_SEED = "one seed: its spread is not known"
_HEAD = (
    "Means over the seeds, in brackets the least and the largest; all in percent. A difference is the mean of those of "
    "runs of the same seed, with the least and the largest of them, in points of {figure}. Where it is not larger than "
    f"these lie apart, the last column says: {NO_DIFFERENCE}. Photos seen are those of training, repetitions counted."
)


@dataclass(frozen=True)
class Spread:
    """What several seeds gave.

    Attributes:
        mean: of them.
        low: the least.
        high: the largest.
        count: how many there are.
    """

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one number."""
        # rounding must not put the mean outside
        mean = min(max(sum(values) / len(values), min(values)), max(values))
        return cls(mean, min(values), max(values), len(values))

    @property
    def width(self) -> float:
        """How far the least and the largest lie apart."""
        return self.high - self.low

    def text(self, sign: str = "") -> str:
        """In percent: "54.31 (53.90 to 54.80)"; `sign` is that of a format, such as "+"."""
        mean, low, high = (format(100 * value, f"{sign}.2f") for value in (self.mean, self.low, self.high))
        return mean if self.count == 1 else f"{mean} ({low} to {high})"


def differences(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Spread | None:
    """The differences between runs of the same seed, ours less theirs; None if no seed has both.

    Args:
        ours: seed -> figure. That of `SEEDLESS` goes with every seed.
        theirs: the same.
    """
    seeds = [seed for seed in {**ours, **theirs} if seed != SEEDLESS]
    found = []
    for seed in seeds or [SEEDLESS]:
        one, other = (side.get(seed, side.get(SEEDLESS)) for side in (ours, theirs))
        if one is not None and other is not None:
            found.append(one - other)
    return Spread.of(found) if found else None


def verdict(difference: Spread | None) -> str:
    """What the seeds let one say: a difference counts if it is larger than the seeds lie apart."""
    if difference is None:
        return ""
    if difference.count == 1:
        return ONE_SEED
    if abs(difference.mean) <= difference.width:
        return NO_DIFFERENCE
    return "better" if difference.mean > 0 else "worse"


def figures_of(results: Mapping[str, Any], measurement: str, figure: str) -> dict[str, float]:
    """Seed -> one figure of a measurement, as far as they are there."""
    seeds = results["measurements"].get(measurement, {})
    return {seed: found["figures"][figure] for seed, found in seeds.items() if figure in found["figures"]}


def markdown(results: Mapping[str, Any]) -> str:
    """What ablation.json holds as a page: a table for each question that has figures, and what is missing."""
    data = results["data"]
    lines = ["# Ablations", "", f"    {results['command']}", ""]
    lines += [
        f"{data['queries']:,} queries, {data['index']:,} index photos, training photos that vote for GAP: "
        f"{data['bank_photos']:,} of set {data['bank']}. {_HEAD.format(figure='mAP@100 (or GAP, where it says so)')}"
    ]
    unanswered = []
    elsewhere: set[str] = set()  # what has its line in a table above does not make another one
    for question in QUESTIONS:
        own = {row.measurement for row in question.rows} - elsewhere
        elsewhere |= own
        if any(results["measurements"].get(name) for name in own):
            lines += ["", *_table(question, results)]
        else:
            unanswered.append(question.title)
    if results["failed"]:
        lines += ["", "## Failed", ""]
        lines += [f"- {what}: {reason}" for what, reason in sorted(results["failed"].items())]
    if unanswered:
        lines += ["", f"Not measured: {', '.join(unanswered)}."]
    return "\n".join(lines) + "\n"


def _table(question: Question, results: Mapping[str, Any]) -> list[str]:
    compared = FIGURES[question.figure]
    header = ["", "photos seen", "px", "seeds", *FIGURES.values(), "compared with", f"difference in {compared}", ""]
    labels = {row.measurement: row.label for row in question.rows}
    lines = [f"## {question.title}", ""]
    if question.note:
        lines += [question.note, ""]
    if question.name == "recognition" and (source := results["data"].get("non_landmark")):
        lines += [f"Non-landmarks: {source}.", ""]
    lines += [_line(header), _line(["---"] * len(header))]
    for row in question.rows:
        found = results["measurements"].get(row.measurement, {})
        if not found:
            reason = results["left_out"].get(row.measurement, "not measured")
            lines.append(_line([row.label, *["-"] * 8, reason]))
            continue
        cells = [row.label, _one_of(found, "photos_seen"), _one_of(found, "image_size")]
        cells.append("-" if list(found) == [SEEDLESS] else str(len(found)))
        for figure in FIGURES:
            values = figures_of(results, row.measurement, figure)
            cells.append(Spread.of(list(values.values())).text() if values else "-")
        if row.against is None:
            cells += ["-", "-", ""]
        else:
            sides = [figures_of(results, name, question.figure) for name in (row.measurement, row.against)]
            difference = differences(*sides)
            cells += [labels[row.against], difference.text("+") if difference else "-", verdict(difference)]
        lines.append(_line(cells))
    return lines


def _one_of(found: Mapping[str, Any], key: str) -> str:
    """What all seeds have in common, or from what to what it goes."""
    values = sorted({seed[key] for seed in found.values() if seed[key] is not None})
    if not values:
        return "-"
    return " to ".join(f"{value:,}" for value in dict.fromkeys((values[0], values[-1])))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
