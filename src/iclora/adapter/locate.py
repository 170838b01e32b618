"""Where an adapter lies: a file, a run's folder, PEFT's or diffusers' folder, or the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from huggingface_hub import errors as hub
from huggingface_hub import snapshot_download

from iclora.errors import AdapterError

__all__ = ["Download", "locate"]

Download = Callable[[str, list[str]], Path]
"""Brings files of a hub repository here: its id and their patterns; returns their folder."""

_NAMES = (
    "adapter.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "lora.safetensors",
)
"""What adapters are called in the folders of iclora, PEFT, diffusers, Flux trainers."""

_HUB = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?::(?P<file>[^:]+))?")

_ADDRESS = re.compile(
    r"https?:/{1,2}(?:(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[\w.-]+/[\w.-]+)"
    r"(?:/(?:resolve|blob|raw)/[^/]+/(?P<file>[^?#]+))?)?|hf:/"
)
"""An address, of which a path may have made one slash of two."""

_IN_PROMPTS = re.compile(r"<(?:lora|lyco):(?P<name>[^:>]+)(?::(?P<strength>[-+0-9.]+))?[^>]*>")
"""How prompts of AUTOMATIC1111's and ComfyUI's readers name an adapter."""

_REVISION = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?P<file>:[^:@]+)?@[^:@]+(?P<behind>:.+)?")
"""An id of the hub with a revision, before or behind the file."""


def locate(source: str | Path, download: Download | None = None) -> Path:
    """The adapter file that a user means.

    Args:
        source: a file; a folder that holds one; or an id of the hub, "name/repository", with
            ":file" behind it where the repository holds several.
        download: replaces the hub's own client.
    Raises: AdapterError if there is none, or several, or the hub cannot be reached.
    """
    text = str(source)
    if address := _ADDRESS.match(text):
        own, file = address["id"], address["file"]
        raise AdapterError(
            f"{text} is an address, and no path or id of the hub",
            f"Write {own}{f':{file}' if file else ''}." if own else "Download it first.",
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return _in_folder(path, text)
    if not path.exists():
        _refuse_other_forms(text)
    match = _HUB.fullmatch(text)
    # A path that looks like an id is more often a mistyped file than a repository.
    if path.exists() or match is None or (match["file"] is None and path.suffix):
        return path
    wanted = [match["file"]] if match["file"] else ["*.safetensors"]
    folder = (download or _from_hub)(match["id"], [*wanted, "adapter_config.json"])
    if not match["file"]:
        return _in_folder(folder, text)
    found = folder / match["file"]
    if ".." in Path(match["file"]).parts or not found.is_file():
        raise AdapterError(f"{match['id']} has no file {match['file']}", "Look at its files there.")
    return found


def _refuse_other_forms(text: str) -> None:
    """Raises: AdapterError for what other tools call an adapter by, with what to write here."""
    if found := _IN_PROMPTS.fullmatch(text):
        strength = f"={found['strength']}" if found["strength"] else ""
        raise AdapterError(
            f"{text} names an adapter as prompts of other programs do",
            f"Write the path of its file: {found['name']}.safetensors{strength}",
        )
    if found := _REVISION.fullmatch(text):
        own = f"{found['id']}{found['file'] or found['behind'] or ''}"
        raise AdapterError(
            f"{text} asks for one revision, and of the hub only the newest is read here",
            f"Write {own} for that; or download the revision you mean, and give its folder.",
        )


def _in_folder(folder: Path, source: str) -> Path:
    files = {path.name: path for path in folder.glob("*.safetensors") if path.is_file()}
    for name in _NAMES:
        if name in files:
            return files[name]
    _refuse_base(folder, source)
    if len(files) == 1:
        return next(iter(files.values()))
    raise AdapterError(
        f"{source} holds {_listed(files)}",
        "Name the file: folder/file.safetensors, or name/repository:file.safetensors on the hub.",
    )


def _refuse_base(folder: Path, source: str) -> None:
    """Raises: AdapterError for a base, and for a run that made one."""
    made = folder / "base"
    if (folder / "model_index.json").is_file():
        raise AdapterError(
            f"{source} is a base of its own, and no adapter",
            "Give it as `base`, and none as `adapter`.",
        )
    if (folder / "config.toml").is_file() and (made / "model_index.json").is_file():
        raise AdapterError(
            f"the run in {source} trained every weight: it made the base {made}, and no adapter",
            f"Give {made} as `base`, and none as `adapter`.",
        )


def _listed(files: Collection[str]) -> str:
    some = ", ".join(sorted(files)[:5])
    return f"{len(files)} .safetensors files: {some}" if files else "no adapter (.safetensors)"


def _from_hub(name: str, wanted: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except hub.GatedRepoError as error:
        raise AdapterError(
            f"{name} is gated: its licence must be accepted before it can be downloaded",
            f"Accept it at https://huggingface.co/{name}, then run `hf auth login` and try again.",
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise AdapterError(
            f'there is no file or folder "{name}", and the hub shows no such repository to you',
            "Check the spelling; for a private one run `hf auth login` first.",
        ) from error
    except (
        hub.LocalEntryNotFoundError,
        hub.OfflineModeIsEnabled,
        hub.HfHubHTTPError,
        OSError,
    ) as error:
        raise AdapterError(
            f"{name} is not on this machine and the hub cannot be reached ({type(error).__name__})",
            "Check the path; or go online once.",
        ) from error
