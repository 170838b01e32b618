"""What the fields mean together: ai-toolkit's values and defaults as settings of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from iclora.train.aitoolkit.reading import shortened

__all__ = ["EVEN", "Config"]

EVEN = 1.702
"""The deviation of a normal draw whose sigmoid is even from 0 to 1, within 1% of its distribution:
the normal that is nearest to the logistic (Haley 1952)."""

_NUMBERS = {"bf16": "bf16", "bfloat16": "bf16", "fp32": "fp32", "float32": "fp32", "float": "fp32"}
_SAVED = {**_NUMBERS, "fp16": "fp16", "float16": "fp16"}


class Config:
    """The values of the file, and ai-toolkit's defaults where it is silent."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        config = document["config"]
        process = config["process"][0]
        self._config, self._process = config, process
        self._datasets = [d for d in _list_of(process.get("datasets")) if isinstance(d, dict)]
        self._found: list[str] = []

    def _of(self, table: str, key: str, default: Any = None) -> Any:
        """The value of, say, train.lr."""
        tables = {"": self._process, "dataset": self._datasets[0] if self._datasets else {}}
        inside: Any = tables.get(table, self._process)
        for part in table.split(".") if table not in tables else ():
            inside = inside.get(part) if isinstance(inside, dict) else None
        value = inside.get(key) if isinstance(inside, dict) else None
        return default if value is None else value

    def _whole(self, table: str, key: str, default: int) -> int:
        """A whole number of at least 1; anything else is a problem."""
        value = self._of(table, key, default)
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
            self._found.append(f"{table}.{key} = {shortened(value)}: it must be 1 or more.")
            return default
        return int(text)

    @property
    def trigger(self) -> str | None:
        word = self._of("dataset", "trigger_word") or self._of("", "trigger_word")
        return str(word) if word else None

    @property
    def prompts(self) -> tuple[str, ...]:
        """What previews show, the trigger word filled in as ai-toolkit does."""
        samples = self._of("sample", "samples")
        given = samples if samples is not None else self._of("sample", "prompts", [])
        texts = [each.get("prompt") if isinstance(each, dict) else each for each in _list_of(given)]
        word = self.trigger or "[trigger]"
        return tuple(str(text).replace("[trigger]", word) for text in texts if text is not None)

    def problems(self) -> list[str]:
        """What the fields say together that iclora does not do."""
        self._found = []
        found = self._found
        for place, value in (
            ("config.name", self._config.get("name", "")),
            ("training_folder", self._of("", "training_folder", "")),
            ("device", self._of("", "device", "")),
            ("datasets[0].folder_path", self._of("dataset", "folder_path", "")),
            ("datasets[0].dataset_path", self._of("dataset", "dataset_path", "")),
            ("model.name_or_path", self._of("model", "name_or_path", "")),
        ):
            if not isinstance(value, str):
                found.append(f"{place} = {shortened(value)}: it must be text.")
        if not self._config.get("name"):
            found.append("config.name: it names the run, and is missing.")
        if len(self._datasets) != 1:
            found.append(f"datasets: it has {len(self._datasets)}; iclora trains on one folder.")
        elif not (self._of("dataset", "folder_path") or self._of("dataset", "dataset_path")):
            found.append("datasets[0].folder_path: it says where the sets lie, and is missing.")
        if not self._of("model", "name_or_path"):
            found.append("model.name_or_path: it names the base, and is missing.")
        if not (self._of("model", "is_flux") or self._of("model", "arch")):
            found.append("model.is_flux: without it this is Stable Diffusion 1; set it to true.")
        if not isinstance(self._process.get("network"), dict):
            found.append("network: without it all weights are tuned, not a LoRA.")
        for place, known in (("train.dtype", _NUMBERS), ("save.dtype", _SAVED)):
            table, _, key = place.partition(".")
            value = self._of(table, key)
            if value is not None and str(value) not in known:
                found.append(f"{place} = {shortened(value)}: use one of {', '.join(known)}.")
        kind = self._of("train", "timestep_type", "sigmoid")
        if kind != "sigmoid" and not str(kind).endswith("shift"):
            found.append(f"train.timestep_type = {shortened(kind)}: use sigmoid or flux_shift.")
        qtype = str(self._of("model", "qtype", "qfloat8"))
        if self._of("model", "quantize") and not qtype.endswith("8"):
            found.append(
                f'model.qtype = "{qtype}": remove it, and set `precision` to nf4 in the run file '
                "for 4 bits."
            )
        for table, key in (
            ("train", "batch_size"),
            ("train", "gradient_accumulation"),
            ("train", "gradient_accumulation_steps"),
            ("train", "steps"),
            ("save", "save_every"),
            ("sample", "sample_every"),
            ("sample", "width"),
            ("sample", "height"),
        ):
            self._whole(table, key, 1)
        return found

    def settings(self) -> dict[str, Any]:
        """Values of ours by name; only after there are no problems."""
        return dict(self._run()) | dict(self._learning()) | dict(self._shown())

    def _run(self) -> Iterator[tuple[str, Any]]:
        yield "base", self._of("model", "name_or_path")
        yield "data", self._of("dataset", "folder_path") or self._of("dataset", "dataset_path")
        folder = str(self._of("", "training_folder", "")).rstrip("/\\")
        yield "out", "/".join(part for part in (folder, str(self._config["name"])) if part)
        device = self._of("", "device", "cuda")
        if device not in ("cuda", "cuda:0"):
            yield "device", device
        yield "dtype", _NUMBERS[str(self._of("train", "dtype", "fp32"))]
        yield "precision", "int8" if self._of("model", "quantize") else "full"
        if self._of("model", "compile") or self._of("model", "block_compile"):
            yield "compile", True
        if self._of("", "training_seed") is not None:
            yield "seed", self._of("", "training_seed")

    def _learning(self) -> Iterator[tuple[str, Any]]:
        passes = self._whole("train", "gradient_accumulation_steps", 1)
        more = self._whole("train", "gradient_accumulation", 1)
        rank = self._of("network", "rank") or self._of("network", "linear", 4)
        sizes = _list_of(self._of("dataset", "resolution", 512))
        averaged = self._of("train.ema_config", "use_ema")
        yield "steps", self._steps("train", "steps", 1000)
        yield "batch", self._whole("train", "batch_size", 1) * passes * more
        yield "lr", self._of("train", "lr", 1e-6)
        yield "weight_decay", self._of("train.optimizer_params", "weight_decay", 0.01)
        yield "grad_clip", self._of("train", "max_grad_norm", 1.0)
        yield "ema", self._of("train.ema_config", "ema_decay", 0.999) if averaged else 0.0
        yield "rank", rank
        yield "alpha", rank
        yield "resolutions", tuple(x for i, x in enumerate(sizes) if x not in sizes[:i])
        yield "caption_dropout", self._of("dataset", "caption_dropout_rate", 0.0)
        yield "guidance", self._of("train", "cfg_scale", 1.0)
        kind = self._of("train", "timestep_type", "sigmoid")
        yield "shift", "none" if kind == "sigmoid" else "resolution"
        if kind != "sigmoid":
            # ai-toolkit takes shifted levels evenly from its schedule.
            yield "sigma_std", EVEN
        if not self._of("train", "gradient_checkpointing", True):
            # On is iclora's default too; unsaid, `vram` may choose how many blocks.
            yield "gradient_checkpointing", False

    def _shown(self) -> Iterator[tuple[str, Any]]:
        yield "save_dtype", _SAVED[str(self._of("save", "dtype", "float16"))]
        yield "save_every", self._steps("save", "save_every", 1000)
        yield "keep", self._of("save", "max_step_saves_to_keep", 5)
        silent = self._of("train", "disable_sampling") or not self.prompts
        yield "preview_every", 0 if silent else self._steps("sample", "sample_every", 100)
        if self.prompts:
            yield "preview_prompts", self.prompts
        width, height = (self._whole("sample", side, 512) for side in ("width", "height"))
        yield "preview_resolution", round(math.sqrt(width * height))
        if self._of("logging", "use_wandb"):
            yield "trackers", ("tensorboard", "wandb")

    def _steps(self, table: str, key: str, default: int) -> int:
        """Steps of the optimizer; ai-toolkit counts the passes that it accumulates."""
        passes = self._whole("train", "gradient_accumulation_steps", 1)
        return max(round(self._whole(table, key, default) / passes), 1)


def _list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
