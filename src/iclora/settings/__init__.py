"""Every setting once: its name, its range, its default, its help.

The command line's options, run files, the HTTP API and forms are made from these models, never
beside them: a new setting is one field. A field's docstring is its help. What else a door has to
know stands in the field's JSON schema:

    resume    what a resumed run may do with it: "free" to change, "differs" if the result is then
              no longer what it would have been unstopped; fixed where nothing is said
    decided   a request.json decides it, so it must not be given beside one
    option    its name as an option, where that is not the field's
    also      further names as an option
    position  given by its place on the command line, without a name
    many      of settings with several values: "list" if one option takes them all, else the
              option is repeated
    metavar   what stands for its value in help
    example   a value to name where one is missing

A verb is such a model and a function that is told it: `@verb(CheckSettings)`.

Long on purpose: whoever looks for a setting, or for what one verb shares with another, has one file
to read, and most of it is the settings' own help. No torch is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from iclora.errors import SettingsError
from iclora.files import place
from iclora.files.documents import read_toml
from iclora.progress import Console
from iclora.settings.findings import by_setting, problems_of

__all__ = [
    "MOST_PIXELS",
    "PRECISIONS",
    "RESOLUTIONS",
    "CaptionSettings",
    "CheckSettings",
    "CompleteSettings",
    "ComposeSettings",
    "Dtype",
    "EvaluateSettings",
    "ExtendSettings",
    "GenerateSettings",
    "InfoSettings",
    "Machine",
    "MakeSettings",
    "Mode",
    "PlanSettings",
    "Precision",
    "PromptSettings",
    "RecipesSettings",
    "RerollSettings",
    "ReviewSettings",
    "RunSettings",
    "SampleSettings",
    "Settings",
    "TrainSettings",
    "Verb",
    "Wish",
    "about",
    "foreign_words",
    "problems_of",
    "read_settings",
    "settings_of",
    "verb",
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

Mode = Literal["sdedit", "resample", "boost", "clean"]
"""How missing panels are made.

