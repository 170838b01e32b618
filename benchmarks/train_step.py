"""A LoRA training step of ours against the peers' way, on the same weights, in one process.

    python benchmarks/train_step.py                 69M-parameter FLUX.1 on a CPU
    python benchmarks/train_step.py --true-size     FLUX.1-dev's size, random weights, on a GPU

Arms, interleaved round by round, on the same latents, texts, noise levels and LoRA targets:

    script          diffusers' FLUX LoRA script: its model under bf16 autocast, all recomputed
    script-fit      the same with nothing recomputed, where memory allows it
    script-best     that with compiled blocks, and cuDNN's attention on a GPU
    ours            iclora's forward, micro-batches of one, nothing recomputed
    ours-compiled   that with compiled blocks
    ai-toolkit      float32 LoRA on every linear layer of the blocks, all recomputed
    ai-toolkit-fit, ai-toolkit-best, ours-all, ours-all-compiled: as above, on these layers

ai-toolkit also keeps the base in 8 bits and averages weights, which cost it time and are left out
here. `--width 128 --height 128 --rounds 1` is a smoke run. Before any timing, the gradients of an
arm and of its peer must agree; an arm for which a GPU's memory is too small is left out then, and
that is said. `--peer-micro 1` accumulates a peer's gradient sample by sample where its batch does
not fit. The unit is an optimizer step of the given batch: forward and backward pass of all
samples, clipping, AdamW.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import peft
import torch
from peft import LoraConfig
from torch import Tensor, nn

from iclora.jobs.bench.child import in_short
from iclora.jobs.bench.measuring import clear, median, peak, reset_peak, seconds, synchronize
from iclora.jobs.bench.telling import Tell
from iclora.models.flux.forward import flux_forward
from iclora.models.passes import Levels, Shapes, prepare_compiler
from iclora.models.products import exact

SCRIPT_TARGETS = (
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
TEXT = 512


@dataclass(frozen=True)
class Work:
    """One optimizer step's samples."""

    x0: Tensor
    eps: Tensor
    sigma: Tensor
    prompt: Tensor
    pooled: Tensor
    places: Tensor

    @classmethod
    def draw(cls, net: Any, batch: int, width: int, height: int, device: torch.device) -> Work:
        torch.manual_seed(1)
        h, w = height // 16, width // 16
        config = net.config
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
        shape = (batch, h * w, config.in_channels)
        bf16 = torch.bfloat16
        return cls(
            torch.randn(shape, device=device),
            torch.randn(shape, device=device),
            # 1000 times these is exact in bf16, or autocast's float32 would see another level.
            torch.tensor([0.125, 0.25, 0.5, 0.75], device=device).repeat(batch)[:batch],
            torch.randn(batch, TEXT, config.joint_attention_dim, device=device).to(bf16),
            torch.randn(batch, config.pooled_projection_dim, device=device).to(bf16),
            places.to(device),
        )

    def loss(self, v: Tensor, rows: slice) -> Tensor:
        """The sum of these samples' mean squares, over the whole batch's count."""
        error = v.float() - (self.eps[rows] - self.x0[rows])
        return error.square().mean((1, 2)).sum() / len(self.x0)

    def noisy(self, rows: slice) -> Tensor:
        level = self.sigma[rows, None, None]
        return ((1 - level) * self.x0[rows] + level * self.eps[rows]).bfloat16()


def proxy() -> Any:
    """FLUX.1 with one double and two single blocks of width 1024: 69M parameters."""
    return diffusers.FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=8,
        attention_head_dim=128,
        guidance_embeds=True,
        joint_attention_dim=1024,
        pooled_projection_dim=256,
    )


def dev_size() -> Any:
    """FLUX.1-dev's shape, which is the class's default."""
    return diffusers.FluxTransformer2DModel(guidance_embeds=True)


