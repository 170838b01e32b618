"""The settings of sets that are made: generated, completed, made again, told on, compared."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from iclora.errors import SettingsError
from iclora.settings.fields import (
    AdapterFiles,
    Boost,
    Colour,
    Count,
    Device,
    Engine,
    FilePath,
    GivenFiles,
    Guidance,
    Machine,
    Mode,
    ModelName,
    Panel,
    PanelSeeds,
    Prompt,
    Prompts,
    Resample,
    Seed,
    Settings,
    Sigma,
    Size,
    Steps,
    Strength,
    TextKind,
    about,
    arm,
    given_panel,
    outside,
    setting,
)
from iclora.settings.reading import settings_of

__all__ = [
    "Captioning",
    "CompleteSettings",
    "EvaluateSettings",
    "ExtendSettings",
    "GenerateSettings",
    "MakeSettings",
    "MakingMachine",
    "OnBase",
    "OnCluster",
    "RerollSettings",
    "SampleSettings",
    "Wish",
]


class SampleSettings(Settings):
    """How sets are sampled, whatever they show."""

    recipe: FilePath | None = setting(None, decided=True)
    """recipe name or TOML path; by default the adapter's"""
    size: Size | None = setting(None, decided=True)
    """canvas in px; by default the adapter's or the recipe's"""
    seed: Seed = setting(0, decided=True)
    """decides the noise of all panels"""
    steps: Steps | None = setting(None, decided=True)
    """Euler steps; by default the recipe's, else the base's"""
    guidance: Guidance | None = setting(None, decided=True)
    """guidance value; by default the recipe's, else the base's"""
    negative: Annotated[str, Field(max_length=100_000)] = setting("", decided=True, metavar="TEXT")
    """what the unguided pass reads, for bases that are guided by two passes"""
    text: TextKind | None = setting(None, decided=True)
    """what a panel reads: joint is one text for all; isolated is the overview and its own words,
    which no other panel sees; alone is its own words; by default as the adapter was trained, else
    joint"""
    strength: Strength = setting(1.0, decided=True)
    """factor on the adapter's update"""
    boost: Boost = setting(2.0, decided=True)
    """mode boost: factor on the attention that given panels get"""
    resample: Resample | None = setting(None, decided=True)
    """take every early step N times more from new noise: panels agree better, and it takes longer;
    by default 0, in mode resample 3"""
    resample_from: Sigma = setting(0.6, decided=True)
    """steps below this noise level are taken once"""

    def wish(self, prompt: str, **more: Any) -> Wish:
        """The wish for one prompt, with all that was set here. Raises: SettingsError."""
        kind = MakeSettings if isinstance(self, MakeSettings) else SampleSettings
        set_here = {n: getattr(self, n) for n in kind.model_fields if n in self.model_fields_set}
        return settings_of(Wish, {**set_here, **more, "prompt": prompt})


class MakeSettings(SampleSettings):
    """How one set is made."""

    panel_seeds: PanelSeeds = setting({}, decided=True, option="panel-seed", metavar="PANEL=SEED")
    """own seed for one panel, to make it again alone; repeat for more"""
    mode: Mode | None = setting(None, decided=True)
    """how panels are made around given ones; by default clean for adapters trained with
    `conditional`, else sdedit"""


class Wish(MakeSettings):
    """One set that is asked for, or several that differ in their seed alone."""

    prompt: Prompt = setting(decided=True)
    """a joint prompt in the recipe's form"""
    given: GivenFiles = setting({}, decided=True, also=("known",), metavar="PANEL=FILE")
    """a given panel, counted from 1; repeat for more"""
    count: Count = setting(1, decided=True)
    """sets, with seeds one apart"""
    best_of: Count | None = setting(None, decided=True)
    """make N of each set, keep the best by `score`"""
    score: ModelName | None = setting(None, decided=True, metavar="METRIC")
    """for `best_of`: dino:MODEL, clip:MODEL, openai:MODEL, local:MODEL or toyland"""

    @model_validator(mode="after")
    def _fits_together(self) -> Wish:
        if (self.best_of is None) != (self.score is None):
            raise ValueError("`best_of`: give it together with `score`, or neither")
        return self


class MakingMachine(Machine):
    """A machine that makes sets."""

    graphs: bool = False
    """record passes of the base and replay them (CUDA graphs): for small canvases and small bases
    on a fast card, where starting a pass takes longer than computing it. Numbers stay the same; it
    takes the memory of one more pass. Not measured on a card yet"""

    def of_workers(self) -> dict[str, Any]:
        """What was set of all this but the device: each worker has one of its own."""
        names = [n for n in MakingMachine.model_fields if n != "device"]
        return {n: getattr(self, n) for n in names if n in self.model_fields_set}


class OnBase(MakingMachine):
    base: FilePath | None = None
    """base model; by default the one the adapter was trained on"""