sdedit: given panels are as noisy as the rest at every step (the paper's).
resample: the same, and early steps are taken several times.
boost: the same, and the rest pays given panels more attention.
clean: given panels carry no noise and the base is told so; for adapters trained on it.
"""

RESOLUTIONS = (512, 768, 1024, 1280, 1536)
"""Canvas sizes of training, px: sides of squares of the same area (the paper's configuration)."""


def _field(
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
    """A field with what doors have to know of it; see the head of this file."""
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
    """What doors have to know of a field; the head of this file lists it."""
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


def foreign_words(text: str) -> str | None:
    """What other tools would read as an option in a prompt: --ar 16:9, --w 64, <lora:x:1>."""
    match = re.search(
        r"<(?:lora|lyco|lycoris|hypernet|embedding):[^<>]*>"
        r"|(?<![\w-])(?:--|\u2013|\u2014)(?:[a-z]|ar|aspect|chaos|seed|stylize|style|quality|niji|no|iw"
        r"|sref|cref|tile|stop|raw|weird|cfg|steps|negative|neg|width|height|am|ow|sp|pc)"
        r"(?![\w-])(?:[ =][^\s,]+)?",
        text,
        re.IGNORECASE,
    )
    return match[0] if match else None


def _model(text: str) -> str:
    """local:~/model with its folder's path expanded. Raises: ValueError."""
    kind, colon, path = text.partition(":")
    return kind + colon + (place(path) if path else "")


def _arm(text: str) -> str:
    """NAME=~/file with the file's path expanded. Raises: ValueError."""
    name, equals, path = text.partition("=")
    return f"{name}={place(path)}" if equals and "/" not in name else place(text)


def _given_panel(text: str) -> str:
    """PANEL or PANEL=FILE. Raises: ValueError."""
    match = re.fullmatch(r"([1-9][0-9]?)(=(.+))?", text, re.DOTALL)
    if not match:
        raise ValueError(f'"{text}" is not of the form PANEL or PANEL=FILE; panels count from 1')
    return f"{match[1]}={place(match[3])}" if match[2] else text


# Every range has a reason: beyond it the number is a slip, and would end as a traceback, a hang or
# a picture of nothing.
MOST_PIXELS = 2**26
"""Of a canvas: 262,000 tokens, some 50 times what bases were trained on."""
Side = Annotated[int, Field(ge=64, le=4096)]
"""px; bases paint nothing on less than a few tokens, and fall apart far below 4096."""
Panel = Annotated[int, Field(ge=1, le=99)]
"""Counted from 1; words for 100 panels are more than any base reads."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""64 bits, as torch's generators take."""
Count = Annotated[int, Field(ge=1, le=10_000)]
"""Of what is made: more sets than somebody can look at."""
Steps = Annotated[int, Field(ge=1, le=1000)]
"""Schedules of rectified flow gain nothing above some 100."""
Guidance = Annotated[float, Field(ge=0, le=100)]
"""Pictures are burnt from 10 on."""
Strength = Annotated[float, Field(ge=-100, le=100)]
"""Far outside -2 to 2 there is only noise."""
Boost = Annotated[float, Field(gt=0, le=1000)]
"""A factor on attention; its logarithm is added to scores."""
Resample = Annotated[int, Field(ge=0, le=100)]
"""Each is one more pass of the base for every early step."""
Sigma = Annotated[float, Field(ge=0, le=1)]
"""Noise levels of rectified flow lie between 0 and 1."""
Prompt = Annotated[str, Field(max_length=100_000), AfterValidator(_written)]
"""No base reads a hundredth of its longest."""
_Number = Annotated[int, Field(ge=1, le=10**9)]
"""Steps: at ten a second a billion take three years."""
_Share = Annotated[float, Field(ge=0, lt=1)]
_Edge = Annotated[int, Field(ge=16, le=16_384)]
_Size = Annotated[tuple[_Edge, _Edge], BeforeValidator(_size), AfterValidator(_paintable)]
Device = Annotated[str, Field(pattern=r"^(auto|cuda(:[0-9]{1,3})?|mps|cpu)$")]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(place)]
_GivenFiles = Annotated[dict[Panel, FilePath], BeforeValidator(_pairs)]
_PanelSeeds = Annotated[dict[Panel, Seed], BeforeValidator(_pairs)]
_Words = tuple[Annotated[Prompt, AfterValidator(_of_this_tool)], ...]
_Model = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_model)]


