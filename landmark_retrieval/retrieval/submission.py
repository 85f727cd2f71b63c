"""From the descriptors of one model or several to ranked lists and landmarks: section 2.4 of Henkel 2021.

Retrieval (2.4.1): each model's lists are re-ranked, their best 750 added up. Recognition (2.4.2): descriptors are
averaged within types of models and put side by side, training photos vote for the landmark, and non-landmarks sink.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.ensemble import ensemble
from landmark_retrieval.retrieval.inputs import Devices, present_devices
from landmark_retrieval.retrieval.members import Member
from landmark_retrieval.retrieval.recognition import recognize
from landmark_retrieval.retrieval.rerank import CONFIDENCES, hard_rerank_voted, rerank_voted, soft_vote
from landmark_retrieval.retrieval.reranking.rerankers import RERANKERS, find_reranker
from landmark_retrieval.retrieval.search import exact_search
from landmark_retrieval.retrieval.steps import collected, digest, in_steps

# photos that are voted for, and queries that are searched for, between two files
_VOTES, _QUERIES = 16_384, 1024
# goes up when the arithmetic changes, so that files of before are not taken for what would be computed now
_FORMAT = 1


@dataclass(frozen=True)
class Ranking:
    """How one model's lists are made, and how those of several are put together.

    Attributes:
        rerank: "soft", "hard", "none", or a name in `rerankers.RERANKERS`.
        k: neighbours that vote.
        up: see `rerank.soft_rerank`.
        down: see `rerank.soft_rerank`.
        confidence: see `rerank.soft_vote`.
        threshold: see `rerank.hard_rerank`.
        per_model: length of each model's lists.
        top: length of the lists in the end.
    """

    rerank: str = "soft"
    k: int = 3
    up: float = 1.0
    down: float = 0.1
    confidence: str = "sum_over_k"
    threshold: float = 0.6
    per_model: int = 750
    top: int = 100

    @property
    def needs_training_photos(self) -> bool:
        """Whether a labelled set has a say."""
        return self.rerank in ("soft", "hard")

    def check(self, models: int) -> None:
        """LandmarkRetrievalError where this cannot be done with so many models."""
        if not self.needs_training_photos and self.rerank != "none" and self.rerank not in RERANKERS:
            try:
                find_reranker(self.rerank)
            except LandmarkRetrievalError as error:
                raise LandmarkRetrievalError(f"{error} Also: soft, hard, none.") from None
        if self.confidence not in CONFIDENCES:
            raise LandmarkRetrievalError(
                f"There is no confidence {self.confidence!r}: choose from {', '.join(CONFIDENCES)}."
            )
        if min(self.k, self.per_model, self.top) < 1:
            raise LandmarkRetrievalError("retrieval.k, retrieval.per_model and retrieval.top must be at least 1.")
        if self.rerank == "hard" and models > 1:
            raise LandmarkRetrievalError(
                "Hard re-ranking gives an order and no scores that could be added up: use it with one model, or "
                "rerank=soft with several."
            )


def ranked_lists(
    members: Sequence[Member], labels: np.ndarray | None, ranking: Ranking, devices: Devices | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best index photos for each test photo, by all models together.

    Everything is kept in the folders of the models, in steps; interrupted, the same call goes on.

    Args:
        members: with the sets "test" and "index", and "train" where the re-ranking needs it.
        labels: int64 (n_t,), the class of each photo of "train", or None.
        ranking: how.
        devices: where to compute; see `exact_search`.

    Returns:
        indices (n_q, min(top, n_i)) int64, rows of the set "index", and scores float32.

    Raises:
        LandmarkRetrievalError: see `Ranking.check` and `rerank`.
    """
    ranking.check(len(members))
    lists = [_ListsOf(member, labels, ranking, devices) for member in members]
    weights = [member.wanted.weight for member in members]
    count = len(members[0].stores["test"])
    rows, scores = [], []
    size = lists[0].step
    steps = [iter(one.steps()) for one in lists]
    for _ in range(0, count, size):
        found = [next(one)[2] for one in steps]
        if len(found) == 1:
            best = found[0]["rows"][:, : ranking.top], found[0]["scores"][:, : ranking.top]
        else:
            best = ensemble([(one["rows"], one["scores"]) for one in found], ranking.top, weights)
        rows.append(best[0])
        scores.append(best[1])
    for one in steps:
        next(one, None)  # ends its progress bar
    return np.concatenate(rows), np.concatenate(scores)


