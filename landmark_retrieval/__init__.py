"""Find the same landmark again in millions of photos.

Importing this costs next to nothing: what is named below is imported when it is first used.
"""

from typing import TYPE_CHECKING

from landmark_retrieval.lazy import exports

if TYPE_CHECKING:
    from landmark_retrieval.heads import SubCenterArcFace, dynamic_margins
    from landmark_retrieval.models import DOLGNet, DOLGResNet, GeMNet, HybridSwinNet
    from landmark_retrieval.zoo import create_model, list_models

__version__ = "0.1.0"
__all__ = [
    "DOLGNet",
    "DOLGResNet",
    "GeMNet",
    "HybridSwinNet",
    "SubCenterArcFace",
    "__version__",
    "create_model",
    "dynamic_margins",
    "list_models",
]

__getattr__ = exports(
    __name__,
    {
        "DOLGNet": "models",
        "DOLGResNet": "models",
        "GeMNet": "models",
        "HybridSwinNet": "models",
        "SubCenterArcFace": "heads",
        "create_model": "zoo",
        "dynamic_margins": "heads",
        "list_models": "zoo",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