@torch.no_grad()
def build(make: Callable[[], Any], device: torch.device) -> Any:
    """Random weights in bf16: never zeros, or nothing would have a gradient."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            net = make()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.02)
    return net.requires_grad_(False)


def adapters(net: Any, targets: tuple[str, ...] | str) -> list[nn.Parameter]:
    """A float32 LoRA of rank 16, both halves random: a zero B leaves A without a gradient."""
    modules = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear)
        and "transformer_blocks" in name
        and (targets == "all" or name.endswith(tuple(targets)))
    ]
    net.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=modules), adapter_name="x")
    found = []
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.02)
            parameter.data = parameter.data.float()
            found.append(parameter.requires_grad_(True))
    return found


def peer(net: Any, work: Work, micro: int, recompute: bool, best: bool = False) -> Tensor:
    """Forward and backward as diffusers' script does it, its gradient accumulated."""
    (net.enable_gradient_checkpointing if recompute else net.disable_gradient_checkpointing)()
    compile_blocks(net, best)
    total = work.x0.new_zeros(())
    for start in range(0, len(work.x0), micro):
        rows = slice(start, start + micro)
        with torch.autocast(work.x0.device.type, torch.bfloat16):
            v = net(
                hidden_states=work.noisy(rows),
                encoder_hidden_states=work.prompt[rows],
                pooled_projections=work.pooled[rows],
                timestep=work.sigma[rows],
                guidance=torch.ones_like(work.sigma[rows]),
                img_ids=work.places,
                txt_ids=torch.zeros(TEXT, 3, device=work.x0.device),
                return_dict=False,
            )[0]
        loss = work.loss(v, rows)
        loss.backward()
        total += loss.detach()
    return total


_compiled: dict[nn.Module, Any] = {}
_shapes = Shapes()


def compile_blocks(net: Any, on: bool) -> None:
    """Switch diffusers' own blocks between compiled and plain, and what they attend with."""
    if net.device.type == "cuda":
        net.set_attention_backend("_native_cudnn" if on else "native")
    if on:
        prepare_compiler()  # As many shapes and kinds of blocks as for ours.
    for block in [*net.transformer_blocks, *net.single_transformer_blocks]:
        if on and block not in _compiled:
            block.compile(fullgraph=True, dynamic=False)
            _compiled[block] = block._compiled_call_impl
        block._compiled_call_impl = _compiled[block] if on else None


def ours(net: Any, work: Work, micro: int, recompute: int = 0, compiled: bool = False) -> Tensor:
    """Forward and backward as iclora does it."""
    total = work.x0.new_zeros(())
    for start in range(0, len(work.x0), micro):
        rows = slice(start, start + micro)
        levels = Levels(work.sigma[rows, None], (work.x0.shape[1],))
        v = flux_forward(
            net,
            work.noisy(rows),
            work.prompt[rows],
            work.pooled[rows],
            levels,
            torch.ones_like(work.sigma[rows]),
            work.places,
            recompute=recompute,
            shapes=_shapes if compiled else None,
        )
        loss = work.loss(v, rows)
        loss.backward()
        total += loss.detach()
    return total


@dataclass
class Arm:
    """One way to take a step."""

    name: str
    targets: tuple[str, ...] | str
    run: Callable[[Any, Work], Tensor]
    seconds: list[float]
    peak: float = 0.0
    """GiB."""


def step(arm: Arm, net: Any, parameters: list[nn.Parameter], optimizer: Any, work: Work) -> None:
    """An optimizer step, timed; the loss is read behind the clock, as a trainer's log may be."""
    device = work.x0.device
    synchronize(device)
    reset_peak(device)
    # An arm that found no memory has left some.
    optimizer.zero_grad(set_to_none=True)
    began = time.perf_counter()
    loss = arm.run(net, work)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronize(device)
    arm.seconds.append(time.perf_counter() - began)
    arm.peak = max(arm.peak, peak(device) / 2**30)
    # As it comes: a run that is stopped has shown what it measured.
    print(f"{arm.name}: {arm.seconds[-1]:.2f} s, loss {float(loss):.5f}", flush=True)


