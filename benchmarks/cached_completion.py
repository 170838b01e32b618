"""Completing in clean mode with kept keys and values, against computing everything at every step.

    python benchmarks/cached_completion.py                 69M-parameter FLUX.1 on a CPU
    python benchmarks/cached_completion.py --true-size     FLUX.1-dev's size, random weights, a GPU

For 1 known and 1 made panel, 1 and 2, 3 and 1, of 512 px: one velocity of the whole canvas at one
noise level (what SDEdit computes), by diffusers' model and by ours, and the mean of a run of 20
steps of which the first fills the cache and the others read it. Ratios of seconds stand beside
ratios of counted operations. Before any timing, what is read from the cache must give what the same
attention gives without it, and the two models the same velocity.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_step import TEXT, build, dev_size, printed, proxy

from iclora.jobs.bench.measuring import median, seconds
from iclora.jobs.bench.telling import Tell
from iclora.models.attention import isolated, pick_attention, reading, steady
from iclora.models.flux.forward import flux_forward
from iclora.models.passes import Levels

STEPS = 20
CASES = ((1, 1), (1, 2), (3, 1))
TARGETS = {(1, 1): 2.8}
"""How many times as fast as diffusers ours is to be, on an H100 at true size."""


class Canvas:
    """Known and made panels of 512 px, noisy tokens first."""

    def __init__(self, net: Any, known: int, made: int, device: torch.device) -> None:
        torch.manual_seed(known * 10 + made)
        side = 32
        config = net.config
        rows, columns = torch.meshgrid(
            torch.arange(side * (known + made)), torch.arange(side), indexing="ij"
        )
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
        self.noisy, self.known = made * side**2, known * side**2
        self.places = places.to(device)
        self.net, self.device = net, device
        bf16 = torch.bfloat16
        self.z = torch.randn(1, len(places), config.in_channels, device=device).to(bf16)
        self.prompt = torch.randn(1, TEXT, config.joint_attention_dim, device=device).to(bf16)
        self.pooled = torch.randn(1, config.pooled_projection_dim, device=device).to(bf16)

    def _forward(self, tokens: slice, levels: Levels, attend: Any) -> Tensor:
        return flux_forward(
            self.net,
            self.z[:, tokens],
            self.prompt,
            self.pooled,
            levels,
            torch.ones(1, device=self.device),
            self.places[tokens],
            attend=attend,
        )

    def plain(self) -> Tensor:
        """Everything at one level."""
        level = torch.full((1, 1), 0.5, device=self.device)
        levels = Levels(level, (self.noisy + self.known,))
        return self._forward(slice(None), levels, pick_attention(self.device, on_cpu=steady))

    def diffusers(self) -> Tensor:
        """The same by diffusers' own forward pass."""
        level = torch.full((1,), 0.5, device=self.device)
        out: Tensor = self.net(
            hidden_states=self.z,
            encoder_hidden_states=self.prompt,
            pooled_projections=self.pooled,
            timestep=level,
            guidance=torch.ones(1, device=self.device),
            img_ids=self.places,
            txt_ids=torch.zeros(TEXT, 3, device=self.device),
            return_dict=False,
        )[0]
        return out

    def fill(self, kept: list[Any] | None) -> Tensor:
        """Known panels clean and attending to themselves; their keys and values are kept."""
        level = torch.tensor([[0.5, 0.0]], device=self.device)
        attend = isolated(pick_attention(self.device, on_cpu=steady), self.known, kept)
        return self._forward(slice(None), Levels(level, (self.noisy, self.known)), attend)

    def read(self, kept: list[Any]) -> Tensor:
        """The made panels alone."""
        levels = Levels(torch.full((1, 1), 0.5, device=self.device), (self.noisy,))
        attend = reading(pick_attention(self.device, on_cpu=steady), kept)
        return self._forward(slice(self.noisy), levels, attend)


def operations(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@torch.no_grad()
def compare(tell: Tell, canvas: Canvas, rounds: int, name: str, least: float | None = None) -> None:
    """Tell what a canvas costs with kept keys and values, and without.

    Args:
        least: how many times as fast as diffusers it is to be.
    """
    kept: list[Any] = []
    whole = canvas.fill(kept)[:, : canvas.noisy]
    off = float((canvas.read(kept) - whole).float().norm() / whole.float().norm())
    tell(f"{name}: velocity read from the cache, off by", off, most=0.02, must=True)
    plain = canvas.plain()
    off = float((canvas.diffusers() - plain).float().norm() / plain.float().norm())
    tell(f"{name}: diffusers' velocity, off by", off, most=0.05, must=True)
    runs: dict[str, Callable[[], Tensor]] = {
        "diffusers": canvas.diffusers,
        "plain": canvas.plain,
        "fill": lambda: canvas.fill([]),
        "read": lambda: canvas.read(kept),
    }
    counted = {each: operations(run) for each, run in runs.items()}
    times: dict[str, list[float]] = {each: [] for each in runs}
    for _ in range(rounds):
        for each, run in runs.items():
            times[each] += seconds(run, canvas.device, 1, warm=not times[each])
    took = {each: median(found) for each, found in times.items()}
    for each, found in times.items():
        tell(f"{name}: {each}", took[each], "s a pass", all=found)

    def ratio(cost: dict[str, Any], whole: str) -> float:
        return STEPS * cost[whole] / (cost["fill"] + (STEPS - 1) * cost["read"])

    for whole, what in (("plain", "everything"), ("diffusers", "diffusers, everything")):
        told = {
            "note": f"{ratio(counted, whole):.2f} by counted operations",
            "least": least if whole == "diffusers" else None,
        }
        tell(
            f"{name}: {what} at every of {STEPS} steps / kept", ratio(took, whole), "times", **told
        )


def measure(
    tell: Tell, *, true_size: bool = False, rounds: int = 7, cases: Sequence[Sequence[int]] = CASES
) -> None:
    """Compare on canvases of (given, made) panels."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(dev_size if true_size else proxy, device)
    for known, made in cases:
        canvas = Canvas(net, known, made, device)
        goal = TARGETS.get((known, made)) if true_size and device.type == "cuda" else None
        compare(tell, canvas, rounds, f"{known} given + {made} made", goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--true-size", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(platform.platform(), torch.__version__, torch.get_num_threads(), "threads")
    measure(printed, **vars(args))


if __name__ == "__main__":
    main()
