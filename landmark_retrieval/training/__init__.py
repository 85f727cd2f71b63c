"""Stages, and chains of them."""