def gradients(arm: Arm, net: Any, parameters: list[nn.Parameter], work: Work) -> Tensor:
    arm.run(net, work)
    return torch.cat([p.grad.float().flatten() for p in parameters])  # type: ignore[union-attr]


def gate(
    group: list[Arm],
    net: Any,
    parameters: list[nn.Parameter],
    work: Work,
    tell: Tell,
    most: float = 0.03,
) -> list[Arm]:
    """The arms that run on this device; their gradients must be equal.

    Args:
        most: by how much gradients may differ, relative. Sums in bf16 come in two orders; a wrong
            gradient is off by tenths.
    """
    running, first = [], None
    for arm in group:
        began = time.perf_counter()
        try:
            grad = gradients(arm, net, parameters, work)
            synchronize(work.x0.device)
        except torch.OutOfMemoryError:
            tell(arm.name, None, note="it does not fit in memory")
            continue
        except Exception as error:  # One arm's fault must not cost the others.
            traceback.print_exc()
            tell(arm.name, None, must=True, note=in_short(error))
            continue
        finally:
            for parameter in parameters:
                parameter.grad = None
        running.append(arm)
        tell(f"{arm.name}, first pass", time.perf_counter() - began, "s", note="not timed below")
        if first is None:
            first = grad
            continue
        off = float((grad - first).norm() / first.norm())
        tell(f"gradients of {arm.name} from {running[0].name}'s", off, most=most, must=True)
    return running


def take_turns(
    group: list[Arm], rounds: int, run: Callable[[Arm], None], work: Work, tell: Tell
) -> None:
    """A step of each arm a round. One that runs out of memory is told so and left out."""
    left = list(group)
    for _ in range(rounds):
        for arm in list(left):
            try:
                run(arm)
                continue
            except torch.OutOfMemoryError:
                tell(arm.name, None, note="its steps do not fit in memory")
            left.remove(arm)
            arm.seconds.clear()
            clear(work.x0.device)


