"""What settings models are made of: fields that tell doors about themselves, types with ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from iclora.files import place
from iclora.settings.docstrings import Described
from iclora.settings.foreign import foreign_words

__all__ = [
    "MOST_PIXELS",
    "PRECISIONS",
    "RESOLUTIONS",
    "AdapterFiles",
    "Boost",
    "Colour",
    "Count",
    "Device",
    "Dtype",
    "Encoding",
    "Engine",
    "FilePath",
    "GivenFiles",
    "Guidance",
    "M",
    "Machine",
    "Mode",
    "ModelName",
    "Number",
    "Offload",
    "Panel",
    "PanelSeeds",
    "Precision",
    "Prompt",
    "Prompts",
    "Resample",
    "Seed",
    "Settings",
    "Share",
    "Shown",
    "Side",
    "Sigma",
    "Size",
    "Steps",
    "Strength",
    "TextKind",
    "about",
    "arm",
    "given_panel",
    "names_files",
    "outside",
    "setting",
    "split_strength",
    "whole",
]

M = TypeVar("M", bound="Settings")

Dtype = Literal["auto", "bf16", "fp32"]
"""Number format of a base's weights; auto is bf16, on a CPU fp32."""

Precision = Annotated[
    Literal["full", "fp8", "int8", "nf4"],
    # Files of version 0.2 say "base".
    BeforeValidator(lambda value: "full" if value == "base" else value),
]
"""How the linear layers of a base's blocks are kept; see `iclora.models.quantize`."""

PRECISIONS: tuple[Literal["full", "fp8", "int8", "nf4"], ...] = ("full", "fp8", "int8", "nf4")

Offload = Literal["none", "text", "blocks"]
"""What of a base stays in the machine's memory.

none: nothing that computes.
text: the text encoders, which compute on the CPU.
blocks: these, and the denoiser's blocks, which come to the device one ahead; see
    `iclora.models.streaming`.
"""

Mode = Literal["sdedit", "resample", "boost", "clean", "reference"]
"""How missing panels are made.

sdedit: given panels are as noisy as the rest at every step (the paper's).
resample: the same, and early steps are taken several times.
boost: the same, and the rest pays given panels more attention.
clean: given panels carry no noise and the base is told so; for adapters trained on it.
reference: given panels are left off the canvas and read as pictures beside it; for bases that
    were trained to.
"""

TextKind = Literal["joint", "isolated", "alone"]
"""What the panels of a canvas read.

joint: all of them one text, the joint caption (the paper's).
isolated: each the overview and its own words, encoded alone; no other panel sees it.
alone: the same without the overview.
"""

Encoding = Literal["canvas", "panels"]
"""What the VAE sees: the whole canvas, or each panel alone, whose latents are then joined."""

RESOLUTIONS = (512, 768, 1024, 1280, 1536)
"""Canvas sizes of training, px: sides of squares of the same area (the paper's configuration)."""


Engine = Literal["local", "ray"]
"""Where workers run: on this machine, or on those of a Ray cluster."""


@dataclass(frozen=True)
class Shown:
    """In a type: the word that stands for its value in help; `setting`'s `metavar` goes before."""

    word: str


def setting(
    default: Any = ...,
    *,
    resume: Literal["free", "differs"] | None = None,
    decided: bool = False,
    option: str | None = None,
    also: tuple[str, ...] = (),
    position: bool = False,
    many: Literal["list"] | None = None,
    metavar: str | None = None,
    example: str | None = None,
    **limits: Any,
) -> Any:
    """A field with what doors have to know of it; see the head of `iclora.settings`."""
    known: dict[str, Any] = {
        "resume": resume,
        "decided": decided,
        "option": option,
        "also": list(also),
        "position": position,
        "many": many,
        "metavar": metavar,
        "example": example,
    }
    extra = {key: value for key, value in known.items() if value}
    return Field(default, json_schema_extra=extra or None, **limits)


