"""Questions for captions and prompts; answers read as joint captions, or refused with a reason."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Callable, Sequence

from PIL import Image

from iclora.errors import CaptionError
from iclora.sets.caption import JointCaption, check_budget, has_markers
from iclora.sets.recipe import Recipe
from iclora.vlm.base import Ask

__all__ = ["ask_about", "ask_for_prompt", "read_answer", "shrink"]

_LONGEST_ANSWER = 20_000
"""Characters; a caption of 512 tokens has some 2,000."""
_WORDS_PER_TOKEN = 0.7
"""English, as T5 cuts it; rather too low than too high."""
_ALIKE = 0.92
_REFUSALS = re.compile(
    r"(?:^|[.!?]\s+)(?:sorry, |(?:but )?unfortunately,? )*"
    r"(?:i(?:'m| am) (?:sorry|afraid|unable|not able)\b|as an ai\b|"
    r"i (?:can(?:'|no)t|am unable to|won't|will not) (?:help|assist|describe|identify|provide|do|"
    r"see|view|comply|fulfil|process|generate|create)\b|cannot assist|sorry, )",
    re.IGNORECASE,
)
"""The beginning of a sentence of refusal; a robot "posing as an AI" is none."""


def shrink(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with no side above `longest` px; smaller ones as they are."""
    if max(picture.size) <= longest:
        return picture
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small


def ask_about(recipe: Recipe, pictures: Sequence[Image.Image], limit: int) -> Ask:
    """Ask for the joint caption of a set.

    Args:
        pictures: its panels in order, or its composite alone.
        limit: tokens the base reads; the answer is asked to stay well inside.
    """
    count = len(recipe.markers)
    sent = (
        f"You see {count} pictures, in the order of the markers {' '.join(recipe.markers)}."
        if len(pictures) == count
        else f"You see one canvas of {count} panels, in reading order {' '.join(recipe.markers)}."
    )
    return Ask(
        f"{sent}\n{recipe.instruction.strip()}\n{_rules(limit)}", tuple(pictures), recipe.markers
    )


def ask_for_prompt(recipe: Recipe, idea: str, limit: int) -> Ask:
    """Ask for a joint prompt that makes a set out of one line. Raises: CaptionError if empty."""
    if not idea.strip():
        raise CaptionError("the idea is empty", 'Write a line such as "a shy boy at a carnival".')
    words = (
        f"Invent a set of {len(recipe.markers)} pictures from this idea: {idea.strip()}\n"
        f"The set: {recipe.summary} The pictures do not exist yet; describe them as if you saw "
        f"them.\n{recipe.instruction.strip()}\nA description of another such set, for its form "
        f"alone: {recipe.example}\n{_rules(limit)}"
    )
    return Ask(words, (), recipe.markers)


def _rules(limit: int) -> str:
    return (
        "Say plainly what is to be seen; no opinions, no lists. "
        f"Write at most {int(limit * 0.75 * _WORDS_PER_TOKEN)} words in all."
    )


def read_answer(
    text: str, recipe: Recipe, count_tokens: Callable[[str], int], limit: int
) -> JointCaption:
    """Turn an answer into a joint caption.

    Args:
        text: a JSON object as `Ask.schema` has it, or marked text; a code fence around it and
            thoughts before it are forgiven.
        count_tokens: of the base that will read the caption.
        limit: tokens that base reads.
    Raises: CaptionError for an answer that cannot be used; its problem can be told to the model.
    """
    if len(text) > _LONGEST_ANSWER:
        raise CaptionError(
            f"the answer is {len(text):,} characters long", "Write one short caption."
        )
    # Some models think aloud before they answer.
    text = re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL)
    if text.lstrip().startswith("<think>"):
        raise CaptionError("the answer never got beyond its thoughts", "Answer at once.")
    text = re.sub(r"^\s*```\w*\s*|\s*```\s*$", "", text).strip()
    overview, panels = (_from_json if text.startswith("{") else _from_marks)(text, recipe)
    if any("\ud800" <= sign <= "\udfff" for sign in "".join([overview, *panels])):
        raise CaptionError("the answer holds half a character", "Write plain text.")
    if _REFUSALS.search(" ".join([overview, *panels])[:400].replace("\u2019", "'")):
        raise CaptionError(
            f'the answer is a refusal ("{text[:80]}")', "Describe what is to be seen."
        )
    for number, words in enumerate(panels, 1):
        if has_markers(words, recipe.markers):
            raise CaptionError(
                f"the text of panel {number} holds a marker", "Write words without markers."
            )
    if has_markers(overview, recipe.markers):
        raise CaptionError("the overview holds a marker", "Write words without markers.")
    if not overview.strip():
        raise CaptionError("there is no overview", "Begin with what all panels share.")
    _refuse_twins(panels)
    caption = JointCaption.join(overview, panels, recipe.markers, recipe.prefix)
    check_budget(caption.render(), count_tokens, limit, "the caption")
    return caption


def _from_json(text: str, recipe: Recipe) -> tuple[str, list[str]]:
    try:
        value = json.loads(text)
        overview, panels = value["overview"], value["panels"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CaptionError(
            f"the answer is not a whole JSON object with overview and panels ({error})",
            "Write it again, whole.",
        ) from error
    if not isinstance(overview, str) or not isinstance(panels, list):
        raise CaptionError("overview must be a string, panels a list", "Mind their types.")
    if not all(isinstance(panel, str) for panel in panels):
        raise CaptionError("a panel's text is not a string", "Write plain strings.")
    texts = list(panels)
    if len(texts) != len(recipe.markers):
        raise CaptionError(
            f"{len(texts)} panel texts for {len(recipe.markers)} panels",
            "Write one for each panel.",
        )
    # Models like to repeat a marker in front of the text it stands for; that does no harm.
    bare = [
        re.sub(rf"^\s*{re.escape(m)}\s*:?", "", t)
        for m, t in zip(recipe.markers, texts, strict=True)
    ]
    return _without_prefix(overview, recipe), [_tidy(t) for t in bare]


def _from_marks(text: str, recipe: Recipe) -> tuple[str, list[str]]:
    caption = JointCaption.parse(re.sub(r"\s+", " ", text), recipe.markers)
    return _without_prefix(caption.overview, recipe), [_tidy(words) for words in caption.panels]


def _tidy(words: str) -> str:
    return re.sub(r"\s+", " ", words.strip().removeprefix(":")).strip()


def _without_prefix(overview: str, recipe: Recipe) -> str:
    return _tidy(overview.strip().removeprefix(recipe.prefix))


def _refuse_twins(panels: Sequence[str]) -> None:
    """Raises: CaptionError for panels described alike, which would teach the base nothing."""
    bare = [re.findall(r"\w+", words.lower()) for words in panels]
    for number, words in enumerate(bare, 1):
        if not words:
            raise CaptionError(f"panel {number} has no words", "Say what it shows.")
    for (a, one), (b, other) in itertools.combinations(enumerate(bare, 1), 2):
        if difflib.SequenceMatcher(None, one, other).ratio() > _ALIKE:
            raise CaptionError(
                f"panels {a} and {b} are described in nearly the same words",
                "Say what is different in each.",
            )
