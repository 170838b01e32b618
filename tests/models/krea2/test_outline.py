"""Krea 2 without numbers: what a run takes, against real passes and published sizes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from iclora.models.krea2.model import Krea2Model
from iclora.models.krea2.outline import Krea2Outline
from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.settings import TrainSettings
from iclora.train.costs import Costs
from tests.models.helpers import CPU, Real, peak_is_counted
from tests.train.test_costs import flops_of

CONFIG = TrainSettings(base="b", data="d", out="o", rank=4, preview_every=0)
BASE = "krea/Krea-2-Raw"
SHIPPED = Krea2Outline.shipped[BASE]
BLOCKS = 3


def opened(folder, dtype=torch.bfloat16):
    return Krea2Model(folder, "x", CPU, dtype)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The settings alone of a Krea 2 of three layers, 192 wide."""
    folder = tmp_path_factory.mktemp("small-krea") / "base"
    shutil.copytree(SHIPPED, folder)
    changes = {
        "transformer": {
            "num_layers": BLOCKS,
            "attention_head_dim": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 512,
            "axes_dims_rope": [16, 24, 24],
            "text_hidden_dim": 32,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 64,
        },
        "vae": {"base_dim": 4, "num_res_blocks": 1},
    }
    for part, change in changes.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    path = folder / "text_encoder" / "config.json"
    settings = json.loads(path.read_text())
    settings["text_config"] |= {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 300}
    path.write_text(json.dumps(settings))
    path = folder / "model_index.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"text_encoder_select_layers": [1, 2]})
    )
    return folder


def real(folder, dtype, precision):
    return Real(
        opened(folder, dtype), precision, lambda words: {"prompt": torch.randn(words, 2, 32)}
    )


@pytest.mark.parametrize(
    ("precision", "dtype", "recompute", "batch"),
    [
        ("full", "bfloat16", 0, Batch(1, 64, 240, given=True, isolated=True, texts=2)),
        ("nf4", "float32", BLOCKS, Batch(1, 64, 160)),
    ],
)
def test_the_peak_of_a_pass_is_within_a_twentieth_of_a_real_ones(
    small, precision, dtype, recompute, batch
):
    kind = getattr(torch, dtype)
    net = real(small, kind, precision)
    costs = Costs(outline_of(opened(small), kind, precision), CONFIG, "cpu")
    peak_is_counted(net, costs, batch, recompute)


def test_flops_are_those_that_torch_counts_in_a_real_pass(small):
    batch, recompute = Batch(1, 128, 128), 2
    net = real(small, torch.float32, "full")
    counted = Costs(outline_of(opened(small), torch.float32, "full"), CONFIG, "cpu")
    # The first block's input needs no gradient, which matters where there are so few.
    measured = flops_of(lambda: net.step(batch, recompute))
    assert counted.flops(batch, recompute) == pytest.approx(measured, rel=0.02)


def test_the_outline_has_the_published_sizes_and_a_lora_53_7_million_parameters():
    found = outline_of(opened(SHIPPED), torch.bfloat16, "full")
    total = sum(p.numel() for p in found.whole().parameters())
    assert total / 1e9 == pytest.approx(12.8, abs=0.1)
    costs = Costs(found, CONFIG.model_copy(update={"rank": 16}), "cuda")
    # Norms are kept in float32.
    assert 2 * total < costs.weights < 2.001 * total
    assert costs.lora / 1e6 == pytest.approx(53.7, abs=0.1)
    assert shipped_outline(BASE) == SHIPPED
    # Qwen3-VL-4B without its last layer, its norm and the part that sees.
    (qwen,) = found.text_encoders
    layer = 2560 * (32 * 128 * 2 + 8 * 128 * 2) + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128
    assert sum(p.numel() for p in qwen.parameters()) == 35 * layer + 151936 * 2560
    found.read_text()
    found.encode_pixels(64, 64)
    found.decode_pixels(64, 64)
