"""The peak of a training step, measured beside what `iclora plan` predicts.

    python benchmarks/peak_memory.py examples/official-24gb.toml     true size, on the card it names
    python benchmarks/peak_memory.py --smoke                         a small base, on a CPU
    python benchmarks/peak_memory.py --blocks 1 1 --side 256         FLUX.1-dev's width, on a CPU

The base has FLUX.1-dev's shape and constant weights: what they hold does not matter to memory.
It is loaded, adapted and trained by the code that trains; only latents and texts are made up.

On CUDA what torch's allocator reports is compared; also shown are what it has reserved and what
the card has left, by which the reserve of `iclora plan` can be judged. On a CPU, that is what the
allocator tells torch's profiler during a pass, on top of what is held.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from iclora.models import flow
from iclora.models.flux.model import FluxModel
from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.models.quantize import quantize
from iclora.models.registry import pick_device
from iclora.settings import TrainSettings, read_settings
from iclora.train.canvases import find_canvases
from iclora.train.costs import Costs, Kernels
from iclora.train.loop import apply_step
from iclora.train.state import TrainState

GB = 10**9
DEV = "black-forest-labs/FLUX.1-dev"


def settings_of(folder: Path, blocks: tuple[int, int] | None, smoke: bool) -> Path:
    """FLUX.1-dev's settings, with fewer or smaller blocks."""
    shutil.copytree(shipped_outline(DEV), folder)
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    if blocks:
        config |= {"num_layers": blocks[0], "num_single_layers": blocks[1]}
    if smoke:
        config |= {
            "num_layers": 2,
            "num_single_layers": 3,
            "num_attention_heads": 4,
            "attention_head_dim": 64,
            "axes_dims_rope": [16, 24, 24],
        }
    path.write_text(json.dumps(config))
    return folder


def build(model: FluxModel) -> None:
    """Put a denoiser of that shape on the device as it is loaded: from the CPU, layer by layer."""
    settings = json.loads((model.folder / "transformer" / "config.json").read_text())
    began = time.monotonic()
    with torch.device("meta"):
        net: Any = diffusers.FluxTransformer2DModel.from_config(settings)
    net = (
        nn.Module.to(net, model.dtype)
        .to_empty(device=torch.device("cpu"))
        .requires_grad_(False)
        .eval()
    )
    for parameter in net.parameters():
        parameter.data.fill_(0.01)
    net = quantize(net, model.precision, model.device, model.block_prefixes)
    model.denoiser = net.to(model.device)  # type: ignore[misc]
    print(f"built in {time.monotonic() - began:.0f} s")


def passed(model: FluxModel, batch: Batch) -> None:
    """Forward and backward of sets that are computed together."""
    config = json.loads((model.folder / "transformer" / "config.json").read_text())
    tokens = batch.width * batch.height // model.grid**2
    text = {
        "prompt": torch.randn(model.max_text_tokens, config["joint_attention_dim"]).to(model.dtype),
        "pooled": torch.randn(config["pooled_projection_dim"]).to(model.dtype),
    }
    x0 = torch.randn(batch.count, tokens, model.channels, device=model.device)
    sigma = torch.full((batch.count,), 0.5, device=model.device)
    size = (batch.width, batch.height)
    v = model.velocity(x0, sigma, [text] * batch.count, size, 1.0)
    torch.autograd.backward(flow.loss(v, x0, torch.randn_like(x0)).sum())


def on_cuda(step: Callable[[], None]) -> int:
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        step()
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.max_memory_reserved()
    print(
        f"reserved by torch {reserved / GB:.2f} GB; of the card {(total - free) / GB:.2f} of "
        f"{total / GB:.2f} GB are in use"
    )
    return torch.cuda.max_memory_allocated()


def on_cpu(model: FluxModel, state: TrainState, step: Callable[[], None]) -> int:
    for parameter in state.live.values():
        parameter.grad = torch.zeros_like(parameter)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    frozen = [*model.denoiser.parameters(), *model.denoiser.buffers()]
    # Of a LoRA there are also its gradient, its average, and two moments after the first step.
    lora = sum(p.nbytes for p in state.live.values())
    return peak + sum(t.nbytes for t in frozen) + 4 * lora


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_file", nargs="?", help="such as examples/official-24gb.toml")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--blocks", type=int, nargs=2, metavar=("DOUBLE", "SINGLE"))
    parser.add_argument("--side", type=int, help="canvas, px; by default the run's largest")
    parser.add_argument("--precision", help="by default the run's")
    parser.add_argument("--recompute", help="by default the run's")
    args = parser.parse_args()
    # No decoder of previews is loaded here.
    overrides = {"preview_every": 0, "precision": args.precision, "recompute": args.recompute}
    config = read_settings(
        TrainSettings,
        args.run_file,
        {k: v for k, v in overrides.items() if v is not None},
        {"base": DEV, "data": "DATA", "out": "RUN", "resolutions": [args.side or 256]},
    )
    device = pick_device()
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings_of(Path(temporary, "base"), args.blocks, args.smoke)
        model = FluxModel(folder, DEV, device, torch.bfloat16, config.precision)
        compare(model, config, args.side)


def compare(model: FluxModel, config: TrainSettings, side: int | None) -> None:
    cuda = model.device.type == "cuda"
    kernels: Kernels = "cuda" if cuda else "cpu"
    width, height = (side, side) if side else find_canvases(config, model.grid)(config).distinct[-1]
    batch = Batch(config.micro_batch, width, height)
    model.recompute = config.recomputed(model.blocks)
    costs = Costs(outline_of(model, model.dtype, config.precision), config, kernels)
    predicted = costs.step(batch, model.recompute)
    build(model)
    state = TrainState.fresh(model, config)
    if cuda:
        print(torch.cuda.get_device_name())

        def step() -> None:
            # Twice: from the second pass on there are gradients to add to.
            passed(model, batch)
            passed(model, batch)
            apply_step(state, config, 1.0)

        measured = on_cuda(step)
    else:
        measured = on_cpu(model, state, lambda: passed(model, batch))
    print(
        f"{config.precision}, {model.recompute} of {model.blocks} blocks recomputed, "
        f"{batch.count} of {width}x{height}: predicted {predicted / GB:.3f} GB, measured "
        f"{measured / GB:.3f} GB ({predicted / measured - 1:+.1%} predicted)"
    )


if __name__ == "__main__":
    main()
