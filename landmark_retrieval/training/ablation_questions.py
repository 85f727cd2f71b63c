"""What the ablations ask: the runs and measurements that answer a question, and what is compared with what."""

from dataclasses import dataclass
from typing import Any, Literal

How = Literal["evaluate", "size", "neck", "rerank", "recognize", "ensemble"]

FOLDER = "experiment/ablation"
"""Of the curricula, below the folder of the config groups."""

BASE, CLEANED = "base", "data_cleaned"
VARIANTS = (
    BASE,
    "pooling_gem",
    "pooling_dolg_released",
    "loss_softmax",
    "loss_arcface",
    "loss_sub_center",
    "stages_one_large",
    "stages_three",
    "data_clean",
    CLEANED,
    "hybrid_mean",
    "hybrid_token",
)
"""What is trained, in the order of training; the sub-centers that clean for `data_cleaned` are those of `base`."""


@dataclass(frozen=True)
class Measurement:
    """Figures of one run, or of several together.

    Attributes:
        runs: variants that have to be trained; none for the features of ImageNet.
        how: `evaluate`, at the image size of the model's card; the same at another `size`, or with another `neck`;
            `rerank`: lists re-ranked; `recognize`: the recognition of the challenges; `ensemble`: lists added up.
        setting: px, the power of a whitening, the name of a re-ranker, or whether non-landmarks have a say.
    """

    runs: tuple[str, ...]
    how: How = "evaluate"
    setting: Any = None


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        measurement: its name in `MEASUREMENTS`.
        label: for a person.
        against: the measurement that it is compared with, if any.
    """

    measurement: str
    label: str
    against: str | None = None


@dataclass(frozen=True)
class Question:
    """A table.

    Attributes:
        name: for the command line.
        title: for a person.
        rows: in order.
        note: what a reader has to know.
        figure: that is compared, a key of `FIGURES`.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str = ""
    figure: str = "map_at_100"


FIGURES = {"map_at_100": "mAP@100", "precision_at_1": "P@1", "gap": "GAP"}
"""Name in ablation.json -> name in a table. All are in [0, 1], in tables in percent."""

MEASUREMENTS: dict[str, Measurement] = {
    "imagenet": Measurement(()),
    **{name: Measurement((name,)) for name in VARIANTS},
    **{f"size_{px}": Measurement((BASE,), "size", px) for px in (128, 192, 320)},
    "neck_whitened": Measurement((BASE,), "neck", 0.3),
    **{f"rerank_{name}": Measurement((BASE,), "rerank", name) for name in ("soft", "alpha_query_expansion")},
    "recognition": Measurement((BASE,), "recognize", False),
    "recognition_non_landmark": Measurement((BASE,), "recognize", True),
    "ensemble": Measurement((BASE, "pooling_gem"), "ensemble"),
}

_BASE_LABEL = "DOLG, orthogonal fusion (base)"

QUESTIONS = (
    Question(
        "features",
        "Training against ImageNet features",
        (Row("imagenet", "EfficientNet-Lite0 as ImageNet left it, GeM"), Row(BASE, _BASE_LABEL, "imagenet")),
        "ImageNet features are the same whatever the seed.",
    ),
    Question(
        "pooling",
        "Pooling",
        (
            Row("pooling_gem", "GeM"),
            Row("pooling_dolg_released", "DOLG, fusion as in the code released in 2021", "pooling_gem"),
            Row(BASE, _BASE_LABEL, "pooling_gem"),
        ),
    ),
    Question(
        "loss",
        "Loss",
        (
            Row("loss_softmax", "softmax of scaled cosines"),
            Row("loss_arcface", "ArcFace, margin 0.3", "loss_softmax"),
            Row("loss_sub_center", "three sub-centers, margin 0.3", "loss_arcface"),
            Row(BASE, "three sub-centers, dynamic margins (base)", "loss_sub_center"),
        ),
        "Softmax is that of scaled cosines, one center per landmark and no margin, which is not a plain linear "
        "classifier. Each line is compared with the one above.",
    ),
    Question(
        "stages",
        "Stages",
        (Row("stages_one_large", "one stage, 192 px"), Row("stages_three", "128, 160, 192 px", "stages_one_large")),
        "The three stages: 128 px of the cleaned set, then 160 px and 192 px of the full set at a falling rate. They "
        "see as many photos as the one stage, at a smaller size on the whole: they take less time.",
    ),
    Question(
        "data",
        "Training photos",
        (
            Row(BASE, "full set (base)"),
            Row("data_clean", "cleaned set", BASE),
            Row(CLEANED, "full set, cleaned by the sub-centers of base", BASE),
        ),
        "All see as many photos, fewer different ones more often. The cleaned set has fewer landmarks.",
    ),
    Question(
        "hybrid",
        "Hybrid-Swin-Transformer",
        (
            Row("hybrid_mean", "mean over the patches"),
            Row("hybrid_token", "virtual token", "hybrid_mean"),
        ),
        "Swin starts from nothing here, since its ImageNet weights need a model hub: figures are low, and say little "
        "about what the token does in a network that has learnt something.",
    ),
    Question(
        "size",
        "Size of the photos that are described",
        (
            Row("size_128", "smaller", BASE),
            Row("size_192", "smaller", BASE),
            Row(BASE, "as in the other tables (base)"),
            Row("size_320", "larger", BASE),
        ),
        "One model, trained as base; queries, index and the photos that vote at the same size.",
    ),
    Question(
        "neck",
        "Neck",
        (
            Row(BASE, "as trained (base)"),
            Row("neck_whitened", "PCA-whitening of the features of the training photos, as by `zoo pack`", BASE),
        ),
        "One model, trained as base. The landmarks of the index are not among those of the training photos.",
    ),
    Question(
        "reranking",
        "Re-ranking",
        (
            Row(BASE, "none (base)"),
            Row("rerank_soft", "soft, by votes of the training photos", BASE),
            Row("rerank_alpha_query_expansion", "alpha query expansion", BASE),
        ),
        "The landmarks of the index are not among those that vote.",
    ),
    Question(
        "recognition",
        "Recognition",
        (
            Row(BASE, "vote of the 3 nearest training photos (base)", "recognition"),
            Row("recognition", "quantile transform, sums by landmark"),
            Row("recognition_non_landmark", "the same, less the likeness to non-landmarks", "recognition"),
        ),
        figure="gap",
    ),
    Question(
        "ensemble",
        "Ensemble of two",
        (
            Row(BASE, "DOLG (base)"),
            Row("pooling_gem", "GeM", BASE),
            Row("ensemble", "both: lists added up, descriptors side by side for GAP", BASE),
        ),
        "Both of the same seed.",
    ),
)


def is_hybrid(variant: str) -> bool:
    """Whether a variant is among those that take longest and learn least, for which seeds are counted apart."""
    return variant.startswith("hybrid_")