class _ListsOf:
    """One model's lists, step by step."""

    def __init__(self, member: Member, labels: np.ndarray | None, ranking: Ranking, devices: Devices | None) -> None:
        self.member, self.labels, self.ranking, self.devices = member, labels, ranking, devices
        self.query, self.index = member.rows("test"), member.rows("index")
        # the others look at all queries at once
        self.step = _QUERIES if ranking.rerank in ("soft", "hard", "none") else max(1, len(self.query))

    def steps(self) -> Any:
        r, member = self.ranking, self.member
        facts: list[Any] = [_FORMAT, r.rerank, r.per_model, member.digest("test"), member.digest("index")]
        votes: tuple[Any, ...] = ()
        if r.needs_training_photos:
            facts += [r.k, r.confidence, member.digest("train"), digest(np.asarray(self.labels).tolist())]
            votes = (self._votes("test"), self._votes("index"))
        if r.rerank == "soft":
            facts += [r.up, r.down]
        if r.rerank == "hard":
            facts += [r.threshold, r.top]

        def work(start: int, stop: int) -> dict[str, Any]:
            rows, scores = self._lists(self.query[start:stop].astype(np.float32), start, stop, *votes)
            return {"rows": rows, "scores": scores}

        folder = member.folder / f"lists-{r.rerank}-{digest(facts)}"
        return in_steps(folder, len(self.query), self.step, work, f"{member.folder.name}: {r.rerank} lists")

    def _lists(self, query: np.ndarray, start: int, stop: int, *votes: Any) -> tuple[Any, Any]:
        r, devices = self.ranking, self.devices
        if r.needs_training_photos:
            of_query, of_index = votes
            labels, sure = (of_query[name][start:stop] for name in ("labels", "confidences"))
            known = of_index["labels"], of_index["confidences"]
            if r.rerank == "soft":
                return rerank_voted(query, labels, self.index, *known, r.up, r.down, r.per_model, devices=devices)
            top = min(r.per_model, r.top)
            return hard_rerank_voted(query, labels, sure, self.index, *known, top, r.threshold, devices=devices)
        ranked = exact_search(query, self.index, r.per_model, devices=devices)
        if r.rerank == "none":
            return ranked
        # the others work where the queries are
        home = present_devices(devices)[0] if devices else torch.device("cpu")
        asked = torch.from_numpy(query).to(home)
        lists = torch.from_numpy(ranked[0]), torch.from_numpy(ranked[1])
        rows, scores = find_reranker(r.rerank)(lists, asked, self.index)
        return rows.cpu().numpy(), scores.cpu().numpy()

    def _votes(self, name: str) -> dict[str, np.ndarray]:
        r, member = self.ranking, self.member
        images, train = member.rows(name), member.rows("train")

        def work(start: int, stop: int) -> dict[str, Any]:
            block = images[start:stop].astype(np.float32)
            labels, sure = soft_vote(block, train, self.labels, r.k, r.confidence, devices=self.devices)
            return {"labels": labels, "confidences": sure}

        known = digest(
            _FORMAT, r.k, r.confidence, member.digest(name), member.digest("train"), np.asarray(self.labels).tolist()
        )
        folder = member.folder / f"votes-{name}-{known}"
        return collected(in_steps(folder, len(images), _VOTES, work, f"{member.folder.name}: votes for {name}"))


def recognized(
    members: Sequence[Member],
    labels: np.ndarray,
    combine: str = "average",
    devices: Devices | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The class of each test photo with a score, by all models together.

    Args:
        members: with the sets "test", "train", and "non_landmark" where there is one.
        labels: int64 (n_t,), the class of each photo of "train".
        combine: "average": descriptors are averaged within types of models, the types put side by side, and the whole
            is one descriptor (Henkel 2021); "separate": each model has candidates of its own (Henkel & Singer 2020).
        devices: the first of them computes.
        options: of `recognition.recognize_in_detail`.

    Returns:
        classes (n_q,) int64 and scores (n_q,) float32.

    Raises:
        LandmarkRetrievalError: an unknown `combine`, models of one type with descriptors of different length; see also
            `recognize`.
    """
    check_combine(combine)
    ordered = in_groups(members)
    groups = [len(list(same)) for _, same in groupby(ordered, key=lambda member: member.type)]
    device = present_devices(devices)[0] if devices else torch.device("cpu")
    test = [torch.from_numpy(member.stores["test"].load()).to(device) for member in ordered]
    train = [member.rows("train") for member in ordered]
    others = [member.rows("non_landmark") for member in ordered if "non_landmark" in member.stores]
    averaged = combine == "average" and len(ordered) > 1
    found = recognize(
        test, train, labels, others or None, groups=groups if averaged else None, progress=True, **options
    )
    return found[0].cpu().numpy(), found[1].cpu().numpy()


def check_combine(combine: str) -> None:
    """LandmarkRetrievalError where models cannot be combined so."""
    if combine not in ("average", "separate"):
        raise LandmarkRetrievalError(f"Models are combined by average or separate, not by {combine!r}.")


def in_groups(members: Sequence[Member]) -> list[Member]:
    """Models of one type beside each other, types in the order in which they come first."""
    types = list(dict.fromkeys(member.type for member in members))
    return sorted(members, key=lambda member: types.index(member.type))
