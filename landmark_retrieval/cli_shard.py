"""`landmark-retrieval shard gldv2 | folder | csv | revisited`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError

# the layouts that an option belongs to, where it is not for all of them
_LAYOUTS = {
    "sets": ("gldv2",),
    "verify_md5": ("gldv2",),
    "clean_csv": ("gldv2", "folder"),
    "hold_out": ("folder",),
    "csv": ("csv",),
    "name": ("csv",),
    "known": ("csv",),
    "ground_truth": ("revisited",),
    "seed": ("gldv2", "folder", "csv"),
}
_NEEDED = {"csv": "csv", "revisited": "ground_truth"}


def add_shard(commands: Any) -> None:
    """Add the `shard` command to the subparsers of the command line."""
    shard = commands.add_parser("shard", help="write photos into tar shards for training and evaluation")
    shard.add_argument(
        "layout",
        choices=("gldv2", "folder", "csv", "revisited"),
        help="gldv2: its CSVs, and its archives as downloaded or a/b/c/<id>.jpg; folder: a folder per landmark; csv: "
        "photos that a CSV lists; revisited: Revisited Oxford or Paris",
    )
    shard.add_argument("photos", help="folder of the photos")
    shard.add_argument("--out", required=True, help="folder for the shards")
    shard.add_argument("--photos-per-shard", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    shard.add_argument(
        "--longest-side", type=int, metavar="PX", help="scale larger photos down to it (default: keep every byte)"
    )
    shard.add_argument("--seed", type=int, help="of the mixing of training photos (default: 0)")
    shard.add_argument("--workers", type=int, help="processes (default: one per core)")
    shard.add_argument(
        "--skip-bad", action="store_true", help="leave out missing and broken photos instead of stopping"
    )
    shard.add_argument(
        "--clean-csv",
        metavar="FILE",
        help="photos to train on, as `clean` writes them: gldv2: in place of train_clean.csv; folder: no others",
    )

    gldv2 = shard.add_argument_group("gldv2")
    gldv2.add_argument(
        "--sets", nargs="+", choices=("c", "x", "full"), help="training sets: cleaned, expanded, all (default: c x)"
    )
    gldv2.add_argument(
        "--verify-md5",
        action="store_true",
        default=None,
        help="compare the archives with their md5 files first (beside them, or in md5sum/<split>)",
    )
    folder = shard.add_argument_group("folder")
    folder.add_argument("--hold-out", type=float, metavar="F", help="share of landmarks for validation (default: 0)")
    listed = shard.add_argument_group("csv")
    listed.add_argument("--csv", metavar="FILE", help="columns id, landmark_id and perhaps path (below PHOTOS)")
    listed.add_argument("--name", help="of the training set: shards go to OUT/train_NAME (default: extra)")
    listed.add_argument(
        "--known", metavar="SHARDS", help="training shards whose landmarks count: others are left out, labels agree"
    )
    revisited = shard.add_argument_group("revisited")
    revisited.add_argument("--ground-truth", metavar="FILE", help="gnd_roxford5k.pkl or gnd_rparis6k.pkl")
    shard.set_defaults(run=_shard)


def _shard(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.data import prepare
    from landmark_retrieval.data.manifest import Manifest

    options = _options(arguments)
    options |= {
        "photos_per_shard": arguments.photos_per_shard,
        "skip_bad": arguments.skip_bad,
        "workers": arguments.workers,
        "longest_side": arguments.longest_side,
    }
    if "sets" in options:
        options["sets"] = tuple(options["sets"])
    if "csv" in options:
        options["csv_path"] = options.pop("csv")
    functions: dict[str, Callable[..., dict[str, Manifest]]] = {
        "gldv2": prepare.shard_gldv2,
        "folder": prepare.shard_folder,
        "csv": prepare.shard_csv,
        "revisited": prepare.shard_revisited,
    }
    manifests = functions[arguments.layout](arguments.photos, arguments.out, **options)
    for name, manifest in manifests.items():
        classes = f", {len(manifest.classes):,} landmarks" if manifest.classes else ""
        refused = f", {manifest.refused:,} refused (see refused.csv)" if manifest.refused else ""
        print(
            f"{Path(arguments.out) / name}: {manifest.photos:,} photos{classes}, {len(manifest.shards):,} "
            f"shards{refused}"
        )


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options given that belong to the layout. LandmarkRetrievalError for those of another, or a missing one."""
    given = {name: value for name in _LAYOUTS if (value := getattr(arguments, name)) is not None}
    for name in given:
        if arguments.layout not in _LAYOUTS[name]:
            raise LandmarkRetrievalError(
                f"{_flag(name)} is for `shard {'` and `shard '.join(_LAYOUTS[name])}`, not for `shard "
                f"{arguments.layout}`: leave it out."
            )
    needed = _NEEDED.get(arguments.layout)
    if needed and needed not in given:
        raise LandmarkRetrievalError(f"`shard {arguments.layout}` needs {_flag(needed)} FILE: see `shard --help`.")
    return given


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
