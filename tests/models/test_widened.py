"""LoRAs in further columns of frozen matrices: against formulas in float64, and taken off again."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from iclora.adapter.layers import apply, remove
from iclora.models import load_model
from iclora.models.linear import Activated, linear, linear_of_two, linears, linears_into
from iclora.models.quantize import Frozen
from iclora.models.widened import lend, moves, narrow, still, widened

from . import test_linear
from .test_linear import formula, plain
from .test_streaming import CAPTION, drawn, velocity

ACTIVATIONS = ["none", "gelu", "swiglu"]
WIDTH, OUT = 512, 320
layer_of = partial(test_linear.layer_of, width=WIDTH, out=OUT)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def frozen(*layers):
    """The layers in a network whose LoRA is not trained."""
    return nn.ModuleList(layers).requires_grad_(False)


def _reads(activation):
    return 2 * WIDTH if activation == "swiglu" else WIDTH


def is_wide(layer):
    return not layer.base_layer.weight.is_contiguous()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_of_one_input_give_what_float64_says(activation):
    layers = frozen(*(layer_of(seed=seed) for seed in range(2)))
    x = torch.randn(2, 5, _reads(activation), dtype=torch.float64)
    wanted = [formula(each, plain(x, activation)) for each in layers]
    for _ in range(2):
        for found, exact in zip(linears(layers, x, activation), wanted, strict=True):
            torch.testing.assert_close(found, exact, atol=1e-12, rtol=1e-9)
    assert all(map(is_wide, layers))


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_a_layer_of_two_inputs_gives_what_float64_says(activation):
    (layer,) = frozen(layer_of())
    first = torch.randn(1, 5, 12, dtype=torch.float64)
    second = torch.randn(1, 5, _reads(activation), dtype=torch.float64)
    second = second[..., : second.shape[-1] // WIDTH * (WIDTH - 12)]
    exact = formula(layer, torch.cat([first, plain(second, activation)], -1))
    found = linear_of_two(layer, first, second, activation)
    torch.testing.assert_close(found, exact, atol=1e-12, rtol=1e-9)
    assert is_wide(layer)


def test_in_bf16_an_update_is_there_that_added_to_the_weights_would_be_lost():
    layers = frozen(*(layer_of(seed=seed).bfloat16() for seed in range(2)))
    turns = torch.tensor([1.0, -1.0], dtype=torch.bfloat16).repeat(WIDTH // 2)
    for each in layers:
        base, down, up = (
            m.weight for m in (each.base_layer, each.lora_A["default"], each.lora_B["default"])
        )
        # Below half of the last digit of every weight.
        base.fill_(0.1), each.base_layer.bias.zero_()
        down.copy_(0.01 * turns.expand_as(down)), up.fill_(0.0005)
        assert torch.equal(base + 1.5 * (up @ down), base)
    found = linears(layers, turns.expand(1, 64, WIDTH).contiguous())
    assert all(map(is_wide, layers))
    for each, ours in zip(layers, found, strict=True):
        exact = formula(each.double(), turns.double().expand(1, 64, WIDTH))
        assert exact.abs().min() > 1e-4
        torch.testing.assert_close(ours.double(), exact, rtol=0.01, atol=0)


def test_no_weight_moves_while_a_pass_is_recorded_and_every_move_is_counted():
    layers, x = frozen(layer_of(seed=1)), torch.randn(1, 5, WIDTH, dtype=torch.float64)
    began = moves()
    with still():
        (beside,) = linears(layers, x, "gelu")
    assert (moves(), is_wide(layers[0])) == (began, False)
    linears(layers, x, "gelu")
    assert moves() > began
    assert is_wide(layers[0])
    with still():
        (found,) = linears(layers, x, "gelu")
        torch.testing.assert_close(found, beside, atol=1e-12, rtol=1e-9)
        layers[0].lora_B["default"].weight.mul_(2)
        with pytest.raises(RuntimeError, match="weights would move"):
            linears(layers, x, "gelu")
    again = moves()
    narrow(layers)
    assert moves() > again


def test_taken_off_a_weight_has_its_bits_and_memory_of_its_own():
    layers = frozen(layer_of(seed=1), layer_of(seed=2))
    before = [each.base_layer.weight.clone() for each in layers]
    linears(layers, torch.randn(1, 5, WIDTH, dtype=torch.float64), "gelu")
    assert len(widened(layers)) == 1
    for each, weight in zip(layers, before, strict=True):
        assert torch.equal(each.base_layer.weight, weight)
    narrow(layers)
    assert not widened(layers)
    for each, weight in zip(layers, before, strict=True):
        now = each.base_layer.weight
        assert torch.equal(now, weight)
        assert now.untyped_storage().nbytes() == now.nbytes == weight.nbytes


def test_another_lora_or_strength_in_its_place_is_noticed():
    (layer,) = frozen(layer_of())
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    linears((layer,), x, "gelu")
    down = layer.lora_A["default"].weight
    for change in (
        lambda: down.mul_(-2),
        lambda: setattr(down, "data", down.data * 3),
        lambda: layer.scaling.update(default=0.25),
    ):
        change()
        exact = formula(layer, plain(x, "gelu"))
        if layer.scaling["default"] != 1.5:
            base = layer.base_layer(plain(x, "gelu"))
            exact = base + (exact - base) * layer.scaling["default"] / 1.5
        torch.testing.assert_close(linears((layer,), x, "gelu")[0], exact, atol=1e-12, rtol=1e-9)


def test_a_layer_without_a_bias_beside_one_with_it_has_none():
    layers = frozen(*(layer_of(seed=seed) for seed in range(2)))
    layers[1].base_layer.bias = None
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    for found, layer in zip(linears(layers, x, "gelu"), layers, strict=True):
        exact = formula(layer, plain(x, "gelu"))
        torch.testing.assert_close(found, exact, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("beside", [0, 1])
def test_an_activation_at_a_products_end_is_closer_to_float64_than_one_behind_it(beside):
    layers = frozen(*(layer_of(seed=seed, out=WIDTH + 64).bfloat16() for seed in range(2)))
    ups, last = layers[: beside + 1], frozen(layer_of(seed=3, width=WIDTH + 64).bfloat16())[0]
    x = torch.randn(1, 256, WIDTH).bfloat16()
    others, inner = linears_into(ups, x, "gelu")
    ended = isinstance(inner, Activated)
    assert ended == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    found = linear(last, inner, "gelu").double()
    assert is_wide(last), "an input that is activated already pays as much"
    behind = linear(last, linears(ups, x)[-1], "gelu").double()
    exact = formula(last.double(), plain(formula(ups[-1].double(), x.double()), "gelu"))
    off, further = ((y - exact).norm() / exact.norm() for y in (found, behind))
    assert off < (further if ended else 0.01)
    assert len(others) == beside


def test_what_is_trained_lent_or_in_few_bits_stays_as_it_is():
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    trained, (few, lent) = layer_of(), frozen(layer_of("int8"), layer_of())
    linears((lent,), x, "gelu")
    assert is_wide(lent)
    lend(lent)
    for layer in (trained, few, lent):
        linears((layer,), x, "gelu")
        assert not is_wide(layer)
    assert isinstance(few.base_layer, Frozen)


def test_layers_that_give_little_or_would_multiply_many_zeros_are_left_alone():
    one, *many = frozen(*(layer_of(seed=seed) for seed in range(13)))
    assert OUT <= WIDTH
    for layers in ((one,), many):
        linears(layers, torch.randn(1, 5, WIDTH, dtype=torch.float64))
        assert not any(map(is_wide, layers))
    # Not because they are twelve: with as many rows of the LoRA in a wider matrix they pay.
    wide = frozen(*(layer_of(seed=seed, width=1024) for seed in range(12)))
    linears(wide, torch.randn(1, 5, 1024, dtype=torch.float64))
    assert all(map(is_wide, wide))


def test_rows_of_inputs_begin_where_kernels_want_them():
    layers = frozen(*(layer_of(seed=seed, r=3) for seed in range(2)))
    linears(layers, torch.randn(1, 5, WIDTH, dtype=torch.float64))
    (found,) = widened(layers)
    assert {len(found.down) % 32, found.weights[0].stride(0) % 32} == {0}


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_use_what_is_widened_and_are_compiled_once_for_all_adapters(counted):
    model = load_model("tiny", "cpu", "fp32")
    text = model.encode_text(CAPTION)
    weights, began = drawn(model), None
    for strength in (0.1, 0.2):
        model.compiled = frozenset({"sampling"})
        apply(model, [(weights, strength)])
        model.prime([text], 3.5)
        wide = widened(model.denoiser)
        assert wide
        found = velocity(model, text)
        began = began or counted()
        for each in wide:
            each.weights[0][:, each.layers[0].in_features :] *= -1
        turned = velocity(model, text)
        model.compiled = frozenset()
        remove(model)
        apply(model, [(weights, strength)])
        torch.testing.assert_close(found, velocity(model, text), atol=1e-5, rtol=1e-5)
        assert (turned - found).abs().max() > 1e-2
    assert counted() == began > 0
