"""`landmark-retrieval index | search`: one's own photos."""

import argparse
import json
import sys
from typing import Any

from landmark_retrieval.zoo import DEFAULT_MODEL


def add_search(commands: Any, model_help: str) -> None:
    """Add the two commands to the parsers of the command line; `model_help` explains --model."""
    from landmark_retrieval.retrieval.indexes.faiss_kinds import KINDS

    index = commands.add_parser(
        "index",
        help="describe the photos below a folder and build an index",
        description="Describe the photos below a folder and build an index. Again with the same folder, the index "
        "follows it: new and changed photos are described, those that are gone leave the index.",
    )
    index.add_argument("photos", help="folder of the photos")
    index.add_argument("--model", default=DEFAULT_MODEL, help=model_help)
    index.add_argument("--out", required=True, metavar="INDEX", help="folder for the index")
    index.add_argument(
        "--kind", choices=("auto", *KINDS), default="auto", help="of the index (default: by the number of photos)"
    )
    index.add_argument(
        "--dtype", choices=("float32", "float16"), help="of the descriptors (default: float32, or that of the index)"
    )
    index.add_argument("--whiten", type=int, metavar="N", help="PCA-whiten the descriptors to N numbers")
    index.add_argument("--device", help="cpu, or cuda to describe and search on GPUs (default: a GPU describes)")
    index.set_defaults(run=_index)

    search = commands.add_parser("search", help="find the photos most alike to a query")
    search.add_argument("index", help="folder of the index")
    search.add_argument("queries", nargs="+", metavar="query", help="photo, or folder of photos")
    search.add_argument("--top", type=int, default=20, metavar="N", help="photos per query (default: 20)")
    search.add_argument("--device", default="cpu", help="cpu, or cuda to search on GPUs (default: %(default)s)")
    search.add_argument("--json", action="store_true", help="print JSON")
    search.add_argument("--gallery", metavar="FILE.html", help="also write a page with the photos")
    search.set_defaults(run=_search)


def _index(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.retrieval.photo_index import index_photos
    from landmark_retrieval.zoo import load_model

    model, card = load_model(arguments.model)
    done = index_photos(
        model,
        card,
        arguments.model,
        arguments.photos,
        arguments.out,
        kind=arguments.kind,
        whiten=arguments.whiten,
        index_device=arguments.device or "cpu",
        dtype=arguments.dtype,
        device=arguments.device,
    )
    print(f"{arguments.out}: {len(done.index):,} photos, {done.index.dim} numbers each")
    print(f"{done.added:,} photos were described, {len(done.removed):,} have left the index")
    print(done.index.why)
    if done.broken:
        photo, reason = next(iter(done.broken.items()))
        print(f"{len(done.broken):,} photos were left out, the first is {photo}: {reason}", file=sys.stderr)


def _search(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.retrieval.photo_search import gallery_entries, model_of, search_photos
    from landmark_retrieval.zoo import load_model

    model, card = load_model(model_of(arguments.index))
    found = search_photos(model, card, arguments.index, arguments.queries, arguments.top, arguments.device)
    if arguments.json:
        rows = [{"query": str(f.query), "photos": list(map(str, f.photos)), "scores": f.scores} for f in found]
        print(json.dumps(rows, indent=2))
    else:
        for row in found:
            print(row.query)
            for rank, (photo, score) in enumerate(zip(row.photos, row.scores, strict=True), 1):
                print(f"{rank:4d}  {score:.4f}  {photo}")
    if arguments.gallery:
        from landmark_retrieval.retrieval.gallery import write_gallery

        write_gallery(
            arguments.gallery, gallery_entries(found), "Found photos", f"{len(found)} queries in {arguments.index}"
        )
        print(f"gallery: {arguments.gallery}", file=sys.stderr)
