"""What retrieves and recognises at the end of an epoch: the figures of the validation photos."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.solutions import Solution
from landmark_retrieval.metrics.functional import global_average_precision, mean_average_precision, mean_precisions
from landmark_retrieval.retrieval.search import exact_search

# embeddings (B, D) -> cosines and numbers of their nearest classes, both (B,)
NearestClass = Callable[[Tensor], tuple[Tensor, Tensor]]

_RANKED = 100
_AT_ONCE = 1024


class Described(TypedDict):
    """A batch of validation photos.

    `descriptors`: float32 (B, D) of length 1, on the CPU; `ids`: of the photos; `split`: 0 for queries, 1 for the
    index; `position`: of the first of them in its split.
    """

    descriptors: Tensor
    ids: list[str]
    split: int
    position: int


def measure(described: Sequence[Described], data: LandmarkDataModule, nearest_class: NearestClass) -> dict[str, float]:
    """`val/map_at_100`, `val/precision_at_1`, and `val/gap` where there is a recognition solution; all in [0, 1].

    Args:
        described: the photos of all processes, in any order.
        data: with the solutions; without one of retrieval, or without photos, there are no figures.
        nearest_class: of the head, which knows the classes of `data.train`.
    """
    solution = data.retrieval_solution
    # in the order of the photos, however many processes described them: ties go to the earlier photo
    ordered = sorted(described, key=lambda rows: rows["position"])
    sides = [[rows for rows in ordered if rows["split"] == side] for side in (0, 1)]
    if solution is None or not all(sides):
        return {}
    (query_ids, queries), (index_ids, index) = (
        ([i for rows in side for i in rows["ids"]], torch.cat([rows["descriptors"] for rows in side])) for side in sides
    )
    found, _ = exact_search(queries, index, min(_RANKED, len(index)))
    ranked = {q: [index_ids[i] for i in row] for q, row in zip(query_ids, found.tolist(), strict=True)}
    counted = {q: ranked[q] for q in solution.relevant if q in ranked}
    figures = {
        "val/map_at_100": mean_average_precision(counted, solution.relevant),
        "val/precision_at_1": mean_precisions(counted, solution.relevant, 1)[0],
    }
    if data.recognition_solution is not None:
        figures["val/gap"] = _gap(query_ids, queries, data.recognition_solution, data.train.classes, nearest_class)
    return figures


def _gap(
    ids: Sequence[str],
    queries: Tensor,
    solution: Solution[int],
    classes: Sequence[str],
    nearest_class: NearestClass,
) -> float:
    # every process has all queries here, and perhaps only some of the classes
    nearest = [nearest_class(part) for part in queries.split(_AT_ONCE)]
    scores, labels = (torch.cat(parts).tolist() for parts in zip(*nearest, strict=True))
    predicted = {
        # a class that is no number, of another source, is none of the solution's
        q: (int(classes[label]) if classes[label].isdecimal() else -1, score)
        for q, label, score in zip(ids, labels, scores, strict=True)
        if q in solution.relevant
    }
    return global_average_precision(predicted, solution.relevant)
