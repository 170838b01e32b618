"""Our forward pass against diffusers' and PEFT's, output and gradients."""

import os
import shutil
import threading
from functools import cache

import diffusers
import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.nn import functional as F

from iclora.files import cache_home
from iclora.models.attention import Shares, blockwise, by_parts, isolated, parts_of
from iclora.models.flux.forward import flux_forward
from iclora.models.levels import Schedule
from iclora.models.passes import COMPILED_SHAPES, Levels, Shapes, compiled, prepare_compiler
from iclora.models.quantize import KINDS, Frozen, quantize

N, T, B = 24, 10, 2


def transformer(dtype=torch.float32, guided=True):
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return net.to(dtype).requires_grad_(False)


def quantised(kind):
    prefixes = ("transformer_blocks.", "single_transformer_blocks.")
    return quantize(transformer(), kind, torch.device("cpu"), prefixes)


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
    ids = torch.stack([torch.zeros(N), torch.arange(N) // 6, torch.arange(N) % 6], 1).float()
    return {
        "z": torch.randn(B, N, 16).to(dtype),
        "prompt": torch.randn(B, T, 24).to(dtype),
        "pooled": torch.randn(B, 20).to(dtype),
        "ids": ids,
        "guidance": torch.full((B,), 3.5),
    }


def ours(net, sigma, guidance, given, **more):
    return at(net, Levels(sigma[:, None], (N,)), guidance, given, **more)


def at(net, levels, guidance, given, **more):
    text = given["prompt"], given["pooled"]
    return flux_forward(net, given["z"], *text, levels, guidance, given["ids"], **more)


def theirs(net, sigma, guidance, given, mask=None):
    return net(
        hidden_states=given["z"],
        encoder_hidden_states=given["prompt"],
        pooled_projections=given["pooled"],
        timestep=sigma.to(given["z"].dtype),
        guidance=guidance,
        img_ids=given["ids"],
        txt_ids=torch.zeros(T, 3),
        joint_attention_kwargs=None if mask is None else {"attention_mask": mask},
        return_dict=False,
    )[0]


def texts_apart(given=0):
    """Attention by parts of two panels, the last one with given tokens, and the same as a mask."""
    shares = Shares((4, 6), (10, 14 - given), (0, given))
    panel = torch.repeat_interleave(torch.tensor([0, 1, 0, 1]), torch.tensor([4, 6, 10, 14]))
    image = torch.arange(T + N) >= T
    mask = (panel[:, None] == panel) | (image[:, None] & image)
    return by_parts(blockwise, parts_of(shares, given_rows=True)), mask


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
            ours(net, SIGMA, guidance, given),
            theirs(net, SIGMA, guidance, given),
            atol=2e-5,
            rtol=1e-5,
        )


@torch.no_grad()
@pytest.mark.parametrize("guided", [True, False])
def test_a_step_whose_levels_were_modulated_together_is_what_diffusers_forward_gives(guided):
    net, given = with_lora(transformer(guided=guided)), inputs()
    guidance = given["guidance"] if guided else None
    schedule = Schedule([0.9, 0.3, 0.0])
    for level in (0.9, 0.3):
        sigma = torch.full((B,), level)
        levels = Levels(sigma[:, None], (N,), schedule.at(level))
        torch.testing.assert_close(
            at(net, levels, guidance, given),
            theirs(net, sigma, guidance, given),
            atol=2e-5,
            rtol=1e-5,
        )


def gradients(run, targets, **more):
    """Those of a LoRA on these modules, by name."""
    net, given = with_lora(transformer(), targets), inputs()
    out = run(net, SIGMA, given["guidance"], given, **more)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@cache
def pefts(targets):
    return gradients(theirs, targets)


@pytest.mark.parametrize("targets", ["", ".attn.", "proj_mlp", "proj_out", "norm"])
@pytest.mark.parametrize("recompute", [0, 2, 5])
def test_lora_gradients_are_pefts(targets, recompute):
    found, expected = gradients(ours, targets, recompute=recompute), pefts(targets)
    assert found.keys() == expected.keys()
    assert len(found) >= 4
    for name, mine in found.items():
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected[name], atol=2e-4, rtol=1e-4, msg=name)


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
    split = at(net, levels, given["guidance"], given)
    whole = ours(net, SIGMA, given["guidance"], given)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)


