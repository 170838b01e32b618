"""FLUX.2 klein without numbers: what a run takes, against real passes and published sizes."""

from __future__ import annotations

import json
import shutil
from functools import cache

import pytest
import torch

from iclora.models.flux2.model import KleinModel
from iclora.models.flux2.outline import KleinOutline
from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.settings import TrainSettings
from iclora.train.costs import Costs
from tests.models.helpers import CPU, Real, peak_is_counted
from tests.train.test_costs import flops_of

CONFIG = TrainSettings(base="b", data="d", out="o", rank=4, preview_every=0)
SHIPPED = {
    size: KleinOutline.shipped[f"black-forest-labs/FLUX.2-klein-base-{size}"]
    for size in ("4B", "9B")
}


def opened(folder, dtype=torch.bfloat16):
    return KleinModel(folder, "x", CPU, dtype)


def outline(size, precision="full"):
    return outline_of(opened(SHIPPED[size]), torch.bfloat16, precision)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The settings alone of a klein of 2 double and 2 single blocks, 128 wide."""
    return write_small(tmp_path_factory.mktemp("small-klein") / "base")


def write_small(folder, double=2, single=2):
    shutil.copytree(SHIPPED["4B"], folder)
    changes = {
        "transformer": {
            "num_layers": double,
            "num_single_layers": single,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "axes_dims_rope": [16, 16, 16, 16],
            "joint_attention_dim": 96,
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


@cache
def counts(folder, dtype, precision="full"):
    """What a pass of such a base takes on a CPU, counted; kept for the tests that follow."""
    return Costs(outline_of(opened(folder, dtype), dtype, precision), CONFIG, "cpu")


@cache
def real(folder, dtype, precision):
    return Real(opened(folder, dtype), precision, lambda words: {"prompt": torch.randn(words, 96)})


@pytest.mark.parametrize(
    ("precision", "dtype", "recompute", "batch"),
    [
        ("full", "bfloat16", 0, Batch(1, 384, 256)),
        # From 2048 keys on a CPU attends in another way.
        ("full", "bfloat16", 3, Batch(1, 512, 768)),
        ("full", "float32", 4, Batch(1, 384, 256)),
        ("int8", "float32", 1, Batch(1, 64, 128)),
        ("nf4", "bfloat16", 3, Batch(1, 64, 128)),
        ("full", "float32", 4, Batch(1, 384, 256, given=True, isolated=True)),
        ("full", "bfloat16", 3, Batch(1, 64, 240, given=True, texts=2)),
    ],
)
def test_the_peak_of_a_pass_is_within_a_twentieth_of_a_real_ones(
    small, precision, dtype, recompute, batch
):
    kind = getattr(torch, dtype)
    net = real(small, kind, precision)
    peak_is_counted(net, counts(small, kind, precision), batch, recompute)


def test_flops_are_those_that_torch_counts_in_a_real_pass(tmp_path):
    batch, recompute = Batch(1, 128, 128), 5
    # The first block's input needs no gradient, which matters where there are so few blocks.
    folder = write_small(tmp_path / "base", 3, 4)
    net = real(folder, torch.float32, "full")
    counted = counts(folder, torch.float32).flops(batch, recompute)
    assert counted == pytest.approx(flops_of(lambda: net.step(batch, recompute)), rel=0.01)


@pytest.mark.parametrize(("size", "billions"), [("4B", 3.88), ("9B", 9.08)])
def test_the_outlines_have_the_published_sizes(size, billions):
    found = outline(size)
    total = sum(p.numel() for p in found.whole().parameters())
    assert total / 1e9 == pytest.approx(billions, abs=0.01)
    assert Costs(found, CONFIG, "cuda").weights == 2 * total


def test_the_text_encoder_is_qwen3_4b_cut_at_layer_27():
    (qwen,) = outline("4B").text_encoders
    layer = 2560 * (32 * 128 * 2 + 8 * 128 * 2) + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128
    assert sum(p.numel() for p in qwen.parameters()) == 27 * layer + 151936 * 2560


@pytest.mark.parametrize(
    ("size", "flops", "again"), [("4B", 79e12, 114e12), ("9B", 168e12, 243e12)]
)
def test_flops_of_true_klein_at_1024_px_are_those_counted_elsewhere(size, flops, again):
    """On diffusers' own modules, for a step without and with recomputing."""
    costs = Costs(outline(size), CONFIG.model_copy(update={"rank": 16}), "cuda")
    assert costs.flops(Batch(1, 1024, 1024), 0) == pytest.approx(flops, rel=0.02)
    assert costs.flops(Batch(1, 1024, 1024), 99) == pytest.approx(again, rel=0.02)


def test_encoders_are_counted_without_weights(small):
    costs = counts(small, torch.float32)
    assert costs.text() > 512 * 512
    assert costs.images(64, 64) > 0
    assert costs.preview(64, 64) > costs.held


def test_both_sizes_are_planned_for_without_a_file_of_theirs():
    for size, folder in SHIPPED.items():
        assert shipped_outline(f"black-forest-labs/FLUX.2-klein-base-{size}") == folder