class OnCluster(Settings):
    """Where the workers of a verb run."""

    engine: Engine = "local"
    """where workers run: local for this machine, ray for the machines of a Ray cluster"""
    cluster: Annotated[str, Field(pattern=r"^(auto|[A-Za-z0-9._-]{1,253}:[0-9]{1,5})$")] | None = (
        setting(None, metavar="HOST:PORT")
    )
    """for `engine` ray: a cluster to join, or auto for one on this machine; by default one is
    started here and ends with the command"""

    @model_validator(mode="after")
    def _cluster_of_ray(self) -> Self:
        if self.cluster and self.engine != "ray":
            raise ValueError("`cluster`: leave it out, or set `engine` to ray, which joins it")
        return self


class Captioning(Settings):
    captioner: ModelName | None = setting(None, decided=True)
    """who writes: openai:MODEL for any OpenAI-compatible server (key in $OPENAI_API_KEY),
    local:PATH for a transformers model on this machine, toyland for the small one that ships"""
    api: str | None = setting(None, metavar="URL", decided=True)
    """the server's base URL; by default $OPENAI_BASE_URL"""
    model_device: Device = "auto"
    """where a local captioner or metric runs"""


class GenerateSettings(MakeSettings, OnBase, Captioning, OnCluster):
    """What `generate` is told."""

    request: FilePath | None = setting(None, position=True)
    """a request.json to repeat exactly"""
    prompt: Prompts = setting((), decided=True)
    """a joint prompt; repeat for more sets"""
    prompts: FilePath | None = setting(None, decided=True, metavar="FILE")
    """text file with one joint prompt per line"""
    idea: Prompts = setting((), decided=True, metavar="IDEA")
    """one line that a captioner turns into a joint prompt; repeat for more"""
    adapter: AdapterFiles = setting((), metavar="FILE[=STRENGTH]")
    """adapter of any tool: a file, a run's or PEFT's folder, or an id of the hub; repeat for more,
    which are added up, each with a strength of its own, as style.safetensors=0.7"""
    count: Count = setting(1, decided=True)
    """sets per prompt, with seeds one apart"""
    best_of: Count | None = setting(None, decided=True)
    """make N of each set, keep the best by `score`"""
    score: ModelName | None = setting(None, decided=True, metavar="METRIC")
    """for `best_of`: dino:MODEL, clip:MODEL, openai:MODEL, local:MODEL or toyland"""
    workers: Count = 1
    """processes that share the sets: as many GPUs, or shares of the CPU, here or (`engine`) in a
    cluster"""
    out: FilePath = setting("out", metavar="FOLDER")
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
        _check_used(self, "captioner", ("idea",), "which it writes out")
        _check_used(self, "api", ("captioner", "score"), "which asks its server")
        _check_used(self, "model_device", ("captioner", "score"), "whose model runs there")
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

    given: GivenFiles = setting({}, decided=True, also=("known",), metavar="PANEL=FILE")
    """a given panel, counted from 1; repeat for more"""
    background: Colour = setting("white", decided=True)
    """fill transparent parts of given pictures with it: a name, #rrggbb, or auto for the first of
    white, black and gray that shows the picture"""


class RerollSettings(OnBase):
    """What `reroll` is told; what is not set is as the set was made."""

    set: FilePath = setting(position=True)
    """folder of a set that generate or complete wrote"""
    panel: tuple[Panel, ...] = setting(min_length=1, example="2")
    """a panel to make again, counted from 1; repeat for more"""
    seed: Seed = 1
    """of its new noise"""
    adapter: AdapterFiles = setting((), metavar="FILE")
    """adapter file; by default the one the set was made with; repeat for more, if it was made with
    several"""
    mode: Mode | None = None
    """how the panels are made around those that stay; by default as the set was made"""
    boost: Boost | None = None
    """mode boost: factor on the attention that the panels that stay get"""
    resample: Resample | None = None
    """take every early step N times more from new noise"""
    resample_from: Sigma | None = None
    """steps below this noise level are taken once"""
    out: FilePath = setting("out", metavar="FOLDER")
    """folder for what is made"""


class ExtendSettings(MakeSettings, OnBase):
    """What `extend` is told."""

    story: FilePath = setting(position=True)
    """text file: what all images share, then a line for each image"""
    anchor: tuple[Panel, ...] = (1,)
    """an image of the first canvas that stays in view; repeat for more"""
    fresh: Panel | None = setting(None, metavar="N")
    """new images on each further canvas; by default a third of its panels"""
    given: GivenFiles = setting({}, also=("known",), metavar="PANEL=FILE")
    """a given image, counted from 1, which stays as it is; repeat for more"""
    background: Colour = "white"
    """fill transparent parts of given pictures with it: a name, #rrggbb, or auto for the first of
    white, black and gray that shows the picture"""
    adapter: AdapterFiles = setting((), metavar="FILE[=STRENGTH]")
    """adapter of any tool: a file, a run's or PEFT's folder, or an id of the hub; repeat for more,
    which are added up, each with a strength of its own, as style.safetensors=0.7"""
    out: FilePath = setting("out", metavar="FOLDER")
    """folder for what is made"""

    @model_validator(mode="after")
    def _background_of_given(self) -> ExtendSettings:
        _check_used(self, "background", ("given",), "whose pictures it fills")
        return self


