"""The peak of a training step, measured beside what `iclora plan` predicts.

    python benchmarks/peak_memory.py examples/official-24gb.toml     true size, on the card it names
    python benchmarks/peak_memory.py --smoke                         a small base, on a CPU
    python benchmarks/peak_memory.py --blocks 1 1 --side 256         FLUX.1-dev's width, on a CPU

The base has the true shape and random weights, made on the device layer by layer. It is adapted
and trained by the code that trains; only latents and texts are made up.

On CUDA what torch's allocator reports is compared; also told are what it has reserved and what is
in use beside it, by which the reserve of `iclora plan` can be judged. On a CPU, that is what the
allocator tells torch's profiler during a pass, on top of what is held.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from train_step import printed

from iclora.jobs.bench.child import in_short
from iclora.jobs.bench.measuring import clear
from iclora.jobs.bench.telling import Tell
from iclora.jobs.bench.weights import random_denoiser, random_text
from iclora.models import flow, load_model
from iclora.models.folder import FolderModel
from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.models.registry import pick_device
from iclora.settings import TrainSettings, read_settings
from iclora.train.canvases import find_canvases
from iclora.train.costs import Costs
from iclora.train.loop import apply_step
from iclora.train.state import TrainState

GB = 10**9
DEV = "black-forest-labs/FLUX.1-dev"
SMALL_AXES = {3: [16, 24, 24], 4: [16, 16, 16, 16]}
"""How 64 numbers of a head are shared among the axes of a position: FLUX.1's, FLUX.2's."""


def settings_of(shipped: Path, folder: Path, blocks: Any, smoke: bool) -> Path:
    """The settings of a base, with fewer or smaller blocks."""
    shutil.copytree(shipped, folder)
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
            "axes_dims_rope": SMALL_AXES[len(config["axes_dims_rope"])],
        }
    path.write_text(json.dumps(config))
    return folder


def passed(model: FolderModel, batch: Batch) -> None:
    """Forward and backward of sets that are computed together."""
    tokens = batch.width * batch.height // model.grid**2
    text = random_text(model)
    x0 = torch.randn(batch.count, tokens, model.channels, device=model.device)
    sigma = torch.full((batch.count,), 0.5, device=model.device)
    size = (batch.width, batch.height)
    v = model.velocity(x0, sigma, [text] * batch.count, size, 1.0)
    torch.autograd.backward(flow.loss(v, x0, torch.randn_like(x0)).sum())


def on_cuda(step: Callable[[], None]) -> int:
    """Bytes at the peak of a step that is not the first."""
    step()  # It makes what stays: AdamW's moments.
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def on_cpu(model: FolderModel, state: TrainState, step: Callable[[], None]) -> int:
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


def measure(tell: Tell, *, presets: Sequence[str], smoke: bool = False) -> None:
    """Measure the peaks of run files of the folder examples/, without their ending."""
    for preset in presets:
        run_file = Path(__file__).parents[1] / "examples" / f"{preset}.toml"
        config = read_settings(TrainSettings, run_file, {"preview_every": 0})
        try:
            with tempfile.TemporaryDirectory() as temporary:
                compare(tell, config, opened(config, Path(temporary), None, smoke), name=preset)
        except Exception as error:  # One preset's fault must not cost the others.
            traceback.print_exc()
            tell(preset, None, must=True, note=in_short(error))
        clear(pick_device())


def opened(
    config: TrainSettings, folder: Path, blocks: tuple[int, int] | None, smoke: bool
) -> FolderModel:
    """The run's base, its settings those that ship, without weights."""
    shipped = shipped_outline(config.base)
    assert shipped is not None, f"no settings of {config.base} ship"
    if blocks or smoke:
        shipped = settings_of(shipped, folder / "base", blocks, smoke)
    name = str(shipped)
    model = load_model(name, "auto", "bf16", weights=False, precision=config.precision)
    assert isinstance(model, FolderModel)
    return model


def compare(
    tell: Tell, config: TrainSettings, model: FolderModel, name: str, side: int | None = None
) -> None:
    """Tell the peak of a step as it was counted and as it is, on the largest canvas and, on a GPU,
    on the smallest."""
    cuda = model.device.type == "cuda"
    sizes = [(side, side)] if side else find_canvases(config, model.grid)(config).distinct
    model.recompute = config.recomputed(model.blocks)
    outline = outline_of(model, model.dtype, config.precision)
    costs = Costs(outline, config, "cuda" if cuda else "cpu")
    if cuda and costs.held > (there := torch.cuda.mem_get_info()[0]):
        note = f"{costs.held / GB:.1f} GB are held all the time, and {there / GB:.1f} are there"
        tell(name, None, note=note)
        return
    random_denoiser(model)
    state = TrainState.fresh(model, config)
    for size in dict.fromkeys([sizes[-1], sizes[0]] if cuda else [sizes[-1]]):
        batch = batch_of(config, size, model.grid, outline.text_tokens)
        predicted = costs.step(batch, model.recompute)

        def step(batch: Batch = batch) -> None:
            # Twice: from the second pass on there are gradients to add to.
            passed(model, batch)
            passed(model, batch)
            apply_step(state, config, 1.0)

        began = time.monotonic()
        if cuda:
            predicted = max(predicted, costs.optimizer())
            room = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
            if predicted > room:
                note = f"{predicted / GB:.1f} GB are counted, and {room / GB:.1f} are there"
                tell(f"{name}, {batch.count} of {size[0]}x{size[1]}", None, note=note)
                continue
            measured = on_cuda(step)
        else:
            measured = on_cpu(model, state, lambda batch=batch: passed(model, batch))
        what = f"{name}, {batch.count} of {size[0]}x{size[1]}"
        how = f"{config.precision}, {model.recompute} of {model.blocks} blocks recomputed"
        took = f"{time.monotonic() - began:.0f} s"
        tell(f"{what}: measured", measured / GB, "GB", note=f"{how}; {took}")
        tell(f"{what}: counted", predicted / GB, "GB")
        ratio = predicted / measured
        tell(f"{what}: counted / measured", ratio, least=0.95, most=1.05)
    if cuda:
        free, total = torch.cuda.mem_get_info()
        beside = (total - free - torch.cuda.memory_reserved()) / GB
        tell(f"{name}: in use on the card beside torch's own", beside, "GB")
        kept = torch.cuda.max_memory_reserved() / GB
        tell(f"{name}: reserved by torch at most", kept, "GB")
        torch.cuda.reset_peak_memory_stats()


def batch_of(config: TrainSettings, size: tuple[int, int], grid: int, text: int) -> Batch:
    """The sets of a size that a run computes together."""
    one = size[0] * size[1] // grid**2 + text
    many = max(config.micro_batch, config.micro_tokens // one)
    return Batch(min(many, config.batch), *size)


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
    with tempfile.TemporaryDirectory() as temporary:
        model = opened(config, Path(temporary), args.blocks, args.smoke)
        compare(printed, config, model, args.run_file or "run", args.side)


if __name__ == "__main__":
    main()
