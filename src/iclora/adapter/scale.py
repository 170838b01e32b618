"""How strong an adapter is: the one source of its scale.

An update is scale * B @ A. Tools write the scale in four places, of which one counts for each
module, in this order: its ".alpha" tensor; the header's `lora_adapter_metadata` (diffusers);
`adapter_config.json` beside the file (PEFT); none, which means alpha = rank. The rank is that of
the stored A; a configuration that says another one is not this file's.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from torch import Tensor

from iclora.errors import AdapterError
from iclora.files.documents import parse_json

__all__ = ["PeftConfig", "alpha_of", "peft_config"]

T = TypeVar("T")

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
    rank: float | None = None
    """The rank of every module, if the configuration says one, but for `ranks`."""
    ranks: Mapping[re.Pattern[str], float] = field(default_factory=dict)
    """Ranks by patterns, as those of alphas."""
    spent: list[float] = field(default_factory=lambda: [0.0], compare=False)
    """Seconds that matching has taken so far."""

    def scale(self, module: str, rank: int) -> float:
        """The scale of one module.

        Raises: AdapterError if its patterns cannot be matched, or if its rank is another.
        """
        said = self._of(module, self.ranks, self.rank)
        if said is not None and said != rank:
            raise AdapterError(
                f"{self.source} says rank {said:g} for {module}, and its tensors have "
                f"rank {rank}, so its strength is unknown",
                "Copy the adapter again with the configuration that belongs to it.",
            )
        alpha = self._of(module, self.patterns, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _of(
        self, module: str, patterns: Mapping[re.Pattern[str], float], otherwise: T
    ) -> float | T:
        """The number that the first pattern to match gives a module."""
        for pattern, value in patterns.items():
            began = time.monotonic()
            found = pattern.match(module)
            self.spent[0] += time.monotonic() - began
            if self.spent[0] > _SECONDS:
                raise AdapterError(
                    f"the patterns in {self.source} take too long to match",
                    "Write the modules' names there in full.",
                )
            if found:
                return value
        return otherwise


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
    # The rank of a LoHa or LoKr is not that of the LoRA it becomes.
    rank = found.get("r") if kind == "LORA" else None
    return PeftConfig(
        source,
        _number(alpha, source),
        _patterns(found, "alpha_pattern", source),
        found.get("use_rslora") is True,
        None if rank is None else _number(rank, source),
        _patterns(found, "rank_pattern", source) if kind == "LORA" else {},
    )


def _patterns(found: Mapping[str, Any], name: str, source: str) -> dict[re.Pattern[str], float]:
    patterns = found.get(name) or {}
    if not isinstance(patterns, dict):
        _damaged(source, f"its {name} is no table")
    return {_pattern(key, name, source): _number(v, source) for key, v in patterns.items()}


def _pattern(text: str, name: str, source: str) -> re.Pattern[str]:
    """PEFT's rule: the end of a module's name, from a dot on, or all of it."""
    # Each repetition and each choice multiplies what a match can cost.
    open_ends = re.findall(r"(?<!\\)(?:[*+{(]|(?<!\()\?)", text)
    if len(open_ends) > 3 or len(text) > 300 or re.search(r"\)[*+{]", text):
        _damaged(source, f"its {name} {text[:80]!r} repeats too much")
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError) as error:
        _damaged(source, f"its {name} {text[:80]!r} is no regular expression ({error})")


def _number(value: object, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _damaged(source, f"{str(value)[:40]!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _damaged(source, "a number is not finite")
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
