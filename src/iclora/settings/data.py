"""The settings of verbs about image sets, their words, and adapter files."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from iclora.settings.fields import (
    RESOLUTIONS,
    Colour,
    Count,
    FilePath,
    ModelName,
    Prompt,
    Settings,
    Side,
    TextKind,
    setting,
    whole,
)
from iclora.settings.making import Captioning

__all__ = [
    "CaptionSettings",
    "CheckSettings",
    "CollectSettings",
    "ComposeSettings",
    "ExportSettings",
    "Grouping",
    "ImportSettings",
    "InfoSettings",
    "Paging",
    "PromptSettings",
    "PushSettings",
    "RecipesSettings",
    "ReviewSettings",
]


class RecipesSettings(Settings):
    """What `recipes` is told."""

    name: FilePath | None = setting(None, position=True)
    """show this recipe (a name or a TOML file) in full"""


Grouping = Literal["auto", "name", "order", "likeness", "sheet"]
"""How the pictures of a folder become sets.

auto: by joint captions and tables, then by names and folders, then sheets, then by likeness.
name: files whose names differ in one word, x_before.png and x_after.png, or a/1.jpg and b/1.jpg.
order: every so many files as they come.
likeness: families that look alike.
sheet: every picture holds all panels of a set.
"""


Paging = Literal["drawn", "pictures"]
"""What is taken of decks: their pages, drawn, or the pictures that lie in them."""


class CollectSettings(Settings):
    """What `collect` is told."""

    sources: tuple[FilePath, ...] = setting(position=True, many="list", min_length=1)
    """videos, PDF and PPTX files, folders, zip and tar archives, parquet tables"""
    recipe: FilePath = setting(example="film-storyboard")
    """recipe name or TOML path"""
    out: FilePath = setting(example="out", metavar="FOLDER")
    """new folder for the sets; a collection that was stopped there goes on"""
    by: Grouping = "auto"
    """how the pictures of a folder become sets: by their names, their order, their likeness, each
    as a sheet of joined panels, or auto for what fits"""
    pages: Paging = "drawn"
    """take a deck's pages, or the pictures that lie in it; LibreOffice draws slides of a PPTX"""
    likeness: ModelName | None = setting(None, metavar="MODEL", example="dino:models/dinov2-small")
    """compare pictures by a model, dino:MODEL or clip:MODEL (a folder in transformers' layout, or a
    hub id), for families and for what is kept; by default their colours tell"""
    keep: Count | None = None
    """keep so many sets, the best ones that are unlike each other; by default all"""
    review: bool = True
    """make a page to look through the sets, OUT-review.html beside them"""


class ComposeSettings(Settings):
    """What `compose` is told."""

    source: FilePath = setting(position=True)
    """folder or zip archive of image sets"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the source's own"""
    out: FilePath = setting(example="out", metavar="FOLDER")
    """new folder for the composites"""
    resolution: Side = 1536
    """largest canvas, px: side of a square of the same area"""
    grid: Annotated[Literal[16, 32, 64], BeforeValidator(whole)] = 16
    """panels' edges and the canvas's sides are multiples of this, px: 16 for iclora and FLUX.1; 32
    or 64 to go on in a trainer that crops to its own buckets, such as ai-toolkit or sd-scripts"""
    background: Colour = "white"
    """fill transparent parts of pictures with it: a name, #rrggbb, or auto for the first of white,
    black and gray that shows the picture"""
    cut_bars: bool = True
    """cut letterboxes and borders of one colour off single files, alike in all of a size"""


class CaptionSettings(Captioning):
    """What `caption` is told."""

    data: FilePath = setting(position=True)
    """folder of image sets"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the dataset's own"""
    captioner: ModelName = setting(example="openai:gpt-4o-mini")
    """who writes: openai:MODEL for any OpenAI-compatible server (key in $OPENAI_API_KEY),
    local:PATH for a transformers model on this machine, toyland for the small one that ships"""
    answer_schema: bool = setting(True, option="schema")
    """hold a server's answers to a JSON schema, if it can"""
    send: Literal["panels", "composite"] = "panels"
    """show the model the panels one by one, or joined"""
    longest_side: Side = 768
    """pictures are scaled down to this before they are sent, px"""
    together: Count | None = None
    """requests at the same time; by default 4"""
    overwrite: bool = False
    """also replace captions that are there"""
    only: tuple[Annotated[str, Field(min_length=1, max_length=300)], ...] = setting(
        (), metavar="SET"
    )
    """caption this set alone; repeat for more"""
    base: FilePath | None = None
    """count tokens as this base does"""
    text: TextKind = "joint"
    """what a panel will read in training: each text that is encoded may be as long as the base
    reads"""


