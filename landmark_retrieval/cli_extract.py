"""`landmark-retrieval extract`: photos -> a descriptor store."""

import argparse
import sys
from typing import Any

from landmark_retrieval.cli_views import add_views, card_of
from landmark_retrieval.zoo import DEFAULT_MODEL


def add_extract(commands: Any, model_help: str) -> None:
    """Add the command to the parsers of the command line; `model_help` explains --model."""
    extract = commands.add_parser(
        "extract",
        help="describe photos and keep the descriptors",
        description="Describe photos and keep the descriptors in a store. Interrupted, the same command goes on. For "
        "several GPUs or machines: torchrun ... -m landmark_retrieval.cli extract ..., or the same command several "
        "times at once, each with a GPU of its own (--device cuda:N) and a --part-size that leaves parts for all.",
    )
    extract.add_argument(
        "photos", help="folder of photos, shards, data in the layout of Google Landmarks, or CSV (id, path)"
    )
    extract.add_argument("--model", default=DEFAULT_MODEL, help=model_help)
    extract.add_argument("--out", required=True, metavar="STORE", help="folder for the descriptors")
    extract.add_argument("--split", help="which photos of a data set: test, index, train_c, ...")
    extract.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="(default: %(default)s)")
    add_views(extract)
    extract.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: %(default)s)")
    extract.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: one per core, max. 8)")
    extract.add_argument("--part-size", type=int, metavar="N", help="photos per part (default: 10000 at most)")
    extract.add_argument("--device", help="cuda, cpu, ... (default: a GPU where there is one)")
    extract.set_defaults(run=_extract)


def _extract(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.data.sources import open_photos
    from landmark_retrieval.retrieval.extract import BROKEN, broken_photos, extract, rank_and_world
    from landmark_retrieval.zoo import load_model

    photos = open_photos(arguments.photos, arguments.split)
    model, card = load_model(arguments.model)
    rank, world = rank_and_world()
    store = extract(
        model,
        card_of(arguments, card),
        photos,
        arguments.out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        dtype=arguments.dtype,
        part_size=arguments.part_size,
        device=arguments.device,
        rank=rank,
        world=world,
    )
    if rank == 0:
        print(f"{arguments.out}: {len(store):,} photos, {store.dim} numbers each, {store.dtype}")
        if broken := broken_photos(arguments.out):
            photo, reason = next(iter(broken.items()))
            print(
                f"{len(broken):,} photos were left out (see {BROKEN} there), the first is {photo}: {reason}",
                file=sys.stderr,
            )
