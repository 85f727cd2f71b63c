"""Several models as one: their ranked lists added up, or their descriptors averaged and put side by side."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.inputs import as_kind_of, as_tensor

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def ensemble(
    lists: Sequence[tuple[Array, Array]], top: int = 100, weights: Sequence[float] | None = None
) -> tuple[Array, Array]:
    """Several models' ranked lists as one: scores are added up, a list that lacks a photo adds nothing.

    Args:
        lists: per model (indices (n_q, n_m), scores (n_q, n_m)) over the same index; -1 is no photo. Lists may differ
            in length.
        top: length of the lists that come out.
        weights: of each model's scores; 1 if None.

    Returns:
        indices (n_q, m) int64 and summed scores (n_q, m) float32, best first, on a tie the lower row; m is `top`, or
        the most photos that any query has. Where a query has fewer, rows end with index -1 and score -inf. Of the kind
        of the first list.

    Raises:
        LandmarkRetrievalError: no lists, lists of different queries, a photo twice in one list, or weights that do not
            fit.

    Source: Henkel 2021 (arXiv 2110.03786), section 2.4.1.

    Example:
        >>> one = np.array([[4, 2]]), np.array([[0.75, 0.5]])
        >>> two = np.array([[2, 7]]), np.array([[0.5, 0.25]])
        >>> indices, scores = ensemble([one, two])
        >>> indices.tolist(), scores.tolist()
        ([[2, 4, 7]], [[1.0, 0.75, 0.25]])
    """
    if not lists:
        raise LandmarkRetrievalError("An ensemble needs the lists of at least one model.")
    weights = [1.0] * len(lists) if weights is None else list(weights)
    if len(weights) != len(lists) or top < 1:
        raise LandmarkRetrievalError(
            f"{len(lists)} models need as many weights and lists of at least 1 photo, not {len(weights)} and top={top}."
        )
    kind = lists[0][0]
    device = kind.device if isinstance(kind, torch.Tensor) else torch.device("cpu")
    for model, (rows, scores) in enumerate(lists):
        if rows.ndim != 2 or rows.shape != scores.shape or len(rows) != len(kind):
            raise LandmarkRetrievalError(
                f"The lists of all models must be of the same {len(kind)} queries, with a score for each photo: found "
                f"indices of shape {tuple(rows.shape)} and scores of shape {tuple(scores.shape)}."
            )
        if as_tensor(rows[:1]).is_floating_point():
            raise LandmarkRetrievalError(
                f"The photos in the lists of model {model} must be integers, rows of the index."
            )
    # in blocks, since every photo of every list is sorted
    step = max(1, 4_000_000 // max(1, sum(rows.shape[1] for rows, _ in lists)))
    parts = []
    for start in range(0, len(kind), step):
        block = [
            (as_tensor(rows[start : start + step]), as_tensor(scores[start : start + step])) for rows, scores in lists
        ]
        parts.append(_summed([(rows.to(device), scores.to(device)) for rows, scores in block], weights, top, start))
    width = max((part[0].shape[1] for part in parts), default=0)
    indices = (
        torch.cat([_padded(part[0], width, -1) for part in parts]) if parts else torch.empty(0, 0, dtype=torch.int64)
    )
    totals = torch.cat([_padded(part[1], width, -torch.inf) for part in parts]) if parts else torch.empty(0, 0)
    return as_kind_of(kind, indices), as_kind_of(kind, totals)


def average_and_concatenate(
    descriptors: Sequence[Array], groups: Sequence[int], normalize_means: bool = False
) -> Array:
    """Several descriptors of each photo as one: the mean within each type of model, the types side by side.

    Args:
        descriptors: per model (n, d_m), L2-normalised here; models of one type stand together and have the same d_m.
        groups: how many models each type has, in order: (3, 3, 2) for eight models of three types.
        normalize_means: L2-normalise the mean of each type, too.

    Returns:
        (n, sum of the types' d) float32, of the kind of the first; each type's part has a norm of at most 1. Eight
        512-d models of three types give 1536 numbers.

    Raises:
        LandmarkRetrievalError: groups that do not add up to the models, descriptors of other photos, or models of one
            type with different d.

    Source: Henkel 2021 (arXiv 2110.03786), section 2.4.2.

    Example:
        >>> one, two = np.array([[2.0, 0.0]]), np.array([[0.0, 3.0]])
        >>> average_and_concatenate([one, two, one], groups=[2, 1]).tolist()
        [[0.5, 0.5, 1.0, 0.0]]
    """
    if not len(descriptors) or sum(groups) != len(descriptors) or min(groups) < 1:
        raise LandmarkRetrievalError(
            f"The groups {list(groups)} do not add up to the {len(descriptors)} models given: name how many models "
            "each type has, in the order of the models."
        )
    parts, first = [], 0
    for size in groups:
        models = [as_tensor(part) for part in descriptors[first : first + size]]
        for number, part in enumerate(models, first):
            if part.ndim != 2 or part.shape != (len(descriptors[0]), models[0].shape[1]):
                raise LandmarkRetrievalError(
                    f"The descriptors of model {number} have shape {tuple(part.shape)}, where model {first} of its "
                    f"type has {tuple(models[0].shape)} and there are {len(descriptors[0])} photos."
                )
        mean = torch.stack([torch.nn.functional.normalize(part.float()) for part in models]).mean(dim=0)
        parts.append(torch.nn.functional.normalize(mean) if normalize_means else mean)
        first += size
    return as_kind_of(descriptors[0], torch.cat(parts, dim=1))


def _summed(
    lists: list[tuple[torch.Tensor, torch.Tensor]], weights: list[float], top: int, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.cat([rows for rows, _ in lists], dim=1).long()
    model = torch.cat([torch.full((part.shape[1],), number) for number, (part, _) in enumerate(lists)]).to(rows.device)
    # in float64, so that the order of the models makes no difference to speak of
    scores = torch.cat([weight * scores.double() for weight, (_, scores) in zip(weights, lists, strict=True)], dim=1)
    rows, order = rows.sort(dim=1, stable=True)
    scores, model = scores.gather(1, order), model.expand_as(order).gather(1, order)
    again = rows[:, 1:] == rows[:, :-1]
    twice = again & (model[:, 1:] == model[:, :-1]) & (rows[:, 1:] >= 0)
    if twice.any():
        query, at = (int(part) for part in twice.nonzero()[0])
        raise LandmarkRetrievalError(
            f"Photo {int(rows[query, at])} stands twice in the list of query {first + query} of model "
            f"{int(model[query, at])}: its score would be counted twice."
        )
    begins = torch.cat([torch.ones_like(rows[:, :1], dtype=torch.bool), ~again], dim=1)
    place = begins.long().cumsum(dim=1) - 1
    scores = scores.masked_fill(rows < 0, 0.0)
    if scores.isnan().any():
        query, at = (int(part) for part in scores.isnan().nonzero()[0])
        raise LandmarkRetrievalError(
            f"The score of photo {int(rows[query, at])} for query {first + query} by model {int(model[query, at])} is "
            "NaN: it has no place in a ranking."
        )
    totals = torch.zeros_like(scores).scatter_add_(1, place, scores)
    photos = torch.full_like(rows, -1).scatter_(1, place, rows)
    # places behind the last photo, and the place of "no photo"
    totals.masked_fill_(photos < 0, -torch.inf)
    photos.masked_fill_(photos < 0, -1)
    totals, order = totals.sort(dim=1, descending=True, stable=True)
    width = min(top, int((photos >= 0).sum(dim=1).max()))
    return photos.gather(1, order)[:, :width], totals[:, :width].float()


def _padded(part: torch.Tensor, width: int, value: float) -> torch.Tensor:
    return torch.nn.functional.pad(part, (0, width - part.shape[1]), value=value)