class Settings(BaseModel):
    """What a verb or a function is told.

    Raises: pydantic.ValidationError; `settings_of` turns it into a SettingsError.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        populate_by_name=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse true and false for numbers; pydantic would take them for 1 and 0."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and field.annotation is not bool:
                raise ValueError(f"`{name}`: it is neither true nor false")
        return values


class Machine(Settings):
    """Where a base computes, and in which numbers."""

    device: Device = _field("auto", resume="differs")
    """auto, cuda, cuda:N, mps or cpu"""
    dtype: Dtype = _field("auto", decided=True)
    """number format of the base; auto is bf16, on a CPU fp32"""
    precision: Precision = _field("full", resume="differs", decided=True)
    """how the linear layers of the base's blocks are kept: full is as dtype says, int8 and fp8
    half of bf16, nf4 a quarter; fp8 also computes in fp8 and needs a card that can"""


# -- training -----------------------------------------------------------------------------------


class TrainSettings(Machine):
    """A training run. Defaults are those of the paper's released configuration."""

    base: FilePath = _field(example="toyland")
    """base model: a folder in diffusers' layout, a hub id, toyland or tiny"""
    data: FilePath = _field(example="my-sets")
    """dataset: a folder or zip archive of image sets"""
    out: FilePath = _field(example="my-run")
    """new run folder"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the one the dataset names"""

    steps: _Number = _field(5000, resume="free")
    """optimizer steps"""
    batch: Count = 4
    """sets per optimizer step"""
    micro_batch: Count = _field(1, resume="differs")
    """most sets of equal size in one pass; more is faster, needs more memory, learns the same"""
    micro_tokens: Annotated[int, Field(ge=0, le=10**7)] = _field(0, resume="differs")
    """sets of equal size are computed together up to this many tokens, text included, if that is
    more than micro_batch"""
    lr: Annotated[float, Field(gt=0, le=1)] = _field(1e-4, resume="differs")
    """learning rate of AdamW"""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.01
    """AdamW's weight decay"""
    grad_clip: Annotated[float, Field(gt=0, le=1e6)] = _field(1.0, resume="differs")
    """largest norm of a step's gradient"""
    ema: _Share = 0.99
    """decay of the averaged weights that become the adapter; 0 takes the last weights"""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """LoRA rank"""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    """LoRA alpha; the update is scaled by alpha / rank"""
    targets: Literal["all", "attention+mlp", "attention"] = "all"
    """layers to adapt; all is every linear layer of every block, modulation included"""

    resolutions: tuple[Side, ...] = _field(RESOLUTIONS, many="list")
    """canvas sizes to train at, px: sides of squares of the same area"""
    upscale: bool = False
    """enlarge sets that are smaller than a resolution"""
    caption_dropout: _Share = 0.05
    """share of samples trained with an empty text"""
    guidance: Guidance = 1.0
    """value of the guidance embedding in training; 1, not the 3.5 of sampling"""
    sigma_mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """mean of the normal draw whose sigmoid is the noise level; above 0 favours noise"""
    sigma_std: Annotated[float, Field(gt=0, le=100)] = 1.0
    """standard deviation of that draw"""
    conditional: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of samples in which some panels are given, without noise, and only the others are
    learned; the adapter then also completes sets in clean mode. 0 is the paper's training"""
    isolate_given: bool = False
    """given panels attend only to themselves; completing then computes them only once"""
    shift: Literal["none", "resolution"] = "none"
    """shift noise levels by canvas size, as the base's sampler does"""

    seed: Seed = 0
    """with step and sample it decides all randomness of the run"""
    compile: bool = _field(False, resume="differs")
    """compile the blocks; the first step on each canvas size takes long, and the result is kept
    for later runs"""
    gradient_checkpointing: bool = _field(True, resume="differs")
    """recompute activations in the backward pass: a third slower, far less memory"""
    recompute: Annotated[int, Field(ge=0, le=10_000)] | None = _field(None, resume="differs")
    """blocks that keep only their input for the backward pass; by default all with
    gradient_checkpointing, else none"""
    shard: bool = _field(False, resume="differs")
    """spread the base over all processes that `accelerate launch` started (FSDP2): each keeps its
    part of every block; for bases that one card does not hold"""
    vram: Annotated[float, Field(gt=0, le=10_000)] | Literal["auto"] | None = None
    """memory of the card, GB, or auto to ask it: precision, recompute and micro_tokens are chosen
    to fit, unless set; `iclora plan` shows the choice"""
    save_dtype: Literal["fp16", "bf16", "fp32"] = _field("fp16", resume="differs")
    """number format of the adapter file"""

    held_out: _Share = 0.0
    """share of the sets that is not trained on but measured at every checkpoint; 0.1 is usual"""
    validation: FilePath | None = None
    """folder or zip archive of further sets to measure on, instead of a share"""

    save_every: _Number = _field(250, resume="free")
    """steps between checkpoints"""
    keep: Count = _field(4, resume="free")
    """checkpoints kept, the newest, and the best if sets are held out"""
    preview_every: Annotated[int, Field(ge=0, le=10**9)] = _field(250, resume="free")
    """steps between preview grids; 0 makes none"""
    preview_prompts: _Words = _field((), resume="free", many="list")
    """joint prompts to preview; by default the recipe's example"""
    preview_resolution: Side = _field(768, resume="free")
    """canvas size of previews, px: side of a square of the same area"""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = _field(
        ("tensorboard",), resume="free", many="list"
    )
    """where losses are also shown: tensorboard (if it is installed), wandb, trackio"""
    cache: FilePath | None = None
    """folder for latents and prompt embeddings; by default inside the run folder"""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if not self.resolutions:
            raise ValueError("`resolutions`: give at least one")
        if self.held_out and self.validation:
            raise ValueError("`held_out`: leave it out beside `validation`")
        if self.isolate_given and not self.conditional:
            raise ValueError("`isolate_given`: it needs `conditional` above 0")
        if self.shard and (self.micro_batch > 1 or self.micro_tokens):
            # Processes must make the same number of passes, or some wait forever.
            raise ValueError("`shard`: leave out `micro_batch` and `micro_tokens`; sets go singly")
        if self.shard and self.precision != "full":
            raise ValueError("`shard`: leave out `precision`; the base is kept as dtype says")
        if self.shard and self.vram is not None:
            raise ValueError("`shard`: leave out `vram`; the memory of a part of a base is unknown")
        return self

    def recomputed(self, blocks: int) -> int:
        """Return how many of a base's blocks keep only their input for the backward pass."""
        if self.recompute is None:
            return blocks if self.gradient_checkpointing else 0
        return min(self.recompute, blocks)

    def to_toml(self) -> str:
        """Write a run file that `read_settings` reads back."""
        return tomli_w.dumps({"train": self.table()})

    def table(self, **which: Any) -> dict[str, Any]:
        """Return plain values by name, required settings first, without those that are None.

        Args:
            which: fields, as pydantic's model_dump takes them.
        """
        values = self.model_dump(mode="json", exclude_none=True, **which)
        first = [n for n, field in type(self).model_fields.items() if field.is_required()]
        return {
            k: values[k] for k in (*first, *(k for k in values if k not in first)) if k in values
        }


