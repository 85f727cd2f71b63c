"""Recognition as a torchmetrics class."""

from typing import Any

import numpy as np
from torch import Tensor

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.classes.by_query import QueryMetric, as_integers, as_lists, from_bits, to_bits
from landmark_retrieval.metrics.functional import recognition
from landmark_retrieval.metrics.functional.inputs import Truth


class GlobalAveragePrecision(QueryMetric):
    """Global average precision (GAP, micro-AP) of recognition, see `functional.global_average_precision`.

    Args:
        solution: query id -> its labels (integers), an empty list for a query without a landmark.
        ignore_non_gt: leave out the predictions for queries without labels.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        LandmarkRetrievalError: no query has a label (when the value is computed).

    Source: Weyand et al. 2020 (arXiv 2004.01804), section 5.1.

    Example:
        >>> import torch
        >>> gap = GlobalAveragePrecision({"a": [7], "b": [], "c": [9]})
        >>> gap.update(["a", "b"], torch.tensor([7, 7]), torch.tensor([0.9, 0.8]))
        >>> gap.update(["c"], torch.tensor([9]), torch.tensor([0.7]))
        >>> gap.compute()
        tensor(0.8333, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(self, solution: Truth, ignore_non_gt: bool = False, **kwargs: Any) -> None:
        super().__init__(solution, 3, **kwargs)
        self.solution = as_lists(solution, "labels in the solution")
        self.ignore_non_gt = ignore_non_gt

    def update(self, queries: Any, labels: Any, scores: Any) -> None:
        """Add predictions, at most one for each query.

        Args:
            queries: n ids, or an integer tensor of n rows (places of the queries in the solution).
            labels: n integers, tensor or list.
            scores: n numbers, tensor or list; any but NaN. They are kept as float64.

        Raises:
            LandmarkRetrievalError: an unknown query, a query with another prediction than before, a score that is NaN,
                or lengths that differ.
        """
        rows = self._rows(queries)
        numbers = as_integers(labels, "Labels").reshape(-1).tolist()
        values = np.asarray(scores.detach().double().cpu() if isinstance(scores, Tensor) else scores, np.float64)
        values = values.reshape(-1)
        if not len(rows) == len(numbers) == len(values):
            raise LandmarkRetrievalError(
                f"{len(rows)} queries need as many labels and scores, not {len(numbers)} and {len(values)}."
            )
        for row, label, score in zip(rows, numbers, values.tolist(), strict=True):
            recognition.label_and_score(self.queries[row], (label, score))
        self._note(rows, [(1, label, bits) for label, bits in zip(numbers, to_bits(values), strict=True)])

    def compute(self) -> Tensor:
        """The GAP in [0, 1]."""
        records = self.records.cpu().numpy()
        scores = from_bits(np.ascontiguousarray(records[:, 2]))
        predictions = {
            query: (int(label), score)
            for query, (given, label, _), score in zip(self.queries, records, scores, strict=True)
            if given
        }
        return self._scalar(recognition.global_average_precision(predictions, self.solution, self.ignore_non_gt))
