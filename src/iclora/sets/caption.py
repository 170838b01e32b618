"""One text for many panels: an overview, then every panel behind its marker."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iclora.errors import CaptionError
from iclora.settings import TextKind

__all__ = [
    "APART",
    "SHORTEN",
    "TOKEN_LIMIT",
    "JointCaption",
    "check_budget",
    "estimate_tokens",
    "has_markers",
    "is_read",
    "unknown_note",
]

TOKEN_LIMIT = 512
"""Tokens a base reads, if none is at hand to ask: those of FLUX.1-dev."""
# T5 makes some 4 bytes of English a token; less here, so that the estimate errs to the safe side.
_BYTES_PER_TOKEN = 3.5

SHORTEN = "Shorten it."
APART = "Shorten it, or set `text` to isolated: then each panel's own words may be as long."
"""What to do about a text that is too long: any, or a joint caption of several panels."""

_JOINING = " \t\n,;:"
"""What only joins the words of one panel to the next."""

_TAG = re.compile(r"\[([^\[\]\n]{1,40})\]")
# Every shape a panel marker takes in the ten recipes and their users' own. A bracketed tag of
# another shape ([FOUR-PANEL], [MOVIE-SHOTS]) is part of the words.
_PANEL_LIKE = re.compile(
    r"(SCENE|PANEL|SHOT|FRAME|IMAGE|SLIDE|PAGE|STEP)-?\d+"
    r"|((TOP|MIDDLE|CENTER|CENTRE|BOTTOM)-?)?(LEFT|CENTER|CENTRE|RIGHT)"
    r"|TOP|MIDDLE|BOTTOM|CENTER|CENTRE"
)


def _canonical(tag: str) -> str:
    return re.sub(r"[\s_-]+", "-", tag.strip()).upper()


@dataclass(frozen=True, slots=True)
class JointCaption:
    """An overview and one text per panel; `render` gives back exactly what `parse` read.

    Texts are kept as they stand, spaces and all: words that lead over to a panel ("while",
    "transitioning to") precede its marker, so they end the text before it.

    Raises: CaptionError unless there is one text per marker.
    """

    overview: str
    """Everything before the first marker, a task prefix included."""
    panels: tuple[str, ...]
    """For each panel everything from behind its marker to the next one."""
    markers: tuple[str, ...]
    """The markers, such as "[SCENE-1]", in panel order."""

    def __post_init__(self) -> None:
        if len(self.panels) != len(self.markers):
            raise CaptionError(
                f"{len(self.panels)} panel texts for {len(self.markers)} markers",
                "Give one text per panel.",
            )

    @classmethod
    def parse(cls, text: str, markers: Sequence[str]) -> JointCaption:
        """Read a joint caption.

        Args:
            text: the whole caption.
            markers: the recipe's panel markers in order.
        Raises: CaptionError showing the place, if a marker is missing, doubled, out of order,
            misspelt or belongs to another layout, or if a panel has no words.
        """
        wanted = " ".join(markers)
        found = []
        for match in _TAG.finditer(text):
            if match.group(0) in markers:
                found.append(match)
                continue
            tag = _canonical(match.group(1))
            if f"[{tag}]" in markers:
                what = f"{match.group(0)} is a misspelt marker"
                raise _problem(text, match.start(), what, f"Write [{tag}].")
            if _PANEL_LIKE.fullmatch(tag):
                what = f"{match.group(0)} is not a panel of this layout"
                raise _problem(text, match.start(), what, f"Its markers are {wanted}.")
        order = f"Use each marker once, in this order: {wanted}."
        present = {match.group(0) for match in found}
        seen: list[str] = []
        for match in found:
            marker = match.group(0)
            if marker in seen:
                raise _problem(text, match.start(), f"{marker} stands here a second time", order)
            expected = markers[len(seen)]
            if marker != expected:
                missing = expected not in present
                what = f"{expected} is missing" if missing else f"{marker} comes before {expected}"
                raise _problem(text, match.start(), what, order)
            seen.append(marker)
        if len(seen) < len(markers):
            raise _problem(text, len(text), f"{markers[len(seen)]} is missing", order)
        ends = [*(m.start() for m in found[1:]), len(text)]
        panels = tuple(text[m.end() : end] for m, end in zip(found, ends, strict=True))
        for match, words in zip(found, panels, strict=True):
            if not re.search(r"\w", words):
                what = f"there are no words behind {match.group(0)}"
                raise _problem(text, match.start(), what, "Say what this panel shows.")
        return cls(text[: found[0].start()], panels, tuple(markers))

    @classmethod
    def join(
        cls, overview: str, panels: Sequence[str], markers: Sequence[str], prefix: str = ""
    ) -> JointCaption:
        """Make a joint caption from separate texts, with single spaces between its parts.

        Raises: CaptionError if a text is empty or holds a marker itself.
        """
        head = " ".join(part for part in (prefix, overview.strip()) if part)
        spaced = [f" {text.strip()} " for text in panels[:-1]] + [f" {panels[-1].strip()}"]
        caption = cls(f"{head} " if head else "", tuple(spaced), tuple(markers))
        return cls.parse(caption.render(), markers)

    def render(self) -> str:
        """The whole text; `parse(text, markers).render() == text`."""
        pairs = zip(self.markers, self.panels, strict=True)
        return self.overview + "".join(marker + words for marker, words in pairs)

    def texts(self, kind: TextKind) -> tuple[str, ...]:
        """What the base reads: the whole as one text, or a text for each panel.

        A panel's text keeps its marker, so that it is the joint caption without the other panels.

        Args:
            kind: isolated texts begin with the overview each; texts that stand alone do not.
        """
        if kind == "joint":
            return (self.render(),)
        head = self.overview if kind == "isolated" else ""
        # Nothing follows the last one, so it ends as it does in the joint caption.
        own = (*(words.rstrip(_JOINING) for words in self.panels[:-1]), self.panels[-1])
        pairs = zip(self.markers, own, strict=True)
        return tuple(head + marker + words for marker, words in pairs)

    @property
    def words(self) -> tuple[str, ...]:
        """Each panel's words without the spaces and punctuation that only join it to the next."""
        return tuple(words.strip(_JOINING) for words in self.panels)