def about(model: type[BaseModel], name: str) -> dict[str, Any]:
    """What doors have to know of a field; the head of `iclora.settings` lists it."""
    extra = model.model_fields[name].json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def _size(value: Any) -> Any:
    """(1024, 1536) of "1024x1536"."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", value)
    if not match:
        raise ValueError(f'"{value}" is not WIDTHxHEIGHT, such as 1024x1536')
    return int(match[1]), int(match[2])


def _paintable(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"{size[0]}x{size[1]} is {size[0] * size[1] / 1e6:.0f} megapixels; bases paint a few, "
            f"and {MOST_PIXELS / 1e6:.0f} are the most"
        )
    return size


def _pairs(value: Any) -> Any:
    """{1: "a.png"} of ["1=a.png"], as the command line gives it."""
    if not isinstance(value, list | tuple):
        return value
    found: dict[str, str] = {}
    for text in value:
        match = re.fullmatch(r"([0-9]{1,3})=(.+)", str(text), re.DOTALL)
        if not match:
            raise ValueError(f'"{text}" is not of the form PANEL=...; panels count from 1')
        if match[1] in found:
            raise ValueError(f"panel {match[1]} is named twice")
        found[match[1]] = match[2]
    return found


def _written(text: str) -> str:
    """The text, if there is anything in it to read. Raises: ValueError."""
    if "\0" in text:
        raise ValueError("the text holds a null character")
    if not any(c.isprintable() and not c.isspace() for c in text):
        raise ValueError("the text is blank")
    return text


def _of_this_tool(text: str) -> str:
    """A prompt without what other tools read as options. Raises: ValueError naming it."""
    found = foreign_words(text)
    if found:
        raise ValueError(
            f'"{found}" is an option of another tool and would be read as words; leave it out'
        )
    return _written(text)


def _model(text: str) -> str:
    """local:~/model with its folder's path expanded. Raises: ValueError."""
    kind, colon, path = text.partition(":")
    return kind + colon + (place(path) if path else "")


def _colour(text: str) -> str:
    """A colour as CSS writes it, or auto. Raises: ValueError."""
    from PIL import ImageColor

    if text == "auto":
        return text
    try:
        found = ImageColor.getrgb(text)
    except ValueError as error:
        raise ValueError(
            f'"{text}" is no colour; write a name such as beige, #rrggbb, or auto'
        ) from error
    if len(found) == 4 and found[3] < 255:
        raise ValueError(f'"{text}" is transparent itself')
    return text


def arm(text: str) -> str:
    """NAME=~/file=0.7+~/other with the path of each file expanded. Raises: ValueError."""
    name, equals, files = text.partition("=")
    if not equals or "/" in name or "\\" in name:
        name, equals, files = "", "", text
    # A file's own name may hold a plus.
    alone = Path(place(split_strength(files)[0])).exists()
    placed = [place(part) for part in ([files] if alone else files.split("+"))]
    return name + equals + "+".join(placed)


def split_strength(text: str) -> tuple[str, float | None]:
    """A file and its strength of FILE=0.7; no strength if none is written.

    Raises: ValueError for a strength that is far from what adapters bear.
    """
    match = re.fullmatch(r"(.+)=([-+0-9.eE]+|[-+]?(?:nan|inf|infinity))", text, re.DOTALL | re.I)
    if match is None or Path(text).exists():
        return text, None
    try:
        strength = float(match[2])
    except ValueError:
        return text, None
    if not -100 <= strength <= 100:
        raise ValueError(f"{match[2]} is no strength; it must be between -100 and 100")
    return match[1], strength


def whole(value: object) -> object:
    """A whole number of its digits, as options have it; anything else as it is."""
    digits = isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value)
    return int(str(value)) if digits else value


def _weighted(text: str) -> str:
    """FILE or FILE=STRENGTH, the file's path expanded. Raises: ValueError."""
    path, strength = split_strength(text)
    if not path:
        raise ValueError("must not be empty")
    odd = re.fullmatch(r"(.+)(?::([0-9]+(?:[.,][0-9]+)?)|=([0-9]+,[0-9]+))", text)
    if strength is None and odd and not Path(text).exists():
        number = (odd[2] or odd[3]).replace(",", ".")
        raise ValueError(f'"{text}" is not there; with a strength, write {odd[1]}={number}')
    return place(path) if strength is None else f"{place(path)}={strength:g}"


def _several(value: Any) -> Any:
    """(value,) of one that stands alone, as before there could be more."""
    return (value,) if isinstance(value, str) else () if value is None else value


def outside(text: str) -> str:
    """RECIPE=~/file with paths expanded, or a file alone. Raises: ValueError."""
    recipe, equals, path = text.rpartition("=")
    return f"{place(recipe)}={place(path)}" if equals and recipe else place(path)


def given_panel(text: str) -> str:
    """PANEL or PANEL=FILE. Raises: ValueError."""
    match = re.fullmatch(r"([1-9][0-9]?)(=(.+))?", text, re.DOTALL)
    if not match:
        raise ValueError(f'"{text}" is not of the form PANEL or PANEL=FILE; panels count from 1')
    return f"{match[1]}={place(match[3])}" if match[2] else text


