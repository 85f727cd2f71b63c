"""Recognition: the landmark of each photo with a score that sinks where the photo looks like no landmark at all.

Henkel & Singer 2020 (arXiv 2010.01650), section 3.3, as used by Henkel 2021 (arXiv 2110.03786), section 2.4.2.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.ensemble import average_and_concatenate
from landmark_retrieval.retrieval.inputs import as_kind_of, as_labels, rows_of
from landmark_retrieval.retrieval.search import CHUNK, adjusted_search, exact_search
from landmark_retrieval.retrieval.topk import merged

Array = TypeVar("Array", np.ndarray, torch.Tensor)
# training photos that are transformed at once
_BLOCK = 16_384


class Recognition(NamedTuple):
    """What `recognize_in_detail` finds for N photos with M models.

    Attributes:
        labels: int64 (N,), the landmarks.
        scores: float32 (N,), comparable among photos.
        agreement: float32 (N,), the sum for that landmark, before the photo's own likeness to non-landmarks is taken
            off.
        candidates: int64 (N, top * M), training photos, model after model, best first.
        values: float32 (N, top * M), cosines of those less their likeness to non-landmarks.
        non_landmark: float32 (N,), mean cosine with the nearest non-landmarks.
        train_non_landmark: float32 (M, n_t), the same of the training photos.
    """

    labels: Any
    scores: Any
    agreement: Any
    candidates: Any
    values: Any
    non_landmark: Any
    train_non_landmark: Any


def recognize(test: Any, train: Any, train_labels: Any, non_landmark: Any | None, **options: Any) -> tuple[Any, Any]:
    """The landmark of each test photo, and a score that can be ranked over all of them.

    1. Descriptors are L2-normalised and those of all models put side by side; a quantile transform to a normal
       distribution, fitted on the test photos, is applied to each number.
    2. B of a training photo: mean cosine with its 5 nearest non-landmark photos, by each model's part.
    3. By each model the 3 training photos with the largest `clamp(cosine, 0, 1) - B` are candidates; these values are
       added up by landmark over all candidates. The landmark with the largest sum is the answer.
    4. C of a test photo: mean cosine with its 10 nearest non-landmarks, by all numbers. The score is that sum less C.

    Args:
        test: (N, d), or per model (N, d_m) in a list or an array (M, N, d).
        train: (n_t, d), or per model; arrays may be memory-mapped, each is read once.
        train_labels: (n_t,) integers.
        non_landmark: (n, d), or per model: photos that show no landmark; None to leave out B and C.
        options: see `recognize_in_detail`.

    Returns:
        labels (N,) int64 and scores (N,) float32, of the kind (numpy or torch) of `test`.

    Raises:
        LandmarkRetrievalError: models that differ in number or d, an empty training or non-landmark set, labels that do
            not fit, NaN or infinity in a row (it is named).

    Source: Henkel & Singer 2020 (arXiv 2010.01650), section 3.3.
    """
    found = recognize_in_detail(test, train, train_labels, non_landmark, **options)
    return found.labels, found.scores


def recognize_in_detail(
    test: Any,
    train: Any,
    train_labels: Any,
    non_landmark: Any | None,
    groups: Sequence[int] | None = None,
    normalize_means: bool = False,
    top: int = 3,
    train_neighbours: int = 5,
    test_neighbours: int = 10,
    skip_first: int = 0,
    quantile_transform: bool = True,
    seed: int = 0,
    chunk: tuple[int, int] = CHUNK,
    progress: bool = False,
) -> Recognition:
    """`recognize`, with everything it goes by.

    Args:
        test: see `recognize`, also for the three others.
        train: of training photos.
        train_labels: of those.
        non_landmark: of photos of no landmark.
        groups: how many models each type has: their descriptors become one, see `ensemble.average_and_concatenate`
            (Henkel 2021: (3, 3, 2), 1536 numbers).
        normalize_means: see `ensemble.average_and_concatenate`.
        top: candidates per model.
        train_neighbours: non-landmarks that make B.
        test_neighbours: non-landmarks that make C.
        skip_first: nearest non-landmarks left out of C: 1 where the non-landmark photos are among the test photos, so
            that these do not meet themselves.
        quantile_transform: step 1.
        seed: of the 10,000 test photos that the transform is fitted on, where there are more.
        chunk: photos compared at once.
        progress: show a bar over the training photos.

    Returns:
        See `Recognition`; of the kind of `test`.

    Raises:
        LandmarkRetrievalError: see `recognize`.
    """
    photos, bank = _models(test, "test"), _models(train, "training")
    others = None if non_landmark is None else _models(non_landmark, "non-landmark")
    _check(photos, bank, others, train_labels, min(top, train_neighbours, test_neighbours))
    if others is not None and not 0 <= skip_first < len(others[0]):
        raise LandmarkRetrievalError(
            f"skip_first={skip_first} is not possible with {len(others[0])} non-landmark photos: at least one has to "
            "be left."
        )
    device = photos[0].device if isinstance(photos[0], torch.Tensor) else torch.device("cpu")
    prepare = _Preparation(groups, normalize_means, device)
    asked = prepare.block(photos, 0, len(photos[0]), "test photos")
    if quantile_transform and len(asked):
        prepare.fit(asked, seed)
        asked = prepare.transformed(asked)
    parts = prepare.split(asked)
    against = None if others is None else prepare.transformed(prepare.block(others, 0, len(others[0]), "non-landmarks"))
    against_parts = None if against is None else prepare.split(against)

    best: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in parts]
    like = []
    for start, stop in _blocks(len(bank[0]), progress):
        rows = prepare.split(prepare.transformed(prepare.block(bank, start, stop, "training photos")))
        likeness = torch.zeros(len(parts), stop - start, device=device)
        for number, (part, known) in enumerate(zip(parts, rows, strict=True)):
            if against_parts is not None:
                _, cosines = exact_search(known, against_parts[number], train_neighbours, chunk)
                likeness[number] = cosines.mean(dim=1)
            found = _candidates(part, known, likeness[number], top, chunk)
            best[number] = [merged([*best[number], (found[0], found[1] + start)], top)]
        like.append(likeness.cpu())
    values = torch.cat([kept[0][0] for kept in best], dim=1)
    candidates = torch.cat([kept[0][1] for kept in best], dim=1)
    labels = as_labels(train_labels, len(bank[0]), "training photos").to(device)
    answers, agreement = _largest_sum(labels[candidates], values.double())
    own = torch.zeros(len(asked), device=device)
    if against is not None:
        nearest = exact_search(normalize(asked), normalize(against), test_neighbours + skip_first, chunk)[1]
        own = nearest[:, skip_first:].mean(dim=1)
    scores, likeness = (agreement - own).float(), torch.cat(like, dim=1).to(device)
    result = [answers, scores, agreement.float(), candidates, values, own, likeness]
    return Recognition(*(as_kind_of(photos[0], part) for part in result))


def _candidates(
    part: torch.Tensor, known: torch.Tensor, likeness: torch.Tensor, top: int, chunk: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    def adjust(scores: torch.Tensor, start: int, stop: int) -> None:
        scores.clamp_(0, 1).sub_(likeness[start:stop])

    rows, values = adjusted_search(part, known, top, lambda *_: adjust, chunk)
    return values, rows


def _largest_sum(labels: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row the label with the largest sum of values, of equal ones the first, and the sum."""
    sums = ((labels.unsqueeze(2) == labels.unsqueeze(1)) * values.unsqueeze(1)).sum(dim=2)
    first = sums.argmax(dim=1, keepdim=True)
    return labels.gather(1, first).squeeze(1), sums.gather(1, first).squeeze(1)


