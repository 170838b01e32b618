"""All that changes during a run: the LoRA's live and averaged weights, the optimizer, the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iclora.adapter import attach
from iclora.models.base import DiffusionModel
from iclora.models.stored import Damaged
from iclora.settings import TrainSettings
from iclora.train.whole import free

__all__ = ["Mismatch", "TrainState"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Mismatch(Exception):
    """Tensors of another LoRA: names or shapes differ. The state was left as it was."""


@dataclass
class TrainState:
    """All that changes during a run."""

    live: dict[str, nn.Parameter]
    """The LoRA on the denoiser, float32, by "<module>.lora_A.weight" and "...lora_B.weight"; or
    every weight of the denoiser by its name."""
    ema: dict[str, Tensor]
    """Its running average, which becomes the adapter, or the tuned base."""
    optimizer: torch.optim.AdamW
    step: int = 0
    """Optimizer steps taken."""

    @classmethod
    def fresh(cls, model: DiffusionModel, settings: TrainSettings) -> TrainState:
        """Put a new LoRA on the base, or free all of its weights, at step 0."""
        live = (
            free(model)
            if settings.targets == "full"
            else attach(
                model,
                rank=settings.rank,
                alpha=settings.alpha,
                targets=settings.targets,
                seed=settings.seed,
            )
        )
        optimizer = torch.optim.AdamW(
            live.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        return cls(live, {k: v.detach().clone() for k, v in live.items()}, optimizer)

    def average(self, decay: float) -> None:
        """Move the averaged weights towards the live ones.

        The decay grows from 0.1 to its value over the first steps: a plain average would stay
        close to the zeros that B starts from for hundreds of them.
        """
        current = min(decay, self.step / (9 + self.step))
        for key, value in self.live.items():
            self.ema[key].lerp_(value.detach(), 1 - current)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything to resume from, on the CPU."""
        found = {f"live/{k}": v.detach() for k, v in self.live.items()}
        found |= {f"ema/{k}": v for k, v in self.ema.items()}
        for key, parameter in self.live.items():
            for name, value in self.optimizer.state[parameter].items():
                found[f"adamw/{name}/{key}"] = value
        return {k: v.to("cpu").contiguous() for k, v in found.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take over what `tensors` returned.

        Raises, before anything is changed: Mismatch if names or shapes differ; Damaged for numbers
            that no optimizer leaves.
        """
        self._check(tensors)
        self._check_numbers(tensors)
        for key, parameter in self.live.items():
            parameter.copy_(tensors[f"live/{key}"])
            self.ema[key].copy_(tensors[f"ema/{key}"])
            moments = {n: tensors[f"adamw/{n}/{key}"] for n in _MOMENTS}
            self.optimizer.state[parameter] = {
                "step": tensors[f"adamw/step/{key}"],
                **{name: value.to(parameter.device) for name, value in moments.items()},
            }
        self.step = step

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        wanted: dict[str, torch.Size] = {}
        for key, parameter in self.live.items():
            names = (f"live/{key}", f"ema/{key}", *(f"adamw/{n}/{key}" for n in _MOMENTS))
            wanted |= dict.fromkeys(names, parameter.shape)
            wanted[f"adamw/step/{key}"] = torch.Size()
        found = {key: value.shape for key, value in tensors.items()}
        for name in sorted(wanted.keys() ^ found.keys()):
            raise Mismatch(f"{name} is {'missing' if name in wanted else 'unknown'}")
        for name, shape in wanted.items():
            if found[name] != shape:
                raise Mismatch(f"{name} is {tuple(found[name])} and not {tuple(shape)}")

    def _check_numbers(self, tensors: Mapping[str, Tensor]) -> None:
        taken = {float(tensors[f"adamw/step/{key}"]) for key in self.live}
        if len(taken) > 1 or any(count < 1 or count % 1 for count in taken):
            raise Damaged("its modules have taken different numbers of steps")
        for name, value in tensors.items():
            if value.dtype != torch.float32:
                raise Damaged(f"{name} is not in float32")
            if name.startswith("adamw/exp_avg_sq/") and (value < 0).any():
                raise Damaged(f"{name} is negative, and squares are not")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the base computes with the averaged weights."""
        kept = {k: v.detach().clone() for k, v in self.live.items()}
        try:
            for key, parameter in self.live.items():
                parameter.data.copy_(self.ema[key])
            yield
        finally:
            for key, parameter in self.live.items():
                parameter.data.copy_(kept[key])