class _RunFile(TrainSettings):
    run_file: FilePath | None = _field(None, position=True)
    """TOML run file with a [train] table"""

    def training(self) -> TrainSettings:
        """Return the training run without the rest; settings that were set stay marked as set."""
        values = {n: getattr(self, n) for n in self.model_fields_set}
        own = {n: v for n, v in values.items() if n in TrainSettings.model_fields}
        return TrainSettings.model_validate(own)


class RunSettings(_RunFile):
    """Settings of the verb `train`: a new training run, or one to resume."""

    resume: FilePath | None = _field(None, metavar="RUN")
    """resume the run in this folder"""


class PlanSettings(_RunFile):
    """Settings of the verb `plan`: a training run, and a file for the choice."""

    write: FilePath | None = _field(None, metavar="FILE")
    """write a run file with the choice"""


# -- making sets --------------------------------------------------------------------------------


class SampleSettings(Settings):
    """How sets are sampled, whatever they show."""

    recipe: FilePath | None = _field(None, decided=True)
    """recipe name or TOML path; by default the adapter's"""
    size: _Size | None = _field(None, decided=True, metavar="WxH")
    """canvas in px; by default the adapter's or the recipe's"""
    seed: Seed = _field(0, decided=True)
    """decides the noise of all panels"""
    steps: Steps | None = _field(None, decided=True)
    """Euler steps; by default the recipe's, else the base's"""
    guidance: Guidance | None = _field(None, decided=True)
    """guidance value; by default the recipe's, else the base's"""
    negative: Annotated[str, Field(max_length=100_000)] = _field("", decided=True, metavar="TEXT")
    """what the unguided pass reads, for bases that are guided by two passes"""
    strength: Strength = _field(1.0, decided=True)
    """factor on the adapter's update"""
    boost: Boost = _field(2.0, decided=True)
    """mode boost: factor on the attention that given panels get"""
    resample: Resample | None = _field(None, decided=True, metavar="N")
    """take every early step N times more from new noise: panels agree better, and it takes longer;
    by default 0, in mode resample 3"""
    resample_from: Sigma = _field(0.6, decided=True, metavar="SIGMA")
    """steps below this noise level are taken once"""

    def wish(self, prompt: str, **more: Any) -> Wish:
        """The wish for one prompt, with all that was set here. Raises: SettingsError."""
        kind = MakeSettings if isinstance(self, MakeSettings) else SampleSettings
        set_here = {n: getattr(self, n) for n in kind.model_fields if n in self.model_fields_set}
        return settings_of(Wish, {**set_here, **more, "prompt": prompt})