def has_markers(text: str, markers: Sequence[str]) -> bool:
    """True if the text holds anything like a panel marker, of this layout or another."""
    tags = [_canonical(match.group(1)) for match in _TAG.finditer(text)]
    return any(f"[{tag}]" in markers or _PANEL_LIKE.fullmatch(tag) for tag in tags)


def estimate_tokens(text: str) -> int:
    """Tokens of a caption if no base's tokenizer is at hand; rather too many."""
    return round(len(text.encode()) / _BYTES_PER_TOKEN)


def is_read(sign: str) -> bool:
    """True for a sign that means something by itself: a letter, or a pictograph as emoji are."""
    return sign.isalpha() or (sign > "\u00ff" and unicodedata.category(sign) == "So")


def unknown_note(text: str, unknown: Callable[[str], float] | None) -> str:
    """What to say of words that a base cannot read; empty if they do not count.

    Args:
        unknown: the share of a text's letters that the base's tokenizer does not know; without it
            letters beyond those of four Latin languages are counted, of which FLUX.1's knows hardly
            any.
    """
    share = unknown(text) if unknown else _foreign_share(text)
    if share < 0.03:
        return ""
    plain = sum(map(is_read, text)) == sum(map(str.isalpha, text))
    kinds = f"letters{'' if plain else ' and pictographs'}"
    percent = f"{max(1, round(100 * share))}% of its {kinds}"
    if unknown is None:
        return (
            f"{percent} are not of English, French, German or Romanian, and FLUX.1's tokenizer "
            "knows hardly any others; name the "
            "`base` to count those that it cannot read"
        )
    return f"the base's tokenizer cannot read {percent}, which all look alike"


_ROMANIAN_AND_FRENCH = "\u0103\u0219\u021b\u015f\u0163\u0153"


def _foreign_share(text: str) -> float:
    # T5 reads wide and bold letters as plain ones; of Latin it knows those of four languages.
    letters = [sign for sign in unicodedata.normalize("NFKC", text) if is_read(sign)]
    foreign = [s for s in letters if s > "\u00ff" and s.lower() not in _ROMANIAN_AND_FRENCH]
    return len(foreign) / max(1, len(letters))


def check_budget(
    text: str, count: Callable[[str], int], limit: int, name: str, advice: str = SHORTEN
) -> int:
    """Count a caption's tokens and refuse it above the limit, which would cut it silently.

    Args:
        count: the base's own tokenizer, special tokens included.
        limit: tokens the base's text encoder reads (FLUX.1-dev: 512).
        name: what to call the caption in the error.
        advice: what to do about it.
    Returns: the number of tokens.
    Raises: CaptionError.
    """
    tokens = count(text)
    if tokens > limit:
        raise CaptionError(
            f"{name} is {tokens} tokens long and the base reads {limit}; "
            f'everything from about "{_tail(text, limit / tokens)}" on would be lost',
            advice,
        )
    return tokens


def _tail(text: str, share: float) -> str:
    return " ".join(text[int(len(text) * share) :].split()[:8])


def _problem(text: str, at: int, what: str, advice: str) -> CaptionError:
    """An error that shows the caption with a pointer at the place."""
    start, end = max(0, at - 40), min(len(text), at + 40)
    left, right = "..." * (start > 0), "..." * (end < len(text))
    # Line breaks would tear the pointer from its place.
    line = left + re.sub(r"\s", " ", text[start:end]) + right
    pointer = " " * (len(left) + at - start) + "^"
    return CaptionError(f"{what}\n    {line}\n    {pointer}", advice)
