"""Our Krea 2 pass against diffusers' and PEFT's, output and gradients."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch
from diffusers.models.transformers import transformer_krea2
from peft import LoraConfig
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from iclora.models.attention import blockwise, grouped, isolated
from iclora.models.krea2.forward import KREA2, Inputs, krea2_forward
from iclora.models.krea2.model import Krea2Model
from iclora.models.krea2.tiny import draw_tables
from iclora.models.passes import Levels, Shapes
from iclora.models.quantize import quantize

N, T, B = 24, 7, 2
SIGMA = torch.tensor([0.25, 0.75])
PREFIXES = Krea2Model.block_prefixes
CPU = torch.device("cpu")


def transformer(dtype=torch.float32, layers=2):
    torch.manual_seed(0)
    net = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=192,
        timestep_embed_dim=32,
        text_hidden_dim=24,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=48,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 12, 12),
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    draw_tables(net)
    return net.to(dtype).requires_grad_(False)


def with_lora(net):
    modules = [
        name
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(PREFIXES)
    ]
    net.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=modules), adapter_name="a")
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return net


def inputs(levels=None, dtype=torch.float32):
    torch.manual_seed(1)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(6.0))
    z, prompt = torch.randn(B, N, 16).to(dtype), torch.randn(B, T, 3, 24).to(dtype)
    return Inputs(z, prompt, levels or Levels(SIGMA[:, None], (N,)), ids)


ours = krea2_forward


@pytest.fixture
def exact(monkeypatch):
    """diffusers' norms in the type of what they read: they round float64 to float32."""

    def norm(self, x):
        read = F.rms_norm(x.float() if x.dtype != torch.float64 else x, (self.dim,), eps=self.eps)
        return (read * (self.weight + 1.0)).to(x.dtype)

    monkeypatch.setattr(transformer_krea2.Krea2RMSNorm, "forward", norm)


def theirs(net, given):
    ids = torch.cat([torch.zeros(T, 3), given.position_ids])
    sigma = given.levels.sigma[:, 0].to(given.z.dtype)
    return net(given.z, given.prompt, sigma, ids, return_dict=False)[0]


@pytest.mark.parametrize("recompute", [0, 2])
def test_output_and_lora_gradients_of_all_layers_are_exact(recompute, exact):
    """Against diffusers and PEFT in float64."""
    found, outs = [], []
    for run, dtype in (
        (partial(ours, recompute=recompute), torch.float32),
        (theirs, torch.float64),
    ):
        net = with_lora(transformer()).to(dtype)
        out = run(net, inputs(dtype=dtype))
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        found.append({n: p.grad.double() for n, p in net.named_parameters() if p.grad is not None})
        outs.append(out.double())
    torch.testing.assert_close(*outs, atol=2e-5, rtol=1e-5)
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 2 * 2 * 8
    for name, mine in found[0].items():
        truth = found[1][name]
        assert float((mine - truth).norm() / truth.norm()) < 1e-4, name


