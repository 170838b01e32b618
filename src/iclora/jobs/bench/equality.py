"""What the device computes against the same on a CPU in float32: the one truth that is at hand.

Small bases, so that a CPU is quick: those of random weights, and toyland, which paints.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclora.adapter import attach
from iclora.jobs.bench.child import in_short
from iclora.jobs.bench.telling import Bench
from iclora.models import flow, load_model
from iclora.models.base import DiffusionModel, Given, Text
from iclora.models.graphs import Graphs
from iclora.models.levels import Schedule

__all__ = ["BASES", "Found", "compute", "equal", "off", "replayed"]

BASES = ("tiny", "tiny-klein", "tiny-zimage", "tiny-krea", "tiny-qwen", "toyland")

_SIZE = (192, 288)
_WORDS = "a lion in a meadow"
_STEPS = 6

_MOST = {"fp32": (2e-3, 1.0), "bf16": (0.04, 4.0)}
"""By how much numbers may differ, relative, and pictures, of 255 on average. In float32 a card's
convolutions round to TF32, its products do not. In bf16 a CPU is off by 0.012 and 1.2 at most."""


@dataclass(frozen=True)
class Found:
    """What one device computed."""

    velocity: Tensor
    loss: float
    gradient: Tensor
    """Of all LoRA weights, one after the other."""
    picture: np.ndarray
    """(height, width, 3), 0 to 255."""


def equal(bench: Bench) -> None:
    """Compare float32 and bf16 on the device with float32 on the CPU, base by base."""
    for base in BASES:
        try:
            _compare(bench, base)
        except Exception as error:  # One base's fault must not cost the others.
            traceback.print_exc()
            bench.fail(base, in_short(error))
            if bench.device != "cpu":
                torch.cuda.synchronize()  # Raises if the card's context is lost.


def _compare(bench: Bench, base: str) -> None:
    reference = load_model(base, "cpu", "fp32")
    text = reference.encode_text(_WORDS)
    truth = compute(reference, text)
    _streamed(bench, base, text)
    if bench.device != "cpu":
        model = load_model(base, bench.device, "bf16")
        away = replayed(model, Graphs.on(model.device))
        # The same kernels in the same order: 0, unless a library takes others for a recording.
        bench.tell(f"{base}: latents by replayed passes", away, most=1e-3, must=True)
    kinds = ("fp32", "bf16") if bench.device != "cpu" else ("bf16",)
    for kind in kinds:
        model = load_model(base, bench.device, kind)
        most, colours = _MOST[kind]
        words = model.encode_text(_WORDS)
        for name in text:
            if text[name].is_floating_point():
                away = off(words[name], text[name])
                bench.tell(f"{base}, {kind}: text {name}", away, most=most, must=True)
        # From the CPU's text on, so that each part is judged by itself.
        found = compute(model, text)
        figures = {
            "velocity": (off(found.velocity, truth.velocity), most, ""),
            "loss": (abs(found.loss / truth.loss - 1), most, ""),
            "gradient": (off(found.gradient, truth.gradient), 2 * most, ""),
            "picture": (float(np.abs(found.picture - truth.picture).mean()), colours, "of 255"),
        }
        for name, (away, bound, unit) in figures.items():
            bench.tell(f"{base}, {kind}: {name}", away, unit, most=bound, must=True)


def _streamed(bench: Bench, base: str, text: Text) -> None:
    """Blocks that come to the device one ahead must hold their own numbers when they compute."""
    found = []
    for place in ("none", "blocks"):
        model = load_model(base, bench.device, "fp32")
        model.offload, model.recompute = place, model.blocks
        found.append(compute(model, text))
    whole, streamed = found
    # A card adds up a gradient in no fixed order.
    for name, most in (("velocity", 0.0), ("gradient", 1e-5)):
        away = off(getattr(streamed, name), getattr(whole, name))
        bench.tell(f"{base}: {name} of streamed blocks", away, most=most, must=True)
    # Of several steps, from the second of which on what modulates does not come along.
    away = float(np.abs(streamed.picture - whole.picture).mean())
    bench.tell(f"{base}: picture of streamed blocks", away, "of 255", most=0.0, must=True)


@torch.no_grad()
def replayed(model: DiffusionModel, graphs: Graphs) -> float:
    """How far samplings with recorded and replayed passes are from those with passes as they are.

    One without given tokens, and one that keeps the keys and values of every second token.

    Raises: RuntimeError if recording failed, behind which passes are run as they are.
    """
    text, empty = model.encode_text(_WORDS), model.encode_text("")
    unguided = [empty] if model.sampling.guided == "two-pass" else None
    tokens = torch.arange(_SIZE[0] * _SIZE[1] // model.grid**2) % 2 == 1
    shape = (1, len(tokens), model.channels)
    noise = torch.randn(shape, generator=flow.generator("bench", "eps")).to(model.device)
    levels = model.sigmas(_STEPS, len(tokens))

    def sampled(given: Given | None) -> Tensor:
        how: tuple[Any, ...] = ([text], _SIZE, 3.0, given, unguided, None)
        with Schedule(levels) as schedule:

            def velocity(z: Tensor, level: float) -> Tensor:
                sigma = torch.full((1,), level, device=model.device)
                step = (schedule.at(level),) if model.ahead else ()
                return model.velocity(z, sigma, *how, *step)

            return flow.denoise(velocity, noise, levels)

    away = []
    for cached in (False, True):
        found = []
        for recorded in (None, graphs):
            model.graphs = recorded
            kept = Given(tokens, clean=True, isolated=True, cache=[]) if cached else None
            found.append(sampled(kept))
        away.append(off(found[1], found[0]))
    model.graphs = None
    if graphs.recorder is None:
        raise RuntimeError("a pass could not be recorded: all were run as they are")
    return max(away)


def off(one: Tensor, other: Tensor) -> float:
    """The norm of the difference over that of the other."""
    a, b = one.detach().cpu().double(), other.detach().cpu().double()
    return float((a - b).norm() / b.norm())


def compute(model: DiffusionModel, text: Text) -> Found:
    """A velocity, the loss and gradient of a LoRA, and a picture, from fixed random numbers."""
    tokens = _SIZE[0] * _SIZE[1] // model.grid**2
    shape = (1, tokens, model.channels)
    x0, eps = (
        torch.randn(shape, generator=flow.generator("bench", name)).to(model.device)
        for name in ("x0", "eps")
    )
    sigma = torch.full((1,), 0.5, device=model.device)
    z = flow.add_noise(x0, eps, sigma)
    # 1000 times these levels and this guidance are exact in bf16, or it would be told others.
    guidance = 1.0
    with torch.no_grad():
        velocity = model.velocity(z, sigma, [text], _SIZE, guidance).cpu()

        def step(z: Tensor, level: float) -> Tensor:
            levels = torch.full((1,), level, device=model.device)
            return model.velocity(z, levels, [text], _SIZE, guidance, step=schedule.at(level))

        sigmas = model.sigmas(_STEPS, tokens)
        with Schedule(sigmas) as schedule:
            drawn = flow.denoise(step, eps, sigmas)
        picture = model.decode(drawn[0].cpu(), *_SIZE).astype(np.float32)
    live = attach(model, rank=4, alpha=4, targets="attention", seed=0)
    for name, parameter in live.items():
        # Random in both halves: a zero B leaves A without a gradient.
        drawn = torch.randn(parameter.shape, generator=flow.generator("bench", name)) * 0.05
        parameter.data.copy_(drawn)
    loss = flow.loss(model.velocity(z, sigma, [text], _SIZE, guidance), x0, eps).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.flatten().cpu() for p in live.values() if p.grad is not None])
    return Found(velocity, float(loss.detach()), gradient, picture)
