"""A data set as a folder of shard folders: `train_c`, `train_x` or `train`, and `index`, `test` with their solutions.

This is the form that training and evaluation read, made from GLDv2 or from a folder of one's own. It may lie at a URL.
"""

from pathlib import Path

from landmark_retrieval.data.places import LocalPlace, Place, place
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.remote.cache import Cache
from landmark_retrieval.data.solutions import Solution, read_retrieval_solution
from landmark_retrieval.errors import LandmarkRetrievalError

RETRIEVAL_SOLUTION = "retrieval_solution.csv"
RECOGNITION_SOLUTION = "recognition_solution.csv"


def open_queries_and_index(root: str | Path | Place) -> tuple[ShardedPhotos, ShardedPhotos, Solution[str]]:
    """The query photos, the index photos and the retrieval solution of a data set.

    Raises:
        LandmarkRetrievalError: it has none, no query counts, or something is damaged.
    """
    root = place(root) if isinstance(root, str | Path) else root
    if not root.has(RETRIEVAL_SOLUTION):
        raise LandmarkRetrievalError(
            f"{root} holds no {RETRIEVAL_SOLUTION}, so there is nothing to compare with: shard GLDv2 with its index "
            "and test photos, or one's own folders with --hold-out."
        )
    solution = read_retrieval_solution(root.file(RETRIEVAL_SOLUTION))
    if not solution.relevant:
        raise LandmarkRetrievalError(
            f"All queries in {root.where(RETRIEVAL_SOLUTION)} are Ignored: mark some as Private, or remove the file."
        )
    return ShardedPhotos.open(root.below("test")), ShardedPhotos.open(root.below("index")), solution


def train_place(root: Place | str | Path, which: str, cache: Cache | None = None) -> Place:
    """Where the shards of training set `which` are: `<root>/train_<which>`, or `<root>/train` for data without such
    sets; a name with a slash in it is the path or URL of a folder of shards.

    Raises:
        LandmarkRetrievalError: there is neither; the message lists what there is.
    """
    root = place(root) if isinstance(root, str | Path) else root
    if "/" in which:
        return place(which, cache)
    held = root.folders()
    for name in (f"train_{which}", "train"):
        if name in held or (isinstance(root, LocalPlace) and (root.path / name).is_dir()):
            return root.below(name)
    sets = [name.removeprefix("train_") for name in held if name.startswith("train")]
    raise LandmarkRetrievalError(
        f"{root} holds no training set {which!r} (it has: {', '.join(sets) or 'none'}): write it with "
        "`landmark-retrieval shard`, or set data.train_set."
    )
