"""From a name to a base model: a folder, a hub id, or a base that needs no download."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import huggingface_hub
import torch
from huggingface_hub import errors as hub

from iclora.errors import ModelError, SettingsError
from iclora.files.documents import read_json
from iclora.files.locks import building
from iclora.models.base import DTYPES, DiffusionModel
from iclora.models.quantize import KINDS, check_precision
from iclora.models.single_file import whole_of
from iclora.settings import Precision
from iclora.settings.registry import Registry

__all__ = ["BASES", "FAMILIES", "Family", "load_model", "pick_device", "pick_dtype"]


class Family(Protocol):
    """The opener of bases of one family."""

    def __call__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> DiffusionModel: ...


FAMILIES: Registry[Family] = Registry(
    "iclora.families",
    "base family",
    {
        "FluxPipeline": "iclora.models.flux.model:FluxModel",
        "Flux2KleinPipeline": "iclora.models.flux2.model:KleinModel",
        "Flux2Pipeline": "iclora.models.flux2.dev:DevModel",
        "ZImagePipeline": "iclora.models.zimage.model:ZImageModel",
        "Krea2Pipeline": "iclora.models.krea2.model:Krea2Model",
        "QwenImagePipeline": "iclora.models.qwen_image.model:QwenImageModel",
    },
)
"""A base family by the pipeline class that a model_index.json names."""

BASES: Registry[Callable[[], Path]] = Registry(
    "iclora.bases",
    "base",
    {
        "tiny": "iclora.models.tiny:tiny_folder",
        "tiny-klein": "iclora.models.flux2.tiny:tiny_klein_folder",
        "tiny-flux2": "iclora.models.flux2.tiny:tiny_flux2_folder",
        "tiny-zimage": "iclora.models.zimage.tiny:tiny_zimage_folder",
        "tiny-krea": "iclora.models.krea2.tiny:tiny_krea_folder",
        "tiny-qwen": "iclora.models.qwen_image.tiny:tiny_qwen_image_folder",
    },
)
"""Bases that need no download: a name, and what finds or makes its folder."""

_REFUSED: dict[str, tuple[str, str]] = {
    "Flux2KleinKVPipeline": (
        "it is distilled to 4 steps and to references whose keys are kept, and spoilt by training",
        "Use FLUX.2-klein-base-9B, or -9B to generate; iclora keeps the keys of given panels with "
        "adapters trained with `isolate_given`.",
    ),
    "FluxFillPipeline": (
        "it reads a mask and a picture beside the noise, which no other tool's adapter does",
        "Use FLUX.1-dev: it completes sets without.",
    ),
    "ZImageOmniPipeline": (
        "it reads pictures by an encoder of their own, which iclora does not",
        "Use Tongyi-MAI/Z-Image.",
    ),
    **dict.fromkeys(
        ("QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
        (
            "it changes a picture that it is shown, which its text encoder reads too",
            "Use Qwen/Qwen-Image-2512: it completes sets around given panels without.",
        ),
    ),
    "QwenImage21Pipeline": (
        "it is another network, distilled so that it needs no guidance, and not for commercial use",
        "Use Qwen/Qwen-Image-2512.",
    ),
    "QwenImageLayeredPipeline": (
        "it paints layers of one picture, with transparency, where a set needs panels",
        "Use a base that paints one picture.",
    ),
}
"""Relatives of families that iclora knows, by pipeline: why not, and what instead."""

# Weights as safetensors only: a pickle runs code when it is opened.
_SETTINGS = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/chat_template.jinja"]
_WEIGHTS = ["*/*.safetensors"]


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" takes cuda before mps before cpu.

    Processes that a launcher started on one machine get a GPU each, by their number: nothing is
    ever put on another's.

    Raises: SettingsError.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available():
            name = "mps"
    if not re.fullmatch(r"cuda(:\d+)?|mps|cpu", name):
        raise _device_error(f'"{name}" is not a device', "Use auto, cuda, cuda:1, mps or cpu.")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise _device_error("this machine has no usable CUDA device", "Use cpu, or auto.")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise _device_error(
            f"there is no {name}; this machine has {torch.cuda.device_count()} CUDA devices",
            "Count them from cuda:0.",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise _device_error("this machine has no usable MPS device", "Use cpu, or auto.")
    number = os.environ.get("LOCAL_RANK", "")
    if name == "cuda" and number.isdigit():
        return torch.device("cuda", int(number) % torch.cuda.device_count())
    return device


def _device_error(problem: str, advice: str) -> SettingsError:
    return SettingsError(problem, advice, setting="device")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """bf16 or fp32; "auto" takes bf16 on an accelerator, fp32 on a CPU. Raises: SettingsError.

    fp16 is not offered: T5 and FLUX.1 overflow it and give black pictures.
    """
    if name == "auto":
        name = "fp32" if device.type == "cpu" else "bf16"
    if name not in DTYPES:
        raise SettingsError(
            f'"{name}" is not a number format for a base', "Use auto, bf16 or fp32.", "dtype"
        )
    return DTYPES[name]


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    weights: bool = True,
    precision: Precision = "full",
) -> DiffusionModel:
    """Open a base model; its parts load when they are first used.

    Args:
        name: one of `BASES` such as "tiny" (random weights, for tests), a folder in diffusers'
            layout, or a hub id such as "black-forest-labs/FLUX.1-dev".
        device: auto, cuda, cuda:N, mps or cpu.
        dtype: auto, bf16 or fp32.
        weights: False downloads settings and tokenizers only, enough to count tokens.
        precision: how the linear layers of the denoiser's blocks are kept: full as dtype says,
            int8, nf4, or fp8, which also computes in it.
    Raises: ModelError if it cannot be found, reached or read; SettingsError.
    """
    place = pick_device(device)
    wanted = pick_dtype(dtype, place)
    if precision not in KINDS:
        raise SettingsError(
            f'"{precision}" is not a precision', f"Use one of {', '.join(KINDS)}.", "precision"
        )
    check_precision(precision, place)
    folder = _find(name, weights)
    if name not in BASES and Path(name).expanduser().is_dir():
        # A relative path, recorded as it is, could pass for a hub id elsewhere.
        name = str(folder.resolve())
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{name} is not a model folder in diffusers' layout (it has no model_index.json)",
            _whole(*sorted(folder.glob("*.safetensors"))),
        )
    try:
        pipeline = read_json(index, ModelError, "model index")["_class_name"]
    except (KeyError, TypeError, ModelError) as error:
        why = error.problem if isinstance(error, ModelError) else "it names no pipeline"
        raise ModelError(f"{index} is damaged: {why}", "Download the model again.") from error
    if isinstance(pipeline, str) and pipeline in _REFUSED:
        why, instead = _REFUSED[pipeline]
        raise ModelError(f"{name} is a {pipeline}: {why}", instead, setting="base")
    if not isinstance(pipeline, str) or pipeline not in FAMILIES:
        raise ModelError(
            f"{name} is a {pipeline}, a family iclora does not know yet",
            f"It knows {', '.join(sorted(FAMILIES))}; see the README for models of these.",
        )
    return FAMILIES.load(pipeline)(folder, name, place, wanted, precision)


def _find(name: str, weights: bool) -> Path:
    if name in BASES:
        with building():
            return BASES.load(name)()
    path = Path(name).expanduser()
    if path.is_dir():
        return _snapshot(path) or path
    if path.is_file():
        raise ModelError(f"{name} is a file; a base is a folder in diffusers' layout", _whole(path))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "~")):
        raise ModelError(
            f'there is no folder "{name}", and it is not a hub id',
            f"Give a folder, an id of the form OWNER/NAME, or one of {', '.join(sorted(BASES))}.",
            setting="base",
        )
    return _download(name, _SETTINGS + _WEIGHTS * weights)


def _snapshot(folder: Path) -> Path | None:
    """The model in a folder of the hub's cache (models--OWNER--NAME), its newest if several."""
    found = [path.parent for path in (folder / "snapshots").glob("*/model_index.json")]
    with suppress(OSError, ValueError):
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        found = [path for path in found if path.name == main] or found
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _whole(*files: Path) -> str:
    """Advice to somebody who has single checkpoint files, of which the first that shows counts."""
    base = next(filter(None, map(whole_of, files)), None)
    what = f"`hf download {base}`" if base else "`hf download OWNER/NAME`"
    return (
        "A single checkpoint file, as ComfyUI uses, does not hold all parts: download the whole "
        f"model by {what}, or set `base` to that id."
    )


def _download(name: str, wanted: list[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except hub.GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: its licence must be accepted before it can be downloaded",
            f"Accept it at https://huggingface.co/{name}, then run `hf auth login` (or set "
            "HF_TOKEN) and try again.",
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ModelError(
            f'there is no folder "{name}", and the hub shows no model of that name to you',
            "Check the spelling; for a private model run `hf auth login` first.",
        ) from error
    except (
        hub.LocalEntryNotFoundError,
        hub.OfflineModeIsEnabled,
        hub.HfHubHTTPError,
        OSError,
    ) as error:
        raise ModelError(
            f"{name} is not on this machine and the hub cannot be reached ({type(error).__name__})",
            "Go online once, or copy the model here and give its folder.",
        ) from error
