"""Our Z-Image pass against diffusers' and PEFT's, output and gradients."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch

from iclora.models.attention import blockwise, isolated
from iclora.models.passes import Levels
from iclora.models.zimage.forward import ZIMAGE, Attends, Inputs, zimage_forward
from iclora.models.zimage.model import ZImageModel, attends_of
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

N, T, B, FILL = 24, 32, 2, 8
REAL = 27
"""Of the text's tokens."""
SIGMA = torch.tensor([0.25, 0.75])
PREFIXES = ZImageModel.block_prefixes
CPU = torch.device("cpu")
PLAIN = attends_of(None, None, (T,), CPU, FILL)


def transformer(dtype=torch.float32, refiners=1, layers=2):
    torch.manual_seed(0)
    net = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=layers,
        n_refiner_layers=refiners,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[8, 12, 12],
    )
    for name, parameter in net.named_parameters():
        one = "norm" in name and parameter.ndim == 1
        torch.nn.init.normal_(parameter, 1.0 if one else 0.0, std=0.15)
    return net.to(dtype).requires_grad_(False)


def adapted(net):
    return with_lora(net, PREFIXES)


def inputs(levels=None, dtype=torch.float32):
    torch.manual_seed(1)
    ids = torch.cartesian_prod(torch.tensor([T + 1]), torch.arange(4), torch.arange(6))
    z, prompt = torch.randn(B, N, 16).to(dtype), torch.randn(B, T, 24).to(dtype)
    real = (torch.arange(T) < REAL).to(dtype).expand(B, T)
    levels = levels or Levels(SIGMA[:, None], (N,))
    return Inputs(z, prompt * real[..., None], real, levels, ids, (T,), FILL)


def ours(net, given, **more):
    return zimage_forward(net, given, PLAIN, **more)


def theirs(net, given):
    """diffusers' forward on the same tokens, which stand in its own order."""
    cells = given.z.view(B, 4, 6, 2, 2, 4).permute(0, 5, 1, 3, 2, 4).reshape(B, 4, 1, 8, 12)
    texts = [prompt[:REAL] for prompt in given.prompt]
    times = 1 - given.levels.sigma[:, 0].to(given.z.dtype)
    out = torch.stack(net([*cells], times, texts, return_dict=False)[0])
    return out.view(B, 4, 4, 2, 6, 2).permute(0, 2, 4, 3, 5, 1).reshape(B, N, 16)


def test_it_gives_what_diffusers_forward_gives():
    net = adapted(transformer())
    with torch.no_grad():
        found, expected = ours(net, inputs()), theirs(net, inputs())
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("recompute", [0, 4])
def test_lora_gradients_of_all_layers_are_exact(recompute):
    """Against diffusers and PEFT in float64."""
    run = partial(ours, recompute=recompute)
    found, _ = exact_gradients(lambda: adapted(transformer()), run, theirs, inputs)
    # Seven linear layers a block, and the modulation of those that have one.
    assert found == 2 * (4 * 7 + 3)


def test_in_bf16_it_is_as_near_to_exact_gradients_as_diffusers_and_peft():
    given = inputs(dtype=torch.bfloat16)
    near_in_bf16(lambda: adapted(transformer(torch.bfloat16)), ours, theirs, given)


# -- tokens of two levels -----------------------------------------------------------------------


