"""The one contract every captioner meets: asks in, answers out, in whatever order they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from iclora.errors import CaptionerError

__all__ = ["Answer", "Ask", "Captioner", "Turn"]


@dataclass(frozen=True)
class Turn:
    """An answer that was no use, and what was wrong with it."""

    answer: str
    objection: str


@dataclass(frozen=True)
class Ask:
    """One question to a model.

    Attributes:
        words: what is wanted, the form of the answer left out.
        pictures: to look at, in order; none for a prompt from an idea.
        markers: the panels the answer speaks of, such as "[SCENE-1]".
        earlier: answers that were refused before, the newest last.
    """

    words: str
    pictures: tuple[Image.Image, ...]
    markers: tuple[str, ...]
    earlier: tuple[Turn, ...] = ()

    @property
    def as_text(self) -> str:
        """The question, asking for marked text: what any model can write."""
        shape = " ".join(f"{marker} what it shows." for marker in self.markers)
        return (
            f"{self.words}\nAnswer with the caption alone, on one line, in this form: "
            f"the overview; {shape}"
        )

    @property
    def as_json(self) -> str:
        """The question, asking for a JSON object: what servers that offer it can enforce."""
        count = len(self.markers)
        return (
            f'{self.words}\nAnswer with a JSON object: "overview", a string, and "panels", a list '
            f"of {count} strings, one for each panel in order, without markers."
        )

    @property
    def schema(self) -> dict[str, Any]:
        """What `as_json` asks for, as a JSON schema."""
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
    """What a model wrote, and the tokens it cost; 0 where the server does not say."""

    text: str
    read: int = 0
    written: int = 0
    whole: bool = True
    """False where it was cut off at the most tokens allowed."""


@dataclass
class Captioner(ABC):
    """A model that looks at pictures and writes.

    Attributes:
        name: what it was chosen by, such as "openai:gpt-4o" or "local:/models/qwen".
        together: asks it works on at the same time.
        longest: most tokens it writes in one answer.
    """

    name: str
    together: int = 4
    longest: int = 1024
    notices: list[str] = field(default_factory=list)
    """What its user should know before pictures leave the machine; empty where they do not."""

    def free(self) -> None:  # noqa: B027 (most have nothing to free)
        """Give back the device's memory; it is taken again at the next answer."""

    @abstractmethod
    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer | CaptionerError]]:
        """Answer them all.

        Yields: the number of an ask, and its answer or why there is none after all retries, each
            as it arrives.
        Raises: CaptionerError if no further ask can be answered either: a refused key, a server
            that is gone.
        """
