"""Products of bf16 in float32, as on CPUs without instructions for them, against float64."""

from __future__ import annotations

import pytest
import torch
import transformers
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from iclora.models import products
from iclora.models.attention_cpu import headwise
from iclora.models.linear import linear_of_two, linears, linears_into
from iclora.models.quantize import KINDS, Frozen, Matrix, matrix, product, quicken
from iclora.models.widened import widened

BF16 = torch.bfloat16
aten = torch.ops.aten
ULP = 2**-8
"""Half the distance of bf16 numbers, in themselves, is at most this."""


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    """Whatever CPU this is."""
    monkeypatch.setattr(products, "SLOW", True)


def bf16(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def off(one, other):
    return float((one.detach().double() - other.detach()).norm() / other.detach().norm())


def rounded_once(found, exact):
    """True where no other number of bf16 is nearer, but for the last digits of float32's sums."""
    assert found.dtype == BF16
    most = ULP * exact.abs() + 1e-5 * exact.abs().max()
    return bool(((found.double() - exact).abs() <= most).all())


def test_a_product_and_its_gradient_are_rounded_once():
    x, weight, bias = bf16(2, 40, 300).requires_grad_(), bf16(50, 300, seed=1), bf16(50, seed=2)
    y = product(x, Matrix("full", (weight,), bias))
    assert rounded_once(y, F.linear(x.double(), weight.double(), bias.double()))
    grad = bf16(*y.shape, seed=3)
    (gx,) = torch.autograd.grad(y, x, grad)
    assert rounded_once(gx, grad.double() @ weight.double())


class Multiplied(TorchDispatchMode):
    """Notes the types of what is multiplied in the large."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.convolution):
            self.types |= {x.dtype for x in args if isinstance(x, torch.Tensor)}
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("slow", [True, False])
def test_a_slow_cpu_multiplies_no_bf16(slow, monkeypatch):
    """Layers with a LoRA, forward and backward, attention's gradient, layers of a VAE."""
    monkeypatch.setattr(products, "SLOW", slow)
    layer, x = layer_of("full"), bf16(1, 30, WIDTH).requires_grad_()
    conv = quicken(nn.Conv2d(3, 3, 3).to(BF16).requires_grad_(False))
    with Multiplied() as seen:
        (y,) = linears((layer,), x, "gelu")
        heads = y.view(1, 30, 5, -1).transpose(1, 2)
        headwise(heads, heads, heads).sum().backward()
        conv(bf16(1, 3, 5, 5))
    assert (BF16 in seen.types) is not slow


def test_a_weight_that_is_trained_has_its_gradient():
    layer, x = quicken(nn.Linear(300, 50).to(BF16)), bf16(40, 300)
    layer(x).sum().backward()
    assert off(layer.weight.grad, x.double().sum(0).expand(50, -1)) < ULP


def test_nothing_in_float32_is_kept_for_the_backward_pass():
    x, weight = bf16(40, 300).requires_grad_(), bf16(50, 300)
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        product(x, Matrix("full", (weight,), None))
    assert [each.data_ptr() for each in kept] == [weight.data_ptr()]


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(3, dtype=BF16, device="meta")])
def test_other_types_and_other_devices_stay_as_they_are(x):
    assert products.exact(x) is x


def test_a_cpu_with_such_instructions_multiplies_as_torch_does(monkeypatch):
    monkeypatch.setattr(products, "SLOW", False)
    layer = nn.Linear(300, 50, dtype=BF16).requires_grad_(False)
    x = bf16(40, 300)
    want = layer(x)
    assert torch.equal(quicken(layer)(x), want)
    assert torch.equal(product(x, matrix(layer)), want)
    assert products.exact(x) is x


# -- layers with a LoRA -------------------------------------------------------------------------

WIDTH, OUT, RANK = 512, 320, 4


def layer_of(kind, seed=0, width=WIDTH):
    torch.manual_seed(seed)
    base = nn.Linear(width, OUT).to(BF16).requires_grad_(False)
    base = base if kind == "full" else Frozen(base, kind, torch.device("cpu"))
    net = nn.ModuleDict({"one": base})
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=6, target_modules=["one"]), net)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return net["one"]


def halves(layer):
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def formula(layer, x):
    """In float64, by the layer's own numbers."""
    base = layer.base_layer
    parts = base.parts if isinstance(base, Frozen) else (base.weight,)
    weight = KINDS[getattr(base, "kind", "full")].unpack(parts, torch.float64)
    down, up = (half.double() for half in halves(layer))
    return F.linear(x, weight, base.bias.double()) + 1.5 * (x @ down.mT @ up.mT)


