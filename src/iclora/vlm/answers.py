"""What a language model wrote, freed of the way it wrote it.

Models think aloud, wrap answers in fences, boxes and prose, number their lines, spell markers in
their own way and leave the tokens of their chat format behind. All of that ends here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from iclora.errors import CaptionError
from iclora.sets.counted import split_at_counts, without_counts

__all__ = [
    "clean",
    "final_words",
    "label_inside",
    "on_one_line",
    "panel_of",
    "split_at_marks",
    "without_labels",
    "without_preface",
    "without_remarks",
]

_THOUGHT = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|analysis|scratchpad)"
_OPENS = re.compile(
    rf"<{_THOUGHT}>|\u25c1think\u25b7|\[THINK\]|<\|(?:begin|start)_of_thought\|>", re.IGNORECASE
)
_CLOSES = re.compile(
    rf"</{_THOUGHT}>|\u25c1/think\u25b7|\[/THINK\]|<\|end_of_thought\|>", re.IGNORECASE
)
_BOXES = re.compile(
    r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)|<answer>(.*?)(?:</answer>|$)", re.DOTALL
)
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*<\|message\|>")

_CHAT = re.compile(
    # The start of a turn takes the name of its speaker along.
    r"<\|(?:im_start|start_header_id|start|header_start)\|>(?:\s*(?:assistant|user|system)\b)?"
    r"|<start_of_turn>(?:\s*(?:model|user)\b)?|<end_of_turn>|<end_of_utterance>"
    r"|<\|[^|<>\n]{1,40}\|>|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>"
    r"|</?s>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk|mask|sep|cls|image|eop|sop|eot|end)>"
    r"|\[/?(?:BOS|EOS|gMASK|IMG|CLS|SEP|PAD|UNK|MASK)\]|\[end of text\]|<0x[0-9A-F]{2}>"
)
_HTML = re.compile(
    r"</?(?:p|br|b|i|u|em|strong|span|div|ul|ol|li|h[1-6]|code|pre|hr|small|sub|sup|font|blockquote"
    r"|body|html|caption|answer|overview|output|response)(?:\s[^<>\n]{0,80})?\s?/?>"
)
_UNSEEN = re.compile(
    # Control characters, and signs that nobody sees or that turn the direction of a line.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)")
_MARKDOWN = (
    (re.compile(r"^[ \t]*```[ \t]*\w*[ \t]*$|```(?:json|text|markdown)?", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:[-*_=][ \t]*){3,}$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]+)", re.MULTILINE), ""),
    (re.compile(r"!?\[([^\[\]\n]{1,80})\]\((?:https?:|#|/)[^()\s]{0,200}\)"), r"\1"),
    (re.compile(r"\*\*|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)|~~|`"), ""),
    (re.compile(r"(?<![\w\]])_{1,3}(?=\S)|(?<=\S)_{1,3}(?![\w\[])"), ""),
    (re.compile(r"\$?\\text\w{0,2}\{([^{}]*)\}\$?"), r"\1"),
    (re.compile(r"\\[nrt]"), " "),
    (re.compile(r'\\(["\'\[\]_*<>#-])'), r"\1"),
)
_BULLET = re.compile(r"^[ \t]*[-+*\u2022\u00b7\u25cf\u25aa\u2013\u2014][ \t]+", re.MULTILINE)

_NOUNS = (
    r"(?:scene|panel|shot|frame|image|picture|photo|slide|page|step|figure|szene|bild|sc\u00e8ne"
    r"|escena|vi\u00f1eta|cena|scena|\u573a\u666f|\u753b\u9762|\u30b7\u30fc\u30f3)"
)
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_TAG = (
    rf"(?:the[ \t]+)?(?:{_NOUNS}[ \t_#\u2010-\u2015-]*(?:\d{{1,2}}|{'|'.join(_WORDS)})"
    rf"|(?:{'|'.join(_ORDINALS)})[ \t]+{_NOUNS}"
    r"|(?:(?:top|middle|center|centre|bottom|upper|lower)[ \t_-]*)?(?:left|center|centre|right)"
    rf"(?:[ \t_-]*(?:{_NOUNS}|corner|side|half))?"
    rf"|(?:top|middle|bottom|center|centre)(?:[ \t_-]*(?:{_NOUNS}|half))?)"
)
_OF = r"(?:[ \t]*(?:of|/)[ \t]*\d{1,2})?"
_ENDS = r"(?:[ \t]*[:\uff1a]|[ \t]+[-\u2013\u2014](?=\s)|\.(?=\s)|\)|[ \t]*(?=\n)|[ \t]*$)"
_BRACKETED = re.compile(
    rf"[\[({{<\u3010\uff3b]\s*({_TAG}){_OF}\s*[\])}}>\u3011\uff3d]"
    r"(?:[ \t]*[:\uff1a]|[ \t]+[-\u2013\u2014](?=\s))?",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"(?:^[ \t]*(?:[-+\u2022\u25cf][ \t]+)?|(?<=[.!?;,])\s+)({_TAG}){_OF}{_ENDS}",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBERED = (
    re.compile(r"^[ \t]*[(\[#]?(\d{1,2})[.):\]]+[ \t]+", re.MULTILINE),
    re.compile(r"(?:^|(?<=\s))[(\[]?(\d{1,2})[.)\]:]+\s+"),
)
_HEAD = re.compile(
    rf"\s*(?:{_BRACKETED.pattern}|(?:in|on)[ \t]+({_TAG}),|({_TAG}){_OF}{_ENDS}"
    r"|[(\[#]?(\d{1,2})(?:[.)\]:]+(?=\s)))",
    re.IGNORECASE,
)
_CALLED = re.compile(
    r"\s*(?:caption|description|text|prompt|words|content)\s*[:\uff1a]\s*(?=\S)", re.IGNORECASE
)
"""What a text is called, where it stands."""
_INSIDE = re.compile(
    rf"(?:^|[\n.!?;,]\s*)(?:{_NOUNS}[ \t_#-]*\d{{1,2}}){_OF}[ \t]*[:\uff1a]", re.IGNORECASE
)

_PREFACE = re.compile(
    r"\s*(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|got it)\s*[!,.:]+\s*)?"
    r"(?:here(?:'s| is| are)\b[^\n:]{0,100}:\s*)?"
    r"(?:(?:the\s+)?(?:final|overall|general|short|brief|joint)?\s*(?:overview|summary|caption"
    r"|description|prompt|introduction|answer|output)(?:\s+of\b[^:\n]{0,40})?\s*[:\uff1a]\s*)*",
    re.IGNORECASE,
)
_REMARKS = re.compile(
    r"(?:^|(?<=[.!?\n\"'>]))\s*(?:please )?(?:let me know|(?:i )?hope (?:this|that|it)\b|feel free"
    r"|would you like|do you want me|is there anything|anything else|if you(?:'d| would) like"
    r"|if you (?:need|want)\b|note:|translation:|(?:human|user|assistant):"
    r"|\(?word count|total: \d|overall, (?:the|these|this)\b|this caption"
    r"|these (?:captions|descriptions))"
    r"[^\n]*(?:\n[^\n]*)*$",
    re.IGNORECASE,
)


def final_words(text: str) -> str:
    """The answer behind a model's thoughts, and out of its box.

    Raises: CaptionError if it never got beyond its thoughts.
    """
    silent = CaptionError("the answer never got beyond its thoughts", "Answer at once.")
    ends = list(_CLOSES.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    if "<|channel|>" in text:
        finals = list(_FINAL.finditer(text))
        if not finals:
            raise silent
        text = text[finals[-1].end() :]
    opened = _OPENS.search(text)
    if opened:
        text = text[: opened.start()]
    if (ends or opened) and not re.search(r"\w", text):
        raise silent
    inside = [a or b for a, b in _BOXES.findall(text)]
    return inside[-1] if inside and re.search(r"\w", inside[-1]) else text


_ELEMENTS = (
    # <panel id="1"> as <panel 1>, which is a label; its end is none.
    (
        re.compile(rf"<({_NOUNS})\s+\w+\s*=\s*[\"']?(\d{{1,2}})[\"']?\s*>", re.IGNORECASE),
        r"<\1 \2>",
    ),
    (re.compile(rf"</{_NOUNS}[ _-]?\d{{0,2}}\s*>", re.IGNORECASE), "\n"),
    (re.compile("([0-9])\ufe0f?\u20e3"), r"\1."),
    # Where in the pictures things are, and which source says so.
    (
        re.compile(
            r"<\|?box_start\|?>.*?<\|?box_end\|?>|<(box|quad|point)>.*?</\1>"
            r"|<(?:loc|seg|patch|extra_id|unused|reserved)[_-]?\d+>"
            r"|\u3010\d+[^\u3011\n]{0,40}\u3011|:?contentReference\[[^\]\n]{0,40}\](?:\{[^}\n]{0,40}\})?"
            r"|(?<=[\w.!?])\[\d{1,2}\](?!\w)"
        ),
        "",
    ),
    (re.compile(r"[ \t]*\((?:about |approx\. )?\d{1,3} words\)", re.IGNORECASE), ""),
    (re.compile(r"\[/[\w -]{1,20}\]|\[(?:END|DONE|EOF)\]", re.IGNORECASE), ""),
    # As tokenizers of GPT-2's and Llama's kind write a space.
    (re.compile("[\u2581\u0120]"), " "),
)
_ENDED = re.compile(r"</([A-Za-z][\w:-]{0,40})\s*>")
_ATTRIBUTED = re.compile(r"<[A-Za-z][\w:-]{0,40}(?:\s+[\w:-]{1,40}\s*=\s*[^<>\s]{1,200})+\s*/?>")
_LETTER = re.compile(r"\\u([0-9a-fA-F]{4})")


def _without_elements(text: str) -> str:
    """A text without elements of markup: those that are closed, and those that have attributes.

    Names in angle brackets, as of characters, are neither.
    """
    for name in set(_ENDED.findall(text)):
        text = re.sub(rf"</?{re.escape(name)}(?:\s[^<>\n]{{0,200}})?/?>", "", text)
    return _ATTRIBUTED.sub("", text)


def clean(text: str) -> str:
    """Free a text of chat tokens, HTML, markdown and signs nobody sees; its lines stay."""
    for pattern, put in _ELEMENTS:
        text = pattern.sub(put, text)
    for _ in range(4):  # What stands inside another comes out with the next round.
        before = text
        text = html.unescape(text)
        text = _CHAT.sub(" ", _ESCAPES.sub("", text))
        text = _LETTER.sub(lambda found: chr(int(found[1], 16)), text)
        text = _HTML.sub(lambda tag: "\n" if re.match("</?(?:p|br|li|div)", tag[0]) else "", text)
        text = _without_elements(text)
        for pattern, put in _MARKDOWN:
            text = pattern.sub(put, text)
        text = _UNSEEN.sub("", text.replace("\r", "\n"))
        if text == before:
            break
    return re.sub(r"<\||\|>", " ", text)


def on_one_line(words: str) -> str:
    """A clean text without bullets and line ends, nor quotes around the whole."""
    words = re.sub(r"\s+", " ", _BULLET.sub("", words)).strip()
    words = re.sub(r"^[:\uff1a\u2013\u2014-]+\s*", "", words)
    if len(words) > 2 and words[0] + words[-1] in ('""', "\u201c\u201d"):
        inner = words[1:-1]
        words = words if re.search('["\u201c\u201d]', inner) else inner.strip()
    return words


def without_preface(overview: str) -> str:
    """An overview without "Sure! Here is the caption:" and "Overview:"."""
    overview = overview.replace("\u2019", "'")
    return overview[found.end() :] if (found := _PREFACE.match(overview)) else overview


def without_remarks(words: str) -> str:
    """The last text of an answer without "Let me know if ..."."""
    kept = _REMARKS.sub("", words)
    return kept if re.search(r"\w", kept) else words


def without_labels(texts: Sequence[str], markers: Sequence[str]) -> list[str]:
    """Panels' texts without their own markers, labels and numbers in front.

    Raises: CaptionError for a label that is another panel's.
    """
    for first in (1, 0):
        texts = without_counts(texts, first=first) or texts
    if all(_CALLED.match(words) for words in texts):
        texts = [_CALLED.sub("", words, count=1) for words in texts]
    bare: list[str] = []
    shifts: set[int] = set()
    for number, words in enumerate(texts, 1):
        for _ in range(3):
            found = _HEAD.match(words)
            if not found or not re.search(r"\w", words[found.end() :]):
                break
            tag = next(group for group in found.groups() if group)
            panel = int(tag) if tag.isdecimal() else panel_of(tag, markers)
            if panel is None:
                break
            if tag.isdecimal() and panel not in (number, number - 1):
                break  # Words may begin with a number.
            shifts.add(number - panel)
            words = words[found.end() :]
        bare.append(words)
    if shifts - {0} and shifts != {1}:  # Some count from 0.
        raise CaptionError(
            "a panel's text begins with the label of another panel", "Write them in order."
        )
    return bare


def label_inside(words: str) -> bool:
    """True if a text speaks of several panels, as in "A gull. Scene 2: a boat"."""
    return bool(_INSIDE.search(words))


def split_at_marks(text: str, markers: Sequence[str]) -> tuple[str, list[str]] | None:
    """Cut a clean text at its panels' markers, however they are spelt.

    Brackets go before labels ("Scene 1:"), those before numbers and bullets; every panel must be
    marked once and in order.

    Returns: what stands before the first, and the panels' texts; None if it is not so marked.
    """
    count = len(markers)
    for pattern in (_BRACKETED, _LABEL, None, *_NUMBERED, _BULLET):
        if pattern is None:  # Labels of other languages, before the numbers in them.
            counted = split_at_counts(text, count)
            if counted and re.search(r"\w", counted[0]):
                return counted
            continue
        found = list(pattern.finditer(text))
        if pattern is _BULLET:
            numbers: list[int | None] = list(range(1, len(found) + 1))
        elif pattern in _NUMBERED:
            numbers = [int(match[1]) for match in found]
        else:
            numbers = [panel_of(match[1], markers) for match in found]
        pairs = [(m, n) for m, n in zip(found, numbers, strict=True) if n is not None]
        if [n for _, n in pairs] not in (list(range(1, count + 1)), list(range(count))):
            continue
        if not re.search(r"\w", text[: pairs[0][0].start()]):
            continue
        ends = [*(m.start() for m, _ in pairs[1:]), len(text)]
        cut = [text[m.end() : end] for (m, _), end in zip(pairs, ends, strict=True)]
        return text[: pairs[0][0].start()], cut
    return None


def panel_of(tag: str, markers: Sequence[str]) -> int | None:
    """The number of the panel a tag stands for, such as "Scene 1", "first panel", "top left"."""
    tag = re.sub(r"^the[ \t]+", "", tag.strip().lower())
    tag = tag.replace("upper", "top").replace("lower", "bottom").replace("centre", "center")
    own = [_joined(marker[1:-1].replace("CENTRE", "CENTER")) for marker in markers]
    if _joined(tag) in own:
        return own.index(_joined(tag)) + 1
    place = _joined(re.sub(rf"[ \t_-]*(?:{_NOUNS}|corner|side|half)$", "", tag))
    if place in own:
        return own.index(place) + 1
    if digits := re.fullmatch(rf"{_NOUNS}[ \t_#\u2010-\u2015-]*(\d+)", tag):
        return int(digits[1])
    for words in (_WORDS, _ORDINALS):
        for number, word in enumerate(words, 1):
            if re.fullmatch(rf"{_NOUNS}[ \t_#-]*{word}|{word}[ \t]+{_NOUNS}", tag):
                return number
    return None


def _joined(tag: str) -> str:
    return re.sub(r"[\s_#\u2010-\u2015-]+", "", tag).lower()
