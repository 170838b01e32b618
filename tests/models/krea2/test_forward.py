"""Our Krea 2 pass against diffusers' and PEFT's, output and gradients."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch
from diffusers.models.transformers import transformer_krea2
from torch.nn import functional as F

from iclora.models.attention import blockwise, grouped, isolated
from iclora.models.krea2.forward import KREA2, Inputs, krea2_forward
from iclora.models.krea2.model import Krea2Model
from iclora.models.krea2.tiny import draw_tables
from iclora.models.passes import Levels
from tests.models.helpers import (
    LIMITS,
    any_order,
    compiled_is_the_pass,
    exact_gradients,
    near_in_bf16,
    near_quantised,
    recomputed_keep_less,
    spread_is_the_pass,
    told_apart,
    with_lora,
)

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


def adapted(net):
    return with_lora(net, PREFIXES)


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
@pytest.mark.usefixtures("exact")
def test_output_and_lora_gradients_of_all_layers_are_exact(recompute):
    """Against diffusers and PEFT in float64."""
    run = partial(ours, recompute=recompute)
    found, outs = exact_gradients(lambda: adapted(transformer()), run, theirs, inputs)
    torch.testing.assert_close(*outs, atol=2e-5, rtol=1e-5)
    assert found == 2 * 2 * 8


@pytest.mark.usefixtures("exact")
def test_in_bf16_it_is_as_near_to_exact_gradients_as_diffusers_and_peft():
    given = inputs(dtype=torch.bfloat16)
    near_in_bf16(lambda: adapted(transformer(torch.bfloat16)), ours, theirs, given)


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


# -- memory, precision, speed -------------------------------------------------------------------


def test_a_recomputed_block_keeps_less_and_gives_the_same_gradients():
    recomputed_keep_less(lambda: adapted(transformer()), ours, inputs(), 1)


def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    any_order(transformer(), ours, inputs())


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_a_pass_over_spread_weights_is_the_pass():
    grads = spread_is_the_pass(KREA2, transformer(layers=1), adapted, ours, inputs())
    assert len(grads) == 2 * 8
    assert all(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize("kind", LIMITS)
def test_quantised_blocks_compute_with_their_codes_and_give_gradients(kind):
    limit = LIMITS[kind]
    near_quantised(transformer, adapted, PREFIXES, ours, inputs(), kind, limit)


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_gradients(counted):
    """With panels that read texts of their own, and tokens that see themselves alone."""
    given = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6)))
    attend, given = told_apart(grouped(blockwise), given, 6)
    # As few blocks as there are sorts: tracing is what this test costs.
    net = adapted(transformer(layers=1))
    made = compiled_is_the_pass(net, partial(krea2_forward, inputs=given, attend=attend), counted)
    assert made == 2, "the halves of a block"
