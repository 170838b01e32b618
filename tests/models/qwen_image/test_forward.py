"""Our Qwen-Image pass against diffusers' and PEFT's, output and gradients."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch
from peft import LoraConfig
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from iclora.models.attention import isolated, shortest
from iclora.models.passes import Levels, Shapes
from iclora.models.quantize import quantize
from iclora.models.qwen_image.forward import QWEN_IMAGE, Inputs, qwen_image_forward
from iclora.models.qwen_image.model import QwenImageModel

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
            parameter.requires_grad_(True)
    return net


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
    found, outputs = [], []
    for run, dtype in (
        (partial(qwen_image_forward, recompute=recompute), torch.float32),
        (theirs, torch.float64),
    ):
        net = with_lora(transformer()).to(dtype)
        out = run(net, inputs(dtype=dtype))
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        found.append({n: p.grad.double() for n, p in net.named_parameters() if p.grad is not None})
        outputs.append(out.detach().double())
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=1e-5)
    assert found[0].keys() == found[1].keys()
    # Fourteen linear layers a block, of which the last one's text is read by three.
    assert len(found[0]) == 2 * (2 * 14 - 3)
    for name, mine in found[0].items():
        exact = found[1][name]
        assert float((mine - exact).norm()) <= 1e-4 * float(exact.norm()), name


def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    net, given = transformer(), inputs()
    order = torch.randperm(N)
    moved = given._replace(z=given.z[:, order], position_ids=given.position_ids[order])
    whole = qwen_image_forward(net, given)
    torch.testing.assert_close(
        qwen_image_forward(net, moved), whole[:, order], atol=1e-5, rtol=1e-5
    )
    same = given._replace(levels=Levels(SIGMA[:, None].expand(-1, 3), (5, 7, N - 12)))
    torch.testing.assert_close(qwen_image_forward(net, same), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_a_pass_over_spread_weights_is_the_pass():
    """One process, as a group of its own; several are tested with FLUX.1."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        net = transformer(layers=1)
        whole = qwen_image_forward(net, inputs())
        QWEN_IMAGE.shard(net, init_device_mesh("cpu", (1,)))
        with_lora(net)
        spread = qwen_image_forward(net, inputs(), recompute=1)
        spread.sum().backward()
        grads = [p.grad for p in net.parameters() if p.requires_grad]
        for parameter in net.parameters():
            parameter.data.zero_() if parameter.requires_grad else None
        assert torch.equal(qwen_image_forward(net, inputs()), whole)
    finally:
        distributed.destroy_process_group()
    assert sum(grad is not None for grad in grads) == 2 * (14 - 3)
    assert not torch.equal(spread, whole)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8"])
def test_quantised_blocks_compute_with_their_codes_and_give_gradients(kind):
    """As near to the pass in full as the codes are to the weights."""
    found = []
    for precision in ("full", kind):
        net = with_lora(quantize(transformer(), precision, torch.device("cpu"), PREFIXES))
        out = qwen_image_forward(net, inputs(), recompute=1)
        trained = [p for p in net.parameters() if p.requires_grad]
        grads = torch.autograd.grad(out.sum(), trained, allow_unused=True)
        grads = torch.cat([g.flatten() for g in grads if g is not None])
        found.append((out.detach(), grads))
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
    net = with_lora(transformer(layers=1))
    trained = [p for p in net.parameters() if p.requires_grad]
    for shapes in (None, Shapes()):
        attend = isolated(shortest, 6)
        out = qwen_image_forward(net, given, attend=attend, shapes=shapes)
        grads = torch.autograd.grad(out.square().sum(), trained, allow_unused=True)
        found.append((out, [grad for grad in grads if grad is not None]))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    assert counted() - began == 3, "the modulation and the halves of a block"
