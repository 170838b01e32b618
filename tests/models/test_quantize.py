"""Frozen layers in few bits: how exact, how small, and their gradients against float64."""

import gc
import weakref
from functools import partial

import diffusers
import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from iclora.errors import SettingsError
from iclora.models.linear import linear as product
from iclora.models.linear import linear_of_two, linears
from iclora.models.quantize import KINDS, Frozen, check_precision, nf4_levels, quantize
from iclora.models.registry import load_model

CPU = torch.device("cpu")
PREFIXES = ("transformer_blocks.", "single_transformer_blocks.")
FEW_BITS = ["int8", "nf4", "fp8"]
LOSSLESS = ["int8", "nf4"]
"""Kinds whose products are those of the weight they unpack to."""


def linear(out=96, width=128, bias=True, seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(width, out, bias=bias)
    nn.init.normal_(layer.weight, std=0.05)
    return layer.requires_grad_(False)


def frozen(kind, **more):
    return Frozen(linear(**more), kind, CPU)


def weight_of(layer):
    """The weight a layer computes with, in float64."""
    return KINDS[layer.kind].unpack(layer.parts, torch.float32).double()


def off(found, exact):
    return float(((found.double() - exact).norm() / exact.norm()).detach())


# Rounding of a normal draw: 8 bits over +-4 sigma; 4 bits, as QLoRA's figure; 3 bits of mantissa.
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.01), ("nf4", 0.1), ("fp8", 0.03)])
def test_a_weight_comes_back_as_near_as_its_bits_allow(kind, most):
    layer = linear(out=512, width=512)
    error = off(weight_of(Frozen(layer, kind, CPU)), layer.weight.double())
    assert most / 5 < error < most


def test_nf4_has_the_sixteen_values_of_the_paper():
    # QLoRA, appendix E.
    paper = [
        -1.0,
        -0.6961928,
        -0.5250731,
        -0.3949175,
        -0.2844414,
        -0.1847734,
        -0.0910500,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.3379152,
        0.4407098,
        0.5626170,
        0.7229568,
        1.0,
    ]
    torch.testing.assert_close(nf4_levels(), torch.tensor(paper), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", FEW_BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_of_zeros_and_one_of_outliers_stay_finite(kind, dtype):
    layer = linear().to(dtype)
    layer.weight[0] = 0
    layer.weight[1, 0] = 1e4
    found = weight_of(Frozen(layer, kind, CPU))
    assert found.isfinite().all()
    assert (found[0] == 0).all()
    assert found[1, 0] == pytest.approx(1e4, rel=0.05)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4.25), ("fp8", 8)])