class MakeSettings(SampleSettings):
    """How one set is made."""

    panel_seeds: _PanelSeeds = _field({}, decided=True, option="panel-seed", metavar="PANEL=SEED")
    """own seed for one panel, to make it again alone; repeat for more"""
    mode: Mode | None = _field(None, decided=True)
    """how panels are made around given ones; by default clean for adapters trained with
    `conditional`, else sdedit"""


class Wish(MakeSettings):
    """One set that is asked for, or several that differ in their seed alone."""

    prompt: Prompt = _field(decided=True)
    """a joint prompt in the recipe's form"""
    given: _GivenFiles = _field({}, decided=True, also=("known",), metavar="PANEL=FILE")
    """a given panel, counted from 1; repeat for more"""
    count: Count = _field(1, decided=True)
    """sets, with seeds one apart"""
    best_of: Count | None = _field(None, decided=True, metavar="N")
    """make N of each set, keep the best by `score`"""
    score: _Model | None = _field(None, decided=True, metavar="METRIC")
    """for `best_of`: dino:MODEL, clip:MODEL, openai:MODEL, local:MODEL or toyland"""

    @model_validator(mode="after")
    def _fits_together(self) -> Wish:
        if (self.best_of is None) != (self.score is None):
            raise ValueError("`best_of`: give it together with `score`, or neither")
        return self


class _Base(Machine):
    base: FilePath | None = None
    """base model; by default the one the adapter was trained on"""


class _Captioning(Settings):
    captioner: _Model | None = _field(None, decided=True)
    """who writes: openai:MODEL for any OpenAI-compatible server (key in $OPENAI_API_KEY),
    local:PATH for a transformers model on this machine, toyland for the small one that ships"""
    api: str | None = _field(None, metavar="URL", decided=True)
    """the server's base URL; by default $OPENAI_BASE_URL"""
    model_device: Device = "auto"
    """where a local captioner or metric runs"""


class GenerateSettings(MakeSettings, _Base, _Captioning):
    """What `generate` is told."""

    request: FilePath | None = _field(None, position=True)
    """a request.json to repeat exactly"""
    prompt: _Words = _field((), decided=True)
    """a joint prompt; repeat for more sets"""
    prompts: FilePath | None = _field(None, decided=True, metavar="FILE")
    """text file with one joint prompt per line"""
    idea: _Words = _field((), decided=True)
    """one line that a captioner turns into a joint prompt; repeat for more"""
    adapter: FilePath | None = None
    """adapter of any tool: a file, a run's or PEFT's folder, or an id of the hub"""
    count: Count = _field(1, decided=True)
    """sets per prompt, with seeds one apart"""
    best_of: Count | None = _field(None, decided=True, metavar="N")
    """make N of each set, keep the best by `score`"""
    score: _Model | None = _field(None, decided=True, metavar="METRIC")
    """for `best_of`: dino:MODEL, clip:MODEL, openai:MODEL, local:MODEL or toyland"""
    out: FilePath = "out"
    """folder for what is made"""

    @model_validator(mode="after")
    def _score_and_best_of(self) -> GenerateSettings:
        sets = self.count * (self.best_of or 1)
        if sets > 10_000:
            raise ValueError(
                f"`count`: {sets:,} sets per prompt with `best_of`; 10,000 are the most"
            )
        if self.seed + sets > 2**63:
            raise ValueError("`seed`: seeds of further sets would exceed 64 bits")
        if (self.best_of is None) != (self.score is None):
            raise ValueError("`best_of`: give it together with `score`, or neither")
        return self

    def check_decided(self) -> None:
        """Raises: SettingsError if settings were given although a request.json decides them."""
        own = type(self)
        names = [n for n in own.model_fields if n in self.model_fields_set]
        decided = [n for n in names if about(own, n).get("decided")]
        if self.request and decided:
            raise SettingsError(
                f"{self.request} already decides what {', '.join(f'`{n}`' for n in decided)} would",
                "Repeat it without, or write a new prompt instead of it.",
                setting=decided[0],
            )


