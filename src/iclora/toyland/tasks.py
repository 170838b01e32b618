"""Tuning sets in toyland: small versions of the recipes, each with a relation nobody mentions.

The recipes' own canvases are a megapixel, toyland's panels are 64 px: a task shares its recipe's
name, prefix, markers and arrangement, and has a canvas and an example of its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from iclora.files import digest, write_text
from iclora.sets.images import write_png
from iclora.sets.recipe import Recipe, load_recipe
from iclora.toyland.wording import NAMES, Caption, write_caption
from iclora.toyland.world import ARRANGEMENTS, TRAITS, Canvas, Panel, draw_traits

__all__ = [
    "TASKS",
    "TUNING",
    "Task",
    "draw_set",
    "draw_tuning_set",
    "held_out",
    "task_of",
    "write_sets",
]


@dataclass(frozen=True)
class Task:
    """One recipe in toyland."""

    recipe: str
    """The recipe's name."""
    arrangement: str
    """Key of `world.ARRANGEMENTS`."""
    topic: str
    """What its panels show."""
    relation: tuple[str, ...]
    """Traits that all panels of a set share; the prompt never states them."""
    stated: tuple[str, ...]
    """Traits that every panel's own words state."""
    fixed: tuple[Mapping[str, str], ...]
    """Traits each panel has by the task's nature, one mapping per panel."""
    opening: str = ""
    """The overview's words; "" for any that fit."""
    named: bool = False
    """True if the character bears a name."""
    says_fixed: tuple[str, ...] = ()
    """Traits out of `fixed` that the words state."""

    @property
    def small_recipe(self) -> Recipe:
        """The recipe with toyland's canvas and an example in toyland's words."""
        width, height = ARRANGEMENTS[self.arrangement].size
        full = load_recipe(self.recipe)
        caption = draw_set(self, random.Random(f"example {self.recipe}"))[1]
        values = full.model_dump()
        values["layout"] |= {"width": width, "height": height}
        return Recipe.model_validate({**values, "example": caption.text})

    @property
    def resolution(self) -> int:
        """What `TrainSettings.resolutions` needs for panels of their own size, px."""
        width, height = ARRANGEMENTS[self.arrangement].size
        side = int((width * height) ** 0.5)
        return side if side**2 == width * height else side + 1


_LOOKS = ("kind", "colour", "headwear")
_CLEAR = {"style": "flat", "weather": "clear"}
_PHOTO = {"style": "photo", "weather": "clear"}

TASKS: dict[str, Task] = {
    task.recipe: task
    for task in (
        Task(
            "film-storyboard",
            "storyboard",
            "character",
            _LOOKS,
            ("scene", "position", "pose"),
            (_CLEAR,) * 3,
            named=True,
        ),
        Task(
            "portrait-photography",
            "grid",
            "character",
            _LOOKS,
            ("scene", "pose"),
            (_PHOTO,) * 4,
            opening="[FOUR-PANEL] Portraits",
            says_fixed=("style",),
        ),
        Task(
            "portrait-illustration",
            "side by side",
            "character",
            (*_LOOKS, "pose", "position"),
            ("scene",),
            (_PHOTO, {**_CLEAR, "scene": "studio"}),
            says_fixed=("style",),
        ),
        Task(
            "sandstorm-effect",
            "stacked",
            "character",
            (*_LOOKS, "scene", "pose", "position"),
            (),
            (_CLEAR, {"style": "flat", "weather": "sandstorm"}),
            says_fixed=("weather",),
        ),
        Task(
            "visual-identity",
            "side by side",
            "emblem",
            ("shape", "colour"),
            ("carrier",),
            ({"carrier": "paper"}, {}),
        ),
        Task(
            "font-design",
            "grid",
            "letter",
            ("colour", "stroke", "slant", "ground"),
            ("letter",),
            ({},) * 4,
        ),
        Task("ppt-template", "grid", "slide", ("colour", "motif", "ground"), ("slide",), ({},) * 4),
        Task("home-decoration", "grid", "room", ("colour", "wall", "floor"), ("room",), ({},) * 4),
    )
}
"""The tasks by recipe name."""


