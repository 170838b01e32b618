"""What a run takes, counted: against real runs, torch's own counters and published sizes."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from iclora.adapter import attach
from iclora.models import flow
from iclora.models.base import Given, Panels
from iclora.models.flux.model import FluxModel
from iclora.models.outline import Batch, outline_of
from iclora.models.quantize import quantize
from iclora.settings import TrainSettings
from iclora.train.costs import Costs
from tests.conftest import FLUX_DEV

CPU = torch.device("cpu")
CONFIG = TrainSettings(base="b", data="d", out="o", rank=4, preview_every=0)


@pytest.fixture(scope="session")
def small(small, tmp_path_factory):
    """With two blocks of each kind: one is counted for both."""
    folder = tmp_path_factory.mktemp("smaller") / "base"
    shutil.copytree(small, folder)
    path = folder / "transformer" / "config.json"
    fewer = {"num_layers": 2, "num_single_layers": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | fewer))
    return folder


def opened(dtype=torch.bfloat16, folder=FLUX_DEV):
    return FluxModel(folder, "x", CPU, dtype)


@cache
def counts(folder, dtype, precision="full"):
    """What a pass of such a base takes on a CPU, counted; kept for the tests that follow."""
    return Costs(outline_of(opened(dtype, folder), dtype, precision), CONFIG, "cpu")


@cache
def dev(precision="full", rank=4):
    """What FLUX.1-dev takes on a GPU."""
    config = CONFIG.model_copy(update={"rank": rank})
    return Costs(outline_of(opened(), torch.bfloat16, precision), config, "cuda")


@cache
class Real:
    """A real net of that outline, and a forward and backward pass of the training code."""

    def __init__(self, folder, dtype, precision="full"):
        import diffusers

        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.model = opened(dtype, folder)
        self.model.precision = precision
        settings = json.loads((folder / "transformer" / "config.json").read_text())
        with torch.device(CPU):
            net = diffusers.FluxTransformer2DModel.from_config(settings)
        for parameter in net.parameters():
            parameter.data = parameter.data.to(dtype)
        self.model.denoiser = quantize(
            net.requires_grad_(False).eval(), precision, CPU, self.model.block_prefixes
        )
        self.lora = attach(self.model, rank=4, alpha=16, targets="all", seed=0)
        for parameter in self.lora.values():
            parameter.grad = torch.zeros_like(parameter)
        # As of a run, texts are there before a step begins.
        self._text = {"prompt": torch.randn(128, 64), "pooled": torch.randn(32)}

    def step(self, batch, recompute=0):
        # As in training, nothing but the graph outlives the forward pass.
        torch.autograd.backward(self._loss(batch, recompute).sum())

    def _loss(self, batch, recompute):
        model = self.model
        model.recompute = recompute
        n = batch.width * batch.height // 256
        x0, eps = torch.randn(2, batch.count, n, 64).unbind()
        text = self._text
        given, of = None, None
        if batch.given:
            tokens = torch.arange(n).expand(batch.count, n) < n // 2
            given, of = Given(tokens, clean=True, isolated=batch.isolated), ~tokens
        sigma = torch.full((batch.count,), 0.5)
        size, panels = (batch.width, batch.height), None
        if batch.texts > 1:
            text = model.join_texts([text] * batch.texts)
            owner = torch.arange(n) * batch.texts // n
            panels = Panels(owner, (128,) * batch.texts)
        texts = [text] * batch.count
        z = flow.add_noise(x0, eps, sigma)
        v = model.velocity(z, sigma, texts, size, 1.0, given, None, panels)
        return flow.loss(v, x0, eps, of)


def small_part(batch):
    """As few sets and pixels as say what torch sets up at a first pass, and keeps."""
    return replace(batch, count=1, width=64, height=128)


def measured_peak(run):
    """Bytes at the peak above those at the start, by what the CPU's allocator told the profiler."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def flops_of(run):
    """FLOPs of what runs on a CPU, by torch's counter, with what that leaves out."""

    def adding(_, a, b, out_shape=None, **options):
        return 2 * a[0] * a[1] * b[1]

    def attending(q, k, *rest, out_shape=None, **options):
        return 4 * math.prod(q) * k[-2]

    def attending_back(_, q, k, *rest, out_shape=None, **options):
        return 10 * math.prod(q) * k[-2]

    aten = torch.ops.aten
    missing = {
        aten.addmm_: adding,
        aten._scaled_dot_product_flash_attention_for_cpu: attending,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attending_back,
    }
    with FlopCounterMode(display=False, custom_mapping=missing) as counter:
        run()
    return counter.get_total_flops()


