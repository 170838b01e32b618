"""Texts and pictures at true size: what a set costs before its first step, and after its last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iclora.jobs.bench.measuring import clear, median, peak, reset_peak, seconds
from iclora.jobs.bench.telling import Bench
from iclora.models import load_model
from iclora.models.outline import FolderOutline, outline_of, shipped_outline

__all__ = ["encode", "on_device"]

_CANVAS = (1024, 1536)


def encode(bench: Bench, bases: list[str], small: bool = False) -> None:
    """Time the text encoders and the VAE of some bases, with random weights.

    Args:
        small: a canvas of 128x192 px, for a CPU.
    """
    device = torch.device(bench.device)
    size = (128, 192) if small else _CANVAS
    for base in bases:
        folder = shipped_outline(base) or base
        like = load_model(str(folder), "cpu", "bf16", weights=False)
        outline = outline_of(like, torch.bfloat16, "full")
        assert isinstance(outline, FolderOutline)
        for number, encoder in enumerate(outline.text_encoders):
            _text(bench, base, number, encoder, outline, device)
            clear(device)
        _pictures(bench, base, outline, device, size)
        clear(device)


def on_device(net: torch.nn.Module, device: torch.device) -> Any:
    """A module of the outline made again on a device, in bf16, with the numbers it begins with.

    From its settings: what stands on the meta device has lost its tables of positions.
    """
    kind: Any = type(net)
    config: Any = net.config
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            made = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return made.requires_grad_(False).eval()


def _text(
    bench: Bench, base: str, number: int, like: Any, outline: FolderOutline, device: torch.device
) -> None:
    encoder = on_device(like, device)
    kind = type(encoder).__name__
    length = 77 if kind.startswith("CLIP") else outline.text_tokens
    known = int(encoder.config.vocab_size)
    ids = torch.randint(3, min(1000, known), (1, length), device=device)
    more: dict[str, Any] = {}
    if "Qwen" in kind:
        more = {"attention_mask": torch.ones_like(ids), "output_hidden_states": True}
        more["use_cache"] = False
    what = f"{base.rpartition('/')[2]}: {kind}, a text of {length} tokens"
    _time(bench, what, lambda: encoder(ids, **more), device, f"encoder {number + 1}")


def _pictures(
    bench: Bench, base: str, outline: FolderOutline, device: torch.device, size: tuple[int, int]
) -> None:
    vae = on_device(outline.vae, device)
    width, height = size
    pixels = torch.randn(1, 3, height, width, device=device).bfloat16()
    latents: Tensor = vae.encode(pixels).latent_dist.mode()
    what = f"{base.rpartition('/')[2]}: VAE, {width}x{height}"
    _time(bench, f"{what}, encoding", lambda: vae.encode(pixels), device)
    _time(bench, f"{what}, decoding", lambda: vae.decode(latents), device)


@torch.no_grad()
def _time(
    bench: Bench, what: str, run: Callable[[], object], device: torch.device, note: str = ""
) -> None:
    reset_peak(device)
    times = seconds(run, device, 3, warm=2 if device.type == "cuda" else 0)
    said = [note, f"peak {peak(device) / 1e9:.1f} GB"]
    bench.tell(what, median(times), "s", note="; ".join(filter(None, said)), all=times)
