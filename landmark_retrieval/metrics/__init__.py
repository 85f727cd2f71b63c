"""Metrics of landmark recognition and retrieval: plain functions over dictionaries, and torchmetrics classes."""

from typing import TYPE_CHECKING

from landmark_retrieval.lazy import exports
from landmark_retrieval.metrics.functional import (
    average_precisions,
    first_correct_ranks,
    global_average_precision,
    mean_average_precision,
    mean_median_position,
    mean_precisions,
    recall_at_k,
    revisited_average_precision,
    revisited_from_positions,
    top1_accuracy,
)

if TYPE_CHECKING:
    from landmark_retrieval.metrics.classes import (
        GlobalAveragePrecision,
        LandmarkMeanAveragePrecision,
        MeanPosition,
        MeanPrecision,
        RecallAtK,
        RevisitedMeanAveragePrecision,
    )

__all__ = [
    "GlobalAveragePrecision",
    "LandmarkMeanAveragePrecision",
    "MeanPosition",
    "MeanPrecision",
    "RecallAtK",
    "RevisitedMeanAveragePrecision",
    "average_precisions",
    "first_correct_ranks",
    "global_average_precision",
    "mean_average_precision",
    "mean_median_position",
    "mean_precisions",
    "recall_at_k",
    "revisited_average_precision",
    "revisited_from_positions",
    "top1_accuracy",
]

# so that the functions can be used without waiting for torch
__getattr__ = exports(__name__, {name: "classes" for name in __all__ if name[0].isupper()})


def __dir__() -> list[str]:
    return sorted(__all__)
