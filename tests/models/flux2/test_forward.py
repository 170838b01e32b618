"""Our FLUX.2 pass against diffusers' and PEFT's, output and gradients."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
)
from peft import LoraConfig
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from iclora.models.attention import blockwise, isolated, reading
from iclora.models.flux2.forward import FLUX2, Inputs, flux2_forward
from iclora.models.passes import Levels, Shapes
from iclora.models.quantize import quantize

N, T, B = 24, 10, 2
SIGMA = torch.tensor([0.3, 0.9])
PREFIXES = ("transformer_blocks.", "single_transformer_blocks.")


def transformer(dtype=torch.float32, guided=False, double=2, single=3):
    torch.manual_seed(0)
    net = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        guidance_embeds=guided,
        axes_dims_rope=(4, 4, 4, 4),
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return net.to(dtype).requires_grad_(False)


def with_lora(net, targets=""):
    modules = [
        name
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(PREFIXES) and targets in name
    ]
    net.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=modules), adapter_name="a")
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return net


def inputs(levels=None, guidance=None, dtype=torch.float32):
    torch.manual_seed(1)
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(6), torch.arange(1))
    z, prompt = torch.randn(B, N, 16).to(dtype), torch.randn(B, T, 24).to(dtype)
    levels = levels or Levels(SIGMA[:, None], (N,))
    return Inputs(z, prompt, levels, guidance, ids.float())


def theirs(net, given, **more):
    given = given._replace(**more)
    text = torch.zeros(T, 4)
    text[:, 3] = torch.arange(T)
    return net(
        hidden_states=given.z,
        encoder_hidden_states=given.prompt,
        timestep=given.levels.sigma[:, 0].to(given.z.dtype),
        guidance=given.guidance,
        img_ids=given.position_ids,
        txt_ids=text,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("guidance", [None, 3.5])
@pytest.mark.parametrize("lora", [True, False])
def test_it_gives_what_diffusers_forward_gives(guidance, lora):
    net = transformer(guided=guidance is not None)
    given = inputs(guidance=guidance and torch.full((B,), guidance))
    if lora:
        with_lora(net)
    with torch.no_grad():
        torch.testing.assert_close(
            flux2_forward(net, given), theirs(net, given), atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("recompute", [0, 3, 5])
def test_lora_gradients_of_all_layers_are_exact(recompute):
    """Against diffusers and PEFT in float64."""
    found = []
    for run, dtype in (
        (partial(flux2_forward, recompute=recompute), torch.float32),
        (theirs, torch.float64),
    ):
        net = with_lora(transformer()).to(dtype)
        # A level that float32 holds: the embedding of time would show the difference.
        levels = Levels(torch.tensor([[0.25], [0.75]]), (N,))
        out = run(net, inputs(levels, dtype=dtype))
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        found.append({n: p.grad.double() for n, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 2 * (2 * 12 + 3 * 2)
    for name, mine in found[0].items():
        exact = found[1][name]
        assert float((mine - exact).norm() / exact.norm()) < 1e-4, name


def test_in_bf16_it_is_as_near_to_exact_gradients_as_diffusers_and_peft():
    # 1000 times these is exact in bf16: else the noise level itself would differ.
    levels, found = Levels(torch.tensor([[0.125], [0.5]]), (N,)), []
    for run, dtype in (
        (theirs, torch.float64),
        (flux2_forward, torch.bfloat16),
        (theirs, torch.bfloat16),
    ):
        net = with_lora(transformer(torch.bfloat16))
        given = inputs(levels, dtype=torch.bfloat16)
        if dtype == torch.float64:
            net.double()
            given = given._replace(z=given.z.double(), prompt=given.prompt.double())
        out = run(net, given)
        (out.double() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads = [p.grad.double().flatten() for p in net.parameters() if p.grad is not None]
        found.append(torch.cat(grads))
    exact, mine, other = found
    error = float((mine - exact).norm() / exact.norm())
    assert error < 1.3 * float((other - exact).norm() / exact.norm())
    assert error < 0.1


@torch.no_grad()
def test_clean_tokens_that_see_themselves_alone_are_diffusers_references_with_kept_keys():
    """Its KV mode, extract and cached, with the canvas's own position ids."""
    net, n = transformer(), 9
    whole = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - n, n)))
    cache = []
    first = flux2_forward(net, whole, attend=isolated(blockwise, n, cache))[:, :-n]
    rest = whole._replace(
        z=whole.z[:, :-n], position_ids=whole.position_ids[:-n], levels=whole.levels.first()
    )
    second = flux2_forward(net, rest, attend=reading(blockwise, cache))
    # diffusers puts references between text and image.
    turned = whole._replace(
        z=whole.z.roll(n, 1), position_ids=whole.position_ids.roll(n, 0), levels=rest.levels
    )
    for block in net.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in net.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    text = torch.zeros(T, 4)
    text[:, 3] = torch.arange(T)

    def run(given, **more):
        return net(
            given.z, given.prompt, SIGMA, given.position_ids, text, return_dict=False, **more
        )

    extract, kept = run(turned, kv_cache_mode="extract", num_ref_tokens=n)
    (cached,) = run(rest, kv_cache_mode="cached", kv_cache=kept)
    torch.testing.assert_close(first, extract, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, cached, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-5)


