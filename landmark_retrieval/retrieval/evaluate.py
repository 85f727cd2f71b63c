"""Query and index photos -> ranked lists -> figures, and the photos to look at."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from landmark_retrieval.data.batches import PhotoSource
from landmark_retrieval.data.dataset import train_place
from landmark_retrieval.data.importers.folder import without_blanks
from landmark_retrieval.data.importers.revisited import GroundTruth
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.solutions import write_recognition_predictions, write_retrieval_predictions
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import write_json
from landmark_retrieval.metrics.functional import average_precisions
from landmark_retrieval.retrieval.benchmarks import Benchmark, open_benchmark
from landmark_retrieval.retrieval.extract import broken_photos, extract
from landmark_retrieval.retrieval.gallery import GalleryEntry, GalleryResult, write_gallery
from landmark_retrieval.retrieval.judge import TOP, recognition_figures, retrieval_figures, revisited_figures, scalars
from landmark_retrieval.retrieval.rerank import soft_vote
from landmark_retrieval.retrieval.revisited import open_distractors, rank_positives
from landmark_retrieval.retrieval.search import exact_search
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.store_rows import StoreRows

METRICS, PREDICTIONS, RECOGNITION_PREDICTIONS = "metrics.json", "predictions.csv", "recognition_predictions.csv"


@dataclass(frozen=True)
class Evaluation:
    """How well a model finds the index photos of each query's landmark.

    Attributes:
        metrics: the figures that are one number each, such as `map_at_100`, `precision_at_1`, `precision_at_10` (shares
            in [0, 1]); of Revisited Oxford and Paris `map_medium`, `mp_at_1_medium` and so on.
        ranked: for each query that counts, index ids, best first, at most 100.
        scores: the cosines of those.
        average_precision: of each query that counts; of Revisited Oxford and Paris in Medium.
        relevant: for each query that counts, the right index ids.
        broken: photos that could not be decoded, with the reason; a broken query counts as 0.
        report: all figures, as they are in metrics.json; see `judge`.
        ignored: for each query, index ids that are neither right nor wrong.
    """

    metrics: dict[str, float]
    ranked: dict[str, list[str]]
    scores: dict[str, list[float]]
    average_precision: dict[str, float]
    relevant: dict[str, list[str]]
    broken: dict[str, str]
    report: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    card: Mapping[str, Any],
    data: str | Path | Benchmark,
    out: str | Path,
    bank: str | None = None,
    distractors: Sequence[str | Path] = (),
    **extraction: Any,
) -> Evaluation:
    """Describe the query and index photos of a data set, search, and compare with what is right.

    Args:
        model: in eval mode.
        card: of the model.
        data: shards as `landmark-retrieval shard` writes them, or one's own folders; see `open_benchmark`.
        out: gets the stores `query`, `index` (and that of the bank), `predictions.csv`, and `metrics.json`.
        bank: name of a training set, "c", for example (see `train_place`), by whose photos the landmarks of the queries
            are recognised: the soft vote of the 3 nearest. The data needs recognition_solution.csv. The answers are
            written to `recognition_predictions.csv`.
        distractors: for Revisited Oxford and Paris, folders of descriptor stores, made by the same model, whose photos
            are searched as well and are never right.
        extraction: passed on to `extract`.

    Raises:
        LandmarkRetrievalError: the data has no query and index photos, or no query that counts; a bank or distractors
            do not go with it; distractors are of another model, or have a photo twice; see also `extract`.
    """
    out = Path(out)
    benchmark = data if isinstance(data, Benchmark) else open_benchmark(data)
    bank_photos = None if bank is None else _open_bank(benchmark, bank)
    if distractors and benchmark.truth is None:
        raise LandmarkRetrievalError(
            f"Distractors are for Revisited Oxford and Paris, and {benchmark.place} is something else: leave them out."
        )
    queries = extract(model, card, benchmark.queries, out / "query", title="queries", **extraction)
    taken = {"the queries": benchmark.queries.ids, "the database": benchmark.index.ids}
    others = open_distractors(distractors, queries.card, taken) if distractors else []
    index = extract(model, card, benchmark.index, out / "index", title="index", **extraction)
    broken = broken_photos(out / "query") | broken_photos(out / "index")

    ranked, scores = _search(queries, index, others)
    relevant = benchmark.solution.relevant
    ignored: dict[str, list[str]] = {}
    if benchmark.truth is not None:
        report, average_precision = _judge_revisited(benchmark.truth, queries, index, others)
        names = benchmark.truth.images
        ignored = {
            query: [names[row] for row in truth["junk"]]
            for query, truth in zip(benchmark.truth.queries, benchmark.truth.relevant, strict=True)
        }
    else:
        ranked = {query: row for query, row in ranked.items() if query in relevant}
        report = retrieval_figures(ranked, benchmark.solution)
        average_precision = average_precisions(ranked, relevant, TOP)
    if bank_photos is not None:
        assert benchmark.recognition is not None
        store = extract(model, card, bank_photos, out / f"bank-{bank_photos.name}", title="bank", **extraction)
        broken |= broken_photos(out / f"bank-{bank_photos.name}")
        recognised = _recognise(queries, store, bank_photos)
        recognised = {query: found for query, found in recognised.items() if query in benchmark.recognition.relevant}
        report["recognition"] = {"bank": bank_photos.name, **recognition_figures(recognised, benchmark.recognition)}
        write_recognition_predictions(out / RECOGNITION_PREDICTIONS, recognised)
    else:
        # of an earlier call, with a bank
        (out / RECOGNITION_PREDICTIONS).unlink(missing_ok=True)
    write_retrieval_predictions(out / PREDICTIONS, ranked)
    write_json(out / METRICS, report)
    scores = {query: scores[query] for query in ranked}
    return Evaluation(scalars(report), ranked, scores, average_precision, relevant, broken, report, ignored)


def _open_bank(benchmark: Benchmark, bank: str) -> ShardedPhotos:
    if benchmark.recognition is None:
        raise LandmarkRetrievalError(
            f"{benchmark.place} holds no recognition_solution.csv, so the landmarks of its queries are not known: "
            "leave out the bank."
        )
    photos = ShardedPhotos.open(train_place(benchmark.place, bank))
    for name in photos.manifest.classes:
        if not name.isdecimal():
            raise LandmarkRetrievalError(
                f"{photos.place} has the landmark {name!r}, where recognition_solution.csv speaks of numbers: name "
                "another training set."
            )
    return photos


def _search(
    queries: DescriptorStore, index: DescriptorStore, distractors: Sequence[DescriptorStore]
) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """For each query the ids of the nearest photos in all stores together, and their cosines."""
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or None
    ids = list(index.ids)
    rows = queries.load()
    found = [exact_search(rows, StoreRows(index), TOP, devices=devices)]
    for store in distractors:
        numbers, scores = exact_search(rows, StoreRows(store), TOP, devices=devices)
        found.append((numbers + len(ids), scores))
        ids += map(without_blanks, store.ids)
    numbers, scores = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    numbers, scores = np.take_along_axis(numbers, order, 1), np.take_along_axis(scores, order, 1)
    ranked = {query: [ids[row] for row in found] for query, found in zip(queries.ids, numbers.tolist(), strict=True)}
    return ranked, dict(zip(queries.ids, scores.tolist(), strict=True))


def _judge_revisited(
    truth: GroundTruth, queries: DescriptorStore, index: DescriptorStore, distractors: Sequence[DescriptorStore]
) -> tuple[dict[str, Any], dict[str, float]]:
    row_of = {image: row for row, image in enumerate(truth.images)}
    rows = np.array([row_of[image] for image in index.ids])
    order = np.argsort(rows)
    relevant = dict(zip(truth.queries, truth.relevant, strict=True))
    positions = rank_positives(
        queries.load(),
        StoreRows(index, order),
        rows[order],
        [relevant[query] for query in queries.ids],
        [StoreRows(store) for store in distractors],
        device=_device(),
    )
    place = {query: number for number, query in enumerate(queries.ids)}
    nothing = np.empty(0, np.int64)  # is found for a query that could not be decoded
    in_order = {
        setup: [found[place[query]] if query in place else nothing for query in truth.queries]
        for setup, found in positions.items()
    }
    report, average_precision = revisited_figures(in_order, truth.relevant)
    report["distractors"] = sum(map(len, distractors))
    counted = zip(truth.queries, average_precision, strict=True)
    return report, {query: value for query, value in counted if not math.isnan(value)}


def _recognise(queries: DescriptorStore, bank: DescriptorStore, photos: ShardedPhotos) -> dict[str, tuple[int, float]]:
    """For each query the landmark of the photos nearest to it, and how sure that is."""
    labels = photos.labels[photos.ids.rows(bank.ids)]
    images = torch.from_numpy(queries.load()).to(_device())
    found, confidences = soft_vote(images, StoreRows(bank), labels, k=3)
    landmarks = [int(photos.manifest.classes[label]) for label in found.tolist()]
    return dict(zip(queries.ids, zip(landmarks, confidences.tolist(), strict=True), strict=True))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def gallery_entries(
    evaluation: Evaluation, queries: PhotoSource, index: PhotoSource, chosen: Sequence[str], top: int = 10
) -> Iterator[GalleryEntry]:
    """Rows for `gallery.write_gallery`: the chosen queries, each with its `top` best photos, right ones marked."""
    wanted = {photo for query in chosen for photo in evaluation.ranked.get(query, [])[:top]}
    found = index.find(wanted)
    asked = queries.find(set(chosen))
    for query in chosen:
        right, neither = set(evaluation.relevant[query]), set(evaluation.ignored.get(query, ()))
        pairs = list(zip(evaluation.ranked.get(query, []), evaluation.scores.get(query, []), strict=True))[:top]
        results = [
            GalleryResult(photo, found.get(photo), score, None if photo in neither else photo in right)
            for photo, score in pairs
        ]
        yield GalleryEntry(query, asked.get(query), results, evaluation.average_precision[query])


def write_evaluation_gallery(
    path: str | Path,
    evaluation: Evaluation,
    data: str | Path | Benchmark,
    title: str,
    subtitle: str = "",
    most: int = 100,
) -> None:
    """Write the page of an evaluation: at most `most` queries, taken evenly, each with its ten best photos."""
    benchmark = data if isinstance(data, Benchmark) else open_benchmark(data)
    chosen = list(evaluation.average_precision)
    chosen = chosen[:: max(1, -(-len(chosen) // most))]
    entries = gallery_entries(evaluation, benchmark.queries, benchmark.index, chosen)
    write_gallery(path, entries, title, subtitle, evaluation.metrics)
