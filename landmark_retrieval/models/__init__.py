"""Images -> descriptors. Needs torch and timm only, and nothing else of this package."""

from landmark_retrieval.models.dolg import DOLGNet
from landmark_retrieval.models.gem import GeMNet

__all__ = ["DOLGNet", "GeMNet"]
