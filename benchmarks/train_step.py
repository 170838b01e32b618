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
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from peft import LoraConfig
from torch import Tensor, nn

from iclora.models.flux.forward import flux_forward
from iclora.models.passes import Levels, Shapes

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
LINUX = Path("/proc/self")


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


def true_size() -> Any:
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


def peer(net: Any, work: Work, micro: int, recompute: bool, best: bool = False) -> float:
    """Forward and backward as diffusers' script does it, its gradient accumulated."""
    (net.enable_gradient_checkpointing if recompute else net.disable_gradient_checkpointing)()
    compile_blocks(net, best)
    total = 0.0
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
        total += float(loss.detach())
    return total


_compiled: dict[nn.Module, Any] = {}
_shapes = Shapes()


def compile_blocks(net: Any, on: bool) -> None:
    """Switch diffusers' own blocks between compiled and plain, and what they attend with."""
    if net.device.type == "cuda":
        net.set_attention_backend("_native_cudnn" if on else "native")
    for block in [*net.transformer_blocks, *net.single_transformer_blocks]:
        if on and block not in _compiled:
            block.compile(fullgraph=True, dynamic=False)
            _compiled[block] = block._compiled_call_impl
        block._compiled_call_impl = _compiled[block] if on else None


def ours(net: Any, work: Work, micro: int, recompute: int = 0, compiled: bool = False) -> float:
    """Forward and backward as iclora does it."""
    total = 0.0
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
        total += float(loss.detach())
    return total


@dataclass
class Arm:
    """One way to take a step."""

    name: str
    targets: tuple[str, ...] | str
    run: Callable[[Any, Work], float]
    seconds: list[float]
    peak: float = 0.0


def step(arm: Arm, net: Any, parameters: list[nn.Parameter], optimizer: Any, work: Work) -> None:
    cuda = work.x0.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    elif LINUX.is_dir():
        (LINUX / "clear_refs").write_text("5")  # from here, a new peak of resident memory
    began = time.perf_counter()
    arm.run(net, work)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if cuda:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    arm.seconds.append(time.perf_counter() - began)
    if not cuda:
        peak = resident_peak()
    arm.peak = max(arm.peak, peak / 2**30)
    # As it comes: a run that is stopped has shown what it measured.
    line = {"arm": arm.name, "s": round(arm.seconds[-1], 2), "peak GiB": round(peak / 2**30, 2)}
    print(json.dumps(line), flush=True)


def resident_peak() -> int:
    """Bytes this process held at most since `clear_refs`, weights too; 0 where that is not told."""
    if not LINUX.is_dir():
        return 0
    return int((LINUX / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def gradients(arm: Arm, net: Any, parameters: list[nn.Parameter], work: Work) -> Tensor:
    arm.run(net, work)
    return torch.cat([p.grad.float().flatten() for p in parameters])  # type: ignore[union-attr]


def gate(group: list[Arm], net: Any, parameters: list[nn.Parameter], work: Work) -> list[Arm]:
    """The arms that fit in memory; their gradients must be equal."""
    fitting, first = [], None
    for arm in group:
        try:
            grad = gradients(arm, net, parameters, work)
        except torch.OutOfMemoryError:
            print(json.dumps({"arm": arm.name, "fits": False}), flush=True)
            continue
        finally:
            for parameter in parameters:
                parameter.grad = None
        fitting.append(arm)
        if first is None:
            first = grad
            continue
        off = float((grad - first).norm() / first.norm())
        line = {"gate": f"{arm.name} / {fitting[0].name}", "off": round(off, 4)}
        print(json.dumps(line), flush=True)
        # bf16 sums in two orders; a wrong gradient is off by tenths.
        assert off < 0.03, "the gradients differ: these arms do not do the same work"
    return fitting


def matmul_rate(device: torch.device) -> float:
    """TFLOP/s of a bf16 matrix product, the yardstick of this machine in this run."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).bfloat16()
    best = 1e9
    for _ in range(6):
        began = time.perf_counter()
        for _ in range(4):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * size**3 / best / 1e12


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
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(true_size if args.true_size else proxy, device)
    work = Work.draw(net, args.batch, args.width, args.height, device)

    arms = make_arms(args.micro, args.peer_micro or args.batch, args.recompute)
    wanted = args.arms or [arm.name for arm in arms]
    for targets in (SCRIPT_TARGETS, "all"):
        group = [arm for arm in arms if arm.targets == targets and arm.name in wanted]
        if not group:
            continue
        parameters = adapters(net, targets)
        _compiled.clear()
        group = gate(group, net, parameters, work)
        optimizer = torch.optim.AdamW(parameters, 1e-5)
        for _ in range(args.rounds):
            for arm in group:
                step(arm, net, parameters, optimizer, work)
        net.delete_adapters("x")
    report(arms, work, net, device)


def report(arms: list[Arm], work: Work, net: Any, device: torch.device) -> None:
    rate = matmul_rate(device)
    batch, tokens = work.x0.shape[:2]
    flops = train_flops(net.config, tokens, batch) / 1e12
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(
        json.dumps(
            {
                "device": name or platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "peft": peft.__version__,
                "date": time.strftime("%Y-%m-%d"),
                "batch": batch,
                "tokens": tokens + TEXT,
                "matmul TFLOP/s": round(rate, 3),
                "counted TFLOP": round(flops, 2),
            }
        )
    )
    for arm in arms:
        if arm.seconds:
            median = statistics.median(arm.seconds)
            print(
                json.dumps(
                    {
                        "arm": arm.name,
                        "median s": round(median, 3),
                        "all s": [round(s, 2) for s in arm.seconds],
                        "tokens/s": round(batch * (tokens + TEXT) / median),
                        "MFU": round(flops / median / rate, 3),
                        "peak GiB": round(arm.peak, 2),
                    }
                )
            )


if __name__ == "__main__":
    main()