class CompleteSettings(GenerateSettings):
    """What `complete` is told."""

    given: _GivenFiles = _field({}, decided=True, also=("known",), metavar="PANEL=FILE")
    """a given panel, counted from 1; repeat for more"""
    background: Literal["white", "black", "gray", "auto"] = "white"
    """fill transparent parts of pictures with it; auto takes the first that shows the picture"""


class RerollSettings(_Base):
    """What `reroll` is told; what is not set is as the set was made."""

    set: FilePath = _field(position=True)
    """folder of a set that generate or complete wrote"""
    panel: tuple[Panel, ...] = _field(min_length=1, example="2")
    """a panel to make again, counted from 1; repeat for more"""
    seed: Seed = 1
    """of its new noise"""
    adapter: FilePath | None = None
    """adapter file; by default the one the set was made with"""
    mode: Mode | None = None
    """how the panels are made around those that stay; by default as the set was made"""
    boost: Boost | None = None
    """mode boost: factor on the attention that the panels that stay get"""
    resample: Resample | None = _field(None, metavar="N")
    """take every early step N times more from new noise"""
    resample_from: Sigma | None = _field(None, metavar="SIGMA")
    """steps below this noise level are taken once"""
    out: FilePath = "out"
    """folder for what is made"""


class ExtendSettings(MakeSettings, _Base):
    """What `extend` is told."""

    story: FilePath = _field(position=True)
    """text file: what all images share, then a line for each image"""
    anchor: tuple[Panel, ...] = (1,)
    """an image of the first canvas that stays in view; repeat for more"""
    fresh: Panel | None = None
    """new images on each further canvas; by default a third of its panels"""
    given: _GivenFiles = _field({}, also=("known",), metavar="PANEL=FILE")
    """a given image of the first canvas, counted from 1; repeat for more"""
    adapter: FilePath | None = None
    """adapter of any tool: a file, a run's or PEFT's folder, or an id of the hub"""
    out: FilePath = "out"
    """folder for what is made"""


class EvaluateSettings(SampleSettings, _Base):
    """What `evaluate` is told."""

    prompt: _Words = ()
    """a joint prompt; repeat for more"""
    prompts: FilePath | None = _field(None, metavar="FILE")
    """text file with one joint prompt per line"""
    data: FilePath | None = None
    """folder or zip of image sets, whose captions are the prompts"""
    given: tuple[Annotated[str, AfterValidator(_given_panel)], ...] = _field(
        (), also=("known",), metavar="PANEL[=FILE]"
    )
    """a given panel, counted from 1: of each set of `data`, or a file; repeat for more"""
    seeds: Count = 1
    """seeds per prompt, the same in every arm"""
    adapter: tuple[Annotated[str, AfterValidator(_arm)], ...] = _field((), metavar="[NAME=]FILE")
    """adapter file; repeat for more arms"""
    mode: tuple[Mode, ...] = ()
    """how panels are made around given ones; repeat for more arms"""
    metric: tuple[_Model, ...] = ()
    """dino:MODEL or clip:MODEL (a folder or hub id), openai:MODEL or local:MODEL (a
    vision-language model as the judge), toyland (knows the truth of toyland's sets); repeat for
    more"""
    model_device: Device = "auto"
    """where the models of metrics run"""
    api: str | None = _field(None, metavar="URL")
    """the server's base URL, for openai:"""
    together: Count = 1
    """sets in one batch"""
    out: FilePath = "evaluation"
    """folder for what is made"""


