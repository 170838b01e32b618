"""Questions for captions and prompts; answers read as joint captions, or refused with a reason."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from iclora.errors import CaptionError
from iclora.sets.caption import JointCaption, check_budget, has_markers
from iclora.sets.recipe import Recipe
from iclora.sets.residue import residue_in
from iclora.settings import TextKind
from iclora.vlm.answers import (
    clean,
    final_words,
    label_inside,
    on_one_line,
    panel_of,
    split_at_marks,
    without_labels,
    without_preface,
    without_remarks,
)
from iclora.vlm.base import Answer, Ask
from iclora.vlm.objects import find_object
from iclora.vlm.refusals import is_refusal

__all__ = [
    "Unanswerable",
    "Unmarked",
    "ask_about",
    "ask_for_prompt",
    "read_answer",
    "shrink",
    "whole_text",
]

_LONGEST_ANSWER = 20_000
"""Characters; a caption of 512 tokens has some 2,000."""
_WORDS_PER_TOKEN = 0.7
"""English, as T5 cuts it; rather too low than too high."""
_ALIKE = 0.92


_NOTHING = (
    "n a",
    "none",
    "null",
    "empty",
    "nothing",
    "tbd",
    "no description",
    "undefined",
    "string",
)
"""What models write where they have no words."""


_NOT_WHOLE = (
    "the answer is not a whole JSON object with overview and panels",
    "Write it again, whole.",
)


_AGAIN = re.compile(r"(?:the )?same (?:as|scene|image|picture)\b|(?:as|see) above\b|ditto\b")
"""Words that send to another panel, which a panel's own text may lack."""


class Unanswerable(CaptionError):
    """An answer that asking again would not better: a refusal in prose, or nothing at all."""


class Unmarked(CaptionError):
    """An answer in prose, in which no panel is told from another."""