class EvaluateSettings(SampleSettings, OnBase, OnCluster):
    """What `evaluate` is told."""

    prompt: Prompts = ()
    """a joint prompt; repeat for more"""
    prompts: FilePath | None = setting(None, metavar="FILE")
    """text file with one joint prompt per line"""
    data: FilePath | None = None
    """folder or zip of image sets, whose captions are the prompts"""
    given: tuple[Annotated[str, AfterValidator(given_panel)], ...] = setting(
        (), also=("known",), metavar="PANEL[=FILE]"
    )
    """a given panel, counted from 1: of each set of `data`, or a file; repeat for more"""
    knowledge: tuple[Annotated[str, AfterValidator(outside)], ...] = setting(
        (), metavar="[RECIPE=]FILE"
    )
    """what adapters leave of the base: text file with prompts from outside their task, of single
    pictures (of `size`) or of another recipe, a name or TOML path; repeat for more recipes"""
    strengths: tuple[Strength, ...] = ()
    """factor on every adapter's update; repeat for more arms; by default `strength`, with
    `knowledge` 0, 0.5 and 1"""
    background: Colour = "white"
    """fill transparent parts of given pictures with it: a name, #rrggbb, or auto for the first of
    white, black and gray that shows the picture"""
    seeds: Count = 1
    """seeds per prompt, the same in every arm"""
    adapter: tuple[Annotated[str, AfterValidator(arm)], ...] = setting(
        (), metavar="[NAME=]FILE[=STRENGTH][+FILE...]"
    )
    """an arm's adapter, or several that are added up, each with its strength, as
    mix=a.safetensors=0.7+b.safetensors; repeat for more arms"""
    mode: tuple[Mode, ...] = ()
    """how panels are made around given ones; repeat for more arms"""
    metric: tuple[ModelName, ...] = ()
    """dino:MODEL or clip:MODEL (a folder or hub id), openai:MODEL or local:MODEL (a
    vision-language model as the judge), toyland (knows the truth of toyland's sets); repeat for
    more"""
    model_device: Device = "auto"
    """where the models of metrics run"""
    api: str | None = setting(None, metavar="URL")
    """the server's base URL, for openai:"""
    together: Count = 1
    """sets in one batch"""
    workers: Count = 1
    """processes that share the sets: as many GPUs, or shares of the CPU, here or (`engine`) in a
    cluster"""
    out: FilePath = setting("evaluation", metavar="FOLDER")
    """folder for what is made"""

    @model_validator(mode="after")
    def _prompts_from_one_place(self) -> EvaluateSettings:
        names = ("prompt", "prompts", "data", "given", "recipe", "mode")
        beside = [name for name in names if getattr(self, name)]
        if self.knowledge and beside:
            raise ValueError(f"`{beside[0]}`: leave it out beside `knowledge`")
        _check_used(self, "background", ("given",), "whose pictures it fills")
        _check_used(self, "api", ("metric",), "which asks its server")
        _check_used(self, "model_device", ("metric",), "whose model runs there")
        if self.strengths and not self.adapter:
            raise ValueError("`strengths`: leave it out without an `adapter`, whose they are")
        if self.strengths and "strength" in self.model_fields_set:
            raise ValueError("`strength`: leave it out beside `strengths`")
        if len(set(self.strengths)) < len(self.strengths):
            raise ValueError("`strengths`: give each once")
        return self

    def check_data(self) -> None:
        """Raises: SettingsError if something is given beside `data` that `data` brings itself."""
        if self.data and (self.prompt or self.prompts):
            raise SettingsError(
                "`data` brings its own prompts", "Leave `prompt` and `prompts` out.", "data"
            )
        files = [text for text in self.given if not text.isdigit()]
        if self.data and files:
            raise SettingsError(
                f'a file is given beside `data`: "{files[0]}"', "Name the panel alone.", "given"
            )


def _check_used(settings: Settings, name: str, users: tuple[str, ...], why: str) -> None:
    """Raises: ValueError for a setting that none of those that would use it is given for."""
    if getattr(settings, name) == type(settings).model_fields[name].default:
        return
    if not any(getattr(settings, user) for user in users):
        wanted = " or ".join(f"`{user}`" for user in users)
        raise ValueError(f"`{name}`: leave it out without {wanted}, {why}")
