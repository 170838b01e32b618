"""From the start of a command to its first picture, as a person waits for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from iclora.errors import ModelError
from iclora.jobs.bench.encoding import on_device
from iclora.jobs.bench.measuring import clear
from iclora.jobs.bench.telling import Bench
from iclora.jobs.bench.weights import fill, random_denoiser
from iclora.models import load_model
from iclora.models.folder import FolderModel
from iclora.models.outline import FolderOutline, outline_of, shipped_outline
from iclora.models.registry import BASES

__all__ = ["first_picture", "write_base"]

_PROMPT = "[MOVIE-SHOTS] A lion. [SCENE-1] it stands, [SCENE-2] it walks, [SCENE-3] it sleeps."

_WORDS = {"Flux2KleinPipeline": "tiny-klein"}
"""The base whose tokenizer stands in: words of it are ids that every larger encoder has."""


def first_picture(bench: Bench, base: str) -> None:
    """Write a base with random weights, and time a command that makes one set with it, twice."""
    cuda = bench.device != "cpu"
    if base in BASES:
        folder = Path(base)
    else:
        folder = bench.folder / "base"
        began = time.perf_counter()
        shipped = shipped_outline(base)
        assert shipped is not None, f"no settings of {base} ship"
        size = write_base(folder, shipped, bench.device)
        took = time.perf_counter() - began
        bench.tell("size on disk", size / 1e9, "GB", note=f"written in {took:.0f} s")
        clear(torch.device(bench.device))
    how = "512x768" if cuda else "192x288"
    settings: dict[str, Any] = {
        "base": str(folder),
        "recipe": "film-storyboard",
        "prompt": [_PROMPT],
    }
    settings |= {"steps": 4, "size": how, "device": bench.device}
    times = []
    for number in (1, 2):
        told = {**settings, "out": str(bench.folder / f"made-{number}")}
        began = time.perf_counter()
        subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-c", _COMMAND, json.dumps(told)], check=True
        )
        times.append(time.perf_counter() - began)
        made = bench.folder / f"made-{number}" / "0001" / "composite.png"
        if not made.is_file():
            raise RuntimeError("the command made no picture")
    note = f"4 steps of {how}; the first time {times[0]:.1f} s"
    most = 25 if cuda else None
    bench.tell("first picture after start, again", times[1], "s", most=most, note=note)


_COMMAND = """
import json, sys
from iclora.jobs.making import make
from iclora.jobs.opening import Opener
from iclora.jobs.bench.smoke import Log
from iclora.settings import GenerateSettings, settings_of
make(settings_of(GenerateSettings, json.loads(sys.argv[1])), Log(), Opener())
"""


def write_base(folder: Path, settings: Path, device: str) -> int:
    """Write a base in diffusers' layout, with random weights.

    Args:
        folder: a new one.
        settings: those of its parts, in that layout.
    Returns: bytes.
    Raises: ModelError for one without a tokenizer to stand in.
    """
    shutil.copytree(settings, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    pipeline = json.loads((folder / "model_index.json").read_text())["_class_name"]
    if pipeline not in _WORDS:
        raise ModelError(f"there is no tokenizer for a {pipeline}", "Measure FLUX.2 klein.")
    words = BASES.load(_WORDS[pipeline])()
    for part in (*words.glob("tokenizer*"), words / "scheduler"):
        shutil.rmtree(folder / part.name, ignore_errors=True)
        shutil.copytree(part, folder / part.name)
    model = load_model(str(folder), device, "bf16", weights=False)
    assert isinstance(model, FolderModel)
    random_denoiser(model)
    size = _save(model.denoiser, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    model.release("denoiser")
    like = load_model(str(folder), "cpu", "bf16", weights=False)
    outline = outline_of(like, torch.bfloat16, "full")
    assert isinstance(outline, FolderOutline)
    (encoder,) = outline.text_encoders
    parts: list[tuple[Any, Path]] = [
        (encoder, folder / "text_encoder" / "model.safetensors"),
        (outline.vae, folder / "vae" / "diffusion_pytorch_model.safetensors"),
    ]
    for module, path in parts:
        net = on_device(module, torch.device(device))
        fill(net)
        size += _save(net, path)
        del net
        clear(torch.device(device))
    return size


def _save(net: torch.nn.Module, path: Path) -> int:
    # Tensors that share memory, such as tied embeddings, are written once.
    seen: set[int] = set()
    tensors = {}
    for name, tensor in net.state_dict().items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    return path.stat().st_size
