"""Refusals: a model says, in prose or where words should stand, that it will not or cannot."""

from __future__ import annotations

import re

__all__ = ["is_refusal"]

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
    r"|there (?:is|are) no (?:image|picture|photo)s? (?:attached|provided|visible|here|in your)\b"
    r"|as an? (?:text|language)[\w -]{0,20}(?:model|assistant|ai),? i\b"
    r"|i (?:don't|do not|lack) (?:have )?(?:the )?(?:ability|access)\b"
    r"|(?:it looks like |it seems )?you (?:haven't|have not|didn't|did not) (?:yet )?"
    r"(?:upload|attach|provide|share)"
    r"|this (?:request|content|image) (?:violates|goes against|is not allowed)"
    r"|(?:describing|doing) (?:this|that) would (?:go against|violate)"
    r"|please (?:provide|upload|attach|share) (?:the|an|your|some) (?:image|picture|photo)"
    # The same in the languages that models answer in.
    r"|es tut mir leid|lo siento|(?:je suis )?d\u00e9sol|desculpe|lamento|mi dispiace|het spijt me"
    r"|przepraszam|\u00fczg\u00fcn\u00fcm|maaf|xin l\u1ed7i"
    r"|\u0438\u0437\u0432\u0438\u043d\u0438\u0442\u0435"
    r"|\u043a \u0441\u043e\u0436\u0430\u043b\u0435\u043d\u0438\u044e"
    r"|\u0639\u0630\u0631\u0627|\u0622\u0633\u0641"
    r"|\u092e\u093e\u092b\u093c \u0915\u0930\u0947\u0902"
    r"|(?:\u5f88|\u975e\u5e38)?\u62b1\u6b49|\u5bf9\u4e0d\u8d77"
    r"|\u7533\u3057\u8a33|\u3059\u307f\u307e\u305b\u3093|\uc8c4\uc1a1)",
    re.IGNORECASE,
)
"""The beginning of a sentence of refusal; a robot "posing as an AI" is none."""


def is_refusal(words: str) -> bool:
    """True if a text begins by saying that the model will not, or sees no picture."""
    return bool(_REFUSALS.search(words[:400].replace("\u2019", "'").replace("\u2018", "'")))
