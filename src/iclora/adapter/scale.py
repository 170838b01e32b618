"""How strong an adapter is: the one source of its scale.

An update is scale * B @ A. Tools write the scale in four places, of which one counts for each
module, in this order: its ".alpha" tensor; the header's `lora_adapter_metadata` (diffusers);
`adapter_config.json` beside the file (PEFT); none, which means alpha = rank. The rank is always
that of the stored A, whatever a configuration says.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor

from iclora.errors import AdapterError
from iclora.files.documents import parse_json

__all__ = ["PeftConfig", "alpha_of", "peft_config"]

HEADER = "lora_adapter_metadata"

_TYPES = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""Kinds of PEFT adapters that are read, and what each calls its alpha."""

_DEFAULT = 8
"""Alpha for PEFT and diffusers where the configuration leaves it out."""

_OTHER = {
    "use_dora": "DoRA",
    "lora_bias": "a bias on B",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "replicated layers",
    "modules_to_save": "whole modules beside the LoRA",
    "trainable_token_indices": "trained tokens",
}
"""Settings of PEFT under which an update is not scale * B @ A of the base's own weights."""

_MOVES_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)
"""Ways to start a LoRA that also change the base's weights, which the file does not hold."""

_SECONDS = 10.0
"""Patterns are other people's regular expressions, and those can be made to take for ever."""


@dataclass(frozen=True)
class PeftConfig:
    """Alphas as PEFT's configuration gives them."""

    source: str
    """Where it stands, for messages."""
    alpha: float
    patterns: Mapping[re.Pattern[str], float] = field(default_factory=dict)
    """Alphas of modules whose name ends as a pattern says; they win over `alpha`."""
    rslora: bool = False
    """True if the scale is alpha / sqrt(rank) instead of alpha / rank."""
    spent: list[float] = field(default_factory=lambda: [0.0], compare=False)
    """Seconds that matching has taken so far."""

    def scale(self, module: str, rank: int) -> float:
        """The scale of one module. Raises: AdapterError if its patterns cannot be matched."""
        alpha = self.alpha
        for pattern, value in self.patterns.items():
            began = time.monotonic()
            found = pattern.match(module)
            self.spent[0] += time.monotonic() - began
            if self.spent[0] > _SECONDS:
                raise AdapterError(
                    f"the alpha_pattern in {self.source} takes too long to match",
                    "Write the modules' names there in full.",
                )
            if found:
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def alpha_of(tensor: Tensor, rank: int, module: str, path: str) -> float:
    """The scale by a module's ".alpha" tensor. Raises: AdapterError if it is not one number."""
    if tensor.numel() != 1:
        raise AdapterError(
            f"the alpha of {module} in {path} is {tensor.numel()} numbers, not one",
            "The file is damaged; copy or train it again.",
        )
    alpha = float(tensor)
    if not math.isfinite(alpha):
        raise AdapterError(
            f"the alpha of {module} in {path} is {alpha}",
            "The file is damaged; copy or train it again.",
        )
    # 0 stands for "as the rank" in sd-scripts and LyCORIS.
    return alpha / rank if alpha else 1.0


def peft_config(
    metadata: Mapping[str, str], config: str | None, path: str, component: str = "transformer"
) -> PeftConfig | None:
    """The configuration in a file's header, or else in the text of its adapter_config.json.

    Args:
        component: whose settings are read from a header that holds several components'.
    Raises: AdapterError if it is damaged, or says the adapter is no plain LoRA.
    """
    if HEADER in metadata:
        source = f"the {HEADER} of {path}"
        found = _parse(metadata[HEADER], source)
        if any("." in key for key in found):
            start = f"{component}."
            found = {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}
    elif config is not None:
        source = f"adapter_config.json of {path}"
        found = _parse(config, source)
    else:
        return None
    return _checked(found, source) if found else None


def _checked(found: Mapping[str, Any], source: str) -> PeftConfig:
    kind = found.get("peft_type") or "LORA"
    if kind not in _TYPES:
        raise AdapterError(
            f"{source} says that it is a {kind!r} adapter", "Use a LoRA, a LoHa or a LoKr."
        )
    for setting, name in _OTHER.items():
        if found.get(setting):
            raise AdapterError(
                f"{source} says that it uses {name} ({setting})",
                "iclora reads plain LoRA; merge it into the base with the tool that wrote it.",
            )
    start = found.get("init_lora_weights")
    if isinstance(start, str) and _MOVES_BASE.match(start):
        raise AdapterError(
            f"{source} says that it began by {start}, which changes the base's weights too",
            "Convert it to a plain LoRA with PEFT (path_initial_model_for_weight_conversion).",
        )
    alpha = found.get(_TYPES[kind], _DEFAULT)
    patterns = found.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        _damaged(source, "its alpha_pattern is no table")
    return PeftConfig(
        source,
        _number(alpha, source),
        {_pattern(key, source): _number(value, source) for key, value in patterns.items()},
        found.get("use_rslora") is True,
    )


def _pattern(text: str, source: str) -> re.Pattern[str]:
    """PEFT's rule: the end of a module's name, from a dot on, or all of it."""
    # Each repetition and each choice multiplies what a match can cost.
    open_ends = re.findall(r"(?<!\\)(?:[*+{(]|(?<!\()\?)", text)
    if len(open_ends) > 3 or len(text) > 300 or re.search(r"\)[*+{]", text):
        _damaged(source, f"its alpha_pattern {text[:80]!r} repeats too much")
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError) as error:
        _damaged(source, f"its alpha_pattern {text[:80]!r} is no regular expression ({error})")


def _number(value: object, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _damaged(source, f"an alpha is {str(value)[:40]!r}, no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _damaged(source, "an alpha is not finite")
    return number


def _parse(text: str, source: str) -> dict[str, Any]:
    def refuse(problem: str, advice: str) -> AdapterError:
        return AdapterError(f"{problem}; the adapter's strength is unknown", advice)

    found = parse_json(text, source, refuse)
    if not isinstance(found, dict):
        _damaged(source, "it is no table")
    return found


def _damaged(source: str, why: str) -> NoReturn:
    raise AdapterError(
        f"{source} cannot be read, so its strength is unknown: {why}",
        "Copy the adapter again, or write it again with the tool that made it.",
    )