class ReviewSettings(Settings):
    """What `review` is told."""

    data: FilePath = setting(position=True)
    """folder or zip archive of image sets"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the dataset's own"""
    base: FilePath | None = None
    """count tokens as this base does"""
    text: TextKind = "joint"
    """what a panel will read in training: tokens are counted for each text that is encoded"""
    out: FilePath | None = setting(None, metavar="FILE")
    """HTML file; by default DATA-review.html beside the dataset"""


class CheckSettings(Settings):
    """What `check` is told."""

    data: FilePath = setting(position=True)
    """folder or zip archive of image sets"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the dataset's own"""
    base: FilePath | None = None
    """count tokens as this base does"""
    text: TextKind = "joint"
    """what a panel will read in training: tokens are counted for each text that is encoded"""
    resolutions: tuple[Side, ...] = setting(RESOLUTIONS, min_length=1, many="list")
    """training resolutions to judge by"""


class PromptSettings(Captioning):
    """What `prompt` is told."""

    idea: Prompt = setting(position=True)
    """one line, such as: a shy boy at a carnival"""
    recipe: FilePath = setting(example="film-storyboard")
    """recipe name or TOML path"""
    captioner: ModelName = setting(example="openai:gpt-4o-mini")
    """who writes: openai:MODEL for any OpenAI-compatible server (key in $OPENAI_API_KEY),
    local:PATH for a transformers model on this machine, toyland for the small one that ships"""
    answer_schema: bool = setting(True, option="schema")
    """hold a server's answers to a JSON schema, if it can"""
    base: FilePath | None = None
    """count tokens as this base does"""
    text: TextKind = "joint"
    """what a panel will read: each text that is encoded may be as long as the base reads"""


class InfoSettings(Settings):
    """What `info` is told."""

    file: FilePath = setting(position=True)
    """an adapter (a file, a folder, an id of the hub), a request.json, a made set or a
    run folder"""


class ImportSettings(Settings):
    """What `import` is told."""

    file: FilePath = setting(position=True)
    """ai-toolkit's configuration of a FLUX.1 LoRA, YAML or JSON"""
    write: FilePath | None = setting(None, metavar="FILE")
    """new run file; by default of the same name, ending in .toml, in this folder"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the dataset's own, or the one that the prompts fit"""
    data: FilePath | None = None
    """where the sets lie on this machine; by default where the file says"""


class ExportSettings(Settings):
    """What `export` is told."""

    adapter: FilePath = setting(position=True)
    """adapter of any tool: a file, a run's or PEFT's folder, or an id of the hub"""
    format: str = setting(example="comfyui")
    """diffusers, comfyui, kohya (for sd-scripts) or peft (a folder)"""
    out: FilePath = setting(example="out", metavar="PATH")
    """new file; for peft a new folder"""
    base: FilePath | None = None
    """base model; by default the one the adapter was trained on"""
    save_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """number format of the weights"""


def _repository(name: str) -> str:
    """The id of a repository on the hub. Raises: ValueError, with what is odd about it."""
    if found := re.search(r"[^A-Za-z0-9_./-]", name):
        raise ValueError(
            f"{found[0]!r} stands in no repository's name; use a to z, A to Z, digits, - _ and ."
        )
    if not re.fullmatch(r"[^/]{1,96}/[^/]{1,96}", name):
        raise ValueError(
            f'must be USER/NAME, your name on the hub and the repository\'s, not "{name[:200]}"'
        )
    if re.search(r"(?:^|/)[-.]|[-.](?:/|$)|--|\.\.", name):
        raise ValueError(
            f'"{name}": - and . stand between letters or digits alone, and never twice'
        )
    return name


class PushSettings(Settings):
    """What `push` is told."""

    run: FilePath = setting(position=True)
    """folder of a run that has ended"""
    repository: Annotated[str, AfterValidator(_repository)] = setting(position=True)
    """where to on the Hugging Face hub, USER/NAME; made if it is not there (key in $HF_TOKEN)"""
    public: bool = False
    """let everybody see a new repository; without it only you and your organisation do"""
    dry_run: bool = False
    """list what would be sent, and send nothing"""
