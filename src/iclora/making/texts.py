"""What the panels of a set read: one text all of them, or each its own."""

from __future__ import annotations

from iclora.adapter import Adapter
from iclora.models.base import DiffusionModel
from iclora.sets.caption import APART, SHORTEN, check_budget
from iclora.sets.recipe import Recipe
from iclora.settings import TextKind

__all__ = ["checked_texts", "text_kind"]


def text_kind(
    model: DiffusionModel, asked: TextKind | None, adapter: Adapter | None
) -> tuple[TextKind, str]:
    """What a panel reads: as asked for, else as the adapter was trained, else one text for all.

    Returns: also what is to be said of it; empty if nothing is.
    Raises: ModelError if the base cannot.
    """
    trained: TextKind = adapter.info.text if adapter and adapter.info else "joint"
    kind = asked or trained
    model.check_text(kind)
    if adapter is None or kind == trained:
        return kind, ""
    return kind, f"the adapter was trained with `text` {trained}; with {kind} it may do worse"


def checked_texts(
    model: DiffusionModel, recipe: Recipe, prompt: str, kind: TextKind
) -> tuple[str, ...]:
    """The texts that are encoded: the prompt, or one for each panel.

    Raises: CaptionError for one that is too long. Encoding refuses it as well; this happens before
        any weights are loaded.
    """
    texts = recipe.texts(prompt, kind)
    told_apart = kind == "joint" and recipe.markers and model.reads_apart
    advice = APART if told_apart else SHORTEN
    for number, text in enumerate(texts, 1):
        name = "the prompt" if kind == "joint" else f"what panel {number} reads"
        check_budget(text, model.count_tokens, model.max_text_tokens, name, advice)
    return texts
