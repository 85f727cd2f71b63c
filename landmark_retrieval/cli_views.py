"""What commands that describe photos ask of them: size, shape, scales, mirror images."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any


def add_views(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    parser.add_argument("--image-size", type=int, metavar="PX", help="(default: the model's)")
    parser.add_argument(
        "--resize",
        choices=("squash", "longest_side", "shortest_side", "original"),
        help="to a square, to a length of one side, or only photos larger than --image-size, if that is given "
        "(default: the model's)",
    )
    parser.add_argument(
        "--scales", type=_scales, metavar="0.5,1|dolg", help="average over scales of the image; dolg: its paper's five"
    )
    parser.add_argument("--flip", action="store_true", default=None, help="average over the mirror image, too")


def card_of(arguments: argparse.Namespace, card: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a model, changed as the options say."""
    from landmark_retrieval.retrieval.views import card_as_asked

    return card_as_asked(card, arguments.image_size, arguments.resize, arguments.scales, arguments.flip)


def _scales(text: str) -> Sequence[float]:
    if text == "dolg":
        from landmark_retrieval.retrieval.views import DOLG_SCALES

        return DOLG_SCALES
    try:
        return [float(scale) for scale in text.split(",")]
    except ValueError:
        # argparse puts the option's name before it
        raise argparse.ArgumentTypeError(f"numbers with commas between them, or dolg, not {text!r}") from None
