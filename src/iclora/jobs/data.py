"""Image sets and their words: caption, check, collect, compose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclora.errors import SettingsError
from iclora.jobs.opening import Opener
from iclora.progress import Console, Progress
from iclora.sets.check import Problem, SetReport, check_dataset
from iclora.sets.compose import compose_dataset
from iclora.sets.dataset import MANIFEST, Dataset, open_dataset
from iclora.sets.recipe import load_recipe
from iclora.settings import (
    CaptionSettings,
    CheckSettings,
    CollectSettings,
    ComposeSettings,
    PromptSettings,
)

if TYPE_CHECKING:
    from iclora.sets.collect.likeness import Seer
    from iclora.sets.collect.run import Collected
    from iclora.vlm.caption import Summary

__all__ = [
    "Checked",
    "caption",
    "check",
    "collect",
    "compose",
    "open_seer",
    "prompt",
    "token_budget",
]


@dataclass(frozen=True)
class Checked:
    """What is wrong with a dataset."""

    dataset: Dataset
    reports: tuple[SetReport, ...]

    @property
    def problems(self) -> list[Problem]:
        """Of the dataset as a whole, then of each set."""
        return [*self.dataset.problems, *(p for r in self.reports for p in r.problems)]


def check(settings: CheckSettings, opener: Opener, progress: Progress | None = None) -> Checked:
    """Read every image and caption of a dataset. Raises: IcloraError if it cannot be opened."""
    dataset = open_dataset(settings.data, settings.recipe)
    how: dict[str, Any] = {"resolutions": settings.resolutions, "text": settings.text}
    if settings.base:
        model = opener.rules(settings.base)
        how |= {
            "count_tokens": model.count_tokens,
            "limit": model.max_text_tokens,
            "unknown": model.unknown_letters,
            "grid": model.grid,
        }
    reports = []
    for done, report in enumerate(check_dataset(dataset, **how), 1):
        reports.append(report)
        if progress:
            progress("checking", done, len(dataset.sets), report.name)
    return Checked(dataset, tuple(reports))


def collect(settings: CollectSettings, progress: Progress) -> tuple[Collected, Path | None]:
    """Make image sets of what people have, and a page to look through them.

    Returns: what came of it, and the page. Raises: IcloraError, Cancelled.
    """
    from iclora.sets.collect.run import collect as gather
    from iclora.sets.review import write_review

    seer = open_seer(settings.likeness) if settings.likeness else None
    done = gather(settings, progress, seer)
    if not settings.review:
        return done, None
    page = done.out.with_name(f"{done.out.name}-review.html")
    dataset = open_dataset(done.out)
    reports = []
    for number, report in enumerate(check_dataset(dataset), 1):
        reports.append(report)
        progress("checking", number, len(dataset.sets), report.name)
    write_review(dataset, reports, page)
    return done, page


_ONE_SUBJECT = {"dino": 0.45, "clip": 0.2}
"""1 less the cosine of two pictures of one subject, on average, at most. For real photographs of
one subject DreamBooth (arXiv 2208.12242, table 1) has cosines of 0.774 and 0.885."""


def open_seer(name: str) -> Seer:
    """What compares pictures by a model.

    Args:
        name: "dino:MODEL" or "clip:MODEL", MODEL a folder or a hub id.
    Raises: SettingsError, ModelError.
    """
    from iclora.evaluate.metrics.likeness import Likeness
    from iclora.evaluate.metrics.registry import load_metric
    from iclora.jobs.opening import quiet_loading
    from iclora.sets.collect.likeness import Seer

    kind, _, source = name.partition(":")
    if kind not in _ONE_SUBJECT or not source:
        raise SettingsError(
            f'"{name}" does not compare pictures', "Use dino:MODEL or clip:MODEL.", "likeness"
        )
    quiet_loading()
    model = load_metric(name)
    assert isinstance(model, Likeness)
    return Seer(model.pictures, _ONE_SUBJECT[kind])


def compose(
    source: Dataset, settings: ComposeSettings, progress: Progress, *, own: bool = False
) -> list[Problem]:
    """Join a dataset's sets into composites.

    Args:
        own: True if nobody else writes `out`, so that what is there is an earlier attempt's.
    Returns: what is wrong with the sets. Raises: IcloraError, Cancelled.
    """
    if own and Path(settings.out, MANIFEST).is_file():
        return [*source.problems, *(p for r in check_dataset(source) for p in r.problems)]
    return compose_dataset(
        source,
        settings.out,
        resolution=settings.resolution,
        grid=settings.grid,
        cut_bars=settings.cut_bars,
        progress=progress,
    )


def caption(
    settings: CaptionSettings, dataset: Dataset, console: Console, opener: Opener
) -> Summary:
    """Write joint captions. Returns: the outcome for every set. Raises: IcloraError, Cancelled."""
    from iclora.vlm import load_vision_model
    from iclora.vlm.caption import caption_dataset

    captioner = load_vision_model(
        settings.captioner,
        url=settings.api,
        together=settings.together,
        device=settings.model_device,
        schema=settings.answer_schema,
    )
    whole = settings.send == "composite"
    pictures = "one composite a set" if whole else "the panels of a set one by one"
    for notice in captioner.notices:
        console.say(f"{notice}: {pictures}, no side above {settings.longest_side} px")
    with console.progress() as progress:
        return caption_dataset(
            dataset,
            captioner,
            **token_budget(settings.base, opener),
            text=settings.text,
            send=settings.send,
            longest=settings.longest_side,
            overwrite=settings.overwrite,
            only=settings.only,
            progress=progress,
            warn=console.warn,
        )


def prompt(settings: PromptSettings, console: Console, opener: Opener) -> str:
    """A joint prompt of an idea. Raises: IcloraError."""
    from iclora.vlm import load_vision_model
    from iclora.vlm.caption import write_prompt

    captioner = load_vision_model(
        settings.captioner,
        url=settings.api,
        device=settings.model_device,
        schema=settings.answer_schema,
    )
    for notice in captioner.notices:
        console.warn(notice.replace("pictures and instructions", "the idea and its instruction"))
    budget = token_budget(settings.base, opener) | {"text": settings.text}
    return write_prompt(load_recipe(settings.recipe), settings.idea, captioner, **budget)


def token_budget(base: str | None, opener: Opener) -> dict[str, Any]:
    """How to count tokens, and how many there may be: as this base does."""
    if not base:
        return {}
    model = opener.rules(base)
    return {"count_tokens": model.count_tokens, "limit": model.max_text_tokens}
