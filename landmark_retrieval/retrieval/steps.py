"""Long computations in steps that are kept on disk, so that an interrupted one goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing

Arrays = dict[str, np.ndarray]


def in_steps(
    folder: Path, count: int, size: int, work: Callable[[int, int], Mapping[str, Any]], title: str
) -> Iterator[tuple[int, int, Arrays]]:
    """Compute arrays for rows [0, count) in steps of `size` rows, or read them where they are there already.

    Args:
        folder: a step is one .npz file in it, written whole or not at all; its name has to say everything that the
            results depend on, see `digest`.
        count: rows in all.
        size: rows per step.
        work: (start, stop) -> arrays by name.
        title: shown beside the progress bar.

    Yields:
        (start, stop, arrays), in order.

    Raises:
        LandmarkRetrievalError: a file of an earlier run is damaged (it is named).
    """
    with tqdm(total=count, desc=title) as bar:
        for start in range(0, count, size):
            stop = min(start + size, count)
            path = folder / f"{start:09d}-{stop:09d}.npz"
            if not path.exists():
                arrays = {name: np.asarray(array) for name, array in work(start, stop).items()}
                with open_replacing(path, "wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
            yield start, stop, _read(path)
            bar.update(stop - start)


def collected(steps: Iterator[tuple[int, int, Arrays]]) -> Arrays:
    """The arrays of all steps, one after another."""
    found = [arrays for _, _, arrays in steps]
    return {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}


def digest(*facts: Any) -> str:
    """Eight hexadecimal digits that change when one of these facts does; they must be what JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _read(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as held:
            return dict(held)
    except Exception as error:  # damaged bytes bring out any exception of the reader's
        raise LandmarkRetrievalError(f"{path} is damaged ({error}): delete it, and run the same again.") from None
