"""The contract of vision-language models: asks in, answers out, in whatever order they come.

Captions, prompts from ideas and a judge's marks are all asked for this way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from iclora.errors import VisionModelError

__all__ = ["Answer", "Ask", "Turn", "VisionModel"]


@dataclass(frozen=True)
class Turn:
    """An answer that could not be used, and why."""

    answer: str
    objection: str
    whole: bool = True
    """False if the answer was cut off at the most tokens allowed."""


@dataclass(frozen=True)
class Ask:
    """One question to a model."""

    words: str
    """The question, without the form of its answer."""
    pictures: tuple[Image.Image, ...]
    """To look at, in order; none for a prompt from an idea."""
    markers: tuple[str, ...]
    """The panels the answer speaks of, such as "[SCENE-1]"."""
    earlier: tuple[Turn, ...] = ()
    """Answers that were refused before, the newest last."""
    longest: int = 1024
    """Most tokens of its answer."""

    @property
    def as_text(self) -> str:
        """The question, asking for marked text, which any model can write."""
        shape = " ".join(f"{marker} what it shows." for marker in self.markers)
        return (
            f"{self.words}\nAnswer with the caption alone, on one line, in this form: "
            f"the overview; {shape}"
        )

    @property
    def as_json(self) -> str:
        """The question, asking for a JSON object, which some servers can enforce."""
        count = len(self.markers)
        return (
            f'{self.words}\nAnswer with a JSON object: "overview", a string, and "panels", a list '
            f"of {count} strings, one for each panel in order, without markers."
        )

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the object that `as_json` asks for."""
        count = len(self.markers)
        text = {"type": "string", "minLength": 1}
        return {
            "type": "object",
            "properties": {
                "overview": text,
                "panels": {"type": "array", "items": text, "minItems": count, "maxItems": count},
            },
            "required": ["overview", "panels"],
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class Answer:
    """A model's answer, and the tokens it cost."""

    text: str
    read: int = 0
    """Tokens of the question; 0 if the server does not say."""
    written: int = 0
    """Tokens of the answer; 0 if the server does not say."""
    whole: bool = True
    """False if it was cut off at the most tokens allowed."""
    refused: bool = False
    """True if the server says that this is a refusal, or was filtered."""


@dataclass
class VisionModel(ABC):
    """A model that looks at pictures and writes."""

    name: str
    """As it was chosen, such as "openai:gpt-4o" or "local:/models/qwen"."""
    together: int = 4
    """Asks it works on at the same time."""
    longest: int = 1024
    """Most tokens it writes in one answer, if the ask allows as many."""
    notices: list[str] = field(default_factory=list)
    """For its user, before pictures leave the machine; empty if they do not."""

    def free(self) -> None:  # noqa: B027 (most have nothing to free)
        """Give back the device's memory; it is taken again at the next answer."""

    def without_secrets(self, text: str) -> str:
        """A text that may be printed and stored: without the key, if one is used."""
        return text

    @abstractmethod
    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer | VisionModelError]]:
        """Answer them all.

        Yields: the number of an ask, counted from 0, and its answer, or why there is none after
            all retries; each as it arrives.
        Raises: VisionModelError if no further ask can be answered either: a refused key, a server
            that is gone.
        """
