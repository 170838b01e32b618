"""A vision-language model as the judge, through the captioners' contract.

Small ones judge worse than plain likeness; a judge's figures are an opinion beside the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from iclora.errors import CaptionError, SettingsError
from iclora.evaluate.metrics.base import Figures, Made, Metric
from iclora.sets.recipe import Recipe
from iclora.vlm import VisionModel, load_vision_model
from iclora.vlm.answers import clean, final_words
from iclora.vlm.asking import shrink
from iclora.vlm.base import Answer, Ask, Turn
from iclora.vlm.objects import find_object

__all__ = ["Judge", "ScoreAsk", "open_local", "open_openai", "read_score"]

_TRIES = 2
_TOGETHER = 16
"""Sets whose pictures are held at once; as many are judged at a time as the captioner does."""
_LONGEST = 768
"""Px; no picture sent has a longer side."""
_LONGEST_ANSWER = 256
"""Tokens; a number, after thoughts perhaps."""
_LONGEST_TEXT = 20_000
"""Characters of an answer that are looked at, from its end."""
_QUESTION = (
    "You see {count} pictures, in order: the panels of one set. What the set should be: {summary}\n"
    "Do the panels share what such a set has to share: the same subject, or the same design? Judge "
    "identity alone; pose, place and framing may differ.\n"
    "5: certainly the same in every picture. 4: the same but for small details. 3: partly. "
    "2: hardly. 1: different."
)


class ScoreAsk(Ask):
    """A question whose answer is a whole number from 1 to 5."""

    @property
    def as_text(self) -> str:
        return f"{self.words}\nAnswer with one number from 1 to 5 and nothing else."

    @property
    def as_json(self) -> str:
        return f'{self.words}\nAnswer with a JSON object: "score", a whole number from 1 to 5.'

    @property
    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"score": {"type": "integer", "enum": [1, 2, 3, 4, 5]}},
            "required": ["score"],
            "additionalProperties": False,
        }


def read_score(text: str) -> int | None:
    """The number an answer gives, or None if it gives none, or more than one.

    A JSON object anywhere in it, "4", "4/5", "4 out of 5" and "Score: 4." are all understood, with
    whatever `iclora.vlm.answers` knows to stand around an answer.
    """
    try:
        text = final_words(text[-_LONGEST_TEXT:])
    except CaptionError:
        return None
    value = find_object(text, "score")
    if value is not None:
        score = value["score"]
        if isinstance(score, str):
            return _score_in(score)
        whole = isinstance(score, int | float) and score in (1, 2, 3, 4, 5)
        return int(score) if whole and not isinstance(score, bool) else None
    text = clean(re.sub(r"\\boxed\{(.*?)\}", r"\1", text)).strip()
    return None if text.startswith("{") else _score_in(text)


def _score_in(text: str) -> int | None:
    """The one number a text names, or names as its score."""
    text = re.sub(r"(?:/|\bout of|\bof)\s*5\b", " ", text, flags=re.IGNORECASE)
    for pattern in (r"", r"(?:score|mark|rating|answer|grade)\b\s*(?:is|of|[:=])*\s*"):
        numbers = set(re.findall(rf"{pattern}(?<![\w.,])(-?\d+(?:[.,]\d+)?)", text, re.IGNORECASE))
        if len(numbers) == 1:
            number = numbers.pop()
            return int(number) if number in ("1", "2", "3", "4", "5") else None
    return None


class Judge(Metric):
    """Asks for each set whether its panels share what they should."""

    name = "judge"
    main = "same identity"
    figures: ClassVar[Mapping[str, str]] = {
        "same identity": "the judge's mark, 1 to 5, for whether panels share what they should",
        "unanswered": "share of sets without a mark that could be read; lower is better",
    }

    def __init__(self, captioner: VisionModel) -> None:
        super().__init__(captioner.name)
        self.notes += captioner.notices
        self._captioner = captioner

    def check(self, recipe: Recipe) -> None:
        if recipe.canvas.single:
            raise SettingsError(
                "a judge compares the panels of a set, and single pictures are asked for",
                "Use another `metric`, or leave single pictures out of `knowledge`.",
                setting="metric",
            )

    def of_sets(self, sets: Iterable[Made]) -> Iterator[Figures]:
        """Raises: VisionModelError if no set can be judged any more."""
        left = iter(sets)
        try:
            while part := list(islice(left, _TOGETHER)):
                yield from self._judge(part)
                # Or they would be held while the next ones are read.
                part.clear()
        finally:
            # A base that makes the next sets may need the room.
            self._captioner.free()

    def _judge(self, sets: Sequence[Made]) -> Iterator[Figures]:
        asks: dict[int, Ask] = {number: _ask(made) for number, made in enumerate(sets)}
        marks: dict[int, int] = {}
        for _ in range(_TRIES):
            left = [number for number in asks if number not in marks]
            for place, reply in self._captioner.answer([asks[number] for number in left]):
                if not isinstance(reply, Answer):
                    continue
                number, mark = left[place], read_score(reply.text) if reply.whole else None
                if mark is not None:
                    marks[number] = mark
                else:
                    turn = Turn(reply.text[:500].strip() or "(nothing)", "Write one number alone.")
                    asks[number] = replace(asks[number], earlier=(turn,))
        for number in range(len(sets)):
            mark = marks.get(number)
            yield (
                {"unanswered": 1.0}
                if mark is None
                else {"same identity": float(mark), "unanswered": 0.0}
            )


def open_openai(model: str, device: str, url: str | None) -> Judge:
    """For `registry.METRICS`."""
    return Judge(load_vision_model(f"openai:{model}", url=url, device=device))


def open_local(model: str, device: str, url: str | None) -> Judge:
    """For `registry.METRICS`."""
    return Judge(load_vision_model(f"local:{model}", url=url, device=device))


def _ask(made: Made) -> ScoreAsk:
    words = _QUESTION.format(count=len(made.panels), summary=made.recipe.summary)
    pictures = tuple(shrink(panel, _LONGEST) for panel in made.panels)
    return ScoreAsk(words, pictures, made.recipe.markers, longest=_LONGEST_ANSWER)
