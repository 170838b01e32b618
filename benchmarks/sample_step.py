"""Sampling with an adapter: ours against diffusers, on the same weights, in one process.

    python benchmarks/sample_step.py --width 512 --height 512    69M-parameter FLUX.1 on a CPU
    python benchmarks/sample_step.py --true-size                 FLUX.1-dev's size, on a GPU
    python benchmarks/sample_step.py --base klein --true-size    FLUX.2-klein-base-4B's

Arms, on the same noise, text and LoRA of rank 16 in one type on every linear layer of the blocks:

    diffusers            its model under no_grad, the LoRA in PEFT's layers beside the weights
    diffusers-compiled   that with compiled blocks, and cuDNN's attention on a GPU
    ours                 iclora's forward pass
    ours-compiled        that with compiled blocks, as `compile` makes sets
    ours-graphs          iclora's, each pass recorded and replayed as `graphs` does, on a GPU
    ours-compiled-graphs that of compiled blocks
    ours-each            iclora's, each step modulated by itself instead of all at once
    ours-beside          iclora's, the LoRA beside its matrices instead of in their products
    ours-fp8             that with the blocks' weights and products in fp8
    ours-streamed        iclora's, the blocks coming from the machine's memory one ahead (`offload`)

A time is that of all steps, Euler steps included, texts and pictures apart. Before any, velocities
must agree, and what is sampled by replayed passes with what the same passes give as they are. Arms
take turns, but for those that leave the weights another way (the last three). On a CPU diffusers
has a network of its own: no user's weights move between two samplings.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from klein_step import KleinWork, net_of
from torch import Tensor
from train_step import (
    TEXT,
    Work,
    adapters,
    build,
    compile_blocks,
    dev_size,
    matmul_rate,
    printed,
    proxy,
)

from iclora.jobs.bench.child import in_short
from iclora.jobs.bench.measuring import clear, median, peak, reset_peak, seconds, synchronize
from iclora.jobs.bench.telling import Tell
from iclora.models.attention import pick_attention, steady
from iclora.models.base import DTYPES
from iclora.models.flux.forward import FLUX, Inputs
from iclora.models.flux2.forward import FLUX2
from iclora.models.flux2.forward import Inputs as KleinInputs
from iclora.models.graphs import Graphs, Keyed
from iclora.models.levels import Levels, Schedule, Step
from iclora.models.network import Network
from iclora.models.passes import Shapes
from iclora.models.quantize import check_precision, quantize
from iclora.models.widened import lend, narrow

ARMS = (
    "diffusers",
    "diffusers-compiled",
    "ours",
    "ours-compiled",
    "ours-graphs",
    "ours-compiled-graphs",
    "ours-each",
    "ours-beside",
    "ours-fp8",
    "ours-streamed",
)
TARGETS = {("diffusers", "ours"): 1.6, ("diffusers", "ours-fp8"): 3.0}
"""How many times as fast as diffusers ours is to be, on an H100 at true size."""

FEW = [1.0, 0.75, 0.5, 0.25, 0.0]
"""Steps in which passes are run, recorded and replayed."""
Velocity = Callable[[Tensor, Tensor, Step | None], Tensor]
"""(z (1, n, c), sigma (1,), where a sampling stands) to (1, n, c)."""
ALTERING = frozenset({"ours-beside", "ours-fp8", "ours-streamed"})
"""Arms behind which the network is another; each runs alone, behind all that were named before."""


def lora(net: Any) -> None:
    """A LoRA on every linear layer of the blocks, in its type; the same numbers each time."""
    torch.manual_seed(3)
    kind = net.dtype
    for parameter in adapters(net, "all"):
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(kind)


class Base(NamedTuple):
    """What there is to sample with."""

    net: Callable[[bool], Any]
    """At true size, or small."""
    work: type[Work]
    theirs: Callable[[Work], dict[str, Any]]
    """What diffusers' model is told beside latents, prompt and level."""
    network: Network
    inputs: Callable[[Work, Tensor, Levels], Any]
    """Those of the network, from latents and their levels."""
    layers: int
    """FLOPs of a token in the layers of a block, in squares of the width."""


def _dev_told(work: Work) -> dict[str, Any]:
    return {
        "pooled_projections": work.pooled,
        "guidance": _guidance(work),
        "txt_ids": torch.zeros(TEXT, 3, device=work.x0.device),
    }


def _klein_told(work: Work) -> dict[str, Any]:
    places = torch.zeros(TEXT, 4, device=work.x0.device)
    places[:, 3] = torch.arange(TEXT)
    return {"txt_ids": places}


def _guidance(work: Work) -> Tensor:
    return torch.full((1,), 3.5, device=work.x0.device)


BASES = {
    "dev": Base(
        lambda true_size: dev_size() if true_size else proxy(),
        Work,
        _dev_told,
        FLUX,
        lambda w, z, levels: Inputs(z, w.prompt, w.pooled, levels, _guidance(w), w.places),
        24,
    ),
    "klein": Base(
        net_of,
        KleinWork,
        _klein_told,
        FLUX2,
        lambda w, z, levels: KleinInputs(z, w.prompt, levels, None, w.places),
        26,
    ),
}


