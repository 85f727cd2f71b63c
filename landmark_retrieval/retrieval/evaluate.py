"""Query and index photos -> ranked lists -> figures, and the photos to look at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from landmark_retrieval.data.batches import PhotoSource
from landmark_retrieval.data.dataset import open_queries_and_index
from landmark_retrieval.data.solutions import write_retrieval_predictions
from landmark_retrieval.files import write_json
from landmark_retrieval.metrics.functional import average_precisions, mean_average_precision, mean_precisions
from landmark_retrieval.retrieval.extract import broken_photos, extract
from landmark_retrieval.retrieval.gallery import GalleryEntry, GalleryResult, write_gallery
from landmark_retrieval.retrieval.index import PhotoIndex


@dataclass(frozen=True)
class Evaluation:
    """How well a model finds the index photos of each query's landmark.

    Attributes:
        metrics: `map_at_100`, `precision_at_1`, `precision_at_10`, in [0, 1].
        ranked: for each query that counts, index ids, best first.
        scores: the cosines of those.
        average_precision: of each query that counts.
        relevant: for each query that counts, the right index ids.
        broken: query and index photos that could not be decoded, with the reason; a broken query counts as 0.
    """

    metrics: dict[str, float]
    ranked: dict[str, list[str]]
    scores: dict[str, list[float]]
    average_precision: dict[str, float]
    relevant: dict[str, list[str]]
    broken: dict[str, str]


def evaluate(
    model: nn.Module, card: Mapping[str, Any], data: str | Path, out: str | Path, **extraction: Any
) -> Evaluation:
    """Describe the query and index photos of a data set, search, and compare with its retrieval solution.

    Args:
        model: in eval mode.
        card: of the model.
        data: folder with `test` and `index` shards and retrieval_solution.csv, as `landmark-retrieval shard` writes it.
        out: gets the stores `query` and `index`, `predictions.csv`, and `metrics.json`.
        extraction: passed on to `extract`.

    Raises:
        LandmarkRetrievalError: the data has no query and index photos, or no query that counts; see also `extract`.
    """
    out = Path(out)
    query_photos, index_photos, solution = open_queries_and_index(data)
    queries = extract(model, card, query_photos, out / "query", title="queries", **extraction)
    index = PhotoIndex.build(extract(model, card, index_photos, out / "index", title="index", **extraction))
    ids, scores = index.search(queries.load(), min(100, len(index)), card=queries.card)
    found = {
        query: (row, row_scores)
        for query, row, row_scores in zip(queries.ids, ids, scores.tolist(), strict=True)
        if query in solution.relevant
    }
    ranked = {query: row for query, (row, _) in found.items()}
    precisions = mean_precisions(ranked, solution.relevant, 10)
    evaluation = Evaluation(
        {
            "map_at_100": mean_average_precision(ranked, solution.relevant),
            "precision_at_1": precisions[0],
            "precision_at_10": precisions[9],
        },
        ranked,
        {query: row_scores for query, (_, row_scores) in found.items()},
        average_precisions(ranked, solution.relevant),
        solution.relevant,
        broken_photos(out / "query") | broken_photos(out / "index"),
    )
    write_retrieval_predictions(out / "predictions.csv", ranked)
    write_json(out / "metrics.json", evaluation.metrics)
    return evaluation


def gallery_entries(
    evaluation: Evaluation, queries: PhotoSource, index: PhotoSource, chosen: Sequence[str], top: int = 10
) -> Iterator[GalleryEntry]:
    """Rows for `gallery.write_gallery`: the chosen queries, each with its `top` best photos, right ones marked."""
    wanted = {photo for query in chosen for photo in evaluation.ranked.get(query, [])[:top]}
    found = index.find(wanted)
    asked = queries.find(set(chosen))
    for query in chosen:
        right = set(evaluation.relevant[query])
        pairs = list(zip(evaluation.ranked.get(query, []), evaluation.scores.get(query, []), strict=True))[:top]
        results = [GalleryResult(photo, found.get(photo), score, photo in right) for photo, score in pairs]
        yield GalleryEntry(query, asked.get(query), results, evaluation.average_precision[query])


def write_evaluation_gallery(
    path: str | Path, evaluation: Evaluation, data: str | Path, title: str, subtitle: str = "", most: int = 100
) -> None:
    """Write the page of an evaluation: at most `most` queries, taken evenly, each with its ten best photos."""
    queries, index, _ = open_queries_and_index(data)
    chosen = list(evaluation.average_precision)
    chosen = chosen[:: max(1, -(-len(chosen) // most))]
    entries = gallery_entries(evaluation, queries, index, chosen)
    write_gallery(path, entries, title, subtitle, evaluation.metrics)
