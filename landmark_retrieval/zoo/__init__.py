"""Models by name, and models as files: how they are made, fetched, converted, saved and loaded."""

from typing import TYPE_CHECKING

from landmark_retrieval.lazy import exports
from landmark_retrieval.zoo.records import DEFAULT_MODEL

if TYPE_CHECKING:
    from landmark_retrieval.zoo.convert import convert_state_dict
    from landmark_retrieval.zoo.create import create_model, load_model
    from landmark_retrieval.zoo.export import export_model
    from landmark_retrieval.zoo.records import list_models
    from landmark_retrieval.zoo.saved_model import save_model

__all__ = [
    "DEFAULT_MODEL",
    "convert_state_dict",
    "create_model",
    "export_model",
    "list_models",
    "load_model",
    "save_model",
]

# so that names and records can be looked up without waiting for torch
__getattr__ = exports(
    __name__,
    {
        "convert_state_dict": "convert",
        "create_model": "create",
        "export_model": "export",
        "list_models": "records",
        "load_model": "create",
        "save_model": "saved_model",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
