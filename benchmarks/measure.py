"""How the benchmarks measure: seconds of a step, pairs taken in turn, and the most memory held."""

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Step = Callable[[], object]


def seconds(step: Step) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(ours: Step, theirs: Step, runs: int, warmup: int = 2) -> list[tuple[float, float]]:
    """Seconds of ours and theirs, pair by pair."""
    for _ in range(warmup):
        ours(), theirs()
    return [(seconds(ours), seconds(theirs)) for _ in range(runs)]


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Of ours, of theirs, and of theirs / ours pair by pair."""
    return (
        statistics.median(own for own, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(other / own for own, other in pairs),
    )


def resident_peak() -> int:
    """Most bytes of memory that this process has held so far."""
    try:  # not ru_maxrss, which on Linux begins with the peak of the process that started this one
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_since(before: int) -> int:
    """Most bytes held since: on a GPU what torch has allocated there, otherwise over the earlier `resident_peak`."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else resident_peak() - before
