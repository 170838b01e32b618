"""FLUX.1's two naming worlds at the tiny base's size, written out by hand for the tests.

Nothing here comes from iclora.models: rows and names are those of the public conversion.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import cache

import torch

H = 64
"""Hidden width of the tiny base: 1 double block, 2 single blocks."""

T, S, E = "transformer_blocks.0", "single_transformer_blocks", "time_text_embed"

FUSED = {
    "double_blocks.0.img_attn.qkv": (H, [(f"{T}.attn.to_{x}", H) for x in "qkv"]),
    "double_blocks.0.txt_attn.qkv": (H, [(f"{T}.attn.add_{x}_proj", H) for x in "qkv"]),
    "double_blocks.0.img_attn.proj": (H, [(f"{T}.attn.to_out.0", H)]),
    "double_blocks.0.txt_attn.proj": (H, [(f"{T}.attn.to_add_out", H)]),
    "double_blocks.0.img_mlp.0": (H, [(f"{T}.ff.net.0.proj", 4 * H)]),
    "double_blocks.0.img_mlp.2": (4 * H, [(f"{T}.ff.net.2", H)]),
    "double_blocks.0.txt_mlp.0": (H, [(f"{T}.ff_context.net.0.proj", 4 * H)]),
    "double_blocks.0.txt_mlp.2": (4 * H, [(f"{T}.ff_context.net.2", H)]),
    "double_blocks.0.img_mod.lin": (H, [(f"{T}.norm1.linear", 6 * H)]),
    "double_blocks.0.txt_mod.lin": (H, [(f"{T}.norm1_context.linear", 6 * H)]),
    "img_in": (64, [("x_embedder", H)]),
    "txt_in": (64, [("context_embedder", H)]),
    "time_in.in_layer": (256, [(f"{E}.timestep_embedder.linear_1", H)]),
    "time_in.out_layer": (H, [(f"{E}.timestep_embedder.linear_2", H)]),
    "vector_in.in_layer": (32, [(f"{E}.text_embedder.linear_1", H)]),
    "vector_in.out_layer": (H, [(f"{E}.text_embedder.linear_2", H)]),
    "guidance_in.in_layer": (256, [(f"{E}.guidance_embedder.linear_1", H)]),
    "guidance_in.out_layer": (H, [(f"{E}.guidance_embedder.linear_2", H)]),
    "final_layer.adaLN_modulation.1": (H, [("norm_out.linear", 2 * H)]),
    "final_layer.linear": (H, [("proj_out", 64)]),
}
for n in (0, 1):
    FUSED[f"single_blocks.{n}.linear1"] = (
        H,
        [*((f"{S}.{n}.attn.to_{x}", H) for x in "qkv"), (f"{S}.{n}.proj_mlp", 4 * H)],
    )
    FUSED[f"single_blocks.{n}.linear2"] = (5 * H, [(f"{S}.{n}.proj_out", H)])
    FUSED[f"single_blocks.{n}.modulation.lin"] = (H, [(f"{S}.{n}.norm.linear", 3 * H)])
"""Fused module -> its inputs, and the split modules with their rows, in order."""

SPLIT = {part: (wide, rows) for wide, parts in FUSED.values() for part, rows in parts}
"""Split module -> its inputs and rows."""

BLOCKS = [m for m in SPLIT if m.startswith((T, S))]


def lora(sides, rank=4, seed=0, size=0.1):
    """Random A and B by module, of (inputs, outputs) by module."""
    rng = torch.Generator().manual_seed(seed)
    return {
        module: (
            torch.randn(rank, wide, generator=rng) * size,
            torch.randn(tall, rank, generator=rng) * size,
        )
        for module, (wide, tall) in sides.items()
    }


def split_lora(modules=BLOCKS, **more):
    return lora({m: SPLIT[m] for m in modules}, **more)


def fused_lora(modules=FUSED, **more):
    return lora({m: (FUSED[m][0], sum(rows for _, rows in FUSED[m][1])) for m in modules}, **more)


def updates_of(found, scale=1.0):
    """scale * B @ A by module, in float64."""
    return {m: scale * b.double() @ a.double() for m, (a, b) in found.items()}


def cut(updates):
    """Updates of fused modules as those of the split modules."""
    found = {}
    for fused, update in updates.items():
        if fused == "final_layer.adaLN_modulation.1":
            update = torch.cat([update[H:], update[:H]])
        row = 0
        for part, rows in FUSED[fused][1]:
            found[part] = update[row : row + rows]
            row += rows
    return found


@torch.no_grad()
def velocity(model):
    """What the base, with whatever it carries, makes of fixed noise."""
    z = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(1))
    return model.velocity(z, torch.tensor([0.5]), [text_of(model)], (96, 64), 3.5)


@cache
def text_of(model):
    return model.encode_text("one")


@contextmanager
def added(model, updates):
    """The base with its own weights moved, W + update in float64."""
    before = {}
    for module, update in updates.items():
        weight = model.denoiser.get_submodule(module).weight
        before[module] = weight.data
        weight.data = (weight.double() + update).to(weight.dtype)
    try:
        yield
    finally:
        for module, weight in before.items():
            model.denoiser.get_submodule(module).weight.data = weight


def expected(model, updates):
    """The velocity by W + update; sure to be another than the base's own."""
    with added(model, updates):
        found = velocity(model)
    assert (found - plain_velocity(model)).abs().max() > 1e-2
    return found


@cache
def plain_velocity(model):
    """The velocity of a base that carries nothing."""
    return velocity(model)


def flat(name):
    return re.sub(r"\.", "_", name)