@pytest.mark.parametrize("kind", ["full", "int8", "nf4"])
def test_a_lora_in_training_has_the_gradients_of_float64(kind):
    layers = [layer_of(kind, seed) for seed in range(2)]
    given = [half for each in layers for half in halves(each)]
    x = bf16(2, 30, WIDTH).requires_grad_()
    ours = torch.cat(linears(layers, x, "gelu"), -1)
    read = x.double()
    theirs = torch.cat([formula(each, F.gelu(read, approximate="tanh")) for each in layers], -1)
    assert ours.dtype == BF16
    assert off(ours, theirs) < ULP
    weights = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view_as(ours)
    found, exact = (torch.autograd.grad((y * weights).sum(), (x, *given)) for y in (ours, theirs))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == other.dtype
        assert off(one, other.double()) < 2 * ULP


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "int8"])
def test_a_lora_in_sampling_is_that_of_float64(kind):
    """Widened, ending in GELU, of two inputs; and beside codes."""
    one, other, after = layer_of(kind), layer_of(kind, 1), layer_of(kind, 2, width=2 * OUT)
    wide = nn.ModuleList([one, other, after]).requires_grad_(False)
    x = bf16(1, 30, WIDTH)
    (first,), second = linears_into((one, other), x, "gelu")
    y = linear_of_two(after, first, second, "gelu")
    assert len(widened(wide)) == (2 if kind == "full" else 0)
    inner = F.gelu(formula(other, x.double()), approximate="tanh")
    assert off(first, formula(one, x.double())) < ULP
    assert y.dtype == BF16
    assert off(y, formula(after, torch.cat([formula(one, x.double()), inner], -1))) < 2 * ULP


# -- layers of text encoders and VAEs -----------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(30, 20), (2, 7, 30)),
        (lambda: nn.Linear(30, 20, bias=False), (2, 7, 30)),
        (lambda: nn.Conv1d(6, 5, 3), (2, 6, 9)),
        (lambda: nn.Conv2d(6, 5, 3, 2, 1, padding_mode="reflect"), (2, 6, 9, 8)),
        (lambda: QwenImageCausalConv3d(6, 5, 3, padding=1), (1, 6, 2, 5, 5)),
    ],
)
def test_a_quickened_layer_is_rounded_once(make, shape):
    torch.manual_seed(0)
    layer = make().to(BF16).requires_grad_(False)
    x = bf16(*shape)
    found = quicken(layer)(x)
    assert rounded_once(found, layer.double()(x.double()))


@torch.no_grad()
@pytest.mark.parametrize("sort", ["t5", "vae"])
def test_a_quickened_network_is_no_further_from_float64(sort, monkeypatch):
    torch.manual_seed(0)
    if sort == "t5":
        small = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        config = transformers.T5Config(vocab_size=50, feed_forward_proj="gated-gelu", **small)
        net = transformers.T5EncoderModel(config)
        x = torch.arange(12)[None]

        def run():
            return net(x).last_hidden_state

    else:
        net = AutoencoderKL(block_out_channels=(32,), layers_per_block=1, latent_channels=4)
        x = bf16(1, 4, 8, 8)

        def run():
            return net.decode(x.to(net.dtype)).sample

    net.to(BF16).eval().requires_grad_(False)
    monkeypatch.setattr(products, "SLOW", False)
    before = run()
    monkeypatch.setattr(products, "SLOW", True)
    quicken(net)
    after = run()
    exact = net.double() and run()
    assert off(after, exact) < 1.1 * off(before, exact)


def test_the_gradient_of_attention_is_that_of_float64():
    q, k, v = (bf16(1, 2, 70, 16, seed=n).requires_grad_() for n in range(3))
    ours = headwise(q, k, v)
    exact = [each.detach().double().requires_grad_() for each in (q, k, v)]
    theirs = F.scaled_dot_product_attention(*exact).transpose(1, 2).flatten(2)
    grad = bf16(*ours.shape, seed=4)
    found = torch.autograd.grad(ours, (q, k, v), grad)
    for one, other in zip(found, torch.autograd.grad(theirs, exact, grad.double()), strict=True):
        assert one.dtype == BF16
        assert off(one, other) < ULP
