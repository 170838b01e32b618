"""Our Qwen-Image pass against diffusers' and PEFT's, output and gradients."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch

from iclora.models.attention import shortest
from iclora.models.passes import Levels
from iclora.models.qwen_image.forward import QWEN_IMAGE, Inputs, qwen_image_forward
from iclora.models.qwen_image.model import QwenImageModel
from tests.models.helpers import (
    LIMITS,
    any_order,
    compiled_is_the_pass,
    exact_gradients,
    near_quantised,
    spread_is_the_pass,
    told_apart,
    with_lora,
)

ROWS, COLUMNS, T, B = 3, 6, 7, 2
N = ROWS * COLUMNS
SIGMA = torch.tensor([0.25, 0.75])
PREFIXES = QwenImageModel.block_prefixes


def transformer(layers=2):
    torch.manual_seed(0)
    net = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(8, 12, 12),
    )
    for name, parameter in net.named_parameters():
        one = "norm" in name and parameter.ndim == 1
        torch.nn.init.normal_(parameter, 1.0 if one else 0.0, std=0.15)
    return net.requires_grad_(False)


def adapted(net):
    return with_lora(net, PREFIXES)


def inputs(levels=None, dtype=torch.float32):
    torch.manual_seed(1)
    edges = (torch.arange(-2.0, 1), torch.arange(-3.0, 3))
    ids = torch.cartesian_prod(torch.zeros(1), *edges)
    z, prompt = torch.randn(B, N, 16).to(dtype), torch.randn(B, T, 24).to(dtype)
    return Inputs(z, prompt, levels or Levels(SIGMA[:, None], (N,)), ids, COLUMNS // 2)


def theirs(net, given):
    sigma = given.levels.sigma[:, 0].to(given.z.dtype)
    shapes = [[(1, ROWS, COLUMNS)]] * B
    return net(given.z, given.prompt, None, sigma, shapes, return_dict=False)[0]


@pytest.mark.parametrize("recompute", [0, 2])
def test_lora_gradients_of_all_layers_are_exact(recompute):
    """Against diffusers and PEFT in float64; 0 where nothing reads what the last block writes."""
    run = partial(qwen_image_forward, recompute=recompute)
    found, outs = exact_gradients(lambda: adapted(transformer()), run, theirs, inputs)
    # Fourteen linear layers a block, of which the last one's text is read by three.
    torch.testing.assert_close(*outs, atol=2e-5, rtol=1e-5)
    assert found == 2 * (2 * 14 - 3)


def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    any_order(transformer(), qwen_image_forward, inputs())


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_a_pass_over_spread_weights_is_the_pass():
    grads = spread_is_the_pass(
        QWEN_IMAGE, transformer(layers=1), adapted, qwen_image_forward, inputs()
    )
    assert sum(grad is not None for grad in grads) == 2 * (14 - 3)


@pytest.mark.parametrize("kind", LIMITS)
def test_quantised_blocks_compute_with_their_codes_and_give_gradients(kind):
    limit = LIMITS[kind]
    near_quantised(transformer, adapted, PREFIXES, qwen_image_forward, inputs(), kind, limit)


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_gradients(counted):
    """With panels that read texts of their own, and tokens that see themselves alone."""
    given = inputs(Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6)))
    attend, given = told_apart(shortest, given, 6)
    # As few blocks as there are sorts: tracing is what this test costs.
    net = adapted(transformer(layers=1))
    made = compiled_is_the_pass(
        net, partial(qwen_image_forward, inputs=given, attend=attend), counted
    )
    assert made == 4, "modulation of image and text, and the halves of a block"