def task_of(recipe: Recipe) -> Task | None:
    """The task that a recipe is of, by its name, else by its words: copies have other names."""
    return TASKS.get(recipe.name) or _by_words().get(_words(recipe))


@cache
def _by_words() -> Mapping[tuple[str, ...], Task]:
    return {_words(load_recipe(name)): task for name, task in TASKS.items()}


def _words(recipe: Recipe) -> tuple[str, ...]:
    return recipe.prefix, recipe.summary, *recipe.markers


TUNING: Mapping[str, Any] = {
    "steps": 300,
    "batch": 8,
    "micro_batch": 8,
    "lr": 1e-3,
    "ema": 0.98,
    # The base was pre-trained with this draw: what a set shares is settled in the noise.
    "sigma_mean": 1.0,
    "sigma_std": 1.3,
    "gradient_checkpointing": False,
}
"""Settings of a run that fit toyland, where they differ from the paper's."""


def held_out(traits: Mapping[str, str], relation: tuple[str, ...]) -> bool:
    """True for a fifth of all combinations of shared traits: those are kept from tuning."""
    return int(digest(*(traits[t] for t in sorted(relation)))[:8], 16) % 5 == 0


def draw_set(task: Task, rng: random.Random, *, unseen: bool = False) -> tuple[Canvas, Caption]:
    """One set of a task and its caption.

    Args:
        unseen: draw a combination that is held out of tuning instead of one that is not.
    """
    count = ARRANGEMENTS[task.arrangement].panels
    while True:
        shared = draw_traits(rng, task.topic)
        if held_out(shared, task.relation) == unseen:
            break
    traits = []
    for fixed in task.fixed:
        own = {**draw_traits(rng, task.topic), **{t: shared[t] for t in task.relation}, **fixed}
        traits.append(own)
    if task.topic in ("letter", "slide", "room"):
        # Four different letters, slides, rooms.
        first = task.stated[0]
        values = rng.sample(TRAITS[first], count)
        for own, value in zip(traits, values, strict=True):
            own[first] = value
    elif task.topic == "emblem":
        traits[1]["carrier"] = rng.choice(("mug", "bag", "shirt", "sign"))
    seeds = (
        [rng.randrange(2**31)] * count
        if task.recipe == "sandstorm-effect"
        else [rng.randrange(2**31) for _ in range(count)]
    )
    panels = tuple(Panel(task.topic, t, s) for t, s in zip(traits, seeds, strict=True))
    canvas = Canvas(task.arrangement, panels)
    caption = write_caption(
        rng,
        canvas,
        [(*task.stated, *task.says_fixed)] * count,
        prefix=load_recipe(task.recipe).prefix,
        name=rng.choice(NAMES) if task.named else "",
        opening=task.opening or None,
    )
    return canvas, caption


def draw_tuning_set(task: Task, seed: int, number: int) -> tuple[Canvas, Caption]:
    """Set `number`, from 0, of a task's tuning sets."""
    return draw_set(task, random.Random(f"tuning {task.recipe} {seed} {number}"))


def write_sets(
    task: Task, folder: Path, count: int, seed: int = 0, *, captions: bool = True
) -> None:
    """Write a dataset as `iclora train` reads it: a folder per set, captions, the small recipe."""
    recipe = task.small_recipe.model_dump(mode="json", exclude_defaults=True)
    write_text(folder / f"{task.recipe}-toyland.toml", tomli_w.dumps(recipe))
    write_text(folder / "iclora.toml", tomli_w.dumps({"recipe": f"{task.recipe}-toyland.toml"}))
    for number in range(count):
        canvas, caption = draw_tuning_set(task, seed, number)
        place = folder / f"{number + 1:04d}"
        for i, panel in enumerate(canvas.panels, 1):
            write_png(place / f"{i}.png", panel.render())
        if captions:
            write_text(place / "caption.txt", caption.text + "\n")
