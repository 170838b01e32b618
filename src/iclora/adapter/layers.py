"""LoRA layers on a base's denoiser: attach fresh ones, apply an adapter's, remove them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from iclora.adapter.formats import check_fit, fit
from iclora.files.locks import building
from iclora.models.base import DiffusionModel
from iclora.models.linear import check_loras
from iclora.models.widened import narrow

__all__ = ["Part", "apply", "attach", "check", "lora_parameters", "remove", "stack"]

Part = tuple[Mapping[str, Tensor], float]
"""An adapter's weights and the factor on their update."""

_NAME = "iclora"


def attach(
    model: DiffusionModel, *, rank: int, alpha: float, targets: str, seed: int
) -> dict[str, nn.Parameter]:
    """Add a fresh, trainable LoRA to the base: A random, B zero, both float32.

    Returns: its parameters by "<module>.lora_A.weight" and "<module>.lora_B.weight".
    """
    remove(model)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=model.lora_targets(targets), init_lora_weights=True
    )
    denoiser: Any = model.denoiser
    devices = [model.device] if model.device.type == "cuda" else []
    _forget_graphs(model)
    with building(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        denoiser.add_adapter(config, adapter_name=_NAME)
    check_loras(denoiser)
    parameters = lora_parameters(model)
    for parameter in parameters.values():
        # bf16 would lose most of AdamW's small updates.
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


def check(model: DiffusionModel, weights: Mapping[str, Tensor]) -> None:
    """Find out if `apply` would take these weights, without loading any of the base.

    A family that has to load the denoiser to know its modules is left to `apply`.

    Raises: AdapterError as `apply`.
    """
    if type(model).names is not DiffusionModel.names:
        check_fit(weights, model.names, model.name)


def apply(model: DiffusionModel, parts: Sequence[Part]) -> None:
    """Add the updates of one adapter or several to the base's denoiser, in place of any other.

    Args:
        parts: weights "<module>.lora_A.weight" (r, in) and "<module>.lora_B.weight" (out, r),
            modules by any name that `fit` knows, and their strength.
    Raises: AdapterError naming the modules the base does not have or that differ in shape; the
        base is then as it was.
    """
    before = model.applied or ()
    same = [a[0] is b[0] and a[1] == b[1] for a, b in zip(before, parts, strict=False)]
    if model.applied and len(before) == len(parts) and all(same):
        return
    fitted = [(fit(weights, model.names, model.name), strength) for weights, strength in parts]
    # At strength 0 the base alone is meant, and a product with zeros would round in another way.
    fitted = [(weights, strength) for weights, strength in fitted if strength]
    if not fitted:
        remove(model)
        model.applied = tuple(parts)
        return
    # One adapter keeps its numbers; several become one LoRA, for there is one product to compute.
    # Compiled code would hold a strength as a constant, and be made again for each other one.
    alone = len(fitted) == 1 and "sampling" not in model.compiled
    weights, strength = fitted[0] if alone else (stack(fitted), 1.0)
    remove(model)
    _forget_graphs(model)
    denoiser: Any = model.denoiser
    with building():
        denoiser.load_lora_adapter(
            {f"transformer.{key}": value for key, value in weights.items()},
            prefix="transformer",
            adapter_name=_NAME,
        )
    denoiser.set_adapters([_NAME], [strength])
    check_loras(denoiser)
    for parameter in lora_parameters(model).values():
        parameter.requires_grad_(False)
    model.applied = tuple(parts)


def stack(parts: Sequence[Part]) -> dict[str, Tensor]:
    """One LoRA whose update is the sum of several, exactly: A under A, B beside B.

    Args:
        parts: weights by the base's own modules.
    Returns: weights, float32; the rank of a module is the sum of the ranks of those that adapt it.
    """
    found: dict[str, list[Tensor]] = {}
    for weights, strength in parts:
        for key, value in weights.items():
            factor = strength if ".lora_B." in key else 1.0
            found.setdefault(key, []).append(value.float() * factor)
    return {
        key: torch.cat(values, dim=1 if ".lora_B." in key else 0) for key, values in found.items()
    }


def remove(model: DiffusionModel) -> None:
    """Take any adapter off the base's denoiser."""
    denoiser: Any = model.denoiser
    lora = bool(getattr(denoiser, "peft_config", None))
    if lora:
        _forget_graphs(model)
    narrow(denoiser)
    if lora:
        denoiser.unload_lora()
    model.applied, model.primed = None, False


def _forget_graphs(model: DiffusionModel) -> None:
    """Free recorded passes: they would run with the layers that were there."""
    if model.graphs is not None:
        model.graphs.clear()


def lora_parameters(model: DiffusionModel) -> dict[str, nn.Parameter]:
    """The LoRA parameters on the base's denoiser, by the names an adapter file uses."""
    return {
        name.replace(f".{_NAME}.", "."): parameter
        for name, parameter in model.denoiser.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }
