"""The keys of LoRA files: whose tensor each is, or why the file is refused."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from iclora.errors import AdapterError

__all__ = ["Grouped", "group", "shown"]

_OTHER_PARTS = re.compile(
    r"((base_model\.model\.)?text_encoders?(_\d+)?\.|(lora|lycoris)_(te\d*|text_encoder(_\d+)?)_"
    r"|clip_[lg]\.|t5(xxl)?\.|bundle_emb\.)"
)
"""Text encoders and embeddings: iclora adapts neither, and neither is a sign of a wrong base."""

_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)

_HALF = re.compile(
    r"(?P<module>.+)\.(lora|lora_linear_layer)(?:_(?P<a>A|B|down|up)|\.(?P<b>down|up))"
    r"(?:\.(?P<adapter>[^.]+))?\.weight"
)
_XLABS = re.compile(r"(?P<module>.+\.processor\.\w+_lora\d?)\.(?P<a>down|up)\.weight")
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<a>alpha|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)(?:\.(?P<adapter>[^.]+))?"
)
_ROLES = {"A": "down", "B": "up"}

_BIAS = r"\.lora_(B|up)(\.[^.]+)?\.bias$"
_WHOLE = r"\.(diff|diff_b|set_weight|w_norm|b_norm)$"
_IDLE = (_BIAS, _WHOLE)
"""Keys that do nothing while their tensors are zero."""

_REFUSED: tuple[tuple[str, str, str], ...] = (
    (
        r"lora_magnitude_vector|\.dora_scale$|\.magnitude$",
        "a DoRA, which also scales every row of the base's weights",
        "Merge it into the base with the tool that wrote it, or train a plain LoRA.",
    ),
    (
        r"norm\w*\.scale$",
        "a control LoRA, which replaces norms and takes another input than the base",
        "Use an adapter for text-to-image.",
    ),
    (
        _BIAS,
        "a LoRA with a bias, which adds more than B @ A",
        "Train it without one (lora_bias in PEFT).",
    ),
    (
        _WHOLE,
        "no LoRA alone: it replaces whole weights or biases",
        "Extract a LoRA from it, or merge it into the base.",
    ),
    (
        r"\.(lora_mid\.weight|hada_t[12]|lokr_t2)$",
        "a Tucker decomposition, which is for convolutions",
        "Use an adapter of this base family.",
    ),
    (
        r"\.(oft|boft)_\w+(\.\w+)?$",
        "an OFT, which rotates the base's weights",
        "Merge it into the base with the tool that wrote it.",
    ),
    (
        r"\.(a1|a2|b1|b2)\.weight$",
        "a GLoRA, which also multiplies the base's weights",
        "Merge it into the base with the tool that wrote it.",
    ),
)
"""Keys of adapters that are no LoRA: a pattern, what they are, what to do."""


def shown(key: str) -> str:
    """A name from a file as it may be printed: short, and without control characters."""
    text = key.encode("unicode_escape").decode()
    return text if len(text) <= 120 else f"{text[:117]}..."


def _stripped(key: str) -> tuple[str, str]:
    """The prefix of a key and the rest of it."""
    rest = key
    for prefix in _PREFIXES:
        rest = rest.removeprefix(prefix)
    return key[: len(key) - len(rest)], rest


def _refuse_kinds(raw: Mapping[str, Tensor], path: str) -> list[str]:
    """Raise for what is no LoRA. Returns: keys of the kind that are zero, and so do nothing."""
    idle = []
    for pattern, what, advice in _REFUSED:
        for key in raw:
            if not re.search(pattern, key):
                continue
            if pattern in _IDLE and not bool(raw[key].any()):
                idle.append(key)
                continue
            raise AdapterError(f"{path} is {what} ({shown(key)})", advice)
    return idle


@dataclass(frozen=True)
class Grouped:
    """A file's tensors by module."""

    modules: Mapping[str, Mapping[str, Tensor]]
    """down, up, alpha or a factor's own name (hada_w1_a, lokr_w1, ...), by module."""
    prefixes: frozenset[str]
    notes: tuple[str, ...]


def group(raw: Mapping[str, Tensor], path: str) -> Grouped:
    """Sort a file's tensors by module and role.

    Raises: AdapterError for a key that is neither used nor known to matter to others alone.
    """
    idle = set(_refuse_kinds(raw, path))
    other = [key for key in raw if key not in idle and _OTHER_PARTS.match(key)]
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    prefixes: set[str] = set()
    adapters: set[str] = set()
    strange = []
    skipped = idle | set(other)
    for key in (key for key in raw if key not in skipped):
        prefix, name = _stripped(key)
        match = _HALF.fullmatch(name) or _XLABS.fullmatch(name) or _FACTOR.fullmatch(name)
        if match is None:
            strange.append(key)
            continue
        found = match.groupdict()
        role = found["a"] or found["b"]
        module, role = found["module"], _ROLES.get(role, role)
        if role in modules[module]:
            raise AdapterError(
                f"{path} has module {shown(module)} twice, so it is unclear which counts",
                "Keep one of the two adapters in it.",
            )
        modules[module][role] = raw[key]
        prefixes.add(prefix)
        adapters |= {found["adapter"]} if found.get("adapter") else set()
    if strange:
        raise AdapterError(
            f"{len(strange)} of {len(raw)} keys of {path} are no LoRA weights that iclora knows, "
            f"such as {shown(strange[0])}",
            "Nothing was loaded; use an adapter of this base family.",
        )
    if len(adapters) > 1:
        raise AdapterError(
            f"{path} holds several adapters: {', '.join(sorted(map(shown, adapters)))}",
            "Save the one you want by itself.",
        )
    if not modules:
        raise AdapterError(
            f"{path} holds no LoRA weights" + " but those of text encoders" * bool(other),
            "Use an adapter of the base's transformer.",
        )
    notes = []
    if other:
        notes.append(
            f"{len(other)} tensors of text encoders or embeddings ({shown(other[0])}) are ignored: "
            "iclora adapts the transformer alone, so pictures may differ from the trainer's."
        )
    if idle:
        first = shown(min(idle))
        notes.append(f"{len(idle)} tensors that are all zero ({first}) are ignored.")
    return Grouped(modules, frozenset(prefixes), tuple(notes))
