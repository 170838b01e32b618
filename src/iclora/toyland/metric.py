"""Toyland's judge as a metric of `iclora evaluate`: what is true of a set, not what looks so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from iclora.errors import SettingsError
from iclora.evaluate.metrics.base import Figures, Made, Metric
from iclora.sets.recipe import Recipe
from iclora.toyland.judge import agreement, diversity, read, stated_right
from iclora.toyland.tasks import TASKS, Task, task_of
from iclora.toyland.wording import traits_said
from iclora.toyland.world import IDENTITY, TOPICS, TRAITS

__all__ = ["Toyland", "open_toyland", "topic_of"]


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
        "diversity": "share of the identity in which the first made panel differs between seeds; "
        "of a single picture the part that its words leave open",
        "as told": "share of all traits that made panels are told and show; style and weather are "
        "taken as told",
        "as the first": "share of the traits that the judge reads alike in the first arm's panel",
        **{f"same {t}": f"share of sets whose panels agree in {t}" for t in TRAITS},
        **{f"carried {t}": f"share of made panels with a given panel's {t}" for t in TRAITS},
        **{f"stated {t}": f"share of made panels that show the {t} they are told" for t in TRAITS},
    }

    def __init__(self) -> None:
        super().__init__("toyland's judge, which reads the truth from pixels")

    def check(self, recipe: Recipe) -> None:
        if task_of(recipe) is None and not recipe.canvas.single:
            raise SettingsError(
                f'toyland has no sets of the recipe "{recipe.name}"',
                f"It knows {', '.join(TASKS)}.",
            )

    def of_sets(self, sets: Iterable[Made]) -> Iterator[Figures]:
        for made in sets:
            seen, figures = _read_all(made), {}
            task = None if made.layout.single else _task(made)
            if task:
                same = agreement(seen, task.relation)
                figures = {f"same {trait}": float(value) for trait, value in same.items()}
            if made.words:
                said = [traits_said(made.words[n], _topic(made)) for n in made.own]
                right = stated_right(said, [seen[n] for n in made.own])
                figures |= {f"stated {t}": float(np.mean(v)) for t, v in right.items()}
                marks = [m for t, v in right.items() if t not in _TAKEN for m in v]
                if marks:
                    figures["as told"] = float(np.mean(marks))
            if task and made.given:
                truth = seen[min(made.given) - 1]
                carried = _carried(task, truth, [seen[n] for n in made.own])
                figures |= {f"carried {t}": float(np.mean(v)) for t, v in carried.items()}
            yield figures

    def across_seeds(self, sets: Sequence[Made]) -> Figures:
        first = sets[0]
        topic, panel = _topic(first), first.own[0]
        told = traits_said(first.words[0], topic) if first.layout.single else ()
        free = [trait for trait in IDENTITY[topic] if trait not in told]
        if not free:
            return {}
        return {"diversity": diversity([_read_all(made)[panel] for made in sets], free)}

    def beside(self, pairs: Iterable[tuple[Made, Made]]) -> Iterator[Figures]:
        for made, first in pairs:
            one, other = _read_all(made), _read_all(first)
            read = [t for t in TOPICS[_topic(made)] if t not in _TAKEN]
            yield {
                "as the first": float(
                    np.mean([one[n][t] == other[n][t] for n in made.own for t in read])
                )
            }


def open_toyland(model: str, device: str, url: str | None) -> Toyland:
    """For `iclora.evaluate.metrics.registry.METRICS`, by an entry point.

    Raises: SettingsError for a model, which this metric does not have.
    """
    del device, url
    if model:
        raise SettingsError(f'there is no metric "toyland:{model}"', "Use toyland.", "metric")
    return Toyland()


_TAKEN = ("style", "weather")
"""Traits that the judge does not read but takes as the task has them, or as the words say."""


_NOUNS = {"emblem": "logo", "letter": "letter", "slide": "slide", "room": "room"}


def topic_of(text: str) -> str:
    """What the words of a single picture are about: the topic of which they say most."""

    def said(topic: str) -> int:
        noun = topic in _NOUNS and re.search(rf"\b{_NOUNS[topic]}\b", text)
        return len(traits_said(text, topic)) + bool(noun)

    return max(TOPICS, key=said)


def _task(made: Made) -> Task:
    found = task_of(made.recipe)
    assert found, "check refuses other recipes"
    return found


def _topic(made: Made) -> str:
    if made.layout.single:
        return topic_of(made.words[0])
    return _task(made).topic


def _read_all(made: Made) -> list[dict[str, str]]:
    """What the judge sees in every panel."""
    topic = _topic(made)
    if made.layout.single:
        fixed: Sequence[Mapping[str, str]] = [traits_said(made.words[0], topic)]
    else:
        fixed = _task(made).fixed
    return [
        read(panel, topic, **{k: v for k, v in own.items() if k in _TAKEN})
        for panel, own in zip(made.panels, fixed, strict=True)
    ]


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
