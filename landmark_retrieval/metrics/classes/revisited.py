"""Revisited Oxford and Paris as a torchmetrics class."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.classes.by_query import QueryMetric, as_integers, digest, rows_of_lists, to_bits
from landmark_retrieval.metrics.functional import revisited


class RevisitedMeanAveragePrecision(QueryMetric):
    """MAP and mP@k of Revisited Oxford and Paris, see `functional.revisited_average_precision`.

    The value is a dict of scalars, so with Lightning: `self.log_dict(metric.compute())` at the end of an epoch.

    Args:
        gnd: per query the lists `easy`, `hard` and `junk` of database rows.
        ks: the cuts of P@k, each >= 1.
        setups: which setups to judge.
        queries: ids of the queries; without them their places in `gnd`.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        LandmarkRetrievalError: no query has positives in a setup, or there is no such setup.

    Source: Radenovic et al. 2018 (arXiv 1803.11285), section 3.3.

    Example:
        >>> gnd = [{"easy": [0], "hard": [1], "junk": [4]}]
        >>> metric = RevisitedMeanAveragePrecision(gnd, ks=[1], setups=["medium", "hard"])
        >>> metric.update([0], [[4, 0, 3, 1, 2]])
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'map_medium': 0.7917, 'mp_at_1_medium': 1.0, 'map_hard': 0.25, 'mp_at_1_hard': 0.0}
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(
        self,
        gnd: Sequence[Mapping[str, Any]],
        ks: Sequence[int] = (1, 5, 10),
        setups: Sequence[str] = ("easy", "medium", "hard"),
        queries: Sequence[Hashable] | None = None,
        **kwargs: Any,
    ) -> None:
        names = range(len(gnd)) if queries is None else queries
        if len(names) != len(gnd):
            raise LandmarkRetrievalError(f"There are {len(names)} ids of queries, but gnd holds {len(gnd)} queries.")
        # given or not, a digest of the list, and for each setup the bits of AP and each P@k
        super().__init__(names, 2 + len(setups) * (1 + len(ks)), **kwargs)
        revisited.check_setups(setups)
        self.gnd, self.ks, self.setups = list(gnd), tuple(ks), tuple(setups)
        self._positives = [
            [revisited.count_positives(query, truth, setup) for setup in setups]
            for query, truth in zip(names, gnd, strict=True)
        ]
        for setup, counts in zip(setups, zip(*self._positives, strict=True), strict=True):
            if not any(counts):
                raise LandmarkRetrievalError(f"No query has positives in the setup {setup!r}: leave it out of setups.")

    def update(self, queries: Any, ranks: Any) -> None:
        """Add rankings, one for each query.

        Args:
            queries: n ids, or an integer tensor of n rows (places of the queries in `gnd`).
            ranks: n lists of database rows, best first, or an integer tensor (n, n_ranked) with -1 behind the
                end of shorter lists.

        Raises:
            LandmarkRetrievalError: an unknown query, a query with another ranking than before, a ranking that is not
                made of distinct integers or holds none of the query's positives, or lengths that differ.
        """
        rows = self._rows(queries)
        if isinstance(ranks, Tensor | np.ndarray):
            ranks = rows_of_lists(ranks)
        rankings = [as_integers(ranked, "Database rows") for ranked in ranks]
        if len(rows) != len(rankings):
            raise LandmarkRetrievalError(f"{len(rows)} queries need as many rankings, not {len(rankings)}.")
        self._note(rows, [self._record(row, ranked) for row, ranked in zip(rows, rankings, strict=True)])

    def _record(self, row: int, ranked: np.ndarray) -> tuple[int, ...]:
        query = self.queries[row]
        figures: list[float] = []
        for setup, count in zip(self.setups, self._positives[row], strict=True):
            found = revisited.positions_of_positives(query, ranked, self.gnd[row], setup)
            ap, precisions = revisited.figures_of_query(query, found, count, self.ks)
            figures += [ap, *precisions]
        return 1, digest(ranked.tolist()), *to_bits(figures)

    def compute(self) -> dict[str, Tensor]:
        """`map_<setup>` and `mp_at_<k>_<setup>`, each in [0, 1]; queries without positives do not count."""
        records = self.records.cpu().numpy()
        figures = np.ascontiguousarray(records[:, 2:]).view(np.float64).reshape(len(records), len(self.setups), -1)
        values: dict[str, Tensor] = {}
        for number, setup in enumerate(self.setups):
            rows = [
                (row[0], row[1:]) if given else revisited.figures_of_query(query, [], positives[number], self.ks)
                for query, given, positives, row in zip(
                    self.queries, records[:, 0], self._positives, figures[:, number].tolist(), strict=True
                )
            ]
            means = revisited.means_of_queries(rows)
            values[f"map_{setup}"] = self._scalar(means["map"])
            for k, value in zip(self.ks, means["mp_at_k"], strict=True):
                values[f"mp_at_{k}_{setup}"] = self._scalar(value)
        return values