def base_of(work: Work) -> Base:
    return BASES["klein" if isinstance(work, KleinWork) else "dev"]


def theirs(net: Any, work: Work) -> Velocity:
    told = base_of(work).theirs(work)

    def velocity(z: Tensor, sigma: Tensor, _: Step | None) -> Tensor:
        out: Tensor = net(
            hidden_states=z.to(work.prompt.dtype),
            encoder_hidden_states=work.prompt,
            timestep=sigma,
            img_ids=work.places,
            return_dict=False,
            **told,
        )[0]
        return out

    return velocity


def ours(
    net: Any, work: Work, compiled: bool = False, ahead: bool = True, graphs: Graphs | None = None
) -> Velocity:
    base, shapes = base_of(work), Shapes() if compiled else None
    attend = pick_attention(work.x0.device, on_cpu=steady)
    keyed = Keyed(graphs) if graphs else None

    def velocity(z: Tensor, sigma: Tensor, step: Step | None) -> Tensor:
        levels = Levels(sigma[:, None], (z.shape[1],), step if ahead else None)
        inputs = base.inputs(work, z.to(work.prompt.dtype), levels)
        v = base.network(net, inputs, attend, shapes=shapes, graphs=keyed)
        if graphs is not None and graphs.recorder is None:
            raise RuntimeError("a pass could not be recorded")
        return v

    return velocity


def sample(velocity: Velocity, noise: Tensor, sigmas: list[float]) -> Tensor:
    """Euler steps from noise, float32."""
    z = noise
    with Schedule(sigmas) as schedule:
        for sigma, following in pairwise(sigmas):
            level = torch.full((1,), sigma, device=z.device)
            z = z + (following - sigma) * velocity(z, level, schedule.at(sigma)).float()
    return z


def flops(base: Base, config: Any, tokens: int) -> float:
    """Counted FLOPs of a pass."""
    width = config.num_attention_heads * config.attention_head_dim
    length, blocks = tokens + TEXT, config.num_layers + config.num_single_layers
    return blocks * (base.layers * width**2 * length + 4 * length**2 * width)


