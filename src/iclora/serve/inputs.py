"""What a client tells a job: the verb's own settings, with ids where those name files.

Each model is made from the verb's settings model, so a new setting is one field there. A field that
may name files of this machine must be listed here: it becomes an id, or is the server's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, create_model

from iclora.settings import (
    CaptionSettings,
    CheckSettings,
    CompleteSettings,
    ComposeSettings,
    Described,
    EvaluateSettings,
    ExtendSettings,
    GenerateSettings,
    Panel,
    PromptSettings,
    RerollSettings,
    Seed,
    Settings,
    TrainSettings,
)
from iclora.settings.fields import about, names_files

__all__ = ["INPUTS", "NAMED", "SETTINGS", "Ask", "RunChanges", "asks", "input_of", "server_decides"]

Name = Annotated[str, Field(min_length=1, max_length=201)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SetId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Words = Annotated[str, Field(min_length=1, max_length=20_000)]
_NewName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Weighted = Annotated[str, Field(min_length=1, max_length=240)]
_Given = Annotated[dict[Panel, Hash], Field(max_length=9)]

SETTINGS: Mapping[str, type[Settings]] = {
    "generate": GenerateSettings,
    "complete": CompleteSettings,
    "reroll": RerollSettings,
    "extend": ExtendSettings,
    "evaluate": EvaluateSettings,
    "caption": CaptionSettings,
    "check": CheckSettings,
    "compose": ComposeSettings,
    "prompt": PromptSettings,
    "train": TrainSettings,
}
"""The verbs that are kinds of jobs."""

NAMED: Mapping[str, tuple[Any, str]] = {
    "recipe": (Name | None, "a recipe's name; by default the adapter's or the dataset's"),
    "data": (Name, "a dataset's id"),
    "source": (Name, "a dataset's id"),
    "validation": (Name | None, "id of a further dataset to measure on, instead of a share"),
    "set": (SetId, "id of a made set"),
    "request": (SetId | None, "id of a made set to make again exactly"),
    "given": (_Given, "the hash of a given panel's picture, by the panel's number from 1"),
    "adapter": (
        tuple[_Weighted, ...],
        "ids of adapters, which are added up, each with a strength of its own, as style=0.7",
    ),
    "story": (Words, "what all images share, then a line for each image"),
    "captioner": (Name | None, "who writes, one of those that the server offers"),
    "score": (Name | None, "for `best_of`: a metric that the server offers"),
    "metric": (tuple[Name, ...], "metrics that the server offers"),
}
"""Fields of settings that name files or models, and what a client says instead."""

_ELSE: Mapping[tuple[str, str], tuple[Any, str]] = {
    ("extend", "given"): (
        Annotated[dict[Panel, Hash], Field(max_length=99)],
        "the hash of a given image's picture, by the image's number from 1",
    ),
    ("prompt", "captioner"): (Name, "who writes, one of those that the server offers"),
    ("prompt", "recipe"): (Name, "a recipe's name"),
    ("evaluate", "given"): (
        Annotated[tuple[Annotated[str, Field(max_length=67)], ...], Field(max_length=9)],
        "a given panel, counted from 1: of each set of `data`, or PANEL=HASH",
    ),
    ("evaluate", "adapter"): (
        tuple[_Weighted, ...],
        "an arm's adapter, or several that are added up, as [NAME=]ID[=STRENGTH][+ID...]",
    ),
    ("evaluate", "data"): (Name | None, "id of a dataset, whose captions are the prompts"),
    ("caption", "captioner"): (Name, "who writes, one of those that the server offers"),
}

_SERVERS = frozenset(
    {
        "base",
        "out",
        "device",
        "dtype",
        "precision",
        "offload",
        "graphs",
        "model_device",
        "api",
        "cache",
        "prompts",
    }
    | {"knowledge", "trackers", "shard", "workers", "engine", "cluster"}
)
"""Fields that the server decides, or that name what only its own machine knows."""

_DRAWN = frozenset({"generate", "complete", "reroll", "extend"})
_NEW = frozenset({"compose", "train"})


def server_decides(kind: str) -> frozenset[str]:
    """The fields of a kind of job that clients do not tell."""
    # A run's blocks are its own; those of the base that workers hold are compiled for all jobs.
    return _SERVERS if kind == "train" else _SERVERS | {"compile"}


class _Input(Settings):
    model_config = ConfigDict(defer_build=False, title="Input")


def input_of(kind: str, model: type[Settings]) -> type[Settings]:
    """The model of what a client tells one kind of job."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in server_decides(kind):
            continue
        annotation, said = field.rebuild_annotation(), field.description
        if name in NAMED:
            annotation, said = _ELSE.get((kind, name), NAMED[name])
        elif names_files(annotation):
            raise TypeError(f"{kind}: say what a client names instead of the file of `{name}`")
        default = ... if field.is_required() else field.get_default(call_default_factory=True)
        if name == "seed" and kind in _DRAWN:
            annotation, default = Seed | None, None
            said = f"{field.description}; by default the server draws one"
        fields[name] = annotation, Field(default, description=said)
    if kind in _NEW:
        fields["name"] = _NewName, Field(description="what the new dataset or run is called")
    return create_model(f"{kind.title()}Input", __base__=_Input, **fields)


INPUTS: Mapping[str, type[Settings]] = {k: input_of(k, model) for k, model in SETTINGS.items()}
"""What a client tells each kind of job."""


def _changes_of_run() -> type[Settings]:
    known = INPUTS["train"].model_fields
    theirs = TrainSettings.model_fields
    own = [n for n in known if n in theirs and about(TrainSettings, n).get("resume")]
    fields: dict[str, Any] = {
        name: (known[name].rebuild_annotation() | None, Field(None, description=said))
        for name, said in ((name, known[name].description) for name in own)
    }
    return create_model("RunChanges", __base__=_Input, **fields)


RunChanges: Any = _changes_of_run()
"""What may be changed of a run that is gone on with."""


class Ask(Described):
    """A job that is asked for."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    input: Any
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """jobs of a higher one are begun first"""
    tag: Annotated[str, Field(max_length=200)] = ""
    """whatever the client wants to find it by"""
    exact: bool = False
    """run alone, whatever could share its batch"""


def _ask_of(kind: str) -> type[Ask]:
    only: Any = Literal
    fields: dict[str, Any] = {"kind": (only[kind], ...), "input": (INPUTS[kind], ...)}
    return create_model(f"{kind.title()}Job", __base__=Ask, **fields)


_kinds: Any = Union[tuple(map(_ask_of, SETTINGS))]  # noqa: UP007 (known only here)
asks: Any = Annotated[_kinds, Field(discriminator="kind")]
"""One of all kinds of jobs, told apart by `kind`."""
