"""A data set as a folder of shard folders: `train_c`, `train_x` or `train`, and `index`, `test` with their solutions.

This is the form that training and evaluation read, made from GLDv2 or from a folder of one's own.
"""

import csv
import shutil
from pathlib import Path

from landmark_retrieval.data import folder as folders
from landmark_retrieval.data.gldv2 import TrainSet, existing_folder, read_photos, read_train
from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.shards import write_shards
from landmark_retrieval.data.solutions import Solution, read_recognition_solution, read_retrieval_solution
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, replacing

RETRIEVAL_SOLUTION = "retrieval_solution.csv"
RECOGNITION_SOLUTION = "recognition_solution.csv"


def shard_gldv2(
    root: str | Path,
    out: str | Path,
    sets: tuple[TrainSet, ...] = ("c", "x"),
    photos_per_shard: int = 1000,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
    clean_csv: str | Path | None = None,
) -> dict[str, Manifest]:
    """Shard a folder in the layout of GLDv2: its training sets and, where it has them, index and test with their
    solutions. For the arguments see `gldv2.read_train` and `write_shards`.

    Returns:
        The manifest of each folder of shards below `out`, by its name ("train_c", "index", ...).

    Raises:
        LandmarkRetrievalError: see `gldv2.read_train`, `gldv2.read_photos`, `write_shards`.
    """
    root, out = existing_folder(root), Path(out)
    tables = {f"train_{which}": read_train(root, which, clean_csv) for which in sets}
    for split in ("index", "test"):
        if (root / f"{split}.csv").exists():
            tables[split] = read_photos(root, split)
    readers = {RETRIEVAL_SOLUTION: read_retrieval_solution, RECOGNITION_SOLUTION: read_recognition_solution}
    solutions = [name for name in readers if (root / name).exists()]
    for name in solutions:
        readers[name](root / name)  # an error in it is better told now than after the sharding
    manifests = {
        name: write_shards(table, out / name, photos_per_shard, name.startswith("train"), seed, skip_bad, workers, name)
        for name, table in tables.items()
    }
    for name in solutions:
        with replacing(out / name) as temporary:
            shutil.copyfile(root / name, temporary)
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
) -> dict[str, Manifest]:
    """Shard a folder with a folder of photos per landmark.

    Args:
        hold_out: fraction of the landmarks to set aside as query and index photos, so that training can be measured on
            landmarks it never saw; 0 for none.
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
    manifests = {
        name: write_shards(table, out / name, photos_per_shard, name == "train", seed, skip_bad, workers, name)
        for name, table in tables.items()
    }
    if relevant:
        with open_replacing(out / RETRIEVAL_SOLUTION) as file:
            rows = ((query, " ".join(images), "Private") for query, images in relevant.items())
            csv.writer(file).writerows([("id", "images", "Usage"), *rows])
    return manifests


def open_queries_and_index(root: str | Path) -> tuple[ShardedPhotos, ShardedPhotos, Solution[str]]:
    """The query photos, the index photos and the retrieval solution of a data set.

    Raises:
        LandmarkRetrievalError: it has none, no query counts, or something is damaged.
    """
    root = Path(root)
    if not (root / RETRIEVAL_SOLUTION).exists():
        raise LandmarkRetrievalError(
            f"{root} holds no {RETRIEVAL_SOLUTION}, so there is nothing to compare with: shard GLDv2 with its index "
            "and test photos, or one's own folders with --hold-out."
        )
    solution = read_retrieval_solution(root / RETRIEVAL_SOLUTION)
    if not solution.relevant:
        raise LandmarkRetrievalError(
            f"All queries in {root / RETRIEVAL_SOLUTION} are Ignored: mark some as Private, or remove the file."
        )
    return ShardedPhotos.open(root / "test"), ShardedPhotos.open(root / "index"), solution


def train_folder(root: str | Path, which: str) -> Path:
    """Where the shards of training set `which` are: `<root>/train_<which>`, or `<root>/train` for data without such
    sets.

    Raises:
        LandmarkRetrievalError: there is neither; the message lists what there is.
    """
    root = Path(root)
    if not root.is_dir():
        raise LandmarkRetrievalError(
            f"There is no data at {root}: write shards there with `landmark-retrieval shard`, or set data.root to "
            f"their folder."
        )
    for folder in (root / f"train_{which}", root / "train"):
        if folder.is_dir():
            return folder
    held = sorted(path.name.removeprefix("train_") for path in root.glob("train*") if path.is_dir())
    raise LandmarkRetrievalError(
        f"{root} holds no training set {which!r} (it has: {', '.join(held) or 'none'}): write it with "
        "`landmark-retrieval shard`, or set data.train_set."
    )