@torch.no_grad()
def measure(
    tell: Tell,
    *,
    base: str = "dev",
    true_size: bool = False,
    dtype: str = "bf16",
    width: int = 1024,
    height: int = 1536,
    steps: int = 20,
    rounds: int = 2,
    arms: list[str] | None = None,
) -> None:
    """Time the arms that are named, by default all that this device can."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sort = BASES[base]
    wanted = arms or [n for n in ARMS if device.type == "cuda" or not n.endswith("graphs")]
    kind = DTYPES[dtype]
    nets = _nets(wanted, lambda: build(lambda: sort.net(true_size), device).to(kind), device)
    drawn = sort.work.draw(nets[wanted[0]], 1, width, height, device)
    work = replace(drawn, prompt=drawn.prompt.to(kind), pooled=drawn.pooled.to(kind))
    # Exact in bf16, or the two would see another level: the pipeline rounds as we do.
    sigmas = [round((1 - n / steps) * 128) / 128 for n in range(steps)] + [0.0]
    times: dict[str, list[float]] = {}
    first: list[Tensor] = []
    turns = [name for name in wanted if name not in ALTERING]
    for group in (turns, *([name] for name in wanted if name in ALTERING)):
        there = {
            name: arm for name in group if (arm := _begin(tell, name, nets[name], work, first))
        }
        found = _take_turns(tell, there, nets, work, sigmas, rounds)
        for name, (run, most) in found.items():
            note = f"peak {most / 2**30:.1f} GiB"
            tell(name, median(run), f"s for {steps} steps", note=note, all=run)
            times[name] = run
    work_done = flops(sort, nets[wanted[0]].config, work.x0.shape[1]) * steps
    _compare(tell, times, work_done, device, kind, true_size and base == "dev")


def _nets(wanted: list[str], make: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """The network of each arm: the same for all on a GPU, which could not hold two."""
    apart = {n: device.type == "cpu" and n.startswith("diffusers") for n in wanted}
    made = {whose: make() for whose in set(apart.values())}
    for net in made.values():
        lora(net)
    return {name: made[whose] for name, whose in apart.items()}


def _begin(tell: Tell, name: str, net: Any, work: Work, first: list[Tensor]) -> Velocity | None:
    """An arm behind its first pass, whose velocity is held against that of the first arm."""
    device = work.x0.device
    try:
        velocity = _arm(name, net, work)
        began = time.perf_counter()
        with Schedule([1.0, 0.5, 0.0]) as schedule:
            sigma = torch.full((1,), 0.5, device=device)
            v = velocity(work.eps, sigma, schedule.at(0.5)).float()
        synchronize(device)
    except Exception as error:  # One arm's fault must not cost the others.
        _failed(tell, name, error, device)
        return None
    tell(f"{name}, first pass", time.perf_counter() - began, "s", note="not timed below")
    if first:
        off = float((v - first[0]).norm() / first[0].norm())
        # fp8 was 0.018 off on the small network; 0.2 is not a picture any more.
        most = 0.2 if name == "ours-fp8" else 0.05
        tell(f"{name}: velocity off by", off, most=most, must=True)
    first.append(v)
    if name.endswith("graphs"):
        plain = sample(ours(net, work, "compiled" in name), work.eps, FEW)
        off = float((sample(velocity, work.eps, FEW) - plain).norm() / plain.norm())
        tell(f"{name}: latents off those of passes as they are by", off, most=1e-3, must=True)
    return velocity


def _take_turns(
    tell: Tell,
    arms: dict[str, Velocity],
    nets: dict[str, Any],
    work: Work,
    sigmas: list[float],
    rounds: int,
) -> dict[str, tuple[list[float], int]]:
    """The seconds of each round of each arm, and the most memory it took, in bytes."""
    noise = work.eps
    found: dict[str, tuple[list[float], int]] = {}
    for _ in range(rounds):
        for name, velocity in list(arms.items()):
            try:
                _ready(name, nets[name], work)
                if name.endswith("graphs"):
                    # Weights that moved for another arm are recorded where they lie now.
                    sample(velocity, noise, FEW)
                reset_peak(noise.device)
                (took,) = seconds(
                    lambda v=velocity: sample(v, noise, sigmas), noise.device, 1, warm=0
                )
            except Exception as error:
                _failed(tell, name, error, noise.device)
                del arms[name]
                found.pop(name, None)
                continue
            runs, most = found.get(name, ([], 0))
            found[name] = [*runs, took], max(most, peak(noise.device))
    return found


def _failed(tell: Tell, name: str, error: Exception, device: torch.device) -> None:
    traceback.print_exception(error)
    tell(name, None, must=True, note=in_short(error))
    clear(device)


def _ready(name: str, net: Any, work: Work) -> None:
    """Leave the network as the arm wants it; what that takes is not timed."""
    if name.startswith("diffusers"):
        narrow(net)
        compile_blocks(net, name.endswith("compiled"))
    else:
        # Widens what can be: a compiled pass only finds what is.
        ours(net, work)(work.eps, torch.full((1,), 0.5, device=work.x0.device), None)


def _arm(name: str, net: Any, work: Work) -> Velocity:
    if name.startswith("diffusers"):
        _ready(name, net, work)
        return theirs(net, work)
    if name == "ours-fp8":
        check_precision("fp8", work.x0.device)
        net.unload_lora()
        blocks = ("transformer_blocks.", "single_transformer_blocks.")
        quantize(net, "fp8", work.x0.device, blocks)
        clear(work.x0.device)
        lora(net)
    if name == "ours-beside":
        lend(net)
    if name == "ours-streamed":
        base_of(work).network.stream(net, work.x0.device)
        clear(work.x0.device)
    _ready(name, net, work)
    graphs = Graphs.on(work.x0.device) if name.endswith("graphs") else None
    if graphs is not None and graphs.recorder is None:
        raise RuntimeError(f"{work.x0.device} has no CUDA graphs")
    return ours(net, work, "compiled" in name, name != "ours-each", graphs)


def _compare(
    tell: Tell,
    times: dict[str, list[float]],
    work: float,
    device: torch.device,
    dtype: torch.dtype,
    goals: bool,
) -> None:
    for peer in ("diffusers", "diffusers-compiled"):
        for mine in (name for name in ARMS if name.startswith("ours")):
            if peer in times and mine in times:
                least = TARGETS.get((peer, mine)) if goals else None
                tell(f"{peer} / {mine}", _ratio(times, peer, mine), "times", least=least)
    pairs = [(other, "ours") for other in ("ours-each", "ours-beside", "ours-streamed")]
    pairs += [("ours", "ours-graphs"), ("ours-compiled", "ours-compiled-graphs")]
    for one, other in pairs:
        if one in times and other in times:
            tell(f"{one} / {other}", _ratio(times, one, other), "times")
    if "ours" in times:
        rate = matmul_rate(device, dtype)
        share = work / 1e12 / median(times["ours"]) / rate
        tell("MFU of ours", share, note=f"of this run's matrix product, {rate:.4g} TFLOP/s")


def _ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """How many times as long as the other an arm took: round by round where they took turns."""
    if ALTERING.isdisjoint((one, other)):
        return median([a / b for a, b in zip(times[one], times[other], strict=True)])
    return median(times[one]) / median(times[other])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", choices=BASES, default="dev")
    parser.add_argument("--true-size", action="store_true")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=1536)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    told = parser.parse_args()
    print(json.dumps({**vars(told), "torch": torch.__version__}), flush=True)
    measure(printed, **vars(told))


if __name__ == "__main__":
    main()
