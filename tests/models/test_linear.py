"""LoRA over frozen layers: activations against autograd in float64, and what is refused."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F

from iclora.models.linear import activate, check_loras, linear, linear_of_two, linears
from iclora.models.quantize import KINDS, Frozen

WIDTH, OUT, RANK = 32, 24, 4


def layer_of(kind="full", seed=0, width=WIDTH, out=OUT, **more):
    """A layer as PEFT wraps it, both halves random, in float64."""
    torch.manual_seed(seed)
    base = nn.Linear(width, out).requires_grad_(False)
    base = base if kind == "full" else Frozen(base, kind, torch.device("cpu"))
    net = nn.ModuleDict({"one": base})
    config = {"r": RANK, "lora_alpha": 6, "target_modules": ["one"], **more}
    inject_adapter_in_model(LoraConfig(**config), net)
    for name, parameter in net.named_parameters():
        if "lora_" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
        if parameter.is_floating_point():
            parameter.data = parameter.data.double()
    return net["one"]


def formula(layer, x):
    """What the layer computes, by its own weights, for autograd."""
    base = layer.base_layer
    kind = base.kind if isinstance(base, Frozen) else "full"
    parts = base.parts if isinstance(base, Frozen) else (base.weight,)
    weight = KINDS[kind].unpack(parts, torch.float64)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return F.linear(x, weight, base.bias) + F.linear(F.linear(x, down), up) * 1.5


def plain(x, activation):
    if activation == "gelu":
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    if activation == "swiglu":
        gate, value = x.chunk(2, -1)
        return gate * torch.sigmoid(gate) * value
    return x


def width_of(activation):
    return 2 * WIDTH if activation == "swiglu" else WIDTH


def gradients(y, *of):
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    return torch.autograd.grad((y * weights).sum(), of)


@pytest.mark.parametrize("activation", ["none", "gelu", "swiglu"])
@pytest.mark.parametrize("kind", ["full", "int8", "nf4"])
def test_output_and_gradients_are_those_of_autograd_in_float64(activation, kind):
    layers = [layer_of(kind, seed) for seed in range(2)]
    halves = [h for each in layers for n, h in each.named_parameters() if "lora_" in n]
    x = torch.randn(2, 5, width_of(activation), dtype=torch.float64, requires_grad=True)
    ours = torch.cat(linears(layers, x, activation), -1)
    read = plain(x, activation)
    theirs = torch.cat([formula(each, read) for each in layers], -1)
    # int8 and nf4 keep scales and tables in float32.
    near = {"atol": 1e-12, "rtol": 1e-9} if kind == "full" else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(ours, theirs, **near)
    found = zip(gradients(ours, x, *halves), gradients(theirs, x, *halves), strict=True)
    for mine, other in found:
        torch.testing.assert_close(mine, other, **near)


@pytest.mark.parametrize("activation", ["none", "gelu", "swiglu"])
def test_a_layer_of_two_inputs_has_the_gradients_of_the_layer_of_both(activation):
    layer = layer_of()
    halves = [h for n, h in layer.named_parameters() if "lora_" in n]
    first = torch.randn(1, 5, 12, dtype=torch.float64, requires_grad=True)
    wide = 2 * (WIDTH - 12) if activation == "swiglu" else WIDTH - 12
    second = torch.randn(1, 5, wide, dtype=torch.float64, requires_grad=True)
    ours = linear_of_two(layer, first, second, activation)
    theirs = formula(layer, torch.cat([first, plain(second, activation)], -1))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
    of = (first, second, *halves)
    for mine, other in zip(gradients(ours, *of), gradients(theirs, *of), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_of_an_activated_input_only_the_input_itself_is_kept(activation):
    layer = layer_of()
    x = torch.randn(1, 64, width_of(activation), dtype=torch.float64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear(layer, x, activation)
    sizes = sorted(t.numel() for t in kept if t.shape[-2:-1] == (64,))
    assert sizes == [64 * RANK, x.numel()]


def test_swiglu_is_diffusers_own():
    from diffusers.models.transformers.transformer_flux2 import Flux2SwiGLU

    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(activate(x, "swiglu"), Flux2SwiGLU()(x))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"use_dora": True}, "variant"),
        ({"lora_dropout": 0.1}, "dropout"),
        ({"lora_bias": True}, "bias"),
    ],
)
def test_a_lora_that_would_be_computed_in_part_is_refused(more, reason):
    net = nn.ModuleDict({"one": nn.Linear(WIDTH, OUT)})
    config = LoraConfig(r=RANK, target_modules=["one"], **more)
    inject_adapter_in_model(config, net)
    with pytest.raises(AssertionError, match=reason):
        check_loras(net)
    check_loras(nn.ModuleDict({"one": layer_of()}))


def test_a_disabled_adapter_is_gone_even_if_it_was_merged():
    layer = layer_of()
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    base = layer.base_layer(x)
    layer.merge()
    torch.testing.assert_close(linear(layer, x), formula_merged := layer.base_layer(x))
    assert not torch.allclose(formula_merged, base)
    layer.enable_adapters(False)
    torch.testing.assert_close(linear(layer, x), base)
