"""Bases of true size with random weights, made where they are used.

No file is read, and no weight passes through the machine's memory: a module begins on torch's meta
device, and one layer after the other is made on the device, quantised there, and its numbers freed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from iclora.models import load_model
from iclora.models.base import Text
from iclora.models.folder import FolderModel
from iclora.models.outline import META, as_loaded, shipped_outline
from iclora.models.quantize import Frozen
from iclora.settings import Precision

__all__ = ["fill", "open_random", "random_denoiser", "random_text"]


def open_random(base: str, device: str, precision: Precision = "full") -> FolderModel:
    """A base whose settings ship with iclora, with random weights of its denoiser on a device."""
    folder = shipped_outline(base)
    assert folder is not None, f"no settings of {base} ship"
    model = load_model(str(folder), device, "bf16", weights=False, precision=precision)
    assert isinstance(model, FolderModel)
    model.name = base
    random_denoiser(model)
    return model


def random_denoiser(model: FolderModel) -> None:
    """Put a denoiser of the base's settings on its device, in its type and precision."""
    settings = model.config("transformer")
    with META:
        net: Any = model.network_class.from_config(settings)
    net = as_loaded(net, model.dtype).requires_grad_(False).eval()
    if model.precision != "full":
        _make_quantised(net, model)
    _make(net, model.device)
    fill(net)
    model.__dict__["denoiser"] = net


def _make_quantised(net: nn.Module, model: FolderModel) -> None:
    """Make the linear layers of the blocks one by one, so that none but one is ever whole."""
    names = [
        name
        for name, module in net.named_modules()
        if type(module) is nn.Linear and name.startswith(model.block_prefixes)
    ]
    for number, name in enumerate(names):
        above, _, own = name.rpartition(".")
        parent = net.get_submodule(above)
        layer = getattr(parent, own).to_empty(device=model.device)
        fill(layer, number)
        setattr(parent, own, Frozen(layer, model.precision, model.device))


def _make(net: nn.Module, device: torch.device) -> None:
    """Give what is on the meta device memory on another one, without numbers."""
    for name, module in net.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(t.is_meta for t in own):
            assert not list(module.buffers(recurse=False)), (
                f"{name} has numbers that are no weights"
            )
            module.to_empty(device=device, recurse=False)


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> None:
    """Draw weights: norms near 1, all others normal with deviation 0.02; never zeros."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():  # Codes of a quantised layer.
            continue
        at = parameter.device
        generator = generators.setdefault(at, torch.Generator(at).manual_seed(seed))
        norm = "norm" in name and name.endswith("weight") and parameter.ndim == 1
        parameter.normal_(1.0 if norm else 0.0, 0.02, generator=generator)


def random_text(model: FolderModel) -> Text:
    """A text of the greatest length as its encoders would give it, in random numbers."""
    settings = model.config("transformer")
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    shapes["prompt"] = (model.max_text_tokens, int(settings["joint_attention_dim"]))
    if "pooled_projection_dim" in settings:
        shapes["pooled"] = (int(settings["pooled_projection_dim"]),)
    return {
        name: torch.randn(shape, generator=generator).to(model.dtype)
        for name, shape in shapes.items()
    }