# -- image sets ---------------------------------------------------------------------------------


class RecipesSettings(Settings):
    """What `recipes` is told."""

    name: FilePath | None = _field(None, position=True)
    """show this recipe (a name or a TOML file) in full"""


class ComposeSettings(Settings):
    """What `compose` is told."""

    source: FilePath = _field(position=True)
    """folder or zip archive of image sets"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the source's own"""
    out: FilePath = _field(example="out")
    """new folder for the composites"""
    resolution: Side = 1536
    """largest canvas, px: side of a square of the same area"""
    grid: Literal[16, 32, 64] = 16
    """panels' edges and the canvas's sides are multiples of this, px: 16 for iclora and FLUX.1; 32
    or 64 to go on in a trainer that crops to its own buckets, such as ai-toolkit or sd-scripts"""
    background: Literal["white", "black", "gray", "auto"] = "white"
    """fill transparent parts of pictures with it; auto takes the first that shows the picture"""


class CaptionSettings(_Captioning):
    """What `caption` is told."""

    data: FilePath = _field(position=True)
    """folder of image sets"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the dataset's own"""
    captioner: _Model = _field(example="openai:gpt-4o-mini")
    """who writes: openai:MODEL for any OpenAI-compatible server (key in $OPENAI_API_KEY),
    local:PATH for a transformers model on this machine, toyland for the small one that ships"""
    answer_schema: bool = _field(True, option="schema")
    """hold a server's answers to a JSON schema, if it can"""
    send: Literal["panels", "composite"] = "panels"
    """show the model the panels one by one, or joined"""
    longest_side: Side = 768
    """pictures are scaled down to this before they are sent, px"""
    together: Count | None = None
    """requests at the same time; by default 4"""
    overwrite: bool = False
    """also replace captions that are there"""
    base: FilePath | None = None
    """count tokens as this base does"""


class ReviewSettings(Settings):
    """What `review` is told."""

    data: FilePath = _field(position=True)
    """folder or zip archive of image sets"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the dataset's own"""
    base: FilePath | None = None
    """count tokens as this base does"""
    out: FilePath | None = None
    """HTML file; by default DATA-review.html beside the dataset"""


class CheckSettings(Settings):
    """What `check` is told."""

    data: FilePath = _field(position=True)
    """folder or zip archive of image sets"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the dataset's own"""
    base: FilePath | None = None
    """count tokens as this base does"""
    resolutions: tuple[Side, ...] = _field(RESOLUTIONS, min_length=1, many="list")
    """training resolutions to judge by"""


class PromptSettings(_Captioning):
    """What `prompt` is told."""

    idea: Prompt = _field(position=True)
    """one line, such as: a shy boy at a carnival"""
    recipe: FilePath = _field(example="film-storyboard")
    """recipe name or TOML path"""
    captioner: _Model = _field(example="openai:gpt-4o-mini")
    """who writes: openai:MODEL for any OpenAI-compatible server (key in $OPENAI_API_KEY),
    local:PATH for a transformers model on this machine, toyland for the small one that ships"""
    answer_schema: bool = _field(True, option="schema")
    """hold a server's answers to a JSON schema, if it can"""
    base: FilePath | None = None
    """count tokens as this base does"""


class InfoSettings(Settings):
    """What `info` is told."""

    file: FilePath = _field(position=True)
    """an adapter (a file, a folder, an id of the hub), a request.json or a run folder"""