def test_a_layer_takes_the_bits_it_promises(kind, bits):
    layer = frozen(kind, out=1024, width=1024, bias=False)
    held = sum(part.numel() * part.element_size() for part in layer.parts)
    # A scale a row, and nf4's table.
    assert bits / 8 <= held / 1024**2 < bits / 8 * 1.01
    assert sum(1 for _ in layer.parameters()) == 1


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_input_gradient_are_those_of_the_unpacked_weight(kind, bias):
    layer = frozen(kind, bias=bias)
    x = torch.randn(2, 40, 128, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    weight = weight_of(layer)
    exact = x.double() @ weight.T + (layer.bias.double() if bias else 0)
    assert off(y, exact) < 1e-6
    assert off(x.grad, g.double() @ weight) < 1e-6
    assert layer.weight.grad is None


def rounded(x, dtype):
    """Rows rounded to fp8, in float64; the definition, written apart from the code."""
    scale = x.abs().amax(-1, keepdim=True).double() / torch.finfo(dtype).max
    return (x.double() / scale).float().to(dtype).double() * scale


def test_fp8_products_are_float64_products_of_what_was_rounded():
    layer = frozen("fp8")
    x = torch.randn(2, 40, 128, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y) * 1e-9
    y.backward(g)
    codes = layer.weight.view(torch.float8_e4m3fn).double()
    scale = layer.parts[1].double()
    exact = rounded(x.detach(), torch.float8_e4m3fn) @ (codes * scale).T + layer.bias.double()
    # A value halfway between two codes may go either way.
    assert off(y, exact) < 2e-3
    assert off(x.grad, rounded(g * scale.T.float(), torch.float8_e5m2) @ codes) < 2e-3


def test_fp8_is_as_near_to_the_exact_gradient_as_its_two_bits_of_mantissa_allow():
    layer, whole = frozen("fp8", out=512, width=512), linear(out=512, width=512)
    x = torch.randn(1, 256, 512, requires_grad=True)
    # Rows of very different size, as those of a loss over several noise levels.
    g = torch.randn(1, 256, 512) * torch.logspace(-9, 0, 256)[None, :, None]
    layer(x).backward(g)
    exact = g.double() @ whole.weight.double()
    rows = (x.grad.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(rows.max()) < 0.08
    assert off(layer(x), x.double() @ whole.weight.double().T + whole.bias.double()) < 0.05


@pytest.mark.parametrize(("rows", "out", "width"), [(3, 64, 128), (40, 64, 170), (40, 170, 64)])
def test_few_rows_and_sides_that_no_card_multiplies_are_not_rounded_to_fp8(rows, out, width):
    layer = frozen("fp8", out=out, width=width)
    x = torch.randn(rows, 1, width, requires_grad=True)
    weight = weight_of(layer)
    y = layer(x)
    assert off(y, x.double() @ weight.T + layer.bias.double()) < 1e-6
    g = torch.randn_like(y)
    y.backward(g)
    assert off(x.grad, g.double() @ weight) < 1e-6


@pytest.mark.parametrize("kind", FEW_BITS)
def test_nothing_but_codes_is_kept_for_the_backward_pass(kind):
    layer = frozen(kind, out=256, width=256)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(1, 64, 256, requires_grad=True))
    assert {id(t) for t in kept} <= {id(part) for part in layer.parts}


# -- under a LoRA -------------------------------------------------------------------------------


def adapted(layer):
    """The layer as PEFT wraps it, both halves random."""
    net = nn.ModuleDict({"one": layer})
    from peft import inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=["one"]), net)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            torch.manual_seed(len(name))
            nn.init.normal_(parameter, std=0.2)
    return net["one"]


@pytest.mark.parametrize("kind", FEW_BITS)
def test_peft_leaves_a_lora_on_codes_in_float32(kind):
    layer = adapted(frozen(kind))
    assert isinstance(layer.base_layer, Frozen)
    assert {p.dtype for n, p in layer.named_parameters() if "lora_" in n} == {torch.float32}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_gradients_of_a_lora_on_codes_are_those_on_the_unpacked_weight(kind):
    many = [adapted(frozen(kind, seed=i)) for i in range(3)]
    x = torch.randn(2, 40, 128, requires_grad=True)
    ys = linears(many, x)
    gs = [torch.randn_like(y) for y in ys]
    torch.autograd.backward(ys, gs)
    gx = torch.zeros(2, 40, 128, dtype=torch.float64)
    for layer, y, g in zip(many, ys, gs, strict=True):
        a, b = (half["default"].weight.detach().double() for half in (layer.lora_A, layer.lora_B))
        weight = weight_of(layer.base_layer) + 1.5 * b @ a
        bias = layer.base_layer.bias.double()
        assert off(y, x.detach().double() @ weight.T + bias) < 1e-6
        flat, rows = g.double().flatten(0, 1), x.detach().double().flatten(0, 1)
        assert off(layer.lora_B["default"].weight.grad, 1.5 * flat.T @ rows @ a.T) < 1e-5
        assert off(layer.lora_A["default"].weight.grad, 1.5 * b.T @ flat.T @ rows) < 1e-5
        gx += g.double() @ weight
    assert off(x.grad, gx) < 1e-6


