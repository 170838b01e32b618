"""Shared by the stages of pre-training: settings, a log, checkpoints, optimizers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from iclora.files import append_line, replacing

__all__ = [
    "Log",
    "Muon",
    "Settings",
    "amp",
    "load_state",
    "optimizers_of",
    "orthogonal",
    "save_done",
    "save_state",
    "take_step",
    "warm_then_cosine",
]


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """How the base is made. Defaults made the base that ships."""

    seed: int = 0
    device: torch.device = _CPU
    vae_steps: int = 1800
    vae_panels: int = 12
    """Panels in an autoencoder step."""
    vae_lr: float = 2e-3
    text_steps: int = 1600
    text_batch: int = 32
    text_lr: float = 2e-3
    flow_canvases: int = 16_000
    """Different canvases the transformer sees; their captions are new each time."""
    flow_steps: int = 7450
    flow_cooldown: int = 600
    """Last steps, over which the learning rate falls to zero."""
    flow_tokens: int = 10_240
    """Tokens in a transformer step, text tokens included; canvases of one arrangement."""
    flow_lr: float = 2e-3
    flow_ema: float = 0.998
    export_every: int = 500
    eyes_steps: int = 800
    eyes_lr: float = 1e-3
    words_steps: int = 1200
    words_batch: int = 48
    """Single pictures in a step of the captioner's first lessons."""
    captioner_texts: int = 300
    """Captions of each task whose words the captioner's tokenizer keeps whole."""
    captioner_sets: int = 3000
    """Different tuning sets the captioner sees; what is said of them is new each time."""
    captioner_steps: int = 1900
    captioner_batch: int = 16
    captioner_lr: float = 2e-3


class Log:
    """One JSON line per report, and the same on the screen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.monotonic()

    def __call__(self, **values: Any) -> None:
        line = json.dumps({"s": round(time.monotonic() - self._began, 1), **values})
        append_line(self._path, line)
        print(line, flush=True)


def warm_then_cosine(step: int, steps: int, warm: int = 100) -> float:
    """Share of the learning rate at a step: a linear start, a cosine to 2%."""
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def save_state(
    path: Path,
    step: int,
    model: nn.Module,
    *optimizers: torch.optim.Optimizer,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint as safetensors; a kill leaves the last one."""
    tensors = {f"model/{k}": v.detach().contiguous() for k, v in model.state_dict().items()}
    for key, value in (extra or {}).items():
        tensors[f"extra/{key}"] = value.contiguous()
    for which, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{which}/{number}/{name}"] = value.contiguous()
    save_done(path, tensors, step=str(step))


def save_done(path: Path, tensors: Mapping[str, Tensor], **about: str) -> None:
    """Write tensors as safetensors, whole or not at all: a file that is there is done."""
    with replacing(path) as part:
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, part, about or None)


def load_state(
    path: Path, model: nn.Module, *optimizers: torch.optim.Optimizer
) -> tuple[int, dict[str, Tensor]]:
    """Load a checkpoint. Returns: its step and extra tensors; 0 if there is none."""
    if not path.is_file():
        return 0, {}
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    for which, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{which}/"):
                number, name = key.split("/")[2:]
                state.setdefault(int(number), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return step, {k[6:]: v for k, v in tensors.items() if k.startswith("extra/")}


class Muon(torch.optim.Optimizer):
    """Momentum whose every update has all singular values near one, for matrices and kernels.

    Read for it: torch.optim.Muon, which refuses convolutions. A kernel counts as the matrix
    (out, in * height * width). Updates are scaled to the size of AdamW's.
    Source: Jordan 2024, kellerjordan.github.io/posts/muon; scale from arXiv 2502.16982.
    """

    def __init__(self, parameters: Sequence[Tensor], rate: float, decay: float = 0.02) -> None:
        super().__init__(parameters, {"lr": rate, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                grad = parameter.grad
                mean = state.setdefault("mean", torch.zeros_like(grad))
                mean.lerp_(grad, 0.05)
                update = orthogonal(grad.lerp(mean, 0.95).flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["decay"])
                parameter.sub_(update.view(parameter.shape), alpha=group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values moved near one, by five Newton-Schulz steps."""
    x = matrix.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    result: Tensor = (x if wide else x.mT).float()
    return result


def optimizers_of(model: nn.Module, rate: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices and kernels inside of blocks, AdamW for the rest.

    Here it needs well under half of AdamW's steps, for a tenth more time a step.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = "block" in name or "layers." in name
        plain = parameter.ndim in (2, 4) and "norm" not in name and "bias" not in name
        (matrices if inner and plain else rest).append(parameter)
    adam = torch.optim.AdamW(rest, rate, (0.9, 0.98), weight_decay=0.0, fused=True)
    return Muon(matrices, rate), adam


def take_step(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """One update at this learning rate; gradients are cleared."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def amp(device: torch.device) -> Any:
    """bf16 matrix products: on a CPU with AVX512-BF16 six times as fast as fp32."""
    return torch.autocast(device.type, torch.bfloat16)