# Every range has a reason: beyond it the number is a slip, and would end as a traceback, a hang or
# a picture of nothing.
MOST_PIXELS = 2**26
"""Of a canvas: 262,000 tokens, some 50 times what bases were trained on."""
Side = Annotated[int, Field(ge=64, le=4096), Shown("PX")]
"""px; bases paint nothing on less than a few tokens, and fall apart far below 4096."""
Panel = Annotated[int, Field(ge=1, le=99), Shown("PANEL")]
"""Counted from 1; words for 100 panels are more than any base reads."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), Shown("SEED")]
"""64 bits, as torch's generators take."""
Count = Annotated[int, Field(ge=1, le=10_000)]
"""Of what is made: more sets than somebody can look at."""
Steps = Annotated[int, Field(ge=1, le=1000)]
"""Schedules of rectified flow gain nothing above some 100."""
Guidance = Annotated[float, Field(ge=0, le=100)]
"""Pictures are burnt from 10 on."""
Strength = Annotated[float, Field(ge=-100, le=100), Shown("STRENGTH")]
"""Far outside -2 to 2 there is only noise."""
Boost = Annotated[float, Field(gt=0, le=1000)]
"""A factor on attention; its logarithm is added to scores."""
Resample = Annotated[int, Field(ge=0, le=100)]
"""Each is one more pass of the base for every early step."""
Sigma = Annotated[float, Field(ge=0, le=1), Shown("SIGMA")]
"""Noise levels of rectified flow lie between 0 and 1."""
Prompt = Annotated[str, Field(max_length=100_000), AfterValidator(_written), Shown("PROMPT")]
"""No base reads a hundredth of its longest."""
Number = Annotated[int, Field(ge=1, le=10**9)]
"""Steps: at ten a second a billion take three years."""
Share = Annotated[float, Field(ge=0, lt=1), Shown("SHARE")]
_Edge = Annotated[int, Field(ge=16, le=16_384)]
Size = Annotated[
    tuple[_Edge, _Edge], BeforeValidator(_size), AfterValidator(_paintable), Shown("WxH")
]
Colour = Annotated[str, AfterValidator(_colour), Shown("COLOUR")]
Device = Annotated[str, Field(pattern=r"^(auto|cuda(:[0-9]{1,3})?|mps|cpu)$")]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(place)]
AdapterFiles = Annotated[
    tuple[Annotated[str, AfterValidator(_weighted)], ...], BeforeValidator(_several)
]
GivenFiles = Annotated[dict[Panel, FilePath], BeforeValidator(_pairs)]
PanelSeeds = Annotated[dict[Panel, Seed], BeforeValidator(_pairs)]
Prompts = tuple[Annotated[Prompt, AfterValidator(_of_this_tool)], ...]
ModelName = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_model)]


_PATHS = (place, _weighted, _model, arm, outside, given_panel)


def names_files(kind: Any) -> bool:
    """True if values of a type may name files of this machine, as `FilePath` does."""
    inner = (*get_args(kind), *getattr(kind, "__metadata__", ()))
    return any(getattr(part, "func", None) in _PATHS or names_files(part) for part in inner)


class Settings(Described):
    """What a verb or a function is told.

    Raises: pydantic.ValidationError; `settings_of` turns it into a SettingsError.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        populate_by_name=True,
        # Some twenty models; a command needs one or two.
        defer_build=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse true and false for numbers; pydantic would take them for 1 and 0."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and field.annotation is not bool:
                raise ValueError(f"`{name}`: takes a value, not {str(value).lower()}")
        return values


class Machine(Settings):
    """Where a base computes, and in which numbers."""

    device: Device = setting("auto", resume="differs")
    """auto, cuda, cuda:N, mps or cpu"""
    dtype: Dtype = setting("auto", decided=True)
    """number format of the base; auto is bf16, on a CPU fp32"""
    precision: Precision = setting("full", resume="differs", decided=True)
    """how the linear layers of the base's blocks are kept: full is as `dtype` says, int8 and fp8
    half of bf16, nf4 a quarter; fp8 also computes in fp8 and needs a card that can"""
    offload: Offload = setting("none", resume="differs")
    """what stays in the machine's memory, for a small card: text, the text encoders, which then
    compute on the CPU; blocks, the base's blocks as well, which come to the card one at a time"""
    compile: bool = False
    """compile the blocks: the first steps on each canvas take long, the others less, and the
    result is kept for later; numbers are rounded elsewhere, so pixels differ a little"""
