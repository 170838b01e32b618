"""A task as one file: the layout of its panels, the form of its captions, sampling defaults.

A recipe is one TOML file. The ten of the paper ship in `recipes/`; a path to a file of your own
works wherever a recipe's name does.
"""

from __future__ import annotations

import re
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iclora.errors import CaptionError, IcloraError, RecipeError
from iclora.files.documents import parse_toml, read_words
from iclora.sets.caption import JointCaption, has_markers
from iclora.sets.layout import Layout
from iclora.settings import TextKind, nearest, problems_of

__all__ = ["Recipe", "load_recipe", "meant", "read_recipe", "recipe_names"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayoutSpec(_Frozen):
    """The [layout] table: a canvas, and either `per_row` or `boxes`."""

    width: Annotated[int, Field(ge=16, le=8192)]
    """Recommended canvas width, px."""
    height: Annotated[int, Field(ge=16, le=8192)]
    """Recommended canvas height, px."""
    per_row: tuple[int, ...] = ()
    """Panels in each row from the top: [1, 1, 1] stacks three, [2, 2] is a 2x2."""
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    """Free boxes instead: left, top, width, height of each panel, px."""

    @model_validator(mode="after")
    def _one_kind(self) -> LayoutSpec:
        if bool(self.per_row) == bool(self.boxes):
            raise ValueError("give either per_row or boxes")
        return self

    def build(self) -> Layout:
        if self.per_row:
            return Layout.of_rows(self.per_row, self.width, self.height)
        return Layout.free(self.boxes, self.width, self.height)


class SamplingDefaults(_Frozen):
    """The [sampling] table: what overrides the base's own sampling."""

    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Euler steps; None takes the base's (FLUX.1-dev's are the paper's 20)."""
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    """Guidance value; None takes the base's (FLUX.1-dev's is the paper's 3.5)."""


class Recipe(_Frozen):
    """One in-context task.

    Raises: pydantic.ValidationError for fields that do not fit together; `load_recipe` turns it
    into a RecipeError.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
    summary: str
    """One line: what a set of this task shows."""
    prefix: str = ""
    """Task tag every caption begins with, such as "[MOVIE-SHOTS]"; may be empty."""
    markers: tuple[str, ...]
    """One per panel in reading order, such as "[SCENE-1]"; none for a single picture."""
    instruction: str
    """The instruction for a vision-language model that captions a set of this task."""
    example: str
    """A joint prompt in this recipe's form."""
    usually_known: tuple[int, ...] = ()
    """Panels that are usually given when a set is completed, counted from 1: the logo, the
    photograph, the picture before."""
    layout: LayoutSpec
    sampling: SamplingDefaults = SamplingDefaults()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        try:
            panels = self.canvas.panels
            # A single picture's words are all its own.
            if len(self.markers) != (0 if self.canvas.single else panels):
                raise ValueError(f"{len(self.markers)} markers for {panels} panels")
            if len(set(self.markers)) != len(self.markers):
                raise ValueError("two panels have the same marker")
            for marker in self.markers:
                if not re.fullmatch(r"\[[^\[\]\s]{1,198}\]", marker):
                    raise ValueError(f'marker "{marker}" is not a word in [square brackets]')
            if not set(self.usually_known) < set(range(1, panels + 1)):
                raise ValueError(f"usually_known {list(self.usually_known)} of {panels} panels")
            self.parse(self.example)
        except IcloraError as error:
            raise ValueError(str(error)) from error
        return self

    @cached_property
    def canvas(self) -> Layout:
        """The layout at its recommended size."""
        return self.layout.build()

    def sampled(self, steps: int, guidance: float) -> Recipe:
        """The same recipe; what it leaves open of its sampling is filled in."""
        own = self.sampling
        filled = SamplingDefaults(
            steps=steps if own.steps is None else own.steps,
            guidance=guidance if own.guidance is None else own.guidance,
        )
        return self.model_copy(update={"sampling": filled})

    def same_task(self, other: Recipe) -> bool:
        """True if both differ in their sampling at most."""
        return self == other.model_copy(update={"sampling": self.sampling})

    def parse(self, text: str) -> JointCaption:
        """Read a joint caption with this recipe's markers and prefix. Raises: CaptionError."""
        if self.prefix and not text.lstrip().startswith(self.prefix):
            raise CaptionError(
                f'a caption of "{self.name}" begins with {self.prefix}, this one with '
                f'"{text.strip()[:30]}"',
                f"Put {self.prefix} in front.",
            )
        if self.markers:
            return JointCaption.parse(text, self.markers)
        if has_markers(text, ()):
            raise CaptionError(
                f'a single picture is asked for, and the prompt names panels: "{text[:40]}"',
                "Name the recipe of the set, or leave the markers out.",
            )
        return JointCaption(text, (), ())

    def texts(self, text: str, kind: TextKind) -> tuple[str, ...]:
        """What the base reads of a joint caption: the whole, or a text for each panel.

        A caption without markers is the same for every panel. Raises: CaptionError.
        """
        if kind == "joint" or not self.markers:
            return (text,)
        if not has_markers(text, self.markers):
            return (text,) * len(self.markers)
        return self.parse(text).texts(kind)

    def prompt(self, text: str) -> tuple[str, list[str]]:
        """A user's prompt made ready for the base, and what had to be done or said about it.

        A missing prefix is put in front. A prompt with no marker at all goes through as it is,
        for an adapter makes a set of it all the same; wrong markers do not.

        Raises: CaptionError for an empty prompt or wrong markers.
        """
        text = text.strip()
        notes = []
        if not text:
            raise CaptionError("the prompt is empty", f"Try: {self.example}")
        if self.prefix and not text.startswith(self.prefix):
            text = f"{self.prefix} {text}"
            notes.append(f"put {self.prefix} in front of the prompt, as in training")
        if has_markers(text, self.markers):
            self.parse(text)
        elif self.markers:
            notes.append(
                f"the prompt has no panel markers ({' '.join(self.markers)}), so every panel is "
                f"told the same; see `iclora recipes {self.name}` for the form"
            )
        return text, notes


def recipe_names() -> list[str]:
    """Names of the recipes that ship with iclora."""
    folder = files("iclora") / "sets" / "recipes"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe by its name, or from a TOML file of the user's own. Raises: RecipeError."""
    name = str(name_or_path)
    if name in recipe_names():
        text = (files("iclora") / "sets" / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = read_words(name, RecipeError, "recipe")
    else:
        raise RecipeError(
            f'there is no recipe "{name}", nor a file of that name',
            f"{meant(name)}Use one of {', '.join(recipe_names())}, or the path of a TOML file of "
            "your own.",
        )
    return read_recipe(text, name)


def meant(name: str) -> str:
    """The recipe that somebody meant, as a question; empty if none is near."""
    near = nearest(name, recipe_names())
    return f'Did you mean "{near}"? ' if near else ""


def read_recipe(text: str, source: str) -> Recipe:
    """A recipe from TOML text; `source` names it in errors. Raises: RecipeError."""
    try:
        found = Recipe.model_validate(_tuples(parse_toml(text, f"recipe {source}", RecipeError)))
    except ValidationError as error:
        raise RecipeError(
            f"recipe {source} does not fit together: {problems_of(error)}",
            "Compare it with the recipes that ship with iclora, in its folder recipes/.",
        ) from error
    if found.canvas.single:
        raise RecipeError(
            f"recipe {source} is of a single picture; a set has 2 to 9 panels", "Add a panel."
        )
    return found


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
