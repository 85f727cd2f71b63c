"""A torchmetrics metric whose state is one record for each query, so that no query counts twice."""

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional.inputs import Truth, plain_values


class QueryMetric(Metric):
    """What the metrics of this package share: a fixed table of int64 records, a row for each query of the solution.

    Processes gather their tables and merge them by query. A query that a DistributedSampler gave to two processes, to
    fill up their shares, counts once, as the lower rank predicted it; where ranks predict the same, values do not
    depend on the number of processes, to the bit. Everything is kept as integers (scores as the bits of their
    float64), which no change of precision of a model rounds.

    Args:
        queries: ids of all queries of the solution, in its order.
        width: integers in a record; the first is not 0 in the record of a query that was given.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    records: Tensor

    def __init__(self, queries: Iterable[Hashable], width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.queries: tuple[Hashable, ...] = tuple(queries)
        self._row_of = {query: row for row, query in enumerate(self.queries)}
        if not self.queries:
            raise LandmarkRetrievalError("The solution holds no query.")
        if len(self._row_of) < len(self.queries):
            raise LandmarkRetrievalError("A query stands in the solution twice: each must have an id of its own.")
        empty = torch.zeros(len(self.queries), width, dtype=torch.int64)
        self.add_state("records", empty, dist_reduce_fx=self._first_given)

    def set_dtype(self, dst_type: str | torch.dtype) -> "QueryMetric":
        """Do nothing: the integers of the records are no numbers to be rounded."""
        return self

    def _rows(self, queries: Any) -> list[int]:
        """The rows of queries given as ids, or as an integer tensor or array of rows."""
        if isinstance(queries, Tensor | np.ndarray):
            rows = as_integers(queries, "Rows of queries").reshape(-1).tolist()
            for row in rows:
                if not 0 <= row < len(self.queries):
                    raise LandmarkRetrievalError(
                        f"There is no query {row}: the rows of {len(self.queries)} queries begin at 0."
                    )
            return rows
        if isinstance(queries, str | bytes):
            raise LandmarkRetrievalError(f"Queries must be a list of ids, not {queries!r}.")
        for query in queries:
            if query not in self._row_of:
                raise LandmarkRetrievalError(f"Query {query!r} is predicted but is not in the solution.")
        return [self._row_of[query] for query in queries]

    def _note(self, rows: Sequence[int], records: Sequence[Sequence[int]]) -> None:
        """Keep the records of these rows. LandmarkRetrievalError where a query has another one already."""
        if len(rows) != len(records):
            raise LandmarkRetrievalError(f"{len(rows)} queries need as many predictions, not {len(records)}.")
        if not rows:
            return
        new = torch.zeros_like(self.records)
        held: dict[int, Sequence[int]] = {}
        for row, record in zip(rows, records, strict=True):
            if held.setdefault(row, record) != record:
                raise self._conflict(row)
        places = torch.tensor(list(held), device=new.device)
        new[places] = torch.tensor([list(record) for record in held.values()], dtype=torch.int64, device=new.device)
        tables = torch.stack([self.records, new])
        merged = self._first_given(tables)
        conflicts = ((tables[:, :, 0] != 0) & (tables != merged).any(dim=2)).any(dim=0).nonzero()
        if len(conflicts):
            raise self._conflict(int(conflicts[0]))
        self.records = merged

    @staticmethod
    def _first_given(tables: Tensor) -> Tensor:
        """One table (queries, width) of several (n, queries, width): of each query the first record there is.

        Of several processes that described the same photo, in batches of other photos, the scores may differ in their
        last bits; that of the lowest rank counts.
        """
        first = (tables[:, :, 0] != 0).to(torch.int8).argmax(dim=0)
        return tables.gather(0, first[None, :, None].expand(1, -1, tables.shape[2]))[0]

    def _conflict(self, row: int) -> LandmarkRetrievalError:
        return LandmarkRetrievalError(
            f"Query {self.queries[row]!r} was given with two different predictions: give each query once, and reset "
            "the metric before another round."
        )

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)


def as_integers(values: Any, what: str) -> np.ndarray:
    """An integer tensor or array as int64 numpy. LandmarkRetrievalError if it holds something else."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise LandmarkRetrievalError(f"{what} must be integers, not {array.dtype}.")
    return array.astype(np.int64)


def rows_of_lists(lists: Any, k: int | None = None) -> list[list[int]]:
    """Ranked rows (n, m) as lists of at most k, without the -1 behind the end of a list that is shorter than others.

    Raises:
        LandmarkRetrievalError: they are no table of integers.
    """
    rows = as_integers(lists, "Ranked rows")
    if rows.ndim != 2:
        raise LandmarkRetrievalError(f"Ranked rows must be a table (queries, ranks), not of shape {rows.shape}.")
    ends = np.where(rows == -1, 0, np.arange(1, rows.shape[1] + 1)).max(axis=1, initial=0)
    return [row[:end] for row, end in zip(rows[:, :k].tolist(), ends.tolist(), strict=True)]


def to_bits(values: npt.ArrayLike) -> list[int]:
    """Floats as the integers with the bits of their float64."""
    return np.asarray(values, dtype=np.float64).view(np.int64).tolist()


def from_bits(bits: npt.ArrayLike) -> list[float]:
    """The floats of `to_bits`."""
    return np.asarray(bits, dtype=np.int64).view(np.float64).tolist()


def digest(values: Sequence[Hashable]) -> int:
    """64 bits that say whether two ranked lists are the same."""
    said = hashlib.blake2b(repr(list(values)).encode(), digest_size=8).digest()
    return int.from_bytes(said, "little", signed=True)


def as_lists(solution: Truth, what: str) -> dict[Hashable, list[Hashable]]:
    """A solution as lists of plain values. `what` they are is for errors."""
    return {query: plain_values(query, values, what) for query, values in solution.items()}
