"""Find the same landmark again in millions of photos.

Importing this costs next to nothing: what is named below is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landmark_retrieval.heads import SubCenterArcFace, dynamic_margins
    from landmark_retrieval.models import DOLGNet, GeMNet

__version__ = "0.1.0"
__all__ = ["DOLGNet", "GeMNet", "SubCenterArcFace", "__version__", "dynamic_margins"]

_ROOMS = {
    "DOLGNet": "models",
    "GeMNet": "models",
    "SubCenterArcFace": "heads",
    "dynamic_margins": "heads",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
