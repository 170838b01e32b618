"""Z-Image without numbers: what a run takes, against real passes and published sizes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.models.zimage.model import ZImageModel
from iclora.models.zimage.outline import ZImageOutline
from iclora.settings import TrainSettings
from iclora.train.costs import Costs
from tests.models.helpers import CPU, Real, peak_is_counted
from tests.train.test_costs import flops_of

CONFIG = TrainSettings(base="b", data="d", out="o", rank=4, preview_every=0)
BASE = "Tongyi-MAI/Z-Image"
SHIPPED = ZImageOutline.shipped[BASE]
BLOCKS = 5
"""A refiner of the text, one of the image, and three joint ones."""
WORDS = 64
"""Tokens of a text: so few that what lies beside the blocks matters."""


def opened(folder, dtype=torch.bfloat16):
    return ZImageModel(folder, "x", CPU, dtype)


def outline(precision="full"):
    return outline_of(opened(SHIPPED), torch.bfloat16, precision)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The settings alone of a Z-Image of three layers, 192 wide."""
    folder = tmp_path_factory.mktemp("small-zimage") / "base"
    shutil.copytree(SHIPPED, folder)
    changes = {
        "transformer": {
            "dim": 192,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "n_heads": 3,
            "n_kv_heads": 3,
            "axes_dims": [16, 24, 24],
            "cap_feat_dim": 32,
        },
        "text_encoder": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "vocab_size": 300,
        },
        "vae": {"block_out_channels": [2, 2, 4, 4], "norm_num_groups": 2, "layers_per_block": 1},
    }
    for part, change in changes.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def real(folder, dtype, precision):
    return Real(
        opened(folder, dtype),
        precision,
        lambda words: {"prompt": torch.randn(words, 32), "real": torch.ones(words)},
        WORDS,
    )


def costs_of(model):
    found = outline_of(model, model.dtype, model.precision)
    found.model.max_text_tokens = WORDS
    return Costs(found, CONFIG, "cpu")


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
    peak_is_counted(net, costs_of(net.model), batch, recompute)


def test_flops_are_those_that_torch_counts_in_a_real_pass(small):
    batch, recompute = Batch(1, 128, 128), 3
    net = real(small, torch.float32, "full")
    counted = costs_of(net.model).flops(batch, recompute)
    # A refiner's input needs no gradient, which matters where there are so few blocks.
    measured = flops_of(lambda: net.step(batch, recompute))
    assert counted == pytest.approx(measured, rel=0.02)


def test_the_outline_has_the_published_sizes():
    found = outline()
    total = sum(p.numel() for p in found.whole().parameters())
    assert total / 1e9 == pytest.approx(6.15, abs=0.01)
    assert Costs(found, CONFIG, "cuda").weights == 2 * total
    assert shipped_outline(BASE) == SHIPPED
    # Qwen3-4B without its last layer and its norm.
    (qwen,) = found.text_encoders
    layer = 2560 * (32 * 128 * 2 + 8 * 128 * 2) + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128
    assert sum(p.numel() for p in qwen.parameters()) == 35 * layer + 151936 * 2560


def test_a_lora_of_rank_16_on_all_layers_has_47_7_million_parameters():
    costs = Costs(outline(), CONFIG.model_copy(update={"rank": 16}), "cuda")
    assert costs.lora / 1e6 == pytest.approx(47.7, abs=0.1)
