"""What is decided, said and refused of a wish before anything is computed: mode, base, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from iclora.adapter import Adapter, AdapterInfo
from iclora.adapter.export import shared_name
from iclora.errors import AdapterError, SettingsError
from iclora.models.base import DiffusionModel
from iclora.sets.layout import Layout
from iclora.settings import Mode, TextKind, Wish

__all__ = [
    "Note",
    "check_adapter",
    "check_mode",
    "isolates",
    "mode_of",
    "notes_of_base",
    "notes_of_panels",
    "repetitions",
    "without_effect",
]

_REPETITIONS = 3
"""Of early steps in mode resample, unless the wish says otherwise."""


@dataclass(frozen=True)
class Note:
    """What the reader of a wish's result should know."""

    text: str
    about: Literal["settings", "prompt", "panel", "adapter"] = "settings"

    def __str__(self) -> str:
        return self.text


def mode_of(wish: Wish, adapter: Adapter | None, given: bool, notes: list[Note]) -> Mode:
    """How panels are made around given ones; what to know of the choice is added to `notes`."""
    if not given:
        if wish.mode is not None:
            notes.append(Note(f"no panel is given: mode {wish.mode} has no effect"))
        return "sdedit"
    trained = bool(adapter and adapter.info and adapter.info.conditional)
    if wish.mode == "clean" and not trained:
        notes.append(
            Note(
                "the adapter was not trained with clean panels (`conditional`), so what mode clean "
                "makes is a matter of luck",
                "adapter",
            )
        )
    return wish.mode or ("clean" if trained else "sdedit")


def check_adapter(model: DiffusionModel, adapter: Adapter) -> None:
    """Refuse an adapter that the base has no place for, before a text is encoded.

    Raises: AdapterError for one of another family, or with modules that the base lacks.
    """
    for info in _infos(adapter):
        if info.family != model.family:
            raise AdapterError(
                f"the adapter was trained on {info.base}, of the family {info.family}, and "
                f"{model.name} is of the family {model.family}",
                "Use it with that base, or leave `base` out.",
                setting="adapter",
            )
    adapter.check(model)


def _infos(adapter: Adapter) -> list[AdapterInfo]:
    return [part.info for part in adapter.parts if part.info]


def notes_of_base(model: DiffusionModel, adapter: Adapter | None) -> list[Note]:
    """What to know of adapters that were trained on another base."""
    trained_on = [info.base for info in (_infos(adapter) if adapter else ())]
    mine, *others = (shared_name(base).rpartition("/")[2] for base in (model.name, *trained_on))
    notes = []
    for theirs in dict.fromkeys(others):
        text = f"the adapter was trained on {theirs}"
        if theirs in model.takes_adapters_of:
            text += f", of which {mine} is the distilled kin: it runs here, in "
            notes.append(Note(f"{text}{model.sampling.steps} steps{model.kin_remark}", "adapter"))
        elif theirs != mine:
            text += f", and this base is called {mine}: if it is another, what it makes is a "
            notes.append(Note(f"{text}matter of luck", "adapter"))
    return notes


def check_mode(model: DiffusionModel, mode: Mode, text: TextKind) -> None:
    """Raises: SettingsError for a mode that the base cannot do, or not with such texts."""
    if mode == "reference" and text != "joint":
        raise SettingsError(
            f"mode reference reads one text for all panels, and `text` is {text}",
            "Set `text` to joint, or take another mode.",
            setting="text",
        )
    if mode == "reference" and not model.reads_references:
        raise SettingsError(
            f"{model.name} was not trained to read pictures beside the canvas",
            "Use mode boost or sdedit, or clean with an adapter trained with `conditional`; "
            "FLUX.2 klein reads references.",
            setting="mode",
        )


def isolates(adapter: Adapter | None) -> bool:
    """True if given panels attended to themselves alone when it was trained."""
    return bool(adapter and adapter.info and adapter.info.isolate_given)


def repetitions(resample: int | None, mode: Mode) -> int:
    """How often an early step is repeated in a mode, if `resample` does not say."""
    if resample is None:
        return _REPETITIONS if mode == "resample" else 0
    return resample


def without_effect(model: DiffusionModel, wish: Wish, mode: Mode) -> list[Note]:
    """Settings that somebody set and that nothing reads."""
    was_set, notes = wish.model_fields_set, []
    guided = model.sampling.guided
    if "guidance" in was_set and wish.guidance is not None and guided == "none":
        notes.append(Note(f"{model.name} is not guided: `guidance` has no effect"))
    if wish.negative and guided != "two-pass":
        notes.append(Note(f"{model.name} is not guided by two passes: `negative` has no effect"))
    if "boost" in was_set and mode != "boost":
        notes.append(Note(f"`boost` has no effect in mode {mode}"))
    if "resample_from" in was_set and not repetitions(wish.resample, mode):
        notes.append(Note("`resample_from` has no effect without `resample`"))
    return notes


def notes_of_panels(layout: Layout, given: Mapping[int, Image.Image], grid: int) -> list[Note]:
    """What becomes of given panels whose size is off the token grid."""
    notes = []
    for number, image in given.items():
        fitted = layout.fit_panel(number, image)
        if fitted.size != image.size:
            text = (
                f"panel {number} is {image.width}x{image.height} px and "
                f"{fitted.width}x{fitted.height} in the composite (its edges lie on the "
                f"{grid} px token grid); panel-{number}.png keeps your pixels"
            )
            notes.append(Note(text, "panel"))
    return notes
