"""Pydantic's findings in plain words: what a setting must be, and which one was meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

__all__ = ["by_setting", "nearest", "plain", "problems_of"]

_PLAIN = {
    "greater_than_equal": "must be at least {ge}, not {input}",
    "greater_than": "must be above {gt}, not {input}",
    "less_than_equal": "must be at most {le}, not {input}",
    "less_than": "must be below {lt}, not {input}",
    "finite_number": "must be a finite number, not {input}",
    "int_type": "must be a whole number",
    "int_parsing": 'must be a whole number, not "{input}"',
    "int_parsing_size": "must be a whole number of at most 18 digits",
    "int_from_float": "must be a whole number, not {input}",
    "float_type": "must be a number",
    "float_parsing": 'must be a number, not "{input}"',
    "bool_type": "must be true or false",
    "bool_parsing": 'must be true or false, not "{input}"',
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length}",
    "tuple_type": "must be a list, such as [512, 768]",
    "list_type": 'must be a list, such as ["a", "b"]',
    "dict_type": "must be a table of names and values",
    "mapping_type": "must be a table of names and values",
    "model_type": "must be a table of names and values",
    "model_attributes_type": "must be a table of names and values",
    "string_pattern_mismatch": 'must be of the form {pattern}, not "{input}"',
    "literal_error": 'must be {expected}, not "{input}"',
    "missing": "must be given",
}
"""Pydantic's findings in plain words, by their type."""

_ELSEWHERE = {
    "learning_rate": "lr",
    "unet_lr": "lr",
    "batch_size": "batch",
    "train_batch_size": "batch",
    "gradient_accumulation_steps": "batch",
    "gradient_accumulation": "batch",
    "max_train_steps": "steps",
    "train_steps": "steps",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "epochs": "steps",
    "num_inference_steps": "steps",
    "sample_steps": "steps",
    "network_dim": "rank",
    "lora_rank": "rank",
    "linear": "rank",
    "network_alpha": "alpha",
    "lora_alpha": "alpha",
    "linear_alpha": "alpha",
    "lora_layers": "targets",
    "target_modules": "targets",
    "max_grad_norm": "grad_clip",
    "adam_weight_decay": "weight_decay",
    "ema_decay": "ema",
    "resolution": "resolutions",
    "caption_dropout_rate": "caption_dropout",
    "proportion_empty_prompts": "caption_dropout",
    "checkpointing_steps": "save_every",
    "save_steps": "save_every",
    "save_every_n_steps": "save_every",
    "checkpoints_total_limit": "keep",
    "max_step_saves_to_keep": "keep",
    "validation_steps": "preview_every",
    "sample_every": "preview_every",
    "sample_every_n_steps": "preview_every",
    "validation_prompt": "preview_prompts",
    "sample_prompts": "preview_prompts",
    "report_to": "trackers",
    "mixed_precision": "dtype",
    "quantize": "precision",
    "qtype": "precision",
    "torch_compile": "compile",
    "output_dir": "out",
    "output": "out",
    "output_name": "out",
    "training_folder": "out",
    "train_data_dir": "data",
    "instance_data_dir": "data",
    "dataset": "data",
    "dataset_name": "data",
    "folder_path": "data",
    "model": "base",
    "name_or_path": "base",
    "pretrained_model_name_or_path": "base",
    "guidance_scale": "guidance",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "negative_prompt": "negative",
    "width": "size",
    "height": "size",
    "lora": "adapter",
    "lora_weights": "adapter",
    "lora_scale": "strength",
    "scale": "strength",
    "num_images": "count",
    "num_images_per_prompt": "count",
    "n": "count",
    "image": "given",
    "known": "given",
}
"""What other tools call our settings."""


def problems_of(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Pydantic's findings as "setting: problem" in one line.

    Args:
        model: names the nearest of its fields beside an unknown one.
    """
    found = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        message = plain(item, model)
        found.append(f"{place}: {message}" if place else message)
    return "; ".join(found)


def by_setting(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Pydantic's findings, one a setting: the alternatives of a union make one finding."""
    found: dict[str, list[str]] = {}
    items = error.errors()
    inner = {item["loc"][0] for item in items if len(item["loc"]) > 1}
    for item in items:
        place = f"`{item['loc'][0]}`: " if item["loc"] else ""
        if item["type"] == "too_short" and item["loc"][0] in inner:
            continue  # Too short only because its values are wrong.
        found.setdefault(place, []).append(plain(item, model))
    return [place + " or ".join(dict.fromkeys(messages)) for place, messages in found.items()]


def plain(item: Mapping[str, Any], model: type[BaseModel] | None = None) -> str:
    """One of pydantic's findings in plain words, without the setting's name."""
    if item["type"] == "extra_forbidden":
        near = nearest(str(item["loc"][-1]), model.model_fields if model else ())
        return "there is no such setting" + (f'; did you mean "{near}"?' if near else "")
    if item["type"] == "string_unicode":
        return _not_text(str(item["input"]))
    form = _PLAIN.get(item["type"])
    if form is None:
        return str(item["msg"]).removeprefix("Value error, ")
    shown = str(item["input"])
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    return form.format(**item.get("ctx", {}), input=shown)


def _not_text(value: str) -> str:
    """Why a text is none, and the way out: half characters stand for bytes that are not read."""
    problem = "holds half characters or bytes that are not UTF-8"
    if not any("\udc80" <= sign <= "\udcff" for sign in value):
        return problem
    try:
        meant = os.fsencode(value).decode()
    except UnicodeError:
        return f"{problem} ({value!a}); rename the file or folder to letters of UTF-8"
    return f"{problem}, as this process reads it; it is {meant!a}: set PYTHONUTF8=1"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The setting that somebody meant: the nearest name, or what another tool calls it."""
    plain, names = name.lower().replace("-", "_"), list(known)
    there = _ELSEWHERE.get(plain)
    if there in names:
        return there
    theirs = [each for each, ours in _ELSEWHERE.items() if ours in names]
    for close in difflib.get_close_matches(plain, [*names, *theirs], 1):
        return close if close in names else _ELSEWHERE[close]
    return None
