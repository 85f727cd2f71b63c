"""The CSV files of Google Landmarks v2 for a planned data set."""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from landmark_retrieval.files import open_replacing

from .plan import Photo, Plan

NAMES = (
    "train.csv",
    "train_clean.csv",
    "train_label_to_category.csv",
    "index.csv",
    "test.csv",
    "index_landmarks.csv",
    "retrieval_solution.csv",
    "recognition_solution.csv",
)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open_replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _usage(photo: Photo) -> str:
    """About three in ten queries are public, decided by the id."""
    return "Public" if hashlib.sha256(photo.id.encode()).digest()[0] < 77 else "Private"


def write_tables(out: Path, plan: Plan) -> None:
    """Write all files of NAMES into `out`, each whole or not at all."""
    train, index, test = (plan.of(split) for split in ("train", "index", "test"))
    _write(out / "train.csv", ("id", "url", "landmark_id"), [(photo.id, "", photo.label) for photo in train])
    _write(
        out / "train_clean.csv",
        ("landmark_id", "images"),
        [(label, " ".join(ids)) for label, ids in plan.clean.items()],
    )
    names = sorted((label, spec.name) for spec, label in plan.train_ids.items())
    _write(out / "train_label_to_category.csv", ("landmark_id", "category"), names)
    _write(out / "index.csv", ("id",), [(photo.id,) for photo in index])
    _write(out / "test.csv", ("id",), [(photo.id,) for photo in test])
    shown = [(photo.id, photo.shows.name if photo.shows else "") for photo in index]
    _write(out / "index_landmarks.csv", ("id", "landmark"), shown)
    relevant: dict[object, list[str]] = {}
    for photo in index:
        if photo.shows:
            relevant.setdefault(photo.shows, []).append(photo.id)
    found = [(photo, relevant.get(photo.shows, [])) for photo in test]
    _write(
        out / "retrieval_solution.csv",
        ("id", "images", "Usage"),
        [(photo.id, " ".join(ids) or "None", _usage(photo) if ids else "Ignored") for photo, ids in found],
    )
    answers = [(photo, plan.train_ids.get(photo.shows, "") if photo.shows else "") for photo in test]
    _write(
        out / "recognition_solution.csv",
        ("id", "landmarks", "Usage"),
        [(p.id, label, _usage(p)) for p, label in answers],
    )
