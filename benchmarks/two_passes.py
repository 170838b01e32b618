"""Guidance by two passes of one set against one pass of two, on FLUX.2 klein's forward.

    OMP_NUM_THREADS=1 python benchmarks/two_passes.py       72M parameters in klein's layout, bf16

In turns; seconds are the processor's on a CPU, the clock's on a card.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
from klein_step import net_of
from train_step import TEXT

from iclora.jobs.bench.measuring import median, synchronize
from iclora.models.flux2.forward import Inputs, flux2_forward
from iclora.models.passes import Levels


def forward(net: Any, samples: int, width: int, height: int, device: torch.device) -> None:
    """One pass without gradients over as many samples, each with its text."""
    rows, columns = height // 16, width // 16
    edges = (1, rows, columns, 1)
    ids = torch.cartesian_prod(*(torch.arange(edge) for edge in edges)).float().to(device)
    empty = partial(torch.randn, device=device, dtype=torch.bfloat16)
    levels = Levels(torch.full((samples, 1), 0.5, device=device), (rows * columns,))
    z = empty(samples, rows * columns, net.config.in_channels)
    prompt = empty(samples, TEXT, net.config.joint_attention_dim)
    with torch.no_grad():
        flux2_forward(net, Inputs(z, prompt, levels, None, ids))


def seconds(work: Any, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    began = clock()
    work()
    synchronize(device)
    return clock() - began


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--true-size", action="store_true", help="klein 4B's size")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    net = net_of(args.true_size).to(device, torch.bfloat16).requires_grad_(False)
    for edge in (256, 512, 1024):
        twice, once = [], []
        for _ in range(args.rounds + 1):  # The first is not counted.
            one = partial(forward, net, 1, edge, edge, device)
            twice.append(seconds(one, device) + seconds(one, device))
            once.append(seconds(partial(forward, net, 2, edge, edge, device), device))
        first, second = median(twice[1:]), median(once[1:])
        print(f"{edge}x{edge}: two passes {first:.2f} s, one of two {second:.2f} s", end="")
        print(f", two over one {first / second:.2f}")


if __name__ == "__main__":
    main()