class ExportSettings(Settings):
    """What `export` is told."""

    adapter: FilePath = _field(position=True)
    """adapter of any tool: a file, a run's or PEFT's folder, or an id of the hub"""
    format: str = _field(example="comfyui")
    """diffusers, comfyui, kohya (for sd-scripts) or peft (a folder)"""
    out: FilePath = _field(example="out")
    """new file; for peft a new folder"""
    base: FilePath | None = None
    """base model; by default the one the adapter was trained on"""
    save_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """number format of the weights"""


# -- verbs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verb(Generic[M]):
    """A verb of the command line; an entry point of the group "iclora.verbs" adds one."""

    settings: type[M]
    """What it is told; its options are made from this."""
    run: Callable[[M, Console], int | None]
    """What it does. Returns the exit status if that is not 0."""
    read: Callable[[dict[str, Any], Console], M] | None = None
    """Makes the settings of the values that were given; by default `settings_of` does."""

    @property
    def summary(self) -> str:
        """The first line of its function's docstring: its help."""
        return (self.run.__doc__ or "").strip().split("\n", 1)[0]


def verb(
    settings: type[M], read: Callable[[dict[str, Any], Console], M] | None = None
) -> Callable[[Callable[[M, Console], int | None]], Verb[M]]:
    """Make a verb of a function; its name is the one it is registered by.

    @verb(CheckSettings)
    def check(settings, console):
        "Read every image and caption of a dataset and say what is wrong."
    """
    return lambda run: Verb(settings, run, read)


# -- reading them -------------------------------------------------------------------------------


def settings_of(
    model: type[M], values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> M:
    """Settings from plain values, such as a command line's or a JSON body's.

    Args:
        values: by the fields' names, as numbers or strings.
        defaults: for settings that `values` leaves out; they count as set.
    Raises: SettingsError naming every setting that is wrong.
    """
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return model.model_validate({**(defaults or {}), **given})
    except ValidationError as error:
        missing = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing"]
        if len(missing) == len(error.errors()):
            named = [f"`{name}`" for name in missing]
            raise SettingsError(
                f"{' and '.join(named)} must be given",
                f"{_example(model, missing)} and run it again.",
                setting=missing[0],
            ) from error
        found = by_setting(error, model)
        concerned = re.match(r"`(\w+)`", found[0])
        raise SettingsError(
            f"invalid setting{'s' if len(found) > 1 else ''}: {'; '.join(found)}",
            "Fix this and run it again; the verb's help tells what a setting may be.",
            setting=concerned[1] if concerned else None,
        ) from error


def read_settings(
    model: type[M],
    path: str | Path | None,
    overrides: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    table: str = "train",
) -> M:
    """Settings from one table of a TOML file and overrides, which win.

    Args:
        path: a run file, or None. Relative paths in it are relative to where the program runs.
        overrides: settings by name, as numbers or strings.
        defaults: for settings that neither has.
    Raises: SettingsError naming every setting that is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            found = read_toml(place(str(path)), SettingsError, "run file")
        except ValueError as error:
            raise SettingsError(f"run file {path}: {error}", "Check the path.") from error
        unknown = sorted(set(found) - {table})
        if unknown or not isinstance(found.get(table), dict):
            raise SettingsError(
                f"run file {path} needs its settings in one table [{table}]"
                + (f", but has {', '.join(unknown)} outside of it" if unknown else ""),
                f"Write [{table}] on the first line.",
            )
        values = found[table]
    return settings_of(model, {**values, **overrides}, defaults)


def _example(model: type[BaseModel], missing: list[str]) -> str:
    """How to set what is missing, by example."""
    known = {name: about(model, name).get("example") for name in missing}
    ways = [f"`{name}`" + (f", for instance to {e}," if e else "") for name, e in known.items()]
    return f"Set {' and '.join(ways)}"
