"""What `accelerate launch` hands on in the environment, and what of it a run does not follow.

The launcher starts the processes and tells each which one it is; that is used. Its other settings,
of `accelerate config` or its options, are meant for programs built on accelerate's Accelerator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["unheeded", "without_deepspeed"]

_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
_NUMBERS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient accumulation", "`batch`"),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient clipping", "`grad_clip`"),
    "ACCELERATE_TORCH_DEVICE": ("device", "`device`"),
}


def unheeded(environment: Mapping[str, str], device: str) -> list[str]:
    """Settings of the launcher that do not count, each with the one of ours that does.

    Args:
        environment: variables as `accelerate launch` sets them.
        device: kind of the device that the run computes on, such as "cuda".
    Source: accelerate 1.15, utils/launch.py.
    """
    found = []
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision.lower() not in ("", "no"):
        found.append(f"mixed precision {precision} (`dtype` and `precision` do)")
    dynamo = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if dynamo.lower() not in ("", "no"):
        found.append(f"dynamo {dynamo.lower()} (`compile` does)")
    for name, engine in _ENGINES.items():
        if _is_on(environment, name):
            found.append(f"{engine} (`shard` spreads a base)")
    if _is_on(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        sizes = {
            name.removeprefix("PARALLELISM_CONFIG_").removesuffix("_SIZE").lower(): value
            for name, value in environment.items()
            if name.startswith("PARALLELISM_CONFIG_") and name.endswith("_SIZE")
        }
        several = [f"{name} {size}" for name, size in sizes.items() if size not in ("", "1")]
        found.append(f"parallelism {' '.join(several)}".rstrip() + " (the processes share steps)")
    for name, (what, ours) in _NUMBERS.items():
        value = environment.get(name, "").lower()
        if value not in ("", "none") and (what, value) != ("gradient accumulation", "1"):
            found.append(f"{what} {value} ({ours} does)")
    if _is_on(environment, "ACCELERATE_USE_CPU") and device != "cpu":
        found.append(f"the CPU alone (`device` does, and this is {device})")
    return found


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1", "yes", "y", "on")


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """Let accelerate join the processes by torch, though its configuration names DeepSpeed.

    It would ask for that package, and iclora has no use for it.
    """
    kept = os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = kept