@pytest.mark.parametrize("kind", FEW_BITS)
def test_a_layer_without_a_lora_may_stand_in_a_recomputed_block(kind):
    layer, found = frozen(kind), []
    x = torch.randn(1, 40, 128, requires_grad=True)
    for run in (layer, partial(checkpoint, layer, use_reentrant=False)):
        found += torch.autograd.grad(run(x).square().sum(), x)
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", FEW_BITS)
@pytest.mark.parametrize("at", [64, 40])
@pytest.mark.parametrize("lora", [True, False])
def test_a_layer_of_two_inputs_is_the_layer_of_both(kind, at, lora):
    layer = frozen(kind)
    layer = adapted(layer) if lora else layer
    seen, inner = torch.randn(1, 40, at), torch.randn(1, 40, 128 - at)
    both = torch.cat([seen, nn.functional.gelu(inner, approximate="tanh")], -1)
    # In fp8 each half has scales of its own.
    most = 0.04 if kind == "fp8" else 1e-6
    assert off(linear_of_two(layer, seen, inner, "gelu"), product(layer, both).double()) < most


# -- a whole base -------------------------------------------------------------------------------


def test_only_linear_layers_of_blocks_are_replaced():
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        axes_dims_rope=(4, 6, 6),
    ).requires_grad_(False)
    before = {name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    quantize(net, "int8", CPU, PREFIXES)
    after = {name for name, module in net.named_modules() if isinstance(module, Frozen)}
    assert after == {name for name in before if "transformer_blocks." in name}
    assert before - after >= {"x_embedder", "context_embedder", "proj_out", "norm_out.linear"}


@pytest.mark.parametrize("kind", FEW_BITS)
def test_at_no_time_two_layers_are_held_twice(kind, monkeypatch):
    net = nn.Module()
    net.transformer_blocks = nn.ModuleList(linear(256, 256, seed=i) for i in range(6))
    old = [weakref.ref(layer.weight) for layer in net.transformer_blocks]
    alive = []
    pack = type(KINDS[kind]).pack

    def watched(self, weight):
        gc.collect()
        alive.append(sum(ref() is not None for ref in old))
        return pack(self, weight)

    monkeypatch.setattr(type(KINDS[kind]), "pack", watched)
    quantize(net, kind, CPU, PREFIXES)
    assert alive == [6, 5, 4, 3, 2, 1]


# Measured: 0.0098, 0.126 and 0.046 of the velocity's norm.
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.015), ("nf4", 0.19), ("fp8", 0.07)])
def test_toyland_s_velocity_is_off_by_no_more_than_was_measured(kind, most):
    torch.manual_seed(0)
    z, found = None, []
    for precision in ("full", kind):
        model = load_model("toyland", device="cpu", precision=precision)
        z = torch.randn(1, 144, model.channels) if z is None else z
        size = (12 * model.grid, 12 * model.grid)
        text = model.encode_text(
            "[MOVIE-SHOTS] a red circle, [SCENE-1] a red circle on blue, [SCENE-2] a red circle "
            "on green, [SCENE-3] a red circle."
        )
        with torch.no_grad():
            found.append(model.velocity(z, torch.tensor([0.8]), [text], size, 3.5))
    error = off(found[1], found[0].double())
    assert most / 3 < error < most


def test_a_device_without_fp8_products_is_refused_with_advice(monkeypatch):
    def fails(*_args, **_more):
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with ...")

    check_precision("fp8", CPU)
    monkeypatch.setattr(torch, "_scaled_mm", fails)
    check_precision("int8", CPU)
    with pytest.raises(SettingsError, match=r"no matrix products in fp8[\s\S]*`precision` int8"):
        load_model("tiny", device="cpu", precision="fp8")


def test_an_unknown_precision_is_refused():
    with pytest.raises(SettingsError, match="int4"):
        load_model("tiny", device="cpu", precision="int4")
