"""Attention on a CPU, against dense float64 formulas."""

import pytest
import torch

from iclora.models import attention_cpu, products
from iclora.models.attention_cpu import blockwise, fused, headwise, shortest, steady

WAYS = (fused, headwise, blockwise, shortest, steady)


def dense(q, k, v):
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v.double()).transpose(1, 2).flatten(2)


def gradients(attend, qkv, weights):
    leaves = [t.detach().clone().requires_grad_() for t in qkv]
    out = attend(*leaves)
    (out * weights).sum().backward()
    return [out, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("attend", WAYS)
@pytest.mark.parametrize("queries", [5, 800])
def test_every_way_is_softmax_and_its_gradient(attend, queries):
    """Also where there are fewer queries than keys, and where heads lie beside each other."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 16).transpose(1, 2) for n in (queries, 31, 31))
    weights = torch.randn(2, queries, 48)
    ours = gradients(attend, (q, k, v), weights)
    theirs = gradients(dense, (q, k, v), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("attend", "kind", "keys", "learns", "way"),
    [
        (shortest, "float32", 4, True, "fused"),
        (shortest, "bfloat16", 2048, True, "headwise"),
        (shortest, "bfloat16", 2047, True, "blockwise"),
        (shortest, "bfloat16", 2048, False, "fused"),
        (steady, "float32", 2047, True, "blockwise"),
        (steady, "float32", 2048, True, "fused"),
        (steady, "bfloat16", 2048, True, "headwise"),
        (steady, "float32", 4, False, "fused"),
        (steady, "bfloat16", 2047, True, "blockwise"),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_the_way_depends_on_type_keys_and_gradient(
    attend, kind, keys, learns, way, enabled, monkeypatch
):
    monkeypatch.setattr(products, "SLOW", False)
    for name in ("fused", "headwise", "blockwise"):
        monkeypatch.setattr(attention_cpu, name, lambda *_, name=name: name)
    q, k = (torch.empty(1, 1, n, 8, dtype=getattr(torch, kind)) for n in (1, keys))
    # What a frozen layer gives needs no gradient either, also while gradients are enabled.
    with torch.set_grad_enabled(enabled):
        assert attend(q.requires_grad_(learns), k, k) == (way if enabled else "fused")


@pytest.mark.parametrize("attend", [shortest, steady])
def test_a_cpu_without_products_of_bf16_makes_every_gradient_in_float32(attend, monkeypatch):
    monkeypatch.setattr(products, "SLOW", True)
    monkeypatch.setattr(attention_cpu, "headwise", lambda *_: "headwise")
    q = torch.empty(1, 1, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    assert attend(q, q, q) == "headwise"