def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    net, given = transformer(), inputs()
    order = torch.randperm(N)
    moved = given._replace(z=given.z[:, order], position_ids=given.position_ids[order])
    whole = flux2_forward(net, given)
    torch.testing.assert_close(flux2_forward(net, moved), whole[:, order], atol=1e-5, rtol=1e-5)
    same = given._replace(levels=Levels(SIGMA[:, None].expand(-1, 3), (5, 12, N - 17)))
    torch.testing.assert_close(flux2_forward(net, same), whole, atol=1e-5, rtol=1e-5)
    mixed = given._replace(levels=Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6)))
    assert (flux2_forward(net, mixed) - whole).abs().max() > 0.01


@pytest.mark.parametrize("recompute", [2, 5])
def test_recomputed_blocks_keep_less_and_give_the_same_gradients(recompute):
    found, kept = [], []
    for blocks in (0, recompute):
        net, saved = with_lora(transformer()), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        ):
            out = flux2_forward(net, inputs(), recompute=blocks)
        out.square().sum().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
        kept.append(sum(saved))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert kept[1] < kept[0]


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_a_pass_over_spread_weights_is_the_pass():
    """One process, as a group of its own; several are tested with FLUX.1."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        net = transformer(double=1, single=1)
        whole = flux2_forward(net, inputs())
        FLUX2.shard(net, init_device_mesh("cpu", (1,)))
        with_lora(net)
        spread = flux2_forward(net, inputs(), recompute=1)
        spread.sum().backward()
        grads = [p.grad for p in net.parameters() if p.requires_grad]
        for parameter in net.parameters():
            parameter.data.zero_() if parameter.requires_grad else None
        assert torch.equal(flux2_forward(net, inputs()), whole)
    finally:
        distributed.destroy_process_group()
    assert len(grads) == 2 * (12 + 2)
    assert all(grad is not None and grad.any() for grad in grads)
    assert not torch.equal(spread, whole)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8"])
def test_quantised_blocks_compute_with_their_codes_and_give_gradients(kind):
    """As near to the pass in full as the codes are to the weights."""
    found = []
    for precision in ("full", kind):
        net = transformer()
        # As wide as nf4's blocks of 64 ask for.
        quantize(net, precision, torch.device("cpu"), PREFIXES)
        with_lora(net)
        out = flux2_forward(net, inputs(), recompute=1)
        grads = torch.autograd.grad(out.sum(), [p for p in net.parameters() if p.requires_grad])
        found.append((out.detach(), torch.cat([g.flatten() for g in grads])))
    (out, grads), (rough, rough_grads) = found
    assert not torch.equal(out, rough)
    limit = {"int8": 0.02, "nf4": 0.3, "fp8": 0.15}[kind]
    assert float((rough - out).norm() / out.norm()) < limit
    assert float((rough_grads - grads).norm() / grads.norm()) < 2 * limit


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_gradients(counted):
    began, found = counted(), []
    given = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6)))
    # One block of each sort: tracing is what this test costs.
    net = with_lora(transformer(double=1, single=1))
    trained = [p for p in net.parameters() if p.requires_grad]
    for shapes in (None, Shapes()):
        out = flux2_forward(net, given, attend=isolated(blockwise, 6), shapes=shapes)
        found.append((out, torch.autograd.grad(out.square().sum(), trained)))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    assert counted() - began == 4, "two halves of two sorts of block"
