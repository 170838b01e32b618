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

from iclora.models.attention import blockwise, isolated, reading
from iclora.models.flux2.forward import FLUX2, Inputs, flux2_forward
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


def adapted(net, targets=""):
    return with_lora(net, PREFIXES, targets)


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
        adapted(net)
    with torch.no_grad():
        torch.testing.assert_close(
            flux2_forward(net, given), theirs(net, given), atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("recompute", [0, 3, 5])
def test_lora_gradients_of_all_layers_are_exact(recompute):
    """Against diffusers and PEFT in float64."""
    # A level that float32 holds: the embedding of time would show the difference.
    levels = Levels(torch.tensor([[0.25], [0.75]]), (N,))
    run = partial(flux2_forward, recompute=recompute)
    own = partial(inputs, levels)
    found, _ = exact_gradients(lambda: adapted(transformer()), run, theirs, own)
    assert found == 2 * (2 * 12 + 3 * 2)


def test_in_bf16_it_is_as_near_to_exact_gradients_as_diffusers_and_peft():
    # 1000 times these is exact in bf16: else the noise level itself would differ.
    given = inputs(Levels(torch.tensor([[0.125], [0.5]]), (N,)), dtype=torch.bfloat16)
    near_in_bf16(lambda: adapted(transformer(torch.bfloat16)), flux2_forward, theirs, given)


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


@pytest.mark.parametrize("recompute", [2, 5])
def test_recomputed_blocks_keep_less_and_give_the_same_gradients(recompute):
    recomputed_keep_less(lambda: adapted(transformer()), flux2_forward, inputs(), recompute)


def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    any_order(transformer(), flux2_forward, inputs())
    net, given = transformer(), inputs()
    mixed = given._replace(levels=Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6)))
    assert (flux2_forward(net, mixed) - flux2_forward(net, given)).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_a_pass_over_spread_weights_is_the_pass():
    grads = spread_is_the_pass(
        FLUX2, transformer(double=1, single=1), adapted, flux2_forward, inputs()
    )
    assert len(grads) == 2 * (12 + 2)
    assert all(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize("kind", LIMITS)
def test_quantised_blocks_compute_with_their_codes_and_give_gradients(kind):
    limit = {"int8": 0.02, "nf4": 0.3, "fp8": 0.15}[kind]
    near_quantised(transformer, adapted, PREFIXES, flux2_forward, inputs(), kind, limit)


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_gradients(counted):
    """With panels that read texts of their own, and tokens that see themselves alone."""
    given = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6)))
    attend, given = told_apart(blockwise, given, 6)
    # As few blocks as there are sorts: tracing is what this test costs.
    net = adapted(transformer(double=1, single=1))
    made = compiled_is_the_pass(net, partial(flux2_forward, inputs=given, attend=attend), counted)
    assert made == 4, "two halves of two sorts of block"
