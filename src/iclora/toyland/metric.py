"""Toyland's judge as a metric of `iclora evaluate`: what is true of a set, not what looks so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from iclora.errors import SettingsError
from iclora.evaluate.metrics.base import Figures, Made, Metric
from iclora.sets.recipe import Recipe
from iclora.toyland.judge import agreement, diversity, read, stated_right
from iclora.toyland.tasks import TASKS, Task
from iclora.toyland.wording import traits_said
from iclora.toyland.world import IDENTITY, TRAITS

__all__ = ["Toyland", "open_toyland"]


class Toyland(Metric):
    """Whether panels agree, show what they are told, and carry over what is given.

    It reads every trait from the pixels.
    """

    name = "toyland"
    main = "same all"
    figures: ClassVar[Mapping[str, str]] = {
        "same all": "share of sets whose panels agree in all they should share",
        "carried all": "share of made panels with all of a given panel's identity",
        "carried all but pose": "the same without the pose, which toyland's base cannot copy",
        "diversity": "share of the identity in which the first made panel differs between seeds",
        **{f"same {t}": f"share of sets whose panels agree in {t}" for t in TRAITS},
        **{f"carried {t}": f"share of made panels with a given panel's {t}" for t in TRAITS},
        **{f"stated {t}": f"share of made panels that show the {t} they are told" for t in TRAITS},
    }

    def __init__(self) -> None:
        super().__init__("toyland's judge, which reads the truth from pixels")

    def check(self, recipe: Recipe) -> None:
        if recipe.name not in TASKS:
            raise SettingsError(
                f'toyland has no sets of the recipe "{recipe.name}"',
                f"It knows {', '.join(TASKS)}.",
            )

    def of_sets(self, sets: Iterable[Made]) -> Iterator[Figures]:
        for made in sets:
            task = TASKS[made.recipe.name]
            seen = [_read(panel, task, n) for n, panel in enumerate(made.panels)]
            same = agreement(seen, task.relation)
            figures = {f"same {trait}": float(value) for trait, value in same.items()}
            if made.words:
                said = [traits_said(made.words[n], task.topic) for n in made.own]
                right = stated_right(said, [seen[n] for n in made.own])
                figures |= {f"stated {t}": float(np.mean(v)) for t, v in right.items()}
            if made.given:
                truth = seen[min(made.given) - 1]
                carried = _carried(task, truth, [seen[n] for n in made.own])
                figures |= {f"carried {t}": float(np.mean(v)) for t, v in carried.items()}
            yield figures

    def across_seeds(self, sets: Sequence[Made]) -> Figures:
        task, panel = TASKS[sets[0].recipe.name], sets[0].own[0]
        seen = [_read(made.panels[panel], task, panel) for made in sets]
        return {"diversity": diversity(seen, IDENTITY[task.topic])}


def open_toyland(model: str, device: str, url: str | None) -> Toyland:
    """For `iclora.evaluate.metrics.registry.METRICS`, by an entry point."""
    del model, device, url
    return Toyland()


def _read(panel: Image.Image, task: Task, number: int) -> dict[str, str]:
    """What the judge sees; style and weather are taken as the task has them."""
    fixed = task.fixed[number]
    return read(panel, task.topic, **{k: v for k, v in fixed.items() if k in ("style", "weather")})


def _carried(
    task: Task, truth: Mapping[str, str], seen: Sequence[Mapping[str, str]]
) -> dict[str, list[bool]]:
    """For each trait of the relation: True for each panel that has the given one's."""
    right = {t: [panel[t] == truth[t] for panel in seen] for t in task.relation}
    rest = [right[t] for t in task.relation if t != "pose"]
    found = {**right, "all": [all(row) for row in zip(*right.values(), strict=True)]}
    if "pose" in right:
        # The base copies no pose (docs/toyland.md), which would hide the rest.
        found["all but pose"] = [all(row) for row in zip(*rest, strict=True)]
    return found
