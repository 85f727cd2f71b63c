"""What a stage starts with, module by module: what trains, what stands still, and where its weights come from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from landmark_retrieval.columns import aligned

COLUMNS = ("parameters", "trainable", "frozen", "carried over", "new", "dropped")


@dataclass(frozen=True)
class Origin:
    """Where the parameters of a stage come from.

    Attributes:
        new: names of those that the stage before did not hand over: from ImageNet, or drawn at random.
        summary: the same in a sentence.
        dropped: name -> count of numbers, of what was handed over and is used no more.
        partly: name -> count of numbers, of those parameters of which only some were handed over: what is new of them.
    """

    new: Collection[str]
    summary: str
    dropped: Mapping[str, int] = field(default_factory=dict)
    partly: Mapping[str, int] = field(default_factory=dict)


def parameter_table(parameters: Mapping[str, nn.Parameter], frozen: Collection[str], origin: Origin) -> str:
    """A table of counts, a row for each module of the model and one for the head, and a last one for all.

    Args:
        parameters: by name; those of the head begin with "head.".
        frozen: names of those that stand still in the first epoch.
        origin: where they come from.
    """
    rows: dict[str, dict[str, int]] = {}

    def count(name: str, column: str, number: int) -> None:
        for row in (name.partition(".")[0], "all"):
            rows.setdefault(row, dict.fromkeys(COLUMNS, 0))[column] += number

    for name, parameter in parameters.items():
        size = parameter.numel()
        new = size if name in origin.new else origin.partly.get(name, 0)
        count(name, "parameters", size)
        count(name, "frozen" if name in frozen else "trainable", size)
        count(name, "new", new)
        count(name, "carried over", size - new)
    for name, size in origin.dropped.items():
        count(name, "dropped", size)
    everything = rows.pop("all")
    rows["all"] = everything
    lines = [["", *COLUMNS], *([row, *(f"{cells[column]:,}" for column in COLUMNS)] for row, cells in rows.items())]
    return "\n".join(aligned(lines, right=range(1, len(COLUMNS) + 1)))
