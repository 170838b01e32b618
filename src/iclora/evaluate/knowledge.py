"""Prompts from outside an adapter's task: of single pictures, and of other recipes.

What an adapter leaves of the base is seen where it was not trained: each prompt is painted by the
base and by the adapter at several strengths, from the same noise. The arms are compared as in any
evaluation; in addition metrics measure how far each picture is from the base's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from iclora.errors import CaptionError, SettingsError
from iclora.evaluate.setup import Arm, Case
from iclora.making.words import read_prompts
from iclora.sets.recipe import LayoutSpec, Recipe, load_recipe

__all__ = ["SINGLE", "STRENGTHS", "at_strengths", "cases_from_outside", "read_outside", "single"]

STRENGTHS = (0.0, 0.5, 1.0)
"""Of every adapter, unless told otherwise. At 0 it must paint what the base paints."""

SINGLE = Recipe(
    name="single-picture",
    summary="One picture, as the base paints it without any set.",
    markers=(),
    instruction="Describe this picture in one or two sentences.",
    example="A lighthouse on a cliff at dusk, waves breaking below.",
    layout=LayoutSpec(width=1024, height=1024, boxes=((0, 0, 1024, 1024),)),
)
"""What prompts of single pictures are painted as."""


def single(size: tuple[int, int] | None = None) -> Recipe:
    """The recipe of single pictures of this width and height, px; 1024x1024 by default."""
    if size is None:
        return SINGLE
    width, height = size
    layout = {"width": width, "height": height, "boxes": ((0, 0, width, height),)}
    return Recipe.model_validate({**SINGLE.model_dump(), "layout": layout})


def read_outside(
    files: Sequence[str], size: tuple[int, int] | None = None
) -> dict[str, tuple[Recipe, tuple[str, ...]]]:
    """The prompts of files, [RECIPE=]FILE each, by the name of their recipe.

    Args:
        files: of a recipe's prompts (its name, or a TOML file), or of single pictures.
        size: of single pictures, px.
    Raises: SettingsError for an empty file, or a recipe that is named twice; RecipeError.
    """
    found: dict[str, tuple[Recipe, tuple[str, ...]]] = {}
    for text in files:
        name, _, file = text.rpartition("=")
        recipe = load_recipe(name) if name else single(size)
        lines = read_prompts(file, "knowledge").lines
        if not lines or recipe.name in found:
            why = f"{recipe.name} is named twice" if lines else f"{file} holds no prompt"
            raise SettingsError(why, "Give one file for each recipe.", setting="knowledge")
        found[recipe.name] = recipe, lines
    return found


def cases_from_outside(
    prompts: Mapping[str, tuple[Recipe, Sequence[str]]], seeds: Sequence[int]
) -> list[Case]:
    """Every prompt with every seed; recipes take turns, so that the first cases show all kinds.

    Args:
        prompts: by name, a recipe and its prompts.
    Raises: CaptionError for a prompt that is not of its recipe's form.
    """
    found = []
    for number in range(max((len(lines) for _, lines in prompts.values()), default=0)):
        for name, (recipe, lines) in prompts.items():
            if number >= len(lines):
                continue
            try:
                recipe.parse(recipe.prompt(lines[number])[0])
            except CaptionError as error:
                raise CaptionError(
                    f"prompt {number + 1} of {name}: {error.problem}", error.advice
                ) from error
            found += [
                Case(f"{name}, prompt {number + 1}", lines[number], seed, recipe=recipe)
                for seed in seeds
            ]
    return found


def at_strengths(arms: Sequence[Arm], strengths: Sequence[float]) -> list[Arm]:
    """Every arm with an adapter at each of these strengths; the base as it is."""
    found: list[Arm] = []
    for arm in arms:
        if arm.adapter is None:
            found.append(arm)
            continue
        found += [
            replace(arm, name=f"{arm.name} at {each:g}", own={**arm.own, "strength": each})
            for each in strengths
        ]
    return found