def two_levels(net, given, mask=None):
    """diffusers' own blocks with its modulation token by token, and a mask for attention.

    Of the Omni model's forward, which has no such pass: there a whole picture is clean.
    """
    text, image = T, FILL + N
    img = torch.cat([net.x_pad_token.expand(B, FILL, -1), net.all_x_embedder["2-1"](given.z)], 1)
    txt = net.cap_embedder(given.prompt)
    txt = torch.where(given.real[..., None] > 0, txt, net.cap_pad_token)
    places = torch.zeros(text + image, 3, dtype=torch.long)
    places[:text, 0] = torch.arange(1, text + 1)
    places[text + FILL :] = given.position_ids
    turns = net.rope_embedder(places).expand(B, -1, -1)
    noisy = net.t_embedder((1 - SIGMA) * 1000)
    clean = net.t_embedder(torch.full((B,), 1000.0))
    seen = torch.ones(B, text + image)
    seen[:, -given.levels.tokens[1] :] = 0
    levels = {"adaln_noisy": noisy, "adaln_clean": clean}
    part = None if mask is None else mask[..., text:, text:]
    for block in net.context_refiner:
        txt = block(txt, None, turns[:, :text])
    for block in net.noise_refiner:
        img = block(img, part, turns[:, text:], noise_mask=seen[:, text:], **levels)
    both = torch.cat([txt, img], 1)
    for block in net.layers:
        both = block(both, mask, turns, noise_mask=seen, **levels)
    last = net.all_final_layer["2-1"]
    return last(both, noise_mask=seen, c_noisy=noisy, c_clean=clean)[:, text + FILL :]


@torch.no_grad()
@pytest.mark.parametrize("alone", [False, True])
def test_clean_tokens_are_diffusers_blocks_with_a_level_for_each_token(alone):
    net, n = transformer(), 9
    given = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - n, n)))
    attends, mask = PLAIN, None
    if alone:
        attends = Attends(*(isolated(blockwise, n) for _ in range(2)), blockwise)
        rows = torch.arange(T + FILL + N) >= T + FILL + N - n
        mask = ~(rows[:, None] & ~rows)[None, None]
    found = zimage_forward(net, given, attends)
    torch.testing.assert_close(found, two_levels(net, given, mask), atol=2e-5, rtol=1e-5)
    assert (found - ours(net, inputs())).abs().max() > 0.01


def test_only_distances_between_text_and_frame_matter():
    """So passes whose texts differ in length may share the keys of given tokens."""
    net, given = transformer(), inputs()
    far = given._replace(position_ids=given.position_ids + torch.tensor([96, 0, 0]))
    torch.testing.assert_close(ours(net, far), ours(net, given), atol=1e-5, rtol=1e-5)


# -- memory -------------------------------------------------------------------------------------


def test_recomputed_blocks_keep_less_and_give_the_same_gradients():
    recomputed_keep_less(lambda: adapted(transformer()), ours, inputs(), 3)


def widen(ff):
    """An MLP 192 wide in place of 170, a third of it as it was."""
    torch.manual_seed(0)
    for name, (tall, wide) in {"w1": (192, 64), "w2": (64, 192), "w3": (192, 64)}.items():
        layer = torch.nn.Linear(wide, tall, bias=False).requires_grad_(False)
        torch.nn.init.normal_(layer.weight, std=0.15)
        setattr(ff, name, layer)


def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    any_order(transformer(), ours, inputs(), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_a_pass_over_spread_weights_is_the_pass():
    grads = spread_is_the_pass(ZIMAGE, transformer(layers=1), adapted, ours, inputs())
    assert len(grads) == 2 * (3 * 7 + 2)
    assert all(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize("kind", LIMITS)
def test_quantised_blocks_compute_with_their_codes_and_give_gradients(kind):
    limit = LIMITS[kind]
    near_quantised(wider, adapted, PREFIXES, ours, inputs(), kind, limit)


def wider():
    """Whose MLPs have widths in 16, as fp8's products want; 8/3 of the true width are."""
    net = transformer()
    for block in (*net.context_refiner, *net.noise_refiner, *net.layers):
        widen(block.feed_forward)
    return net


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_gradients(counted):
    """With panels that read texts of their own, and tokens that see themselves alone."""
    given = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6)))
    attend, given = told_apart(blockwise, given, 6, FILL)
    attends = Attends(attend, isolated(blockwise, 6), blockwise)
    # Tracing is what this test costs: refiners are halved in the same way.
    net = adapted(transformer(refiners=0, layers=1))
    made = compiled_is_the_pass(
        net, partial(zimage_forward, inputs=given, attends=attends), counted
    )
    assert made == 2, "the halves of a block"