def shrink(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with no side above `longest` px; smaller ones as they are."""
    if max(picture.size) <= longest:
        return picture
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small


def ask_about(
    recipe: Recipe, pictures: Sequence[Image.Image], limit: int, kind: TextKind = "joint"
) -> Ask:
    """Ask for the joint caption of a set.

    Args:
        pictures: its panels in order, or its composite alone.
        limit: tokens the base reads; the answer is asked to stay well inside.
        kind: what a panel will read: each text that is encoded may be that long.
    """
    count = len(recipe.markers)
    sent = (
        f"You see {count} pictures, in the order of the markers {' '.join(recipe.markers)}."
        if len(pictures) == count
        else f"You see one canvas of {count} panels, in reading order {' '.join(recipe.markers)}."
    )
    return Ask(
        f"{sent}\n{recipe.instruction.strip()}\n{_rules(limit, kind)}",
        tuple(pictures),
        recipe.markers,
    )


def ask_for_prompt(recipe: Recipe, idea: str, limit: int, kind: TextKind = "joint") -> Ask:
    """Ask for a joint prompt that makes a set out of one line. Raises: CaptionError if empty.

    Args:
        limit, kind: as in `ask_about`.
    """
    if not idea.strip():
        raise CaptionError("the idea is empty", 'Write a line such as "a shy boy at a carnival".')
    words = (
        f"Invent a set of {len(recipe.markers)} pictures from this idea: {idea.strip()}\n"
        f"The set: {recipe.summary} The pictures do not exist yet; describe them as if you saw "
        f"them.\n{recipe.instruction.strip()}\nA description of another such set, for its form "
        f"alone: {recipe.example}\n{_rules(limit, kind)}"
    )
    return Ask(words, (), recipe.markers)


def _rules(limit: int, kind: TextKind) -> str:
    what = {
        "joint": "in all",
        "isolated": "for the overview and any one picture together",
        "alone": "for any one picture",
    }
    return (
        "Say plainly what is to be seen; no opinions, no lists. "
        f"Write at most {int(limit * 0.75 * _WORDS_PER_TOKEN)} words {what[kind]}."
    )


def whole_text(reply: Answer, tries: int, ask: Ask) -> str:
    """The text of an answer that came to its end.

    Raises: Unanswerable if asking again will not help; CaptionError if it may.
    """
    if not reply.text.strip():
        spent = f", after {reply.written:,} tokens" if reply.written > 1 else ""
        problem = f"the answer is empty{spent}"
        if tries == 1:
            raise Unanswerable(
                problem,
                "If the model thinks before it answers, switch that off on its server; or use "
                "another `captioner`.",
                setting="captioner",
            )
        raise CaptionError(problem, "Write the caption.")
    if reply.refused:
        words = " ".join(reply.text.split())[:160]
        raise Unanswerable(
            f'the model or its server refuses: "{words}"',
            "Look at the set's pictures, or use another `captioner`.",
            setting="captioner",
        )
    if not reply.whole:
        problem = "the answer was cut off before its end"
        if ask.earlier and not ask.earlier[-1].whole:
            raise Unanswerable(
                f"{problem}, twice",
                "If the model thinks before it answers, switch that off on its server.",
                setting="captioner",
            )
        raise CaptionError(problem, "Write less.")
    return reply.text


def read_answer(
    text: str,
    recipe: Recipe,
    count_tokens: Callable[[str], int],
    limit: int,
    kind: TextKind = "joint",
) -> JointCaption:
    """Turn an answer into a joint caption.

    Args:
        text: a JSON object as `Ask.schema` has it, or marked text, wherever in the answer it
            stands and however its markers are spelt; what `answers` knows of is taken off.
        count_tokens: of the base that will read the caption.
        limit: tokens that base reads.
        kind: what a panel will read; each text that is encoded may have `limit` tokens.
    Raises: Unanswerable if it is a refusal in prose; CaptionError for any other answer that cannot
        be used; its problem can be told to the model.
    """
    if len(text) > _LONGEST_ANSWER:
        raise CaptionError(
            f"the answer is {len(text):,} characters long", "Write one short caption."
        )
    text = final_words(text)
    if not re.search(r"\w", clean(text)):
        raise CaptionError("the answer is empty", "Write the caption.")
    overview, panels = _parts(text, recipe)
    if any("\ud800" <= sign <= "\udfff" for sign in "".join([overview, *panels])):
        raise CaptionError("the answer holds half a character", "Write plain text.")
    if refusal := next(filter(is_refusal, [overview, *panels]), None):
        raise Unanswerable(
            f'the model refuses: "{_quoted(refusal)}"',
            "Look at the set's pictures, or use another `captioner`.",
            setting="captioner",
        )
    if left := residue_in(" ".join([overview, *panels])):
        raise CaptionError(f'the answer holds "{left}"', "Write plain words alone.")
    for number, words in enumerate(panels, 1):
        if has_markers(words, recipe.markers) or label_inside(words):
            raise CaptionError(
                f"the text of panel {number} holds a marker", "Write words without markers."
            )
    if has_markers(overview, recipe.markers) or label_inside(overview):
        raise CaptionError("the overview holds a marker", "Write words without markers.")
    if not re.search(r"\w", overview):
        raise CaptionError("there is no overview", "Begin with what all panels share.")
    _refuse_twins(panels)
    caption = JointCaption.join(overview, panels, recipe.markers, recipe.prefix)
    for number, whole in enumerate(caption.texts(kind), 1):
        name = "the caption" if kind == "joint" else f"what panel {number} reads"
        check_budget(whole, count_tokens, limit, name)
    return caption


def _parts(text: str, recipe: Recipe) -> tuple[str, list[str]]:
    """The overview and the panels' texts of an answer, clean."""
    value = _object_in(text)
    if isinstance(value, str):
        text, value = value, None
    if value is None and re.match(
        r"\s*(?:```\w*\s*)?[{]|.*[\"\u201c](?:overview|panels)[\"\u201d]\s*:", text, re.S
    ):
        raise CaptionError(*_NOT_WHOLE)
    if value is None:
        overview, texts = _from_marks(text, recipe)
    else:
        overview, texts = _from_json(value, recipe, text)
    overview = without_preface(_without_prefix(clean(overview), recipe))
    texts = without_labels([clean(words) for words in texts], recipe.markers)
    texts[-1] = without_remarks(texts[-1])
    return _tidy(_without_prefix(overview, recipe)), [_tidy(words) for words in texts]


def _object_in(text: str) -> dict[str, Any] | str | None:
    """The object of an answer, its overview under that name; a whole caption if it holds one."""
    value = find_object(text, "overview")
    if value is not None:
        return value
    value = find_object(text, "panels")
    if value is not None:
        strings = [held for held in value.values() if isinstance(held, str)]
        return {**value, "overview": strings[0]} if len(strings) == 1 else None
    for name in ("caption", "joint_caption", "prompt", "text", "description"):
        value = find_object(text, name)
        if value is not None and isinstance(value[name], str):
            return str(value[name])
    return None


_TEXTS = ("text", "caption", "description", "words", "content", "prompt")
"""What a panel's text is called where an object stands for it."""


def _from_json(value: dict[str, Any], recipe: Recipe, text: str) -> tuple[str, list[str]]:
    overview, texts = value["overview"], value.get("panels")
    if texts is None:
        # Some name each panel by its marker, others write a second object.
        more = find_object(text, "panels")
        texts = more["panels"] if more else _by_marker(value, recipe)
    elif isinstance(texts, dict):
        texts = _by_marker(texts, recipe) or list(texts.values())
    elif isinstance(texts, str) and isinstance(overview, str):
        parts = split_at_marks(clean(f"{overview}\n{texts}"), recipe.markers)
        texts = parts[1] if parts else texts
    if texts is None:
        raise CaptionError(*_NOT_WHOLE)
    if isinstance(texts, list):
        texts = [_text_of(panel) for panel in _as_many(texts, overview, len(recipe.markers))]
    if not isinstance(overview, str) or not isinstance(texts, list):
        raise CaptionError("overview must be a string, panels a list", "Mind their types.")
    if not all(isinstance(panel, str) for panel in texts):
        raise CaptionError("a panel's text is not a string", "Write plain strings.")
    if len(texts) != len(recipe.markers):
        raise CaptionError(
            f"{len(texts)} panel texts for {len(recipe.markers)} panels",
            "Write one for each panel.",
        )
    return overview, texts


def _by_marker(named: dict[str, Any], recipe: Recipe) -> list[Any] | None:
    """The values of an object by the panels that their names mean; None unless all are there."""
    found: dict[int | None, Any] = {}
    for key, held in named.items():
        plain = re.sub(r"[\s\[\]_-]+", " ", str(key)).strip()
        number = (
            int(plain) if re.fullmatch("[0-9]{1,2}", plain) else panel_of(plain, recipe.markers)
        )
        found[number] = held
    count = len(recipe.markers)
    start = 0 if 0 in found else 1
    wanted = range(start, start + count)
    return [found[n] for n in wanted] if all(n in found for n in wanted) else None


def _as_many(texts: list[Any], overview: Any, count: int) -> list[Any]:
    """A list of panels out of another list, without empty ends, and without the overview again."""
    if len(texts) == 1 and isinstance(texts[0], list):
        texts = texts[0]
    while len(texts) > count and isinstance(texts[-1], str) and not texts[-1].strip():
        texts = texts[:-1]
    again = isinstance(overview, str) and texts and isinstance(texts[0], str)
    if len(texts) == count + 1 and again and texts[0].strip().endswith(overview.strip()):
        texts = texts[1:]
    return texts


def _text_of(panel: Any) -> Any:
    """The text of a panel that is an object, such as {"marker": ..., "text": ...}."""
    if not isinstance(panel, dict):
        return panel
    named = {str(key).lower(): held for key, held in panel.items()}
    called = next((named[name] for name in _TEXTS if name in named), None)
    strings = [held for held in named.values() if isinstance(held, str)]
    return called if called is not None else strings[0] if len(strings) == 1 else panel


def _from_marks(text: str, recipe: Recipe) -> tuple[str, list[str]]:
    fences = re.findall(r"```[ \t]*\w*[ \t]*\n(.*?)```", text, re.DOTALL)
    for part in [*fences, text]:
        words = clean(part)
        if all(marker in words for marker in recipe.markers):
            caption = JointCaption.parse(_flat(words), recipe.markers)
            # Cut again where its lines still stand, which tell remarks from captions.
            if parts := split_at_marks(words, recipe.markers):
                return parts
            return caption.overview, list(caption.panels)
        if parts := split_at_marks(words, recipe.markers):
            # As YAML has it, the list's name stands before its first entry.
            return re.sub(
                r"(?:^|(?<=\n))\s*(?:panels|scenes|captions)\s*:\s*$", "", parts[0]
            ), parts[1]
    words = clean(text)
    if is_refusal(words):
        raise Unanswerable(
            f'the model refuses: "{_quoted(words)}"',
            "Look at the set's pictures, or use another `captioner`.",
            setting="captioner",
        )
    try:
        caption = JointCaption.parse(_flat(words), recipe.markers)
    except CaptionError as error:
        kind = CaptionError if has_markers(words, recipe.markers) else Unmarked
        raise kind(error.problem, error.advice) from error
    return caption.overview, list(caption.panels)


def _flat(words: str) -> str:
    return re.sub(r"\s+", " ", words)


def _quoted(words: str) -> str:
    return _flat(words).strip()[:160]


def _tidy(words: str) -> str:
    # Chat tokens and markdown may have been torn apart by labels and lines.
    return on_one_line(clean(on_one_line(words)))


def _without_prefix(overview: str, recipe: Recipe) -> str:
    """The overview behind the recipe's prefix, which we write, in whatever spelling."""
    if not recipe.prefix.strip():
        return overview
    words = re.findall(r"\w+", recipe.prefix)
    sign = r"[\s_-]*".join(map(re.escape, words))
    return re.split(rf"[\[(]?\b{sign}\b[\])]?:?", overview, flags=re.IGNORECASE)[-1]


def _refuse_twins(panels: Sequence[str]) -> None:
    """Raises: CaptionError for panels described alike, which would teach the base nothing."""
    bare = [re.findall(r"\w+", words.lower()) for words in panels]
    for number, words in enumerate(bare, 1):
        if not words or " ".join(words) in _NOTHING or _AGAIN.match(" ".join(words)):
            raise CaptionError(f"panel {number} has no words", "Say what it shows.")
    for (a, one), (b, other) in itertools.combinations(enumerate(bare, 1), 2):
        if difflib.SequenceMatcher(None, one, other).ratio() > _ALIKE:
            raise CaptionError(
                f"panels {a} and {b} are described in nearly the same words",
                "Say what is different in each.",
            )
