"""Retrieval as torchmetrics classes."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.classes.by_query import QueryMetric, as_lists, digest, rows_of_lists
from landmark_retrieval.metrics.functional import retrieval
from landmark_retrieval.metrics.functional.inputs import Truth, plain_values


class RankedMetric(QueryMetric):
    """What the metrics of ranked lists share: of each list they keep which of the first k ranks are hits.

    Args:
        solution: query id -> relevant ids.
        k: ranks beyond k are not looked at.
        index: ids of the index images, for ranked lists given as tensors of their rows; without it such integers are
            the ids themselves.
        kwargs: of `torchmetrics.Metric`.
    """

    plot_lower_bound = 0.0

    def __init__(self, solution: Truth, k: int, index: Sequence[Hashable] | None = None, **kwargs: Any) -> None:
        if k < 1:
            raise LandmarkRetrievalError(f"k must be at least 1, not {k}.")
        # how many ranks the list has (and 1), a digest of it, and the hits, 64 ranks in an integer
        super().__init__(solution, 2 + -(-k // 64), **kwargs)
        self.solution = as_lists(solution, "relevant ids in the solution")
        self.k = k
        self.index = index

    def update(self, queries: Any, ranked: Any) -> None:
        """Add ranked lists, one for each query.

        Args:
            queries: n ids, or an integer tensor of n rows (places of the queries in the solution).
            ranked: n lists of ids, best first; or an integer tensor (n, m) of rows of the index, with -1 behind the
                end of shorter lists.

        Raises:
            LandmarkRetrievalError: an unknown query, a query with another list than before, a row that the index does
                not have, or lengths that differ.
        """
        rows = self._rows(queries)
        if isinstance(ranked, Tensor | np.ndarray):
            ranked = rows_of_lists(ranked, self.k)
            if self.index is not None:
                ranked = [self._ids(row) for row in ranked]
        ranked = list(ranked)
        if len(rows) != len(ranked):
            raise LandmarkRetrievalError(f"{len(rows)} queries need as many ranked lists, not {len(ranked)}.")
        self._note(rows, [self._record(self.queries[row], ids) for row, ids in zip(rows, ranked, strict=True)])

    def _ids(self, rows: Sequence[int]) -> list[Hashable]:
        assert self.index is not None
        for row in rows:
            if not 0 <= row < len(self.index):
                raise LandmarkRetrievalError(f"There is no row {row} in an index of {len(self.index)} images.")
        return [self.index[row] for row in rows]

    def _record(self, query: Hashable, ranked: Iterable[Hashable]) -> tuple[int, ...]:
        ids = plain_values(query, ranked, "predicted ids")[: self.k]
        hits, _ = retrieval.hits_of_queries({query: ids}, {query: self.solution[query]}, self.k)[query]
        words = np.zeros(-(-self.k // 64) * 8, np.uint8)
        packed = np.packbits(np.asarray(hits, bool))
        words[: len(packed)] = packed
        return len(ids) + 1, digest(ids), *words.view(np.int64).tolist()

    def _hits(self) -> dict[Hashable, tuple[list[bool], int]]:
        """As `functional.retrieval.hits_of_queries` gives them."""
        records = self.records.cpu().numpy()
        bits = np.unpackbits(np.ascontiguousarray(records[:, 2:]).view(np.uint8), axis=1).astype(bool)
        return {
            query: (row[: max(0, length - 1)].tolist(), len(self.solution[query]))
            for query, length, row in zip(self.queries, records[:, 0].tolist(), bits, strict=True)
        }


class LandmarkMeanAveragePrecision(RankedMetric):
    """MAP@k of the Google Landmarks retrieval challenges, see `functional.mean_average_precision`.

    Args:
        solution: query id -> relevant ids.
        k: ranks beyond k are not looked at.
        index: see `RankedMetric`.
        kwargs: of `torchmetrics.Metric`.

    Source: Weyand et al. 2020 (arXiv 2004.01804), section 5.2.

    Example:
        >>> map_at_100 = LandmarkMeanAveragePrecision({"a": ["x", "y"], "b": ["z"]})
        >>> map_at_100.update(["a"], [["x", "no", "y"]])
        >>> map_at_100.compute()
        tensor(0.4167, dtype=torch.float64)
    """

    higher_is_better = True
    plot_upper_bound = 1.0

    def __init__(self, solution: Truth, k: int = 100, index: Sequence[Hashable] | None = None, **kwargs: Any) -> None:
        super().__init__(solution, k, index, **kwargs)

    def compute(self) -> Tensor:
        """The mAP@k in [0, 1]."""
        return self._scalar(retrieval.mean_average_precision_of_hits(self._hits(), self.k))


class MeanPrecision(RankedMetric):
    """Mean precision at k: hits among the first k, divided by k, see `functional.mean_precisions`.

    Args:
        solution: query id -> relevant ids.
        k: the cut.
        index: see `RankedMetric`.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> precision = MeanPrecision({"a": ["x", "y"], "b": ["z"]}, k=2)
        >>> precision.update(["a"], [["x", "no", "y"]])
        >>> precision.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = True
    plot_upper_bound = 1.0

    def __init__(self, solution: Truth, k: int = 10, index: Sequence[Hashable] | None = None, **kwargs: Any) -> None:
        super().__init__(solution, k, index, **kwargs)

    def compute(self) -> Tensor:
        """The mean precision at k in [0, 1]."""
        return self._scalar(retrieval.mean_precisions_of_hits(self._hits(), self.k)[-1])


class MeanPosition(RankedMetric):
    """Mean or median rank of the first relevant id, k + 1 where there is none, see `functional.mean_median_position`.

    Args:
        solution: query id -> relevant ids.
        k: ranks beyond k are not looked at.
        reduction: "mean" or "median".
        index: see `RankedMetric`.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> position = MeanPosition({"a": ["x", "y"], "b": ["z"]})
        >>> position.update(["a"], [["no", "x", "y"]])
        >>> position.compute()
        tensor(51.5000, dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 1.0

    def __init__(
        self,
        solution: Truth,
        k: int = 100,
        reduction: Literal["mean", "median"] = "mean",
        index: Sequence[Hashable] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(solution, k, index, **kwargs)
        if reduction not in ("mean", "median"):
            raise LandmarkRetrievalError(f"Positions have a mean and a median, no {reduction!r}.")
        self.reduction = reduction

    def compute(self) -> Tensor:
        """The mean (median) position, in [1, k + 1]."""
        mean, median = retrieval.mean_median_position_of_hits(self._hits(), self.k)
        return self._scalar(mean if self.reduction == "mean" else median)


class RecallAtK(RankedMetric):
    """Share of the queries with a relevant id among the first k, see `functional.recall_at_k`.

    Args:
        solution: query id -> relevant ids.
        k: the cut.
        index: see `RankedMetric`.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> recall = RecallAtK({"a": ["x", "y"], "b": ["z"]}, k=5)
        >>> recall.update(["a"], [["no", "x", "y"]])
        >>> recall.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True
    plot_upper_bound = 1.0

    def __init__(self, solution: Truth, k: int = 1, index: Sequence[Hashable] | None = None, **kwargs: Any) -> None:
        super().__init__(solution, k, index, **kwargs)

    def compute(self) -> Tensor:
        """The recall@k in [0, 1]."""
        return self._scalar(retrieval.recall_of_hits(self._hits(), [self.k])[self.k])
