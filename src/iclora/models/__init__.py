"""Base models: one contract (`base`), a folder per family, and how a name becomes a model.

base       the contract: parts, token grid, velocity
registry   from a name to a base; families and bases that other packages add
folder     a diffusers layout on disk: settings, parts, fingerprints
flow       rectified flow: noise, target, schedule, the Euler loop
passes     what the forward passes of all families share
linear     linear layers with LoRA; quantize keeps them in few bits; attention by any kernel
outline    a base without numbers, to count what a run takes
tiny       a random base for tests
"""

from iclora.models.base import DiffusionModel
from iclora.models.registry import load_model

__all__ = ["DiffusionModel", "load_model"]
