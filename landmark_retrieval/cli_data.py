"""`landmark-retrieval check | bench`: whether shards are whole, and how fast they can be read."""

import argparse
from typing import Any


def add_data(commands: Any) -> None:
    """Add the two commands to the parsers of the command line."""
    check = commands.add_parser("check", help="compare shards with the checksums in their manifests")
    check.add_argument("data", help="folder written by `shard`")
    check.add_argument("--workers", type=int, help="processes (default: one per core)")
    check.set_defaults(run=_check)

    bench = commands.add_parser("bench", help="show where the time goes from shards to batches")
    bench.add_argument("data", help="folder written by `shard`, or the URL of one")
    bench.add_argument("--set", default="c", help="training set (default: %(default)s)")
    bench.add_argument("--image-size", type=int, default=256, metavar="PX", help="(default: %(default)s)")
    bench.add_argument("--batch-size", type=int, default=64, metavar="N", help="(default: %(default)s)")
    bench.add_argument("--batches", type=int, default=20, metavar="N", help="to measure (default: %(default)s)")
    bench.add_argument("--workers", type=int, help="decoding processes (default: one per core, at most 8)")
    bench.add_argument("--transforms", default="fast", help="fast or albumentations (default: %(default)s)")
    bench.set_defaults(run=_bench)


def _check(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.data.checking import check_data

    for name, manifest in check_data(arguments.data, arguments.workers).items():
        print(f"{name}: {manifest.photos:,} photos in {len(manifest.shards):,} shards are what they were written as")


def _bench(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.data.batches import default_workers
    from landmark_retrieval.data.mixture import Mixture
    from landmark_retrieval.data.places import place
    from landmark_retrieval.data.timing import measure_input

    source = Mixture.open(place(arguments.data), arguments.set)
    workers = default_workers() if arguments.workers is None else arguments.workers
    times = measure_input(
        source,
        arguments.image_size,
        arguments.batch_size,
        arguments.batches,
        workers,
        arguments.transforms,
    )
    print(f"\n{source}, {arguments.image_size} px, {times.bytes_per_photo / 1e3:.0f} kB a photo\n")
    total = sum(times.steps.values())
    for step, milliseconds in times.steps.items():
        print(f"{step:28s} {milliseconds:8.3f} ms a photo  {milliseconds / total:6.1%}")
    print(f"\none process:  {times.alone:8.0f} photos/s")
    print(f"{times.workers} workers:    {times.loaded:8.0f} photos/s, from shards to batches on the device")
    if times.broken:
        print(f"{times.broken:,} of {times.photos:,} photos cannot be decoded: look with `landmark-retrieval check`")
