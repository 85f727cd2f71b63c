"""The metrics of Google Landmarks v2 and of Revisited Oxford and Paris, as functions of predictions and a solution.

Recognition: `predictions` maps a query id to `(label, score)`; retrieval: to a ranked list of ids, best first.
`solution` maps *every* query id to its list of labels or relevant ids; queries without a prediction may be missing from
`predictions`. All arithmetic is float64, all values are fractions in [0, 1] unless said otherwise.

Sources: Weyand et al., Google Landmarks Dataset v2, arXiv 2004.01804, section 5 (GAP, also called micro-AP, mAP@100);
Radenovic et al., Revisiting Oxford and Paris, arXiv 1803.11285, section 3.3 (Easy, Medium, Hard; mAP and mP@k).
"""

from landmark_retrieval.metrics.functional.recognition import global_average_precision, top1_accuracy
from landmark_retrieval.metrics.functional.retrieval import (
    average_precisions,
    first_correct_ranks,
    mean_average_precision,
    mean_median_position,
    mean_precisions,
    recall_at_k,
)
from landmark_retrieval.metrics.functional.revisited import revisited_average_precision, revisited_from_positions

__all__ = [
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
