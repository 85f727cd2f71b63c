"""Models as files: how they are saved and loaded."""

from landmark_retrieval.zoo.saved_model import load_model, save_model

__all__ = ["load_model", "save_model"]
