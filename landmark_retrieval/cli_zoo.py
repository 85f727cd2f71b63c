"""`landmark-retrieval zoo list | info | convert | pack | push`."""

import argparse
import json
import sys
from typing import Any


def add_zoo(commands: Any) -> None:
    """Add the `zoo` command to the subparsers of the command line."""
    zoo = commands.add_parser("zoo", help="models by name: what there is, conversion of other code's weights, the hub")
    actions = zoo.add_subparsers(title="actions", required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="the names, and which weights there are")
    listing.add_argument("pattern", nargs="?", default="*", help="with wildcards, for example 'dolg*'")
    listing.add_argument("--pretrained", action="store_true", help="only weights that can be fetched")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    info = actions.add_parser("info", help="all that is known about a model and its weights")
    info.add_argument("name", help="architecture, or architecture.tag")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)

    convert = actions.add_parser("convert", help="make a model of a checkpoint of other code")
    convert.add_argument("file", help="as that code saved it, or its state dict, or .safetensors")
    convert.add_argument(
        "--source",
        required=True,
        choices=("henkel2021", "feymanpriv_dolg"),
        help="ChristofHenkel/kaggle-landmark-2021-1st-place, or feymanpriv/DOLG",
    )
    convert.add_argument("--model", required=True, metavar="NAME", help="architecture of the zoo")
    convert.add_argument("--out", required=True, metavar="DIR", help="folder for the model")
    convert.add_argument("--keep-head", action="store_true", help="also write head.safetensors")
    convert.add_argument(
        "--image-size", type=int, metavar="PX", help="side of the square images (default: the model's)"
    )
    convert.add_argument(
        "--set",
        nargs="+",
        default=[],
        type=_key_and_value,
        metavar="key=value",
        help="arguments of the model in place of the zoo's, for example backbone=tf_efficientnet_b0",
    )
    convert.set_defaults(run=_convert)

    pack = actions.add_parser("pack", help="make a small model of a finished stage: neck whitened, weights as float16")
    pack.add_argument("folder", metavar="run", help="run folder of a finished stage or another saved model")
    pack.add_argument(
        "shards", help="folder with the photos that it was trained on; the whitening is learned from them"
    )
    pack.add_argument("--set", default="full", help="c, x or full of GLDv2 (default: %(default)s)")
    pack.add_argument("--out", required=True, metavar="DIR", help="folder for the model")
    pack.add_argument("--name", metavar="NAME", help="architecture.tag, for the card")
    pack.add_argument(
        "--image-size", type=int, metavar="PX", help="side of the square images (default: as the card says)"
    )
    pack.add_argument("--dim", type=int, metavar="N", help="numbers per descriptor (default: those of the model)")
    pack.add_argument("--power", type=float, default=0.3, help="of the whitening, 0 to 1 (default: %(default)s)")
    pack.add_argument("--keep-neck", action="store_true", help="as it was trained, no whitening")
    pack.add_argument("--float32", action="store_true", help="weights as they are, twice the size")
    for key, what in (("licence", "of the weights"), ("source", "where they come from"), ("figure", "what they reach")):
        pack.add_argument(f"--{key}", metavar="TEXT", help=f"{what}, for the card")
    pack.set_defaults(run=_pack)

    push = actions.add_parser("push", help="put a model on the Hugging Face hub")
    push.add_argument("folder", help="with model.json and model.safetensors")
    push.add_argument("repository", metavar="hub-id", help="OWNER/NAME; made if needed")
    push.add_argument("--public", action="store_true", help="let everybody see a repository that is made now")
    push.set_defaults(run=_push)


def _list(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.columns import aligned
    from landmark_retrieval.zoo.records import find, list_models, tags_of

    rows: list[dict[str, Any]] = []
    for name in list_models(arguments.pattern, arguments.pretrained):
        architecture, weights = find(name)
        known = [weights] if weights else tags_of(name)
        rows.append(
            {
                "name": name,
                "model": architecture.model,
                "image_size": (weights and weights.image_size) or architecture.image_size,
                "weights": [weights.tag for weights in known if weights.location],
                "by_hand": [weights.tag for weights in known if not weights.location],
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    lines = [("name", "model", "px", "weights")]
    for row in rows:
        tags = [*row["weights"], *(f"({tag})" for tag in row["by_hand"])]
        lines.append((row["name"], row["model"], str(row["image_size"]), ", ".join(tags) or "-"))
    print("\n".join(aligned(lines)))
    if any(row["by_hand"] for row in rows):
        print("(tag): cannot be fetched, `landmark-retrieval zoo info NAME` says what to do", file=sys.stderr)


def _info(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from landmark_retrieval.zoo.create import count_parameters
    from landmark_retrieval.zoo.records import find, tags_of

    architecture, weights = find(arguments.name)
    known = [weights] if weights else tags_of(architecture.name)
    facts = asdict(architecture) | {"parameters": count_parameters(arguments.name)}
    records = [
        {"name": record.name, "can_be_fetched": record.location is not None, **asdict(record)} for record in known
    ]
    if arguments.json:
        print(json.dumps(facts | {"weights": records}, indent=2))
        return
    _print_facts(facts, "")
    for record in records:
        print(f"weights {record['name']}")
        _print_facts({key: value for key, value in record.items() if key not in ("name", "architecture", "tag")}, "  ")
    if not records:
        print("weights: none are released")


def _print_facts(facts: dict[str, Any], indent: str) -> None:
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name}={item}" for name, item in value.items())
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = f"{value:,}"
        elif isinstance(value, tuple):
            value = ", ".join(map(str, value))
        if value:
            print(f"{indent}{key.replace('_', ' ')}: {value}")


def _convert(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.zoo.convert import convert_checkpoint

    done = convert_checkpoint(
        arguments.file,
        arguments.source,
        arguments.model,
        arguments.out,
        arguments.keep_head,
        arguments.image_size,
        dict(arguments.set),
    )
    print(f"{arguments.out}: {len(done.state)} tensors of {arguments.model}")
    if done.head is not None:
        kept = "kept in head.safetensors" if arguments.keep_head else "dropped (--keep-head keeps it)"
        print(f"head {tuple(done.head.shape)}: {kept}")
    for why, count in done.dropped.items():
        print(f"dropped {count} tensors: {why}")
    if done.filled:
        print(f"zeros for {', '.join(done.filled)}: the source has none")


def _pack(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.data.dataset import train_place
    from landmark_retrieval.data.reading import ShardedPhotos
    from landmark_retrieval.training.packing import pack
    from landmark_retrieval.zoo import load_model

    model, card = load_model(arguments.folder)
    facts = {key: getattr(arguments, key) for key in ("name", "image_size", "licence", "source", "figure")}
    card = pack(
        model,
        card,
        ShardedPhotos.open(train_place(arguments.shards, arguments.set)),
        arguments.out,
        embedding_dim=arguments.dim,
        power=None if arguments.keep_neck else arguments.power,
        half=not arguments.float32,
        **{key: value for key, value in facts.items() if value is not None},
    )
    print(f"{arguments.out}: {card['weights_size'] / 1e6:.1f} MB. Use it: load_model({arguments.out!r})")


def _push(arguments: argparse.Namespace) -> None:
    from landmark_retrieval.zoo.hub import push

    print(push(arguments.folder, arguments.repository, arguments.public))


def _key_and_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
