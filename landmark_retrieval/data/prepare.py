"""Photos as they come -> a data set: a folder of shard folders with their solutions and a list of what there is."""

import csv
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from landmark_retrieval.data.dataset import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION
from landmark_retrieval.data.importers import folder as folders
from landmark_retrieval.data.importers.archive_scan import archives_in, scan_archives
from landmark_retrieval.data.importers.archives import Archives, write_skipped
from landmark_retrieval.data.importers.gldv2 import (
    TrainSet,
    csv_file,
    existing_folder,
    read_photos,
    read_train,
    solution_files,
)
from landmark_retrieval.data.importers.listed import read_listed
from landmark_retrieval.data.importers.md5sums import verify_md5 as verify
from landmark_retrieval.data.importers.revisited import read_ground_truth, read_revisited
from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.data.places import LISTING, LocalPlace
from landmark_retrieval.data.shards import write_shards
from landmark_retrieval.data.solutions import read_retrieval_solution
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, replacing, write_json

SKIPPED = "skipped_members.csv"
GROUND_TRUTH = "revisited.json"
_SCANS = ".archives"

Say = Callable[[str], object]


def shard_gldv2(
    root: str | Path,
    out: str | Path,
    sets: tuple[TrainSet, ...] = ("c", "x"),
    photos_per_shard: int = 1000,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
    clean_csv: str | Path | None = None,
    longest_side: int | None = None,
    verify_md5: bool = False,
    say: Say = print,
) -> dict[str, Manifest]:
    """Shard a folder in the layout of GLDv2: its training sets and, where it has them, index and test with their
    solutions. Index photos that are right for some query come before the others.

    The photos of a split are read from its archives as downloaded (train/images_000.tar, ...), which are never
    extracted, or from train/a/b/c/<id>.jpg; where a split has both, the extracted ones count. What of the archives is
    not used is listed in skipped_members.csv; where their photos are is kept in <out>/.archives, for the next run. For
    the names that the CSV files may have see `gldv2.csv_file`.

    Args:
        root: folder of the CSV files and the splits.
        out: folder for the data set; folders that other calls wrote there stay.
        sets: see `gldv2.read_train`.
        photos_per_shard, seed, skip_bad, workers, longest_side: see `write_shards`.
        clean_csv: takes the place of train_clean.csv.
        verify_md5: compare the archives with their md5 files first (md5.images_000.txt, beside them or in
            <root>/md5sum/<split>).
        say: gets a sentence about choices made and things left out.

    Returns:
        The manifest of each folder of shards below `out`, by its name ("train_c", "index", ...).

    Raises:
        LandmarkRetrievalError: see `gldv2.read_train`, `gldv2.read_photos`, `scan_archives`, `verify_md5`,
            `write_shards`.
    """
    root, out = existing_folder(root), Path(out)
    # an error in a solution is better told now than after the sharding
    solutions = solution_files(root)
    other: list[Literal["index", "test"]] = [
        split for split in ("index", "test") if csv_file(root, f"{split}.csv").exists()
    ]
    archives: dict[str, Archives] = {}
    for split in (*(["train"] if sets else []), *other):
        if found := archives_in(root / split):
            archives[split] = scan_archives(found, out / _SCANS / split, workers, f"headers of {split}")
        elif any((root / split).glob("*.tar")):
            say(f"{root / split} holds archives and extracted photos: the extracted ones are taken")
    lists = [f"{split}.csv" for split in other]
    lists += ["train.csv"] if {"x", "full"} & set(sets) else []
    lists += ["train_clean.csv"] if {"c", "x"} & set(sets) and clean_csv is None else []
    for name, path in {**{name: csv_file(root, name) for name in lists}, **solutions}.items():
        if path != root / name:
            say(f"{path} is taken for {name}")
    tables = {f"train_{which}": read_train(root, which, clean_csv, archives.get("train")) for which in sets}
    tables |= {split: read_photos(root, split, archives.get(split)) for split in other}
    if "index" in tables and RETRIEVAL_SOLUTION in solutions:
        tables["index"] = _matching_first(tables["index"], solutions[RETRIEVAL_SOLUTION])
    if verify_md5:
        _verify_md5(root, out, archives, workers)
    skipped = [
        replace(row, archive=f"{split}/{row.archive}") for split, scanned in archives.items() for row in scanned.skipped
    ]
    archives.clear()  # the tables have what they need of them
    if count := write_skipped(out / SKIPPED, skipped):
        damaged = sum(not row.member for row in skipped)
        say(f"{count - damaged:,} members of archives are no photos, {damaged:,} archives are damaged: {out / SKIPPED}")
    del skipped
    manifests = _write(tables, out, photos_per_shard, seed, skip_bad, workers, longest_side)
    for name, path in solutions.items():
        with replacing(out / name) as temporary:
            shutil.copyfile(path, temporary)
    write_listing(out)
    return manifests


def shard_folder(
    root: str | Path,
    out: str | Path,
    hold_out: float = 0.0,
    photos_per_shard: int = 1000,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
    clean_csv: str | Path | None = None,
    longest_side: int | None = None,
) -> dict[str, Manifest]:
    """Shard a folder with a folder of photos per landmark.

    Args:
        root: see `folder.read_folder`.
        out: folder for the data set.
        hold_out: fraction of the landmarks to set aside as query and index photos, so that training can be measured on
            landmarks it never saw; 0 for none.
        photos_per_shard, seed, skip_bad, workers, longest_side: see `write_shards`.
        clean_csv: train only on the photos that it lists. The same landmarks are held out as without it.

    Returns, raises: as `shard_gldv2`; see also `folder.read_folder`, `folder.hold_out`, `folder.only_listed`.
    """
    out = Path(out)
    table = folders.read_folder(root)
    tables = {"train": table}
    relevant: dict[str, list[str]] = {}
    if hold_out:
        tables["train"], tables["test"], tables["index"], relevant = folders.hold_out(table, hold_out, seed)
    if clean_csv is not None:
        tables["train"] = folders.only_listed(tables["train"], clean_csv)
    manifests = _write(tables, out, photos_per_shard, seed, skip_bad, workers, longest_side)
    if relevant:
        with open_replacing(out / RETRIEVAL_SOLUTION) as file:
            rows = ((query, " ".join(images), "Private") for query, images in relevant.items())
            csv.writer(file).writerows([("id", "images", "Usage"), *rows])
    write_listing(out)
    return manifests