def test_tokens_may_come_in_any_order_and_a_segments_level_is_its_own():
    net, given = transformer(), inputs()
    order = torch.randperm(N)
    moved = {**given, "z": given["z"][:, order], "ids": given["ids"][order]}
    whole = ours(net, SIGMA, given["guidance"], given)
    torch.testing.assert_close(
        ours(net, SIGMA, given["guidance"], moved), whole[:, order], atol=1e-5, rtol=1e-5
    )
    levels = Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6))
    mixed = at(net, levels, given["guidance"], given)
    assert (mixed - whole).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_blocks_read_texts_apart_as_diffusers_reads_their_weights_with_a_mask(kind):
    codes, whole = quantised(kind), transformer()
    with torch.no_grad():
        for name, layer in codes.named_modules():
            if isinstance(layer, Frozen):
                weight = whole.get_submodule(name).weight
                weight.copy_(KINDS[kind].unpack(layer.parts, torch.float32))
    apart, mask = texts_apart()
    found = []
    for net, run, how in ((codes, ours, {"attend": apart}), (whole, theirs, {"mask": mask})):
        given = inputs()
        out = run(with_lora(net), SIGMA, given["guidance"], given, **how)
        live = [p for p in net.parameters() if p.requires_grad]
        found.append([out, *torch.autograd.grad(out.square().mean(), live)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recompute", [0, 2, 5])
def test_gradients_are_the_same_however_many_blocks_are_recomputed_and_fewer_are_kept(recompute):
    found, kept = [], []
    for blocks in (0, recompute):
        net, given = with_lora(transformer()), inputs()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        ):
            out = ours(net, SIGMA, given["guidance"], given, recompute=blocks)
        out.square().sum().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
        kept.append(sum(saved))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert recompute == 0 or kept[1] < kept[0]


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_gradients_and_every_shape_is_compiled_once(counted):
    given = inputs()
    levels = Levels(torch.stack([SIGMA, torch.zeros(2)], 1), (N - 6, 6))
    began = counted()

    def gradients(net, **more):
        out = at(net, levels, given["guidance"], given, **more)
        return out, torch.autograd.grad(
            out.square().sum(), [p for p in net.parameters() if p.requires_grad]
        )

    net, shapes = with_lora(transformer()), Shapes()
    eager = gradients(net)
    for recompute in (0, 3):
        # Attention that is new at every call, as `given` makes it.
        around = isolated(blockwise, 6)
        fast = gradients(net, shapes=shapes, recompute=recompute, attend=around)
        other = gradients(net, attend=around)
        torch.testing.assert_close(fast, other, atol=1e-3, rtol=1e-3)
        assert (fast[0] - eager[0]).abs().max() > 1e-3
        # Two halves of two sorts of block and three layers that modulate, however many blocks; once
        # more where nothing before a block has a gradient, or its words come out of a double block.
        assert counted() - began == 10
    # Which text a panel reads is attention's alone: no graph is made for it.
    apart, mask = texts_apart(given=6)
    fast = gradients(net, shapes=shapes, attend=apart)
    torch.testing.assert_close(fast, gradients(net, attend=masked_by(mask)), atol=1e-3, rtol=1e-3)
    assert (fast[0] - eager[0]).abs().max() > 1e-3
    assert counted() - began == 10


def masked_by(mask):
    return lambda q, k, v: (
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    )


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8"])
def test_quantised_blocks_compile(kind, counted):
    net = quantised(kind)
    # One block, whose products are those of every other: tracing is what this test costs.
    net.transformer_blocks, net.single_transformer_blocks = (
        nn.ModuleList(),
        net.single_transformer_blocks[:1],
    )
    check_compiled(with_lora(net), kind)


# torch's own compiler calls torch.jit.script_method, of which torch 2.13 warns.
@needs_compiler
@pytest.mark.machine
@pytest.mark.filterwarnings(
    "default", "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)
def test_what_is_compiled_to_machine_code_gives_the_same_gradients(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled.cache_clear()
    net = transformer()
    # Half a block and one LoRA: a compiler's time is what this test costs.
    half = lambda part: compiled(part) if part.__name__ == "_single_after" else part  # noqa: E731
    monkeypatch.setattr("iclora.models.flux.forward.compiled", half)
    net.transformer_blocks, net.single_transformer_blocks = (
        nn.ModuleList(),
        nn.ModuleList([net.single_transformer_blocks[0]]),
    )
    # Which vector instructions there are is told by the processor; trying takes 9 s of compiling.
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
        check_compiled(with_lora(net, "proj_out"), "full")
    compiled.cache_clear()
    assert any(tmp_path.rglob("*.cpp"))


def check_compiled(net, kind):
    given, found = inputs(), []
    for shapes in (None, Shapes()):
        out = ours(net, SIGMA, given["guidance"], given, shapes=shapes)
        live = [p for p in net.parameters() if p.requires_grad]
        found.append([out, *torch.autograd.grad(out.square().sum(), live)])
    most = 0.1 if kind == "fp8" else 1e-3
    for mine, other in zip(*found, strict=True):
        assert float((mine - other).detach().norm()) <= most * float(other.detach().norm())


@pytest.mark.parametrize("chosen", [None, "default", "/somewhere/else"])
def test_what_is_compiled_lies_in_our_cache_unless_a_user_chose_another(monkeypatch, chosen):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(name, default_cache_dir() if chosen == "default" else chosen or "")
    if chosen is None:
        monkeypatch.delenv(name)
    prepare_compiler.cache_clear()
    prepare_compiler()
    ours_or_theirs = chosen if chosen == "/somewhere/else" else str(cache_home() / "inductor")
    assert os.environ[name] == ours_or_theirs


def test_shapes_beyond_the_limit_run_uncompiled(monkeypatch):
    net, given, shapes = with_lora(transformer()), inputs(), Shapes()
    assert all(shapes.take(i) for i in range(COMPILED_SHAPES))
    monkeypatch.setattr(torch, "compile", lambda *_a, **_m: pytest.fail("compiled"))
    compiled.cache_clear()
    ours(net, SIGMA, given["guidance"], given, shapes=shapes)
    assert len(shapes) == COMPILED_SHAPES
    assert shapes.take(0), "a shape that was taken stays so"


def test_another_model_has_room_for_shapes_of_its_own():
    one, other = Shapes(), Shapes()
    assert [one.take(i) for i in range(COMPILED_SHAPES + 1)] == [True] * COMPILED_SHAPES + [False]
    assert other.take("new")


def test_threads_that_ask_together_take_no_shape_too_many():
    shapes, taken = Shapes(), []

    def ask(first):
        taken.extend(shapes.take(first + i) for i in range(20))

    threads = [threading.Thread(target=ask, args=(20 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == len(shapes) == COMPILED_SHAPES


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
