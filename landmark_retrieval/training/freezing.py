"""Which parameters and BatchNorm statistics stand still, as a function of their names and the epoch alone.

Nothing here looks at what was frozen before: a run that is taken up in any epoch is frozen as one that came there.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landmark_retrieval.errors import LandmarkRetrievalError

Patterns = Mapping[str, float]
"""Name pattern -> epochs from the first one on in which what it matches stands still; inf for the whole stage."""


def read_patterns(entries: Sequence[str | Mapping[str, int]], names: Iterable[str], key: str) -> Patterns:
    """The patterns of a config.

    Args:
        entries: patterns as in `fnmatch` ("backbone.blocks.[0-2]", "token"), for the whole stage, or {pattern: epochs}.
        names: of modules and parameters.
        key: where the patterns were given, for errors ("stage.freeze").

    Raises:
        LandmarkRetrievalError: a pattern that matches no name (with the nearest ones), or epochs that are no number.
    """
    patterns: dict[str, float] = {}
    for entry in entries:
        for pattern, epochs in entry.items() if isinstance(entry, Mapping) else ((entry, math.inf),):
            whole = entry is pattern
            if not whole and (isinstance(epochs, bool) or not isinstance(epochs, int | float) or not 0 <= epochs < 1e9):
                raise LandmarkRetrievalError(
                    f"{key}: {pattern!r} stands still for {epochs!r} epochs; give a number, or the pattern alone for "
                    "the whole stage."
                )
            patterns[pattern] = epochs
    known = list(dict.fromkeys(part for name in names for part in _paths(name)))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, 3)
            advice = f"did you mean {' or '.join(near)}? " if near else ""
            top = ", ".join(name for name in known if "." not in name)
            raise LandmarkRetrievalError(f"{key}: no module of the model matches {pattern!r}; {advice}It has {top}.")
    return patterns


def standing_still(names: Iterable[str], patterns: Patterns, epoch: float) -> set[str]:
    """The names that stand still in an epoch (inf: in all): that match a pattern, or lie in a module that does."""
    now = [pattern for pattern, epochs in patterns.items() if epoch < epochs or epochs == math.inf]
    return {name for name in names if any(fnmatchcase(part, pattern) for part in _paths(name) for pattern in now)}


def batchnorms(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Those of the modules that keep statistics of what passes through them."""
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _paths(name: str) -> list[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c": the modules that hold it, and itself."""
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]
