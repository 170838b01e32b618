"""Queries and keys normed and turned, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iclora.models.rotary import heads


def exact(x, weight, eps, angles):
    """RMS norm, and the turn of each pair of neighbours by its angle, (B, S, heads, d)."""
    x = x.double()
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_queries_and_keys_are_what_float64_says(dtype, near, learns):
    generator = torch.Generator().manual_seed(0)
    norms = [nn.RMSNorm(8, eps=1e-6) for _ in range(2)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1.0, 0.2, generator=generator)
        norm.to(dtype).requires_grad_(False)
    # Slices of one wide tensor, as some families have them.
    wide = torch.randn(2, 5, 3 * 24, generator=generator).to(dtype)
    kept, qkv = wide.clone(), wide.split(24, -1)
    angles = torch.rand(1, 5, 1, 4, generator=generator, dtype=torch.float64) * 6
    rotary = torch.stack([angles.cos(), angles.sin()], -1).float()
    with torch.set_grad_enabled(learns):
        q, k, v = heads(qkv, *norms, rotary, 8)
    for found, x, norm in zip((q, k), qkv, norms, strict=False):
        wanted = exact(x.reshape(2, 5, 3, 8), norm.weight, norm.eps, angles)
        torch.testing.assert_close(found.double(), wanted, atol=near, rtol=near)
    assert torch.equal(v.flatten(2), qkv[2])
    assert torch.equal(wide, kept), "what was given is as it was"
