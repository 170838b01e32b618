"""Krea 2 without numbers: what a run takes, against real passes and published sizes."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch

from iclora.adapter import attach
from iclora.models import flow
from iclora.models.base import Given, Panels
from iclora.models.krea2.model import Krea2Model
from iclora.models.krea2.outline import Krea2Outline
from iclora.models.outline import Batch, as_loaded, outline_of, shipped_outline
from iclora.models.quantize import quantize
from iclora.settings import TrainSettings, read_settings
from iclora.train.costs import Costs
from iclora.train.plan import plan_run
from tests.train.test_costs import flops_of, measured_peak
from tests.train.test_plan import EXAMPLES

CPU = torch.device("cpu")
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


class Real:
    """A real net of that outline, and a forward and backward pass of the training code."""

    def __init__(self, folder, dtype, precision):
        torch.manual_seed(0)
        self.model = opened(folder, dtype)
        net = diffusers.Krea2Transformer2DModel.from_config(self.model.config("transformer"))
        net = as_loaded(net.requires_grad_(False).eval(), dtype)
        self.model.denoiser = quantize(net, precision, CPU, self.model.block_prefixes)
        for parameter in attach(self.model, rank=4, alpha=16, targets="all", seed=0).values():
            parameter.grad = torch.zeros_like(parameter)

    def step(self, batch, recompute):
        model = self.model
        model.recompute = recompute
        n = batch.width * batch.height // 256
        x0 = torch.randn(batch.count, n, 64)
        given, of, panels = None, None, None
        if batch.given:
            tokens = torch.arange(n).expand(batch.count, n) % 2 == 1
            given, of = Given(tokens, clean=True, isolated=batch.isolated), ~tokens
        if batch.texts > 1:
            panels = Panels(torch.arange(n) * batch.texts // n, (512,) * batch.texts)
        sigma = torch.full((batch.count,), 0.5)
        texts = [{"prompt": torch.randn(512 * batch.texts, 2, 32)}] * batch.count
        size = (batch.width, batch.height)
        v = model.velocity(x0, sigma, texts, size, 1.0, given, None, panels)
        torch.autograd.backward(flow.loss(v, x0, x0, of).sum())


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
    real = Real(small, kind, precision)
    real.step(batch, recompute)
    measured = measured_peak(lambda: real.step(batch, recompute))
    costs = Costs(outline_of(opened(small), kind, precision), CONFIG, "cpu")
    counted = costs.step(batch, recompute) - costs.held
    print(f"\n{precision} {dtype} {recompute} of {BLOCKS}: {counted / measured - 1:+.1%}")
    assert counted == pytest.approx(measured, rel=0.05)


def test_flops_are_those_that_torch_counts_in_a_real_pass(small):
    batch, recompute = Batch(1, 128, 128), 2
    real = Real(small, torch.float32, "full")
    counted = Costs(outline_of(opened(small), torch.float32, "full"), CONFIG, "cpu")
    # The first block's input needs no gradient, which matters where there are so few.
    measured = flops_of(lambda: real.step(batch, recompute))
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


@pytest.mark.parametrize("vram", [80])
def test_the_shipped_run_files_of_krea_2_are_what_plan_chooses(vram):
    """The paper's run: 4 sets, 512 to 1536 px, rank 16."""
    path = EXAMPLES / f"krea-{vram}gb.toml"
    told = {"base": BASE, "data": "DATA", "out": "RUN"}
    shipped = read_settings(TrainSettings, path, {})
    assert (shipped.batch, shipped.rank, max(shipped.resolutions)) == (4, 16, 1536)
    found = plan_run(read_settings(TrainSettings, None, {**told, "vram": vram}), here=False)
    assert found.run_file() == path.read_text()
