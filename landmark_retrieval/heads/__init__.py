"""Descriptors and labels -> loss. Needs torch only, and nothing else of this package."""

from landmark_retrieval.heads.margins import dynamic_margins
from landmark_retrieval.heads.sharded import ShardedSubCenterArcFace
from landmark_retrieval.heads.sub_center_arcface import SubCenterArcFace
from landmark_retrieval.heads.sub_centers import center_cosines, dominant_centers, drop_sub_centers

__all__ = [
    "ShardedSubCenterArcFace",
    "SubCenterArcFace",
    "center_cosines",
    "dominant_centers",
    "drop_sub_centers",
    "dynamic_margins",
]
