"""`landmark-retrieval evaluate`: how well a model, or a file of predictions, finds and recognises landmarks."""

import argparse
import sys
from pathlib import Path
from typing import Any

from landmark_retrieval.cli_views import add_views, card_of
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo import DEFAULT_MODEL


def add_evaluate(commands: Any, model_help: str) -> None:
    """Add the command to the parsers of the command line; `model_help` explains --model."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure retrieval and recognition",
        description="Measure retrieval, and recognition where the landmarks are known. Writes metrics.json, "
        "predictions.csv, gallery.html and the descriptors to OUT.",
    )
    evaluate.add_argument(
        "data",
        help="folder written by `shard` (Google Landmarks, Revisited Oxford or Paris), or a folder of photos with a "
        "folder per landmark, or with query/ and index/ that have these",
    )
    evaluate.add_argument("--model", help=model_help.replace("%(default)s", DEFAULT_MODEL))
    add_views(evaluate)
    evaluate.add_argument("--out", help="folder for descriptors, metrics.json, predictions.csv, gallery.html")
    evaluate.add_argument(
        "--bank", metavar="SET", help="training set (c, x, ...) by which the landmarks of the queries are recognised"
    )
    evaluate.add_argument(
        "--distractors",
        nargs="+",
        metavar="STORE",
        help="for Revisited Oxford and Paris: descriptors of photos to be searched, too, and never right",
    )
    evaluate.add_argument(
        "--seed", type=int, help="of the choice of a quarter of the photos of each folder as queries (default: 0)"
    )
    evaluate.add_argument(
        "--predictions",
        metavar="FILE.csv",
        help="judge this file in Kaggle's format (id,images or id,landmarks) instead of a model; DATA needs no photos",
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.retrieval.judge import table

    if arguments.predictions:
        report = _judge(arguments)
        print("\n".join(table(report)))
        return
    from landmark_retrieval.retrieval.benchmarks import open_benchmark
    from landmark_retrieval.retrieval.evaluate import evaluate, write_evaluation_gallery
    from landmark_retrieval.zoo import load_model

    if not arguments.out:
        raise LandmarkRetrievalError("The descriptors and results need a place: add --out FOLDER.")
    benchmark = open_benchmark(arguments.data, arguments.seed or 0)
    name = arguments.model or DEFAULT_MODEL
    model, card = load_model(name)
    card = card_of(arguments, card)
    evaluation = evaluate(
        model, card, benchmark, arguments.out, bank=arguments.bank, distractors=arguments.distractors or ()
    )
    print(f"\n{name} on {arguments.data}: {len(benchmark.queries):,} queries, {len(benchmark.index):,} index photos")
    if distractors := evaluation.report.get("distractors"):
        print(f"{distractors:,} distractors")
    print()
    print("\n".join(table(evaluation.report)))
    print()
    if benchmark.left_out:
        print(f"{benchmark.left_out:,} queries do not count: nothing in the index is right for them", file=sys.stderr)
    if evaluation.broken:
        photo, reason = next(iter(evaluation.broken.items()))
        print(f"{len(evaluation.broken):,} photos were left out, the first is {photo}: {reason}", file=sys.stderr)
    out = Path(arguments.out)
    write_evaluation_gallery(out / "gallery.html", evaluation, benchmark, f"{name} on {arguments.data}")
    print(f"{out}: metrics.json, predictions.csv, gallery.html")


def _judge(arguments: argparse.Namespace) -> dict[str, Any]:
    from landmark_retrieval.files import write_json
    from landmark_retrieval.retrieval.judge import judge_predictions

    for option in ("model", "image_size", "resize", "scales", "flip", "bank", "distractors", "seed"):
        if getattr(arguments, option) is not None:
            raise LandmarkRetrievalError(
                f"--{option.replace('_', '-')} is for the evaluation of a model, not of --predictions: leave it out."
            )
    report = judge_predictions(arguments.predictions, arguments.data)
    if arguments.out:
        write_json(Path(arguments.out) / "metrics.json", report)
    return report
