"""What a language model wrote, freed of the way it wrote it.

Models think aloud, wrap answers in fences, boxes and prose, number their lines, spell markers in
their own way and leave the tokens of their chat format behind. All of that ends here.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from iclora.errors import CaptionError

__all__ = [
    "clean",
    "final_words",
    "find_object",
    "is_refusal",
    "label_inside",
    "on_one_line",
    "split_at_marks",
    "without_labels",
    "without_preface",
    "without_remarks",
]

_BRACES = 200
"""Most places at which an object is looked for."""
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
    r"|body|html|caption|answer|overview|panel|output|response)(?:\s[^<>\n]{0,80})?\s?/?>"
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
    rf"(?:the[ \t]+)?(?:{_NOUNS}[ \t_#-]*(?:\d{{1,2}}|{'|'.join(_WORDS)})"
    rf"|(?:{'|'.join(_ORDINALS)})[ \t]+{_NOUNS}"
    r"|(?:(?:top|middle|center|centre|bottom|upper|lower)[ \t_-]*)?(?:left|center|centre|right)"
    rf"(?:[ \t_-]*(?:{_NOUNS}|corner|side|half))?"
    rf"|(?:top|middle|bottom|center|centre)(?:[ \t_-]*(?:{_NOUNS}|half))?)"
)
_OF = r"(?:[ \t]*(?:of|/)[ \t]*\d{1,2})?"
_ENDS = r"(?:[ \t]*[:\uff1a]|[ \t]+[-\u2013\u2014](?=\s)|\.(?=\s)|\)|[ \t]*(?=\n)|[ \t]*$)"
_BRACKETED = re.compile(
    rf"[\[({{<\u3010]\s*({_TAG}){_OF}\s*[\])}}>\u3011]"
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
    r"|if you (?:need|want)\b|note:|\(?word count|this caption|these (?:captions|descriptions))"
    r"[^\n]*(?:\n[^\n]*)*$",
    re.IGNORECASE,
)
_REFUSALS = re.compile(
    r"(?:^|[.!?\n]\s*)(?:(?:i(?:'m| am) )?(?:so |very |really )?sorry,? ?|but |however,? "
    r"|sure, |okay, |unfortunately,? |i apologi[sz]e,? ?)*"
    r"(?:i(?:'m| am) (?:sorry|afraid|unable|not able|not comfortable)\b|i apologi[sz]e\b"
    r"|i (?:must|have to|need to) (?:decline|refuse)\b|i (?:don't|do not) feel comfortable\b"
    r"|as an? (?:ai|artificial intelligence)(?: language| vision)?(?: model| assistant)?,? i\b"
    r"|as an ai (?:language |vision )?(?:model|assistant)\b"
    r"|i (?:can(?:'t|not| not)|am unable to|won't|will not|could(?:n't| not)) (?:help|assist|"
    r"describe|identify|provide|do|see|view|comply|fulfil|process|generate|create|access|caption|"
    r"write|answer|discuss)\b"
    r"|i (?:don't|do not|can't|cannot) see any\b|(?:i )?cannot assist|sorry, "
    r"|it seems (?:that )?no image|no images? (?:was|were|is|are) (?:provided|attached|visible)"
    r"|please (?:provide|upload|attach|share) (?:the|an|your|some) (?:image|picture|photo)"
    r"|es tut mir leid|lo siento|je suis d\u00e9sol|\u62b1\u6b49|\u5bf9\u4e0d\u8d77)",
    re.IGNORECASE,
)
"""The beginning of a sentence of refusal; a robot "posing as an AI" is none."""


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


def find_object(text: str, *keys: str) -> dict[str, Any] | None:
    """The last JSON object in a text that has these keys, whatever stands around it.

    What makes bad JSON of many answers is forgiven if nothing better is there: commas before a
    closing bracket, curly quotes, HTML escapes, and a second escaping.
    """
    ways = [
        text,
        re.sub(r",(\s*[}\]])", r"\1", text),
        html.unescape(text),
        text.replace('\\"', '"'),
        re.sub("[\u201c\u201d]", '"', text),
    ]
    for way in dict.fromkeys(ways):
        found = _last_object(way, keys)
        if found is not None:
            return found
    return None


def _last_object(text: str, keys: Sequence[str]) -> dict[str, Any] | None:
    decoder = json.JSONDecoder(strict=False)
    found, at = None, -1
    for _ in range(_BRACES):
        at = text.find("{", at + 1)
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            break
        except ValueError:
            continue
        named = {str(key).strip().lower(): held for key, held in value.items()}
        if all(key in named for key in keys):
            found, at = named, end - 1
    return found


_ELEMENTS = (
    # <panel id="1"> as <panel 1>, which is a label; its end is none.
    (
        re.compile(rf"<({_NOUNS})\s+\w+\s*=\s*[\"']?(\d{{1,2}})[\"']?\s*>", re.IGNORECASE),
        r"<\1 \2>",
    ),
    (re.compile(rf"</{_NOUNS}[ _-]?\d{{0,2}}\s*>", re.IGNORECASE), "\n"),
    (re.compile("([0-9])\ufe0f?\u20e3"), r"\1."),
)


def clean(text: str) -> str:
    """Free a text of chat tokens, HTML, markdown and signs nobody sees; its lines stay."""
    for pattern, put in _ELEMENTS:
        text = pattern.sub(put, text)
    for _ in range(4):  # What stands inside another comes out with the next round.
        before = text
        text = html.unescape(text)
        text = _CHAT.sub(" ", _ESCAPES.sub("", text))
        text = _HTML.sub(lambda tag: "\n" if re.match("</?(?:p|br|li|div)", tag[0]) else "", text)
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
    bare: list[str] = []
    shifts: set[int] = set()
    for number, words in enumerate(texts, 1):
        for _ in range(3):
            found = _HEAD.match(words)
            if not found or not re.search(r"\w", words[found.end() :]):
                break
            tag = next(group for group in found.groups() if group)
            panel = int(tag) if tag.isdecimal() else _panel_of(tag, markers)
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


def is_refusal(words: str) -> bool:
    """True if a text begins by saying that the model will not, or sees no picture."""
    return bool(_REFUSALS.search(words[:400].replace("\u2019", "'").replace("\u2018", "'")))


def split_at_marks(text: str, markers: Sequence[str]) -> tuple[str, list[str]] | None:
    """Cut a clean text at its panels' markers, however they are spelt.

    Brackets go before labels ("Scene 1:"), those before numbers and bullets; every panel must be
    marked once and in order.

    Returns: what stands before the first, and the panels' texts; None if it is not so marked.
    """
    count = len(markers)
    for pattern in (_BRACKETED, _LABEL, *_NUMBERED, _BULLET):
        found = list(pattern.finditer(text))
        if pattern is _BULLET:
            numbers: list[int | None] = list(range(1, len(found) + 1))
        elif pattern in _NUMBERED:
            numbers = [int(match[1]) for match in found]
        else:
            numbers = [_panel_of(match[1], markers) for match in found]
        pairs = [(m, n) for m, n in zip(found, numbers, strict=True) if n is not None]
        if [n for _, n in pairs] not in (list(range(1, count + 1)), list(range(count))):
            continue
        if not re.search(r"\w", text[: pairs[0][0].start()]):
            continue
        ends = [*(m.start() for m, _ in pairs[1:]), len(text)]
        cut = [text[m.end() : end] for (m, _), end in zip(pairs, ends, strict=True)]
        return text[: pairs[0][0].start()], cut
    return None


def _panel_of(tag: str, markers: Sequence[str]) -> int | None:
    """The number of the panel a tag stands for, such as "Scene 1", "first panel", "top left"."""
    tag = re.sub(r"^the[ \t]+", "", tag.strip().lower())
    tag = tag.replace("upper", "top").replace("lower", "bottom").replace("centre", "center")
    own = [_joined(marker[1:-1].replace("CENTRE", "CENTER")) for marker in markers]
    if _joined(tag) in own:
        return own.index(_joined(tag)) + 1
    place = _joined(re.sub(rf"[ \t_-]*(?:{_NOUNS}|corner|side|half)$", "", tag))
    if place in own:
        return own.index(place) + 1
    if digits := re.fullmatch(rf"{_NOUNS}[ \t_#-]*(\d+)", tag):
        return int(digits[1])
    for words in (_WORDS, _ORDINALS):
        for number, word in enumerate(words, 1):
            if re.fullmatch(rf"{_NOUNS}[ \t_#-]*{word}|{word}[ \t]+{_NOUNS}", tag):
                return number
    return None


def _joined(tag: str) -> str:
    return re.sub(r"[\s_#-]+", "", tag).lower()
