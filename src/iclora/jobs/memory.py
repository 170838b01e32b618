"""Errors that mean too little memory, and what helps."""

from __future__ import annotations

from iclora.settings import Settings

__all__ = ["less_memory", "out_of_memory"]


def out_of_memory(error: BaseException) -> bool:
    """True if an allocator says that there is no more: CUDA's, MPS's, a CPU's or Python's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in said for sign in signs)


def less_memory(model: type[Settings]) -> str:
    """What helps against too little memory, by what the verb can be told."""
    ways = {
        "vram": "set `vram` to auto (see `iclora plan`)",
        "resolutions": "train at smaller `resolutions`",
        "size": "make a smaller `size`",
        "precision": "keep the base in a lower `precision`, such as int8",
    }
    own = [way for name, way in ways.items() if name in model.model_fields]
    text = ", ".join([*own, "or use a machine with more memory"])
    return text[0].upper() + text[1:] + "."
