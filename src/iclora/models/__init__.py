"""Base models: one contract (`base`), its families, and how a name becomes a model (`load`)."""

from iclora.models.base import DiffusionModel
from iclora.models.registry import load_model

__all__ = ["DiffusionModel", "load_model"]
