"""The base's own tokenizer in the web process, where that can be had without torch.

FLUX.1's text is read by one T5, whose tokenizer is a file of its own. A base that puts texts into a
chat template first is not counted here: its numbers are estimates, and are said to be.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from iclora.errors import IcloraError, ModelError
from iclora.files.documents import read_json
from iclora.sets.caption import TOKEN_LIMIT, estimate_tokens

__all__ = ["Counter", "Tokens"]


@dataclass(frozen=True)
class Counter:
    """How a base counts the tokens of a text."""

    count: Callable[[str], int]
    limit: int
    """tokens that the base reads"""
    exact: bool
    """False for an estimate"""


_ESTIMATE = Counter(estimate_tokens, TOKEN_LIMIT, False)


class Tokens:
    """The counter of one base, read when it is first asked for."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._found: Counter | None = None
        self._reading = threading.Lock()

    def counter(self) -> Counter:
        """The base's tokenizer; an estimate for a base of which it is not known here."""
        with self._reading:
            if self._found is None:
                self._found = _read(self._base) or _ESTIMATE
            return self._found


def _read(base: str) -> Counter | None:
    try:
        folder = _folder(base)
        if not folder or _json(folder, "model_index.json").get("_class_name") != "FluxPipeline":
            return None
        guided = _json(folder, "transformer/config.json").get("guidance_embeds", False)
        longest = 512 if guided else 256
        told = _json(folder, "tokenizer_2/tokenizer_config.json").get("model_max_length")
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer_2" / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except Exception:  # tokenizers raises plain ones; an estimate stands in
        return None

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    return Counter(count, min(longest, int(told or longest)), True)


def _folder(base: str) -> Path | None:
    """Where a base lies on this machine; nothing is fetched."""
    if base == "toyland":
        return Path(str(files("iclora") / "toyland" / "weights" / "toyland-base"))
    path = Path(base).expanduser()
    if path.is_dir():
        inner = next(path.glob("snapshots/*/model_index.json"), None)
        return inner.parent if inner else path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        return None
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(base, "model_index.json")
    return Path(index).parent if isinstance(index, str) else None


def _json(folder: Path, name: str) -> dict[str, Any]:
    found = read_json(folder / name, ModelError, "model's settings")
    if not isinstance(found, dict):
        raise IcloraError(f"{name} is no object", "Download the model again.")
    return found