def test_in_bf16_it_is_as_near_to_exact_gradients_as_diffusers_and_peft(exact):
    found = []
    for run, dtype in ((theirs, torch.float64), (ours, torch.bfloat16), (theirs, torch.bfloat16)):
        net = with_lora(transformer(torch.bfloat16))
        given = inputs(dtype=torch.bfloat16)
        if dtype == torch.float64:
            net.double()
            given = given._replace(z=given.z.double(), prompt=given.prompt.double())
        out = run(net, given)
        (out.double() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads = [p.grad.double().flatten() for p in net.parameters() if p.grad is not None]
        found.append(torch.cat(grads))
    truth, mine, other = found
    error = float((mine - truth).norm() / truth.norm())
    assert error < 1.3 * float((other - truth).norm() / truth.norm())
    assert error < 0.1


# -- tokens of two levels -----------------------------------------------------------------------


def two_levels(net, given, mask=None):
    """diffusers' own blocks, each token with a modulation of its own, and a mask for attention."""
    noisy, clean = (
        net.time_embed(level, torch.float32) for level in (SIGMA, torch.zeros_like(SIGMA))
    )
    last = given.levels.tokens[1]
    temb = torch.cat([noisy.expand(-1, T + N - last, -1), clean.expand(-1, last, -1)], 1)
    mod = net.time_mod_proj(torch.nn.functional.gelu(temb, approximate="tanh"))
    x = torch.cat([net.txt_in(net.text_fusion(given.prompt)), net.img_in(given.z)], 1)
    turns = net.rotary_emb(torch.cat([torch.zeros(T, 3), given.position_ids]))
    for block in net.transformer_blocks:
        x = block(x, mod, turns, mask)
    final, temb = net.final_layer, temb[:, T:]
    scale, shift = (temb + row for row in final.scale_shift_table)
    return final.linear((1 + scale) * final.norm(x[:, T:]) + shift)


@torch.no_grad()
@pytest.mark.parametrize("alone", [False, True])
def test_clean_tokens_are_diffusers_blocks_with_a_level_for_each_token(alone):
    net, n = transformer(), 9
    given = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - n, n)))
    attend, mask = grouped(blockwise), None
    if alone:
        attend = isolated(attend, n)
        rows = torch.arange(T + N) >= T + N - n
        mask = ~(rows[:, None] & ~rows)[None, None]
    found = ours(net, given, attend=attend)
    torch.testing.assert_close(found, two_levels(net, given, mask), atol=2e-5, rtol=1e-5)
    assert (found - ours(net, inputs())).abs().max() > 0.01


@torch.no_grad()
def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    net, given = transformer(), inputs()
    order = torch.randperm(N)
    moved = given._replace(z=given.z[:, order], position_ids=given.position_ids[order])
    whole = ours(net, given)
    torch.testing.assert_close(ours(net, moved), whole[:, order], atol=1e-5, rtol=1e-5)
    same = given._replace(levels=Levels(SIGMA[:, None].expand(-1, 3), (5, 12, N - 17)))
    torch.testing.assert_close(ours(net, same), whole, atol=1e-5, rtol=1e-5)


# -- memory, precision, speed -------------------------------------------------------------------


def test_a_recomputed_block_keeps_less_and_gives_the_same_gradients():
    found, kept = [], []
    for blocks in (0, 1):
        net, saved = with_lora(transformer()), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        ):
            out = ours(net, inputs(), recompute=blocks)
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
        net = transformer(layers=1)
        whole = ours(net, inputs())
        KREA2.shard(net, init_device_mesh("cpu", (1,)))
        with_lora(net)
        spread = ours(net, inputs(), recompute=1)
        spread.sum().backward()
        grads = [p.grad for p in net.parameters() if p.requires_grad]
        for parameter in net.parameters():
            parameter.data.zero_() if parameter.requires_grad else None
        assert torch.equal(ours(net, inputs()), whole)
    finally:
        distributed.destroy_process_group()
    assert len(grads) == 2 * 8
    assert all(grad is not None and grad.any() for grad in grads)
    assert not torch.equal(spread, whole)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8"])
def test_quantised_blocks_compute_with_their_codes_and_give_gradients(kind):
    """As near to the pass in full as the codes are to the weights."""
    found = []
    for precision in ("full", kind):
        net = quantize(transformer(), precision, CPU, PREFIXES)
        with_lora(net)
        out = ours(net, inputs(), recompute=1)
        grads = torch.autograd.grad(out.sum(), [p for p in net.parameters() if p.requires_grad])
        found.append((out.detach(), torch.cat([g.flatten() for g in grads])))
    (out, grads), (rough, rough_grads) = found
    assert not torch.equal(out, rough)
    limit = {"int8": 0.03, "nf4": 0.4, "fp8": 0.2}[kind]
    assert float((rough - out).norm() / out.norm()) < limit
    assert float((rough_grads - grads).norm() / grads.norm()) < 2 * limit


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_gradients(counted):
    began, found = counted(), []
    given = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6)))
    attend = isolated(grouped(blockwise), 6)
    net = with_lora(transformer(layers=1))
    trained = [p for p in net.parameters() if p.requires_grad]
    for shapes in (None, Shapes()):
        out = ours(net, given, attend=attend, shapes=shapes)
        found.append((out, torch.autograd.grad(out.square().sum(), trained)))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    assert counted() - began == 2, "the halves of a block"
