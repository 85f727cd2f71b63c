"""Images -> descriptors. Needs torch and timm only, and nothing else of this package."""

from landmark_retrieval.models.dolg import DOLGNet
from landmark_retrieval.models.dolg_resnet import DOLGResNet
from landmark_retrieval.models.gem import GeMNet
from landmark_retrieval.models.hybrid_swin import HybridSwinNet

__all__ = ["DOLGNet", "DOLGResNet", "GeMNet", "HybridSwinNet"]
