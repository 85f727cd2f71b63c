"""The metrics as torchmetrics classes: for validation loops, on one process or many.

All of them take the whole solution when they are made, and are told predictions batch by batch. Values are those of
`landmark_retrieval.metrics.functional` over all queries of the solution: a query that was not given counts as one
without prediction, which is also how `forward` judges a single batch. They are float64 tensors, the same to the bit on
any number of processes.
"""

from landmark_retrieval.metrics.classes.recognition import GlobalAveragePrecision
from landmark_retrieval.metrics.classes.retrieval import (
    LandmarkMeanAveragePrecision,
    MeanPosition,
    MeanPrecision,
    RecallAtK,
)
from landmark_retrieval.metrics.classes.revisited import RevisitedMeanAveragePrecision

__all__ = [
    "GlobalAveragePrecision",
    "LandmarkMeanAveragePrecision",
    "MeanPosition",
    "MeanPrecision",
    "RecallAtK",
    "RevisitedMeanAveragePrecision",
]