class _Preparation:
    """Rows of several models -> rows of one matrix, transformed, and the parts of it that models are compared by."""

    def __init__(self, groups: Sequence[int] | None, normalize_means: bool, device: torch.device) -> None:
        self.groups, self.normalize_means, self.device = groups, normalize_means, device
        self.widths: list[int] = []
        self.transformer: Any = None

    def block(self, models: list[Any], start: int, stop: int, what: str) -> torch.Tensor:
        """Rows [start, stop) of all models, L2-normalised, side by side."""
        rows = [normalize(rows_of(model, start, stop, self.device, what)) for model in models]
        if self.groups is not None:
            # one model from here on, whose rows are L2-normalised like any other's
            rows = [normalize(average_and_concatenate(rows, self.groups, self.normalize_means))]
        self.widths = [part.shape[1] for part in rows]
        return torch.cat(rows, dim=1)

    def fit(self, rows: torch.Tensor, seed: int) -> None:
        from sklearn.preprocessing import QuantileTransformer

        # fewer photos than quantiles: as many quantiles as photos, which scikit-learn would do with a warning
        quantiles = min(1000, len(rows))
        transformer = QuantileTransformer(n_quantiles=quantiles, output_distribution="normal", random_state=seed)
        self.transformer = transformer.fit(rows.cpu().numpy())

    def transformed(self, rows: torch.Tensor) -> torch.Tensor:
        if self.transformer is None:
            return rows
        done = [self.transformer.transform(part.numpy()) for part in rows.cpu().split(_BLOCK)]
        return torch.from_numpy(np.concatenate(done)).to(self.device, torch.float32)

    def split(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Each model's part, of unit length again."""
        return [normalize(part) for part in rows.split(self.widths, dim=1)]


def _models(descriptors: Any, what: str) -> list[Any]:
    """One (n, d_m) per model."""
    if isinstance(descriptors, Sequence) and not hasattr(descriptors, "ndim"):
        models = list(descriptors)
    else:
        models = [descriptors] if descriptors.ndim == 2 else list(descriptors)
    if not models or any(model.ndim != 2 or len(model) != len(models[0]) for model in models):
        shapes = [tuple(model.shape) for model in models]
        raise LandmarkRetrievalError(
            f"The {what} descriptors must be (photos, d) of each model, with the same photos: found {shapes}."
        )
    return models


def _check(photos: list[Any], bank: list[Any], others: list[Any] | None, labels: Any, least: int) -> None:
    dims = [model.shape[1] for model in photos]
    for what, models in (("training", bank), ("non-landmark", photos if others is None else others)):
        if [model.shape[1] for model in models] != dims:
            raise LandmarkRetrievalError(
                f"The test descriptors of {len(photos)} models have {dims} numbers, the {what} ones "
                f"{[model.shape[1] for model in models]}: describe both with the same models."
            )
        if not len(models[0]):
            raise LandmarkRetrievalError(
                f"There are no {what} photos: a landmark is recognised by training photos, and none by non-landmarks."
            )
    as_labels(labels, len(bank[0]), "training photos")
    if least < 1:
        raise LandmarkRetrievalError("The numbers of candidates and of neighbours must be at least 1.")


def _blocks(count: int, progress: bool) -> Iterator[tuple[int, int]]:
    with tqdm(total=count, desc="compare", unit="photo", disable=not progress) as bar:
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            yield start, stop
            bar.update(stop - start)
