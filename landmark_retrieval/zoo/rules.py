"""How the tensors of other code are called with us, which of them are no part of the network, and what it computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from landmark_retrieval.errors import LandmarkRetrievalError

Source = Literal["henkel2021", "feymanpriv_dolg"]


@dataclass(frozen=True)
class Rules:
    """How the checkpoints of one source become weights of one class of models.

    Attributes:
        rename: pattern at the start of a name -> what stands there with us; any other name is left over.
        drop: pattern of a name -> why nothing is lost without it.
        head: name of the head's weight.
        centers: rows of the head per class.
        images: what the source's code feeds its network, in words.
        arguments: of our constructor, so that it computes what the released code computes.
        zeros: our parameters that the source does not have, and that do nothing where they are zero.
        bgr: name with us of the first convolution, if the source feeds it B, G, R.
        card: what the card says of images, where it is not what the architecture's says.
        licence: of the source's repository, SPDX name.
    """

    rename: Mapping[str, str]
    drop: Mapping[str, str]
    head: str
    centers: int
    images: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    bgr: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "MIT"


_RULES: dict[tuple[str, str], Rules] = {
    ("henkel2021", "DOLGNet"): Rules(
        rename={
            **{rf"{name}\.": f"{name}." for name in ("backbone", "global_pool", "neck")},
            r"mam\.conv1\.": "local_context.join.",
            r"mam\.d": "local_context.branches.",
            r"attention2d\.conv1\.": "attention.project.",
            r"attention2d\.bn\.": "attention.norm.",
            r"attention2d\.conv2\.": "attention.score.",
            r"conv_g\.": "global_project.0.",
            r"bn_g\.": "global_project.1.",
        },
        drop={},
        head="head.weight",
        centers=3,
        images="R, G, B, squashed to a square bilinearly",
        arguments={"fusion": "released2021"},
    ),
    ("henkel2021", "HybridSwinNet"): Rules(
        rename={
            r"backbone\.patch_embed\.backbone\.": "patch_embedding.cnn.",
            r"backbone\.patch_embed\.proj\.": "patch_embedding.project.",
            # timm has moved what halves the grid from the end of a stage to the start of the next one
            **{rf"backbone\.layers\.{i}\.downsample\.": f"transformer.layers.{i + 1}.downsample." for i in range(3)},
            r"backbone\.layers\.": "transformer.layers.",
            r"backbone\.norm\.": "transformer.norm.",
            r"neck\.": "neck.",
        },
        drop={
            r".*\.(attn_mask|relative_position_index)$": "computed from the image size",
            r"global_pool\.p$": "never run by the source: Swin averages its grid itself",
        },
        head="head.weight",
        centers=3,
        images="R, G, B, squashed to a square bilinearly",
        arguments={"aggregation": "mean", "position_embedding": False},
        zeros=("patch_embedding.position",),
    ),
    ("feymanpriv_dolg", "DOLGResNet"): Rules(
        rename={
            r"globalmodel\.stem\.conv\.": "backbone.conv1.",
            r"globalmodel\.stem\.bn\.": "backbone.bn1.",
            # s1.b2.f.c_bn -> layer1.1.bn3; 23 blocks at most, in ResNet-101
            **{
                rf"globalmodel\.s(\d)\.b{block + 1}\.{theirs}\.": rf"backbone.layer\1.{block}.{ours}."
                for block in range(23)
                for theirs, ours in {
                    "proj": "downsample.0",
                    "bn": "downsample.1",
                    **{rf"f\.{letter}": f"conv{i}" for i, letter in enumerate("abc", 1)},
                    **{rf"f\.{letter}_bn": f"bn{i}" for i, letter in enumerate("abc", 1)},
                }.items()
            },
            r"localmodel\.aspp\.im_pool\.1\.": "local_context.pool.",
            r"localmodel\.aspp\.aspp\.0\.": "local_context.point.",
            **{rf"localmodel\.aspp\.aspp\.{i + 1}\.": f"local_context.branches.{i}." for i in range(3)},
            r"localmodel\.aspp\.conv_after\.0\.": "local_context.join.",
            r"localmodel\.conv1\.": "attention.project.",
            r"localmodel\.bn\.": "attention.norm.",
            r"localmodel\.conv2\.": "attention.score.",
            r"pool_g\.": "global_pool.",
            r"fc_t\.": "global_project.",
            r"fc\.": "neck.",
        },
        drop={r"desc_cls\.t$": "a running average of the training loss"},
        head="desc_cls.weight",
        centers=1,
        images="B, G, R, of their own shape and at five scales",
        bgr="backbone.conv1.weight",
        # described at their original size, which in Revisited Oxford and Paris is at most this
        card={"resize": "original", "image_size": 1024},
    ),
}


def rules_for(source: str, kind: str) -> Rules:
    """The rules for a source and a class of models. LandmarkRetrievalError if there are none."""
    if source not in get_args(Source):
        raise LandmarkRetrievalError(f"source is {' or '.join(map(repr, get_args(Source)))}, not {source!r}.")
    if (source, kind) not in _RULES:
        kinds = " and ".join(k for s, k in _RULES if s == source)
        raise LandmarkRetrievalError(
            f"Weights of {source} become a {kinds}, never a {kind}: name a model of such a class."
        )
    return _RULES[source, kind]
