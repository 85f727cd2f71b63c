"""Photos with questions and answers, in any of the forms that `landmark-retrieval evaluate` takes."""

from dataclasses import dataclass
from pathlib import Path

from landmark_retrieval.data.dataset import RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION, open_queries_and_index
from landmark_retrieval.data.importers.folder import read_folder, read_queries_and_index, split_queries
from landmark_retrieval.data.importers.revisited import GroundTruth, read_ground_truth
from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.data.places import LocalPlace, Place, place
from landmark_retrieval.data.prepare import GROUND_TRUTH
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.solutions import Solution, read_recognition_solution
from landmark_retrieval.errors import LandmarkRetrievalError


@dataclass(frozen=True)
class Benchmark:
    """What retrieval is measured on.

    Attributes:
        place: where it lies.
        queries: the query photos.
        index: the index photos.
        solution: for each query that counts, the right index photos.
        recognition: for each query its landmarks, where they are known.
        truth: of Revisited Oxford and Paris, where `solution` holds the positives of Medium.
        left_out: queries that do not count because nothing in the index is right for them.
    """

    place: Place
    queries: PhotoTable | ShardedPhotos
    index: PhotoTable | ShardedPhotos
    solution: Solution[str]
    recognition: Solution[int] | None = None
    truth: GroundTruth | None = None
    left_out: int = 0


def open_benchmark(data: str | Path | Place, seed: int = 0) -> Benchmark:
    """Open query photos, index photos, and what is right.

    Args:
        data: folder or URL of shards, as `landmark-retrieval shard` writes them, with a retrieval_solution.csv or the
            revisited.json of Revisited Oxford and Paris; or a folder of one's own with a folder per landmark, of whose
            photos a quarter become queries, or with the folders `query` and `index` that have a folder per landmark
            each.
        seed: of the choice of queries from a folder per landmark.

    Raises:
        LandmarkRetrievalError: it is none of these, has no query that counts, or something is damaged.
    """
    root = place(data) if isinstance(data, str | Path) else data
    if root.has(GROUND_TRUTH):
        return _revisited(root)
    if isinstance(root, LocalPlace) and not root.folders() and not root.has(RETRIEVAL_SOLUTION):
        return _folders(root, seed)
    queries, index, solution = open_queries_and_index(root)
    recognition = None
    if root.has(RECOGNITION_SOLUTION):
        recognition = read_recognition_solution(root.file(RECOGNITION_SOLUTION))
    return Benchmark(root, queries, index, solution, recognition)


def _revisited(root: Place) -> Benchmark:
    truth = read_ground_truth(root.file(GROUND_TRUTH))
    relevant = {
        query: [truth.images[row] for row in (*rows["easy"], *rows["hard"])]
        for query, rows in zip(truth.queries, truth.relevant, strict=True)
    }
    counted = {query: images for query, images in relevant.items() if images}
    usage = {query: "Private" if images else "Ignored" for query, images in relevant.items()}
    queries, index = (ShardedPhotos.open(root.below(name)) for name in ("test", "index"))
    for name, photos, known in (("test", queries, truth.queries), ("index", index, truth.images)):
        if unknown := set(photos.ids).difference(known):
            raise LandmarkRetrievalError(
                f"{root.below(name)} holds {min(unknown)}, which {root.where(GROUND_TRUTH)} does not know: shard the "
                "photos once more with the ground truth of the same set."
            )
    return Benchmark(root, queries, index, Solution(counted, usage), truth=truth)


def _folders(root: LocalPlace, seed: int) -> Benchmark:
    if all((root.path / name).is_dir() for name in ("query", "index")):
        queries, index, relevant = read_queries_and_index(root.path)
    else:
        queries, index, relevant = split_queries(read_folder(root.path), seed)
    usage = {query: "Private" if query in relevant else "Ignored" for query in queries.ids}
    return Benchmark(root, queries, index, Solution(relevant, usage), left_out=len(queries) - len(relevant))