def shard_csv(
    root: str | Path,
    out: str | Path,
    csv_path: str | Path,
    name: str = "extra",
    known: str | Path | None = None,
    photos_per_shard: int = 1000,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
    longest_side: int | None = None,
    say: Say = print,
) -> dict[str, Manifest]:
    """Shard photos that a CSV lists with their landmarks, as a training set of its own: <out>/train_<name>.

    Args:
        root: folder of the photos; see `listed.read_listed` for where they may be in it.
        out: folder for the data set, for instance that of GLDv2.
        csv_path: columns id, landmark_id and perhaps path.
        name: letters, digits, "_" and "-".
        known: folder of shards whose classes are taken over, so that the labels agree; photos of other landmarks are
            left out, and not every class needs a photo here. By default the classes are the landmarks of the CSV.
        photos_per_shard, seed, skip_bad, workers, longest_side: see `write_shards`.
        say: gets a sentence about what is left out.

    Returns, raises: as `shard_gldv2`; see also `listed.read_listed`, `Manifest.read`.
    """
    out = Path(out)
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise LandmarkRetrievalError(
            f"{name!r} cannot be the name of a training set: take letters, digits, '_' and '-'."
        )
    classes = None if known is None else Manifest.read(known).classes
    if classes is not None and not classes:
        raise LandmarkRetrievalError(f"The photos in {known} have no landmarks: name the shards of a training set.")
    table, photos, landmarks = read_listed(root, csv_path, classes)
    if photos:
        say(f"{photos:,} photos of {landmarks:,} landmarks that {known} does not have are left out")
    tables = {f"train_{name}": table}
    manifests = _write(tables, out, photos_per_shard, seed, skip_bad, workers, longest_side, known is not None)
    write_listing(out)
    return manifests


def shard_revisited(
    root: str | Path,
    out: str | Path,
    ground_truth: str | Path,
    photos_per_shard: int = 1000,
    skip_bad: bool = False,
    workers: int | None = None,
    longest_side: int | None = None,
) -> dict[str, Manifest]:
    """Shard Revisited Oxford or Paris: `index`, the database images in their order; `test`, the query images with the
    boxes that count; and the ground truth as revisited.json.

    Rows of the ground truth are places in the list of images in revisited.json: where photos were left out (skip_bad),
    look a row's id up there, not its place among the shards.

    Args:
        root: folder with <name>.jpg, or with a folder jpg that has them.
        out: folder for the data set, of its own.
        ground_truth: see `revisited.read_ground_truth`.
        photos_per_shard, skip_bad, workers, longest_side: see `write_shards`; boxes are scaled with their photos.

    Returns, raises: as `shard_gldv2`; see also `revisited.read_ground_truth`, `revisited.read_revisited`.
    """
    out = Path(out)
    truth = read_ground_truth(ground_truth)
    index, query = read_revisited(root, truth)
    tables = {"index": index, "test": query}
    manifests = _write(tables, out, photos_per_shard, 0, skip_bad, workers, longest_side)
    truth.write(out / GROUND_TRUTH)
    write_listing(out)
    return manifests


def write_listing(out: str | Path) -> None:
    """Write dataset.json, which says what a data set has (folders of shards, other files), for places such as web
    servers that list nothing."""
    out = Path(out)
    names = LocalPlace(out).folders()
    files = sorted(name for name in (RETRIEVAL_SOLUTION, RECOGNITION_SOLUTION, GROUND_TRUTH) if (out / name).is_file())
    write_json(out / LISTING, {"format": 1, "folders": names, "files": files})


def _write(
    tables: Mapping[str, PhotoTable],
    out: Path,
    photos_per_shard: int,
    seed: int,
    skip_bad: bool,
    workers: int | None,
    longest_side: int | None,
    empty_classes: bool = False,
) -> dict[str, Manifest]:
    write = partial(write_shards, photos_per_shard=photos_per_shard, seed=seed, skip_bad=skip_bad, workers=workers)
    return {
        name: write(
            table,
            out / name,
            shuffle=name.startswith("train"),
            title=name,
            longest_side=longest_side,
            empty_classes=empty_classes,
        )
        for name, table in tables.items()
    }


def _matching_first(index: PhotoTable, solution: Path) -> PhotoTable:
    """The index photos that are right for some query before all others: validation, which takes them alone, then reads
    few shards."""
    right = {photo for images in read_retrieval_solution(solution).relevant.values() for photo in images}
    rows = index.ids.rows(sorted(right))
    other = np.ones(len(index), bool)
    other[rows[rows >= 0]] = False
    return index.take(np.argsort(other, kind="stable"))


def _verify_md5(root: Path, out: Path, archives: Mapping[str, Archives], workers: int | None) -> None:
    if not archives:
        raise LandmarkRetrievalError(
            f"There are no archives in {root} to verify: leave out --verify-md5, the photos are extracted."
        )
    for split, scanned in archives.items():
        paths = [root / split / name for name, _, _ in scanned.located.archives]
        verify(paths, (root / split, root / "md5sum" / split), out / _SCANS / split, workers, f"md5 of {split}")
