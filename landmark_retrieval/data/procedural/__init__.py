"""Landmark photos drawn by a small software renderer: a data set without any download."""

from .dataset import generate

__all__ = ["generate"]
