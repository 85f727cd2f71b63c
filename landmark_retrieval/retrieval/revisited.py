"""Where the positives of Revisited Oxford and Paris stand in full rankings, also among millions of distractors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional.revisited import SETUPS
from landmark_retrieval.retrieval.inputs import full_precision, rows_of
from landmark_retrieval.retrieval.store import DescriptorStore, card_difference


def open_distractors(
    folders: Sequence[str | Path], card: Mapping[str, Any], taken: Mapping[str, Sequence[str]]
) -> list[DescriptorStore]:
    """Open stores of photos that are right for no query.

    Args:
        folders: of the stores.
        card: of the model that described the queries.
        taken: what else there is -> its ids, which the distractors must not have.

    Raises:
        LandmarkRetrievalError: there is no such store, it is damaged or of another model, or has a photo that is
            somewhere else, too; it is named.
    """
    stores: list[DescriptorStore] = []
    seen = {photo: what for what, ids in taken.items() for photo in ids}
    for folder in folders:
        store = DescriptorStore.open(folder)
        if difference := card_difference(store.card, card):
            raise LandmarkRetrievalError(
                f"The distractors {folder} were described in another way than the queries ({difference}): extract them "
                "again with this model."
            )
        for photo in store.ids:
            if photo in seen:
                raise LandmarkRetrievalError(
                    f"Photo {photo!r} of the distractors {folder} is in {seen[photo]}, too: leave it out of one of "
                    "them."
                )
            seen[photo] = str(folder)
        stores.append(store)
    return stores


def rank_positives(
    queries: Any,
    database: Any,
    rows: np.ndarray,
    relevant: Sequence[Mapping[str, Any]],
    distractors: Sequence[Any] = (),
    chunk: tuple[int, int] = (256, 16384),
    device: str | torch.device = "cpu",
) -> dict[str, list[np.ndarray]]:
    """The ranks of the positives among the images that are not ignored, as a full sort would give them.

    The database, which is small, is sorted for each query; of the distractors only those that beat a positive are
    counted, block by block, so that memory does not grow with their number. Larger scores stand first; on a tie the
    lower row of the database, and the database before the distractors.

    Args:
        queries: (n_q, d), rows L2-normalised.
        database: (n_d, d), rows L2-normalised: an array, or another thing that `exact_search` takes.
        rows: int64 (n_d,), rising: which rows of the ground truth these are. Others, of broken photos for instance, are
            not found.
        relevant: per query its `easy`, `hard` and `junk` rows.
        distractors: (n, d) each, like `database`; never right, never ignored.
        chunk: queries and distractors compared at once.
        device: where to compute.

    Returns:
        setup -> per query the rising 0-based ranks of the positives that are in the database, for
        `metrics.functional.revisited_from_positions`.

    Raises:
        LandmarkRetrievalError: a descriptor holds NaN or infinity (its row is named).

    Source: Radenovic et al. 2018 (arXiv 1803.11285), section 3 (Easy, Medium, Hard; the million distractors).
    """
    target = torch.device(device)
    found: dict[str, list[np.ndarray]] = {setup: [] for setup in SETUPS}
    total = sum(map(len, distractors)) * -(-len(queries) // chunk[0])
    with full_precision(), torch.inference_mode(), tqdm(total=total, desc="distractors", disable=not total) as bar:
        for start in range(0, len(queries), chunk[0]):
            block = rows_of(queries, start, start + chunk[0], target, "queries")
            truths = relevant[start : start + chunk[0]]
            scores = torch.cat([part for _, part in _scores(block, [database], chunk[1], "database")], dim=1)
            positives = _Positives(scores, rows, truths)
            for count, part in _scores(block, distractors, chunk[1], "distractors"):
                positives.count(part)
                bar.update(count)
            for query, truth in enumerate(truths):
                for setup in SETUPS:
                    found[setup].append(positives.positions(query, truth, setup))
    return found


def _scores(queries: torch.Tensor, parts: Sequence[Any], chunk: int, what: str) -> Any:
    """How many rows, and their scores (n_q, rows), block by block."""
    for part in parts:
        for start in range(0, len(part), chunk):
            block = rows_of(part, start, start + chunk, queries.device, what)
            yield len(block), queries @ block.T


class _Positives:
    """The positives of a block of queries in the order of the database, and how many distractors beat each.

    Args:
        scores: (n_q, n_d), of the database.
        rows: the row in the ground truth of each column.
        truths: of these queries.
    """

    def __init__(self, scores: torch.Tensor, rows: np.ndarray, truths: Sequence[Mapping[str, Any]]) -> None:
        # a stable sort leaves the lower row first among equals
        ordered, order = scores.sort(dim=1, descending=True, stable=True)
        self.ranking = rows[order.cpu().numpy()]
        right = np.stack(
            [np.isin(row, [*truth["easy"], *truth["hard"]]) for row, truth in zip(self.ranking, truths, strict=True)]
        )
        self.places = [np.flatnonzero(row) for row in right]
        widest = max(1, *map(len, self.places))
        # the scores of the positives, rising, as one table: a place that no query needs holds what nothing beats
        self.levels = torch.full((len(scores), widest), torch.inf, device=scores.device)
        for query, places in enumerate(self.places):
            self.levels[query, : len(places)] = ordered[query, torch.from_numpy(places[::-1].copy()).to(scores.device)]
        # [q, i]: distractors that beat just the i lowest
        self.beaten = torch.zeros((len(scores), widest + 1), dtype=torch.int64, device=scores.device)

    def count(self, scores: torch.Tensor) -> None:
        """Take account of the scores (n_q, n) of more distractors; an equal one does not beat a positive."""
        lower = torch.searchsorted(self.levels, scores.contiguous())
        self.beaten.scatter_add_(1, lower, torch.ones_like(lower))

    def positions(self, query: int, truth: Mapping[str, Any], setup: str) -> np.ndarray:
        """The ranks of a query's positives in a setup."""
        positives, ignored = ([row for name in names for row in truth[name]] for names in SETUPS[setup])
        ranking = self.ranking[query]
        kept = ~np.isin(ranking, ignored)
        # distractors that beat the i lowest beat each of those; from the best positive to the worst
        places = self.places[query]
        ahead = self.beaten[query].flip(0).cumsum(0).flip(0)[1 : len(places) + 1].flip(0).cpu().numpy()
        chosen = np.isin(ranking[places], positives)
        return (np.cumsum(kept) - 1)[places[chosen]] + ahead[chosen]