def ready_optimizer(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW that has made its moments, which it does in its first step."""
    optimizer = torch.optim.AdamW(parameters, 1e-5)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """TFLOP/s of a matrix product of a type as this machine makes it, its yardstick in this run."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 2048
    a, b = (exact(torch.randn(size, size, device=device).to(dtype)) for _ in range(2))
    times = seconds(lambda: a @ b, device, 6, warm=2, calls=4 if cuda else 1)
    return 2 * size**3 / min(times) / 1e12


def train_flops(config: Any, tokens: int, batch: int) -> float:
    """Counted FLOPs of a step without recomputing: two passes of the linears, 3.5 of attention."""
    width = config.num_attention_heads * config.attention_head_dim
    length, blocks = tokens + TEXT, config.num_layers + config.num_single_layers
    linear, attention = blocks * 24 * width**2 * length, blocks * 4 * length**2 * width
    return batch * (2 * linear + 3.5 * attention)


def make_arms(micro: int, part: int, recompute: int) -> list[Arm]:
    """All arms; the first of those with equal targets is what the others are compared with.

    Args:
        micro: samples that we compute at once. part: samples that a peer does.
    """
    arms = []
    for targets, theirs, mine in (
        (SCRIPT_TARGETS, "script", "ours"),
        ("all", "ai-toolkit", "ours-all"),
    ):
        arms += [
            Arm(theirs, targets, lambda n, w: peer(n, w, part, True), []),
            Arm(f"{theirs}-fit", targets, lambda n, w: peer(n, w, part, False), []),
            Arm(f"{theirs}-best", targets, lambda n, w: peer(n, w, part, False, True), []),
            Arm(mine, targets, lambda n, w: ours(n, w, micro, recompute), []),
            Arm(f"{mine}-compiled", targets, lambda n, w: ours(n, w, micro, recompute, True), []),
        ]
    return arms


def measure(
    tell: Tell,
    *,
    true_size: bool = False,
    batch: int = 4,
    width: int = 1024,
    height: int = 1536,
    micro: int = 1,
    peer_micro: int | None = None,
    recompute: int = 0,
    rounds: int = 3,
    arms: list[str] | None = None,
) -> None:
    """Time all arms, or those that are named, and compare ours with its peers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(dev_size if true_size else proxy, device)
    work = Work.draw(net, batch, width, height, device)
    every = make_arms(micro, peer_micro or batch, recompute)
    wanted = arms or [arm.name for arm in every]
    for targets in (SCRIPT_TARGETS, "all"):
        group = [arm for arm in every if arm.targets == targets and arm.name in wanted]
        if not group:
            continue
        parameters = adapters(net, targets)
        _compiled.clear()
        group = gate(group, net, parameters, work, tell, 0.1 if true_size else 0.03)
        optimizer = ready_optimizer(parameters)
        run = partial(step, net=net, parameters=parameters, optimizer=optimizer, work=work)
        take_turns(group, rounds, run, work, tell)
        net.unload_lora()
    report(tell, every, work, net)


TARGETS = {
    ("script", "ours"): 2.0,
    ("script-best", "ours-compiled"): 1.3,
    ("ai-toolkit", "ours-all"): 2.5,
}
"""How many times as fast as a peer ours is to be, on an H100 at true size."""
RECIPE = 5000
"""Steps of the official recipe."""


def tell_recipe(tell: Tell, step: float, most: float | None) -> None:
    """How long the official recipe's steps take at the measured one's rate, in minutes."""
    note = "the median step above, times 5000; encoding and previews come on top"
    tell(f"{RECIPE} steps at this rate", RECIPE * step / 60, "min", most=most, note=note)


def report(tell: Tell, arms: list[Arm], work: Work, net: Any) -> None:
    """Tell medians, ratios, and the share of what the device can do."""
    device = work.x0.device
    rate = matmul_rate(device)
    batch, tokens = work.x0.shape[:2]
    flops = train_flops(net.config, tokens, batch) / 1e12
    tell("bf16 matrix product in the same run", rate, "TFLOP/s")
    tell("counted of a step without recomputing", flops, "TFLOP")
    timed = {arm.name: arm for arm in arms if arm.seconds}
    goals = device.type == "cuda" and net.config.num_layers == 19
    for arm in timed.values():
        middle = median(arm.seconds)
        tell(arm.name, middle, "s a step", note=f"peak {arm.peak:.1f} GiB", all=arm.seconds)
    if "ours" in timed:
        official = goals and (batch, tokens) == (4, 1024 * 1536 // 256)
        tell_recipe(tell, median(timed["ours"].seconds), 150 if official else None)
    for (theirs, mine), target in TARGETS.items():
        if theirs in timed and mine in timed:
            ratio = median(timed[theirs].seconds) / median(timed[mine].seconds)
            tell(f"{theirs} / {mine}", ratio, "times", least=target if goals else None)
    for name in ("ours", "ours-compiled", "ours-all"):
        if name in timed:
            share = flops / median(timed[name].seconds) / rate
            least = 0.55 if goals and name == "ours-compiled" else None
            note = "of this run's matrix product"
            tell(f"MFU of {name}", share, least=least, note=note)


def printed(what: str, value: Any, unit: str = "", **more: Any) -> None:
    """Print a figure as a line of JSON."""
    number = round(value, 4) if isinstance(value, float) else value
    more = {name: found for name, found in more.items() if found not in (None, "", (), False)}
    print(json.dumps({"what": what, "value": number, "unit": unit, **more}), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--true-size", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=1536)
    parser.add_argument("--micro", type=int, default=1)
    parser.add_argument("--peer-micro", type=int, help="samples a peer computes at once: all")
    parser.add_argument("--recompute", type=int, default=0, help="blocks that ours recomputes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", help="by default all")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    about = {"device": card, "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"diffusers": diffusers.__version__, "peft": peft.__version__}
    print(json.dumps({**about, "date": time.strftime("%Y-%m-%d")}), flush=True)
    measure(printed, **vars(parser.parse_args()))


if __name__ == "__main__":
    main()
