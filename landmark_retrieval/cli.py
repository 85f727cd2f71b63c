"""`landmark-retrieval COMMAND`: shards, cleaning, index, search, evaluation, export, the zoo, and the demo."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from landmark_retrieval import __version__
from landmark_retrieval.cli_data import add_data
from landmark_retrieval.cli_evaluate import add_evaluate
from landmark_retrieval.cli_extract import add_extract
from landmark_retrieval.cli_search import add_search
from landmark_retrieval.cli_shard import add_shard
from landmark_retrieval.cli_zoo import add_zoo
from landmark_retrieval.commands import exit_on_error
from landmark_retrieval.memory import keep_freed_blocks

MODEL_HELP = (
    "run folder of a finished stage or another saved model, weights of the zoo (`zoo list --pretrained`), "
    "hf-hub:OWNER/NAME, or `imagenet` for an untrained baseline (default: %(default)s)"
)


@exit_on_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and call what it names."""
    arguments = _parser().parse_args(argv)
    keep_freed_blocks()
    arguments.run(arguments)


def _clean(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.training.cleaning import CLEAN, LEFT_OUT, clean

    done = clean(
        arguments.run_folder, arguments.data, arguments.out, arguments.set, arguments.angle, arguments.drop_sub_centers
    )
    out = Path(arguments.out)
    print(
        f"{out / CLEAN}: kept {done.kept:,} of {done.photos:,} photos, dropped {done.dropped:,} more than "
        f"{arguments.angle:g} degrees from the dominant center of their landmark"
    )
    if done.left_out:
        print(f"{len(done.left_out):,} landmarks are left out, see {out / LEFT_OUT}")
    if done.unknown:
        print(
            f"{done.unknown:,} photos are of landmarks that {arguments.run_folder} has not learnt: left out, unscored"
        )
    if arguments.drop_sub_centers:
        unseen = f"; {done.unseen:,} have no photo here and keep their first" if done.unseen else ""
        print(f"{out}: one center per landmark{unseen}. Start from it with stage.weights={out} head.sub_centers=1")
    _report_broken(done.broken)


def _export(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.zoo import load_model
    from landmark_retrieval.zoo.export import SUFFIXES, export_model

    model, card = load_model(arguments.model)
    card["name"] = card.get("name") or Path(arguments.model).resolve().name
    out = arguments.out or Path(card["name"]).name + SUFFIXES[arguments.format]
    exported = export_model(model, card, out, arguments.format)
    for file in exported.files:
        print(f"{file}: {file.stat().st_size:,} bytes")
    for side in ("input", "output", "resize"):
        print(f"{side}: {exported.metadata[side]}")
    if exported.difference is None:
        print("not checked against the module: pip install landmark-retrieval[export] brings onnxruntime")
    else:
        print(f"largest difference from the module: {exported.difference:.1e}")


def _demo(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.demo import run_demo

    run_demo(arguments.out, arguments.data, arguments.overrides)


def _report_broken(broken: dict[str, str]) -> None:
    if broken:
        photo, reason = next(iter(broken.items()))
        print(f"{len(broken):,} photos were left out, the first is {photo}: {reason}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="landmark-retrieval",
        description="Find the same landmark again in millions of photos. Training has its own commands: "
        "python -m landmark_retrieval.train and python -m landmark_retrieval.curriculum.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add_shard(commands)

    add_search(commands, MODEL_HELP)
    add_evaluate(commands, MODEL_HELP)

    clean = commands.add_parser(
        "clean", help="find wrongly labelled training photos: those far from their landmark's dominant center"
    )
    clean.add_argument(
        "run_folder", metavar="RUN", help="run folder of a finished stage, best with several sub-centers"
    )
    clean.add_argument("--data", required=True, metavar="SHARDS", help="folder written by `shard`")
    clean.add_argument(
        "--out", required=True, metavar="DIR", help="folder for train_clean.csv, angles.csv, descriptors"
    )
    clean.add_argument("--set", choices=("c", "x", "full"), help="training set (default: the one RUN was trained on)")
    clean.add_argument(
        "--angle", type=float, default=75.0, metavar="DEGREES", help="drop photos beyond it (default: %(default)g)"
    )
    clean.add_argument(
        "--drop-sub-centers",
        action="store_true",
        help="also write the model with one center per landmark, for a next stage with head.sub_centers=1",
    )
    clean.set_defaults(run=_clean)

    export = commands.add_parser(
        "export", help="write a model as one file for other programs: uint8 photos in, descriptors out"
    )
    export.add_argument("model", help="run folder of a finished stage, or another model that `index` takes")
    export.add_argument("--format", choices=("onnx", "torch-export"), default="onnx", help="(default: %(default)s)")
    export.add_argument("--out", metavar="FILE", help="(default: the model's name with .onnx or .pt2)")
    export.set_defaults(run=_export)

    add_extract(commands, MODEL_HELP)
    add_data(commands)
    add_zoo(commands)

    demo = commands.add_parser(
        "demo", help="the whole story: photos, shards, training in stages, search, figures, gallery"
    )
    demo.add_argument("--data", help="folder in the layout of GLDv2 (default: draw landmarks)")
    demo.add_argument("--out", default="demo", help="folder for everything (default: %(default)s)")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="config keys for every stage")
    demo.set_defaults(run=_demo)
    return parser


if __name__ == "__main__":
    main()
