"""A training step whose panels read texts of their own, against one text that all of them read.

    python benchmarks/isolated_step.py                 69M-parameter FLUX.1 on a CPU
    python benchmarks/isolated_step.py --true-size     FLUX.1-dev's size, random weights, on a GPU

Arms in turns, on the same latents and noise: one text of 512 tokens; and a text of 512 for each
panel of a canvas of 3 panels below each other, and of 9 in three rows. Beside the measured ratio
stands that of counted operations: two passes of the linear layers, 3.5 of attention. Seconds are
those of the clock and, on a CPU, of the processor: where others use it too, the latter compare.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor
from train_step import SCRIPT_TARGETS, TEXT, Arm, Work, adapters, build, dev_size, proxy, step

from iclora.models.attention import attention_to, pick_attention, steady
from iclora.models.base import Panels
from iclora.models.flux.forward import flux_forward
from iclora.models.passes import placed

KINDS = {"joint": (1, 1), "3 texts": (3, 1), "9 texts": (3, 3)}
"""Rows and columns of panels."""


def owners(work: Work, rows: int, columns: int) -> torch.Tensor:
    """The panel of every token, panels being as equal as whole tokens let them be."""
    down, across = work.places[:, 1].long().cpu(), work.places[:, 2].long().cpu()
    height, width = int(down.max()) + 1, int(across.max()) + 1
    return down * rows // height * columns + across * columns // width


def ours(net: Any, work: Work, rows: int, columns: int) -> Tensor:
    """Forward and backward as iclora does it, sample by sample."""
    count, total = rows * columns, work.x0.new_zeros(())
    owner = owners(work, rows, columns)
    panels = Panels(owner, (TEXT,) * count) if count > 1 else None
    for start in range(len(work.x0)):
        of = slice(start, start + 1)
        # Texts of their own are joined one behind the other; here they say the same.
        prompt = work.prompt[of].repeat(1, count, 1)
        part = placed(work.noisy(of), work.places, work.sigma[of], None, panels)
        v = flux_forward(
            net,
            part.z,
            prompt,
            work.pooled[of],
            part.levels,
            torch.ones_like(work.sigma[of]),
            part.position_ids,
            attend=attention_to(
                None,
                prompt.shape[1],
                prompt.device,
                panels,
                part.order,
                attend=pick_attention(prompt.device, on_cpu=steady),
            ),
        )
        loss = work.loss(part.back(v), of)
        loss.backward()
        total += loss.detach()
    return total


def counted(config: Any, work: Work, rows: int, columns: int) -> float:
    """FLOPs of a step: an image token attends to all of them and to its own text, a text to
    itself and to its panel."""
    width = config.num_attention_heads * config.attention_head_dim
    own = owners(work, rows, columns).bincount().tolist()
    image, texts = sum(own), len(own)
    pairs = image**2 + sum(2 * TEXT * n for n in own) + texts * TEXT**2
    blocks = config.num_layers + config.num_single_layers
    linear, attention = 24 * width**2 * (image + texts * TEXT), 4 * pairs * width
    return len(work.x0) * blocks * (2.0 * linear + 3.5 * attention)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--true-size", action="store_true")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(dev_size if told.true_size else proxy, device)
    parameters = adapters(net, SCRIPT_TARGETS)
    work = Work.draw(net, told.batch, told.width, told.height, device)
    print(json.dumps({"device": str(device), **vars(told), "torch": torch.__version__}), flush=True)
    arms = [
        Arm(name, SCRIPT_TARGETS, lambda n, w, at=at: ours(n, w, *at), [])
        for name, at in KINDS.items()
    ]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    processor: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for number in range(told.rounds + 1):
        for arm in arms:
            began = time.process_time()
            step(arm, net, parameters, optimizer, work)
            processor[arm.name].append(time.process_time() - began)
            if not number:  # the first round warms up
                arm.seconds.clear()
                processor[arm.name].clear()
    first, base = arms[0], counted(net.config, work, *KINDS["joint"])
    for arm in arms:
        clock, own = (statistics.median(x) for x in (arm.seconds, processor[arm.name]))
        line = {
            "arm": arm.name,
            "s": round(clock, 2),
            "x joint": round(clock / statistics.median(first.seconds), 2),
            "x joint, processor": round(own / statistics.median(processor[first.name]), 2),
            "x joint, counted": round(counted(net.config, work, *KINDS[arm.name]) / base, 2),
            "peak GiB": round(arm.peak, 2),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