def formula(n, t=512, r=16, h=3072, nd=19, ns=38):
    """FLOPs of a training step without and with recomputing, by hand (FLUX.1-dev)."""
    s = n + t
    linear, attention = (nd + ns) * 24 * h * h * s, (nd + ns) * 4 * s * s * h
    mod = nd * 24 * h * h + ns * 6 * h * h
    ends = 4 * n * 64 * h + 2 * t * 4096 * h + 4 * (256 * h + h * h)
    ends += 2 * (768 * h + h * h) + 4 * h * h
    lora = s * (nd * 2 * r * 18 * h + ns * 2 * r * 6 * h)
    forward = linear + attention + mod + ends + lora
    kept = forward + linear + 2.5 * attention + 2 * lora
    return kept, kept + forward


# -- weights and FLOPs --------------------------------------------------------------------------


def test_the_outline_of_flux_dev_has_its_11_901_408_320_parameters():
    whole = outline_of(opened(), torch.bfloat16, "full").whole()
    assert sum(p.numel() for p in whole.parameters()) == 11_901_408_320
    # As many from one block of each kind.
    assert dev().weights == 2 * 11_901_408_320


def test_t5_xxl_and_clip_have_their_published_sizes():
    clip, t5 = outline_of(opened(), torch.bfloat16, "full").text_encoders
    assert sum(p.numel() for p in clip.parameters()) == 123_060_480
    assert sum(p.numel() for p in t5.parameters()) == 4_762_310_656


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.5), ("nf4", 0.266)])
def test_quantised_blocks_take_their_share_of_bf16(precision, share):
    assert dev(precision).weights / dev().weights == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize("side", [512, 1024, 1536])
