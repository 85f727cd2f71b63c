"""Metrics of landmark recognition and retrieval: plain functions over dictionaries."""

from landmark_retrieval.metrics.functional import (
    average_precisions,
    first_correct_ranks,
    global_average_precision,
    mean_average_precision,
    mean_median_position,
    mean_precisions,
    revisited_average_precision,
    top1_accuracy,
)

__all__ = [
    "average_precisions",
    "first_correct_ranks",
    "global_average_precision",
    "mean_average_precision",
    "mean_median_position",
    "mean_precisions",
    "revisited_average_precision",
    "top1_accuracy",
]
