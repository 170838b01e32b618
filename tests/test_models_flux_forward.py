"""Our forward pass against diffusers' and PEFT's, output and gradients."""

import diffusers
import pytest
import torch
from peft import LoraConfig
from torch.nn import functional as F

from iclora.models.attention import blockwise
from iclora.models.flux_forward import Levels, flux_forward

N, T, B = 24, 10, 2


def transformer(dtype=torch.float32, guided=True):
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=24, pooled_projection_dim=20,
        guidance_embeds=guided, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return net.to(dtype).requires_grad_(False)


def with_lora(net, targets=""):
    modules = [
        name
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear) and "blocks." in name and targets in name
    ]
    net.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=modules), adapter_name="a")
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return net


def inputs(dtype=torch.float32):
    torch.manual_seed(1)
    places = torch.stack([torch.zeros(N), torch.arange(N) // 6, torch.arange(N) % 6], 1).float()
    return {
        "z": torch.randn(B, N, 16).to(dtype),
        "prompt": torch.randn(B, T, 24).to(dtype),
        "pooled": torch.randn(B, 20).to(dtype),
        "places": places,
        "guidance": torch.full((B,), 3.5),
    }


def ours(net, sigma, guidance, given, **more):
    levels = Levels(sigma[:, None], (N,))
    return flux_forward(
        net, given["z"], given["prompt"], given["pooled"], levels, guidance, given["places"], **more
    )


def theirs(net, sigma, guidance, given):
    return net(
        hidden_states=given["z"], encoder_hidden_states=given["prompt"],
        pooled_projections=given["pooled"], timestep=sigma.to(given["z"].dtype), guidance=guidance,
        img_ids=given["places"], txt_ids=torch.zeros(T, 3), return_dict=False,
    )[0]  # fmt: skip


SIGMA = torch.tensor([0.3, 0.9])


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_it_gives_what_diffusers_forward_gives(guided, lora):
    net, given = transformer(guided=guided), inputs()
    if lora:
        with_lora(net)
    guidance = given["guidance"] if guided else None
    with torch.no_grad():
        torch.testing.assert_close(
            ours(net, SIGMA, guidance, given), theirs(net, SIGMA, guidance, given),
            atol=2e-5, rtol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize("targets", ["", ".attn.", "proj_mlp", "proj_out", "norm"])
@pytest.mark.parametrize("recompute", [0, 2, 5])
def test_lora_gradients_are_pefts(targets, recompute):
    found = []
    for run in (ours, theirs):
        net, given = with_lora(transformer(), targets), inputs()
        more = {"recompute": recompute} if run is ours else {}
        out = run(net, SIGMA, given["guidance"], given, **more)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) >= 4
    for name, mine in found[0].items():
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, found[1][name], atol=2e-4, rtol=1e-4, msg=name)


def test_in_bf16_it_is_as_near_to_exact_gradients_as_diffusers_and_peft():
    # 1000 times these is exact in bf16: else the noise level itself would differ.
    sigma, guidance = torch.tensor([0.125, 0.5]), torch.full((B,), 2.0)
    found = []
    for run, dtype in ((theirs, torch.float64), (ours, torch.bfloat16), (theirs, torch.bfloat16)):
        net, given = with_lora(transformer(torch.bfloat16)), inputs(torch.bfloat16)
        if dtype == torch.float64:
            net.double()
            given = {key: value.double() for key, value in given.items()}
        out = run(net, sigma, guidance, given)
        (out.double() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads = [p.grad.double().flatten() for p in net.parameters() if p.grad is not None]
        found.append(torch.cat(grads))
    exact, mine, other = found
    error = float((mine - exact).norm() / exact.norm())
    assert error < 1.3 * float((other - exact).norm() / exact.norm())
    assert error < 0.1


def test_segments_of_one_level_are_one_segment():
    net, given = with_lora(transformer()), inputs()
    levels = Levels(SIGMA[:, None].expand(-1, 3), (5, 12, N - 17))
    split = flux_forward(
        net, given["z"], given["prompt"], given["pooled"], levels, given["guidance"],
        given["places"],
    )  # fmt: skip
    whole = ours(net, SIGMA, given["guidance"], given)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)


def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    net, given = transformer(), inputs()
    order = torch.randperm(N)
    moved = {**given, "z": given["z"][:, order], "places": given["places"][order]}
    whole = ours(net, SIGMA, given["guidance"], given)
    torch.testing.assert_close(
        ours(net, SIGMA, given["guidance"], moved), whole[:, order], atol=1e-5, rtol=1e-5
    )
    levels = Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6))
    mixed = flux_forward(
        net, given["z"], given["prompt"], given["pooled"], levels, given["guidance"],
        given["places"],
    )  # fmt: skip
    assert (mixed - whole).abs().max() > 0.01


@pytest.mark.parametrize("length", [7, 1024, 1500])
def test_attention_by_blocks_is_attention(length):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3))
    g = torch.randn(2, length, 24)
    found = []
    for run in (
        blockwise,
        lambda *a: F.scaled_dot_product_attention(*a).transpose(1, 2).flatten(2),
    ):
        out = run(q, k, v)
        found.append([out, *torch.autograd.grad(out, (q, k, v), g)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
