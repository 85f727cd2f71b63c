"""Nearest neighbours of rows among themselves, found when they are asked for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.search import exact_search

_PAIRS = 16384


class Rows:
    """One or several arrays of descriptors as one numbered set; rows are fetched from where they lie.

    Attributes:
        parts: what errors call an array -> (n, d), numbered one after the other.
        device: where fetched rows go.
    """

    def __init__(self, parts: Mapping[str, Any], device: torch.device) -> None:
        self.parts, self.device = dict(parts), device
        self._starts = np.cumsum([0, *(len(part) for part in parts.values())])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, numbers: np.ndarray) -> torch.Tensor:
        """Rows (n, d) as float32 on the device, by their numbers (n,).

        Raises:
            LandmarkRetrievalError: one of them holds NaN or infinity.
        """
        dim = next(iter(self.parts.values())).shape[1]
        taken = torch.empty((len(numbers), dim), device=self.device)
        for start, (what, part) in zip(self._starts.tolist(), self.parts.items(), strict=False):
            here = np.flatnonzero((numbers >= start) & (numbers < start + len(part)))
            rows = numbers[here] - start
            if isinstance(part, torch.Tensor):
                found = part.detach()[torch.from_numpy(rows).to(part.device)]
            else:
                found = torch.from_numpy(np.asarray(part[rows], dtype=np.float32))
            found = found.to(self.device, torch.float32)
            if not torch.isfinite(found.sum()) and not (finite := torch.isfinite(found).all(dim=1)).all():
                row = int(rows[int((~finite).nonzero()[0])])
                raise LandmarkRetrievalError(
                    f"Row {row} of the {what} holds NaN or infinity: remove it or compute it again."
                )
            taken[torch.from_numpy(here).to(self.device)] = found
        return taken

    def cosines(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Dot products (n,) float32 of pairs of rows, by their numbers (n,) and (n,)."""
        products = np.empty(len(first), np.float32)
        for start in range(0, len(first), _PAIRS):
            pairs = slice(start, start + _PAIRS)
            products[pairs] = (self.take(first[pairs]) * self.take(second[pairs])).sum(dim=1).cpu().numpy()
        return products

    def neighbors(self, numbers: np.ndarray, k: int, chunk: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest other rows of each row, nearest first, on a tie the lower number; fewer if there are not k.

        Args:
            numbers: (n,) of the rows.
            k: at least 0.
            chunk: see `exact_search`.

        Returns:
            numbers (n, k) int64 and cosines (n, k) float32.
        """
        k = min(k, len(self) - 1)
        if not k or not len(numbers):
            return np.empty((len(numbers), k), np.int64), np.empty((len(numbers), k), np.float32)
        rows = self.take(numbers)
        found = [
            (start + indices, scores)
            for start, part in zip(self._starts.tolist(), self.parts.values(), strict=False)
            if len(part)
            for indices, scores in [exact_search(rows, part, k + 1, chunk)]
        ]
        others = torch.cat([indices for indices, _ in found], dim=1)
        scores = torch.cat([scores for _, scores in found], dim=1)
        # a row may have copies of itself in front, so its place is not known
        itself = others == torch.from_numpy(numbers).to(self.device).unsqueeze(1)
        # the parts come in the order of their numbers, so a stable sort keeps ties in order
        scores, order = scores.masked_fill(itself, -torch.inf).sort(dim=1, descending=True, stable=True)
        return others.gather(1, order)[:, :k].cpu().numpy(), scores[:, :k].cpu().numpy()


class NeighborTable:
    """The k nearest others of rows, each computed once, when somebody first needs it.

    Takes 8 bytes per row and neighbour.
    """

    def __init__(self, rows: Rows, k: int, chunk: tuple[int, int]) -> None:
        self.rows, self.k, self._chunk = rows, min(k, len(rows) - 1), chunk
        number = np.int32 if len(rows) < 2**31 else np.int64
        self._others = np.zeros((len(rows), self.k), number)
        self._cosines = np.zeros((len(rows), self.k), np.float32)
        self._known = np.zeros(len(rows), bool)

    def fill(self, numbers: np.ndarray) -> None:
        """Compute what is missing, with a progress bar; many rows at a time are faster than few."""
        missing = np.unique(numbers[~self._known[numbers]])
        step = self._chunk[0]
        with tqdm(total=len(missing), desc="neighbours", unit="row", disable=len(missing) <= step) as bar:
            for start in range(0, len(missing), step):
                block = missing[start : start + step]
                self._others[block], self._cosines[block] = self.rows.neighbors(block, self.k, self._chunk)
                self._known[block] = True
                bar.update(len(block))

    def of(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (n, k) and cosines (n, k) of the nearest others of rows (n,), nearest first."""
        self.fill(numbers)
        return self._others[numbers], self._cosines[numbers]

    def with_itself(self, numbers: np.ndarray, k: int) -> np.ndarray:
        """Each row (n,) followed by its k nearest others: (n, 1 + k)."""
        return np.concatenate([numbers[:, None].astype(self._others.dtype), self.of(numbers)[0][:, :k]], axis=1)
