"""Qwen-Image without numbers: what a run takes, against real passes and published sizes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.models.qwen_image.model import QwenImageModel
from iclora.models.qwen_image.outline import QwenImageOutline
from iclora.settings import TrainSettings
from iclora.train.costs import Costs
from tests.models.helpers import CPU, Real, peak_is_counted
from tests.train.test_costs import flops_of

CONFIG = TrainSettings(base="b", data="d", out="o", rank=4, preview_every=0)
BASE = "Qwen/Qwen-Image-2512"
WORDS = 64
"""Tokens of a text. They are wider than the blocks, and nothing reads what the last block writes
of them."""

SHIPPED = QwenImageOutline.shipped[BASE]


def opened(folder, dtype=torch.bfloat16):
    return QwenImageModel(folder, "x", CPU, dtype)


def outline(precision="full"):
    return outline_of(opened(SHIPPED), torch.bfloat16, precision)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The settings alone of a Qwen-Image of four blocks, 128 wide."""
    folder = tmp_path_factory.mktemp("small-qwen") / "base"
    shutil.copytree(SHIPPED, folder)
    path = folder / "transformer/config.json"
    change = {
        "num_layers": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "axes_dims_rope": [16, 24, 24],
        "joint_attention_dim": 3584,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def real(folder, dtype):
    model = opened(folder, dtype)
    model.max_text_tokens = WORDS
    return Real(model, "full", lambda words: {"prompt": torch.randn(words, 3584)}, WORDS)


def costs_of(model):
    found = outline_of(model, model.dtype, model.precision)
    found.model.max_text_tokens = WORDS
    return Costs(found, CONFIG, "cpu")


@pytest.mark.parametrize(
    ("dtype", "recompute", "batch"),
    [
        ("bfloat16", 0, Batch(1, 384, 480, given=True, isolated=True, texts=2)),
        ("float32", 4, Batch(1, 256, 256)),
    ],
)
def test_the_peak_of_a_pass_is_within_a_twentieth_of_a_real_ones(small, dtype, recompute, batch):
    net = real(small, getattr(torch, dtype))
    peak_is_counted(net, costs_of(net.model), batch, recompute)


def test_flops_are_those_that_torch_counts_in_a_real_pass(small):
    batch = Batch(1, 384, 384)
    net = real(small, torch.float32)
    counted = costs_of(net.model).flops(batch, 1)
    assert counted == pytest.approx(flops_of(lambda: net.step(batch, 1)), rel=0.02)


def test_the_outline_has_the_published_sizes_and_a_lora_147_million_parameters():
    found = outline()
    total = sum(p.numel() for p in found.whole().parameters())
    assert total / 1e9 == pytest.approx(20.43, abs=0.01)
    costs = Costs(found, CONFIG.model_copy(update={"rank": 16}), "cuda")
    assert costs.weights == 2 * total
    assert costs.lora / 1e6 == pytest.approx(147.5, abs=0.1)
    assert shipped_outline(BASE) == shipped_outline("Qwen/Qwen-Image") == SHIPPED
    # Qwen2.5-VL-7B without what sees pictures and without its head.
    (qwen,) = found.text_encoders
    layer = 3584 * (28 * 128 * 2 + 4 * 128 * 2) + 3 * 3584 * 18944 + 2 * 3584 + 36 * 128
    assert sum(p.numel() for p in qwen.parameters()) == 28 * layer + 152064 * 3584 + 3584
