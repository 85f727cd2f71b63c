"""Descriptors and labels -> loss. Needs torch only, and nothing else of this package."""

from landmark_retrieval.heads.margins import dynamic_margins
from landmark_retrieval.heads.sub_center_arcface import SubCenterArcFace, arcface_logits

__all__ = ["SubCenterArcFace", "arcface_logits", "dynamic_margins"]