def test_flops_of_flux_dev_are_those_of_the_formula(side):
    costs = dev(rank=16)
    kept, recomputed = formula(side**2 // 256)
    assert costs.flops(Batch(1, side, side), 0) == pytest.approx(kept, rel=0.01)
    assert costs.flops(Batch(1, side, side), 57) == pytest.approx(recomputed, rel=0.01)


@pytest.mark.parametrize("recompute", [0, 3])
def test_flops_are_those_that_torch_counts_in_a_real_pass(small, recompute):
    batch = Batch(2, 128, 128)
    real = Real(small, torch.float32)

    counted = counts(small, torch.float32).flops(batch, recompute)
    assert counted == pytest.approx(flops_of(lambda: real.step(batch, recompute)), rel=0.01)


# -- memory -------------------------------------------------------------------------------------

MANY, FEW = Batch(2, 256, 192), Batch(1, 64, 128)
"""With few tokens, weights that are made from their codes are what matters."""
CASES = [
    ("full", "bfloat16", 0, MANY),
    ("full", "bfloat16", 4, MANY),
    ("full", "float32", 0, FEW),
    ("full", "float32", 1, MANY),
    # More tokens than a CPU attends to at a time.
    ("full", "float32", 3, Batch(1, 512, 768)),
    ("int8", "float32", 0, FEW),
    ("int8", "bfloat16", 4, FEW),
    ("int8", "float32", 2, MANY),
    ("nf4", "float32", 0, FEW),
    ("nf4", "bfloat16", 4, FEW),
    ("nf4", "bfloat16", 3, MANY),
    ("full", "float32", 2, Batch(2, 256, 192, given=True)),
    # What given tokens do not read is seen if only a block's own tensors live beside it.
    ("full", "float32", 4, Batch(2, 256, 192, given=True, isolated=True)),
    ("full", "float32", 0, Batch(1, 256, 192, texts=3)),
    ("full", "float32", 2, Batch(2, 256, 192, texts=3)),
]


@pytest.mark.parametrize(("precision", "dtype", "recompute", "batch"), CASES)
def test_the_peak_of_a_pass_is_within_a_twentieth_of_a_real_ones(
    small, precision, dtype, recompute, batch
):
    kind = getattr(torch, dtype)
    real = Real(small, kind, precision)
    real.step(small_part(batch), recompute)
    measured = measured_peak(lambda: real.step(batch, recompute))
    costs = counts(small, kind, precision)
    counted = costs.step(batch, recompute) - costs.held
    print(
        f"\n{precision} {dtype} {recompute} of 4 recomputed, {batch.count} x {batch.width}x"
        f"{batch.height}{' given' * batch.given}: counted {counted / 2**20:.1f} MiB, measured "
        f"{measured / 2**20:.1f}, {counted / measured - 1:+.1%}"
    )
    assert counted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("texts", [1, 3])
def test_on_cuda_no_square_of_the_tokens_is_counted(texts):
    """Fused attention keeps a number a row; the meta device itself would count all scores.

    Nor is a mask of all tokens made for panels that read texts of their own.
    """
    costs = dev()
    sizes = (Batch(1, 1024, 16 * n, texts=texts) for n in (66, 132, 198))
    once, twice, thrice = (costs.step(size, 0) for size in sizes)
    assert thrice - twice == pytest.approx(twice - once, rel=1e-3)


def test_a_block_on_cuda_keeps_what_a_count_by_hand_says():
    """With LoRA on every layer, modulation too, in vectors of the width in bf16 a token.

    Single: input, normed, modulated, q and k before their norm, q, k, v as attended to, attention's
    output, the MLP before its GELU (4), what is gated. Double: the first three twice, gated twice.
    """
    costs = dev()
    a_token = (1024 * 1024 // 256 + 512) * 3072 * 2
    double, single = (costs._share(Batch(1, 1024, 1024), n, False).kept for n in (0, 1))
    assert single / a_token == pytest.approx(3 + 2 + 3 + 1 + 4 + 1, rel=0.015)
    assert double / a_token == pytest.approx(6 + 2 + 3 + 1 + 4 + 2, rel=0.015)


def test_a_recomputed_block_leaves_its_input_alone():
    costs = dev()
    batch = Batch(1, 1024, 1024)
    kept = costs._share(batch, 1, True).kept
    # 4,608 tokens of 3,072 numbers of 2 bytes, and the vectors of modulation.
    assert kept == pytest.approx(4608 * 3072 * 2, rel=0.01)


def test_the_peaks_of_encoding_and_decoding_are_near_real_ones(tiny, long_texts):
    costs = Costs(outline_of(tiny, torch.float32, "full"), CONFIG, "cpu")
    pixels = np.zeros((256, 192, 3), np.uint8)
    tokens = torch.zeros(256 * 192 // 256, 64)
    outlined = costs.outline

    def weights(*modules):
        return sum(t.nbytes for m in modules for t in [*m.parameters(), *m.buffers()])

    tiny.encode_text("warm"), tiny.encode_image(pixels)
    measured = measured_peak(lambda: tiny.encode_text("a cat"))
    assert costs.text() - weights(*outlined.text_encoders) == pytest.approx(measured, rel=0.01)
    # A CPU's convolutions take more for themselves than is counted.
    measured = measured_peak(lambda: tiny.encode_image(pixels))
    assert 0.8 < (costs.images(192, 256) - weights(outlined.vae)) / measured < 1.05
    measured = measured_peak(lambda: tiny.decode(tokens, 192, 256))
    assert 0.8 < costs.decoding(192, 256) / measured < 1.05


def test_the_modulation_of_every_step_is_counted_in_sampling(monkeypatch):
    costs, found = dev(), []
    for steps in (20, 50):
        sampling = replace(costs.outline.model.sampling, steps=steps)
        monkeypatch.setattr(costs.outline.model, "sampling", sampling)
        found.append(costs.sampling(256, 256))
    # Six vectors a stream of 19 double blocks, three of 38 single ones, two at the end, and what
    # they are made from, in bf16.
    assert found[1] - found[0] == 30 * (19 * 12 + 38 * 3 + 2 + 1) * 3072 * 2


def test_clipping_and_adamw_take_no_more_than_the_lora_again():
    costs = dev()
    assert 0 < costs.optimizer() - costs.held <= 2 * 4 * costs.lora
