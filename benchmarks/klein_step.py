"""A LoRA training step of ours on FLUX.2 klein against diffusers' script, as `train_step.py` does.

    python benchmarks/klein_step.py                 72M parameters in klein's layout on a CPU
    python benchmarks/klein_step.py --true-size     FLUX.2-klein-base-4B's size, on a GPU

Arms, interleaved, on the same latents, texts, noise levels and LoRA targets (those of
diffusers' klein script: attention, and both layers of single blocks):

    script        its model under bf16 autocast, all recomputed
    script-fit    the same with nothing recomputed
    ours          iclora's forward, micro-batches of one, nothing recomputed

Seconds are those of the clock and, on a CPU, of the processor: where others use it too, only
the latter compare. Gradients of all arms must agree first.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import diffusers
import torch
from torch import Tensor
from train_step import (
    TEXT,
    Arm,
    Work,
    adapters,
    build,
    gate,
    matmul_rate,
    printed,
    ready_optimizer,
    step,
    take_turns,
    tell_recipe,
)

from iclora.jobs.bench.measuring import median
from iclora.jobs.bench.telling import Tell
from iclora.models.flux2.forward import Inputs, flux2_forward
from iclora.models.passes import Levels

SCRIPT_TARGETS = (
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.to_qkv_mlp_proj",
    "attn.to_out",
)


class KleinWork(Work):
    """One optimizer step's samples; places are FLUX.2's."""

    @classmethod
    def draw(cls, net: Any, batch: int, width: int, height: int, device: torch.device) -> KleinWork:
        torch.manual_seed(1)
        h, w = height // 16, width // 16
        config, shape = net.config, (batch, h * w, net.config.in_channels)
        places = torch.cartesian_prod(*(torch.arange(edge) for edge in (1, h, w, 1))).float()
        return cls(
            torch.randn(shape, device=device),
            torch.randn(shape, device=device),
            torch.tensor([0.125, 0.25, 0.5, 0.75], device=device).repeat(batch)[:batch],
            torch.randn(batch, TEXT, config.joint_attention_dim, device=device).bfloat16(),
            torch.zeros(batch, 0, device=device),
            places.to(device),
        )


def net_of(true_size: bool) -> Any:
    sizes: dict[str, Any] = {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 8,
        "joint_attention_dim": 1024,
    }
    if true_size:
        sizes = {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
        }
    return diffusers.Flux2Transformer2DModel(**sizes, guidance_embeds=False)


def peer(net: Any, work: Work, recompute: bool) -> Tensor:
    (net.enable_gradient_checkpointing if recompute else net.disable_gradient_checkpointing)()
    text = torch.zeros(TEXT, 4, device=work.x0.device)
    text[:, 3] = torch.arange(TEXT)
    with torch.autocast(work.x0.device.type, torch.bfloat16):
        v = net(
            hidden_states=work.noisy(slice(None)),
            encoder_hidden_states=work.prompt,
            timestep=work.sigma,
            img_ids=work.places,
            txt_ids=text,
            return_dict=False,
        )[0]
    return _behind(work, v, slice(None))


def ours(net: Any, work: Work) -> Tensor:
    total = work.x0.new_zeros(())
    for start in range(len(work.x0)):
        rows = slice(start, start + 1)
        levels = Levels(work.sigma[rows, None], (work.x0.shape[1],))
        inputs = Inputs(work.noisy(rows), work.prompt[rows], levels, None, work.places)
        total += _behind(work, flux2_forward(net, inputs), rows)
    return total


def _behind(work: Work, v: Tensor, rows: slice) -> Tensor:
    loss = work.loss(v, rows)
    loss.backward()
    return loss.detach()


def measure(
    tell: Tell,
    *,
    true_size: bool = False,
    width: int = 512,
    height: int = 512,
    batch: int = 4,
    rounds: int = 3,
) -> None:
    """Time the arms, and compare ours with its peer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(lambda: net_of(true_size), device)
    parameters = adapters(net, SCRIPT_TARGETS)
    work = KleinWork.draw(net, batch, width, height, device)
    arms = [
        Arm("script", SCRIPT_TARGETS, lambda n, w: peer(n, w, True), []),
        Arm("script-fit", SCRIPT_TARGETS, lambda n, w: peer(n, w, False), []),
        Arm("ours", SCRIPT_TARGETS, ours, []),
    ]
    arms = gate(arms, net, parameters, work, tell, 0.1 if true_size else 0.03)
    optimizer = ready_optimizer(parameters)
    processor: dict[str, list[float]] = {arm.name: [] for arm in arms}

    def timed(arm: Arm) -> None:
        began = time.process_time()
        step(arm, net, parameters, optimizer, work)
        processor[arm.name].append(time.process_time() - began)

    take_turns(arms, rounds, timed, work, tell)
    arms = [arm for arm in arms if arm.seconds]
    tell("bf16 matrix product in the same run", matmul_rate(device), "TFLOP/s")
    # On a CPU that others use, too, its own time compares; a GPU's is the clock's.
    times = {
        arm.name: arm.seconds if device.type == "cuda" else processor[arm.name] for arm in arms
    }
    for arm in arms:
        note = f"peak {arm.peak:.1f} GiB"
        tell(arm.name, median(times[arm.name]), "s a step", note=note, all=times[arm.name])
    if "ours" in times:
        goals = device.type == "cuda" and true_size and (width, height, batch) == (1024, 1536, 4)
        tell_recipe(tell, median(times["ours"]), 70 if goals else None)
        for name in ("script", "script-fit"):
            if name in times:
                tell(f"{name} / ours", median(times[name]) / median(times["ours"]), "times")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--true-size", action="store_true")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    print(json.dumps({**vars(told), "torch": torch.__version__}), flush=True)
    measure(printed, **vars(told))


if __name__ == "__main__":
    main()
