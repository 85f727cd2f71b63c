"""What every kind of index refuses: other models, wrong shapes, descriptors not of length 1, wrong photo ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landmark_retrieval.data.photos import Ids
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.store_files import as_stored, card_difference

# float16 rows of unit length stay within this of 1
_UNIT_TOLERANCE = 1e-2


def check_card(own: Mapping[str, Any], card: Mapping[str, Any] | None, who: str = "the query") -> None:
    """Refuse descriptors of another model than that of the index; None is not checked."""
    if card is not None and as_stored(card) != dict(own):
        raise LandmarkRetrievalError(
            f"The index was made by {_model(own)}, {who} by {_model(card)}; their descriptors cannot be "
            f"compared ({card_difference(own, card)}): use the model of the index."
        )


def checked_queries(
    descriptors: Any, k: int, dim: int, own: Mapping[str, Any], card: Mapping[str, Any] | None
) -> np.ndarray:
    """The queries of a search as float32 (n, dim), or the error that says what is wrong with them."""
    check_card(own, card)
    queries = np.ascontiguousarray(descriptors, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise LandmarkRetrievalError(
            f"The index of {_model(own)} holds {dim}-d descriptors, the queries have shape "
            f"{queries.shape}{'' if card is None else f' ({_model(card)})'}: use the model of the index."
        )
    if k < 1:
        raise LandmarkRetrievalError(f"k must be at least 1, not {k}.")
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise LandmarkRetrievalError(f"Query {int(np.argmin(finite))} holds NaN or infinity: check the photo.")
    return queries


def checked_rows(ids: Sequence[str], descriptors: Any, dim: int, where: str = "") -> np.ndarray:
    """Descriptors that go into an index as float32 (n, dim); one that is not of length 1 is named by its photo."""
    rows = np.ascontiguousarray(descriptors, dtype=np.float32)
    if rows.shape != (len(ids), dim):
        raise LandmarkRetrievalError(f"{len(ids)} photos need ({len(ids)}, {dim}) descriptors, not {rows.shape}.")
    lengths = np.linalg.norm(rows, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT_TOLERANCE))
    if len(wrong):
        raise LandmarkRetrievalError(
            f"The descriptor of photo {ids[wrong[0]]!r}{where} has length {lengths[wrong[0]]:.4g}, "
            "not 1: L2-normalise descriptors before you store them."
        )
    return rows


def check_new(own: Ids, ids: Sequence[str]) -> None:
    """Refuse photo ids that are in the index, or come twice."""
    held = own.rows(ids) >= 0
    if held.any():
        photo = ids[int(np.argmax(held))]
        raise LandmarkRetrievalError(
            f"Photo {photo!r} is in the index already{_others(held)}: remove it first, or leave it out."
        )
    again = Ids(ids).first_twice()
    if again is not None:
        raise LandmarkRetrievalError(f"Photo {again!r} is given twice: an index holds each photo once.")


def check_rescore(rescore: int | None) -> None:
    """Refuse a negative number of candidates."""
    if rescore is not None and rescore < 0:
        raise LandmarkRetrievalError(f"rescore is 0 or more candidates per wanted result, not {rescore}.")


def rows_to_remove(own: Ids, ids: Sequence[str]) -> np.ndarray:
    """The rows of these photos, sorted; ids that are not in the index are refused."""
    rows = own.rows(ids)
    unknown = rows < 0
    if unknown.any():
        raise LandmarkRetrievalError(
            f"Photo {ids[int(np.argmax(unknown))]!r} is not in the index{_others(unknown)}: "
            "give the ids of photos that are."
        )
    return np.unique(rows)


def joined(own: Ids, ids: Sequence[str]) -> Ids:
    """The ids of the index and those that are added, behind them."""
    return Ids(np.concatenate([own.column, Ids(ids).column]))


def named(ids: Ids, rows: np.ndarray) -> list[list[str]]:
    """The photo ids of ranked rows (n, k); -1 is left out."""
    known = ids.column[rows].tolist()
    if (rows >= 0).all():
        return [[photo.decode() for photo in ranked] for ranked in known]
    return [
        [photo.decode() for photo, row in zip(ranked, numbers, strict=True) if row >= 0]
        for ranked, numbers in zip(known, rows.tolist(), strict=True)
    ]


def found_first(rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranked rows and scores, both (n, k), with every -1 at the end of its row and -inf for its score."""
    missing = rows < 0
    if not missing.any():
        return rows, scores
    order = np.argsort(missing, axis=1, kind="stable")
    rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return rows, np.where(rows < 0, np.float32(-np.inf), scores)


def _others(these: np.ndarray) -> str:
    more = int(these.sum()) - 1
    return f" (and {more:,} more of {len(these):,})" if more else ""


def _model(card: Mapping[str, Any]) -> str:
    return f"model {card.get('model', 'without a name')!r}"
