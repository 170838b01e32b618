"""Captions for image sets: asked for, checked, asked for again, written as they arrive."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from iclora.errors import CaptionError, DatasetError, IcloraError, VisionModelError
from iclora.files import check_file, clear_leftovers, digest, write_text
from iclora.files.locks import alone
from iclora.progress import Progress
from iclora.sets.canvas import compose
from iclora.sets.caption import TOKEN_LIMIT, estimate_tokens
from iclora.sets.check import training_layouts
from iclora.sets.dataset import Dataset, ImageSet, PanelSet, caption_path
from iclora.sets.recipe import Recipe
from iclora.settings import TextKind
from iclora.vlm.asking import (
    Unanswerable,
    Unmarked,
    ask_about,
    ask_for_prompt,
    read_answer,
    shrink,
    whole_text,
)
from iclora.vlm.base import Answer, Ask, Turn, VisionModel
from iclora.vlm.journal import Journal

__all__ = ["FAILURES", "Outcome", "Summary", "caption_dataset", "write_prompt"]

FAILURES = "caption-failures.json"
_JOURNAL = ".iclora-captioning.jsonl"
_LOCK = ".iclora-captioning.lock"
_TRIES = 4
"""The first answer, and three after an objection."""
_KEPT = 2000
"""Characters of an answer that are shown to the model again, or to its user."""
_BLANK = b" \t\r\n\xef\xbb\xbf"
"""White space, and a byte-order mark."""
_AT_ONCE = 16
"""Least sets held in memory together."""
_NO_FORM = "Look at its pictures, or use another `captioner`, which keeps to a form."
_SILENCE = 8
"""Sets in a row without any answer, beyond those asked at once, after which a run stops."""

Send = Literal["panels", "composite"]


@dataclass(frozen=True)
class Outcome:
    """The outcome for one set: its caption, or why it has none."""

    name: str
    caption: str | None
    problem: str = ""
    answer: str = ""
    tries: int = 0
    silence: VisionModelError | None = None
    """The error, if there was no answer at all."""
    advice: str = ""
    """What helps where asking again does not."""


@dataclass
class Summary:
    """The outcome for all sets, in the order of the dataset, whenever each answer came."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Sets that had a caption already, or that the run before overwrote."""
    failed: list[Outcome] = field(default_factory=list)
    read: int = 0
    """Tokens the model read, as far as its server says."""
    wrote: int = 0

    def order(self, names: Sequence[str]) -> None:
        """Put the sets of each list in the order of these names."""
        rank = {name: place for place, name in enumerate(names)}
        self.written.sort(key=rank.__getitem__)
        self.kept.sort(key=rank.__getitem__)
        self.failed.sort(key=lambda outcome: rank[outcome.name])


def caption_dataset(
    dataset: Dataset,
    captioner: VisionModel,
    *,
    count_tokens: Callable[[str], int] = estimate_tokens,
    limit: int = TOKEN_LIMIT,
    text: TextKind = "joint",
    send: Send = "panels",
    longest: int = 768,
    overwrite: bool = False,
    only: Sequence[str] = (),
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Summary:
    """Write a joint caption beside every set that has none.

    Each caption is written as it arrives. A run that was killed, or left sets without a caption,
    goes on where it was, also one that overwrites.

    Args:
        count_tokens, limit: of the base that will be trained.
        text: what a panel will read then; each text that is encoded may have `limit` tokens.
        send: the panels as separate pictures, or the composite.
        longest: px; no picture sent has a longer side.
        overwrite: also replace captions that are there.
        only: names of the sets that are looked at; all if empty.
        progress: told of every set that is done, its Outcome as the value "outcome".
        warn: told of every set that gets no caption, and why.
    Returns: the outcome for every set. Sets without a good caption are also listed in
        `dataset.path / FAILURES`.
    Raises: DatasetError for an archive, which cannot be written into, and if another process is
        at it; VisionModelError if the captioner cannot go on, or many sets in a row get no answer.
    """
    _refuse_unwritable(dataset)
    chosen = _chosen(dataset, only)
    summary, progress = Summary(), progress or Progress()

    def judge(answer: str) -> str:
        return read_answer(answer, dataset.recipe, count_tokens, limit, text).render()

    def look(image_set: ImageSet) -> Ask:
        pictures = _pictures(image_set.load(dataset.recipe), dataset.recipe, send, longest)
        return ask_about(dataset.recipe, pictures, limit, text)

    recipe = dataset.recipe.sampled(20, 3.5).model_dump_json()
    # Not the address: a server may come back at another.
    apart = () if text == "joint" else (text,)
    key = digest(captioner.name, recipe, str(limit), send, str(longest), *apart)
    journal = Journal(dataset.path / _JOURNAL, key)
    with alone(dataset.path / _LOCK, dataset.path, DatasetError):
        _clear(dataset)
        done = {s.name for s in chosen if _has_words(s)}
        if overwrite:
            # Sets that are named are wanted now, whatever an earlier run has overwritten.
            done = set() if only else done & journal.begin()
        summary.kept += [s.name for s in chosen if s.name in done]
        todo = {s.name: s for s in chosen if s.name not in done}
        for place in (dataset.path / FAILURES, *(caption_path(dataset, s) for s in todo.values())):
            check_file(place)  # Before the first question is paid for.
        try:
            outcomes = _all_outcomes(list(todo.values()), captioner, judge, look, summary)
            for count, outcome in enumerate(outcomes, 1):
                place = caption_path(dataset, todo[outcome.name])
                _keep(outcome, place, overwrite, None if only else journal, summary)
                if outcome.caption is None and warn:
                    helps = f"; {outcome.advice}" if outcome.advice else ""
                    warn(f"{outcome.name}: no caption, {outcome.problem}{helps}")
                progress("captioning", count, len(todo), outcome.name, outcome=outcome)
        except VisionModelError as error:
            raise VisionModelError(
                f"{error.problem}; {len(summary.written)} of {len(todo)} captions are written",
                f"{error.advice} The same command goes on with the rest.",
            ) from error
        finally:
            summary.order([s.name for s in chosen])
            _list_failures(dataset.path / FAILURES, summary.failed)
        if overwrite and not only and not summary.failed:
            journal.end()
    return summary


def _chosen(dataset: Dataset, only: Sequence[str]) -> list[ImageSet]:
    """The sets of these names; all if none is named. Raises: DatasetError."""
    unknown = sorted(set(only) - {s.name for s in dataset.sets})
    if unknown:
        raise DatasetError(
            f'there is no set "{unknown[0]}" in {dataset.path}',
            "Name sets as `iclora check` lists them.",
            "only",
        )
    return [s for s in dataset.sets if not only or s.name in only]


def _clear(dataset: Dataset) -> None:
    """Remove captions that a killed run left half-written."""
    for folder in {dataset.path, *(caption_path(dataset, each).parent for each in dataset.sets)}:
        clear_leftovers(folder)


def _refuse_unwritable(dataset: Dataset) -> None:
    """Raises: DatasetError for an archive, and for two sets whose captions would be one file."""
    if not dataset.path.is_dir():
        raise DatasetError(
            f"{dataset.path} is an archive, and captions are written beside the images",
            "Unpack it into a folder first.",
        )
    counts = Counter(image_set.name for image_set in dataset.sets)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise DatasetError(
            f"more than one image set is called {', '.join(twice)}", "Rename or remove the others."
        )
    # Some disks take a.txt and A.txt for one file; folders that differ so prove that this is none.
    files: dict[str, str] = {}
    for image_set in dataset.sets:
        path = str(caption_path(dataset, image_set))
        other = files.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if other != path and image_set.composite:
            raise DatasetError(
                f"{Path(other).name} and {Path(path).name} would be the same caption on a disk "
                "that ignores case",
                "Rename one of their images.",
            )


def _keep(
    outcome: Outcome, place: Path, overwrite: bool, journal: Journal | None, summary: Summary
) -> None:
    """Write one caption, if there is one and nobody else wrote one, and note it."""
    if outcome.caption is None:
        summary.failed.append(outcome)
    elif not overwrite and _written_meanwhile(place):
        # Somebody wrote one while the model was at it.
        summary.kept.append(outcome.name)
    else:
        write_text(place, outcome.caption + "\n")
        summary.written.append(outcome.name)
        if overwrite and journal:
            journal.note(outcome.name)


def _written_meanwhile(place: Path) -> bool:
    """True if there are words at a path, or where a disk that ignores case looks for it."""
    names = {place.name}
    with suppress(OSError):
        names |= {n for n in os.listdir(place.parent) if n.casefold() == place.name.casefold()}  # noqa: PTH208 (names)
    there = [place.with_name(name) for name in names]
    return any(path.is_file() and path.read_bytes().strip(_BLANK) for path in there)


def _all_outcomes(
    todo: Sequence[ImageSet],
    captioner: VisionModel,
    judge: Callable[[str], str],
    look: Callable[[ImageSet], Ask],
    summary: Summary,
) -> Iterator[Outcome]:
    """The outcome for every set, a few in memory at a time.

    Raises: VisionModelError if set after set gets no answer.
    """
    step = max(_AT_ONCE, 2 * captioner.together)
    silent = 0
    for start in range(0, len(todo), step):
        for outcome in _captions(todo[start : start + step], captioner, judge, look, summary):
            yield outcome
            silent = silent + 1 if outcome.silence else 0
            if outcome.silence and silent >= captioner.together + _SILENCE:
                raise VisionModelError(
                    f"{silent} sets in a row got no answer: {outcome.silence.problem}",
                    outcome.silence.advice,
                )


def write_prompt(
    recipe: Recipe,
    idea: str,
    captioner: VisionModel,
    *,
    count_tokens: Callable[[str], int] = estimate_tokens,
    limit: int = TOKEN_LIMIT,
    text: TextKind = "joint",
) -> str:
    """Turn one line into a joint prompt in the recipe's form.

    Args:
        count_tokens, limit, text: as in `caption_dataset`.

    Raises: CaptionError if no answer was any good; VisionModelError if there was none.
    """
    ask = ask_for_prompt(recipe, idea, limit, text)
    summary = Summary()

    def judge(answer: str) -> str:
        return read_answer(answer, recipe, count_tokens, limit, text).render()

    (outcome,) = _until_good({idea: ask}, captioner, judge, summary)
    if outcome.silence:
        raise outcome.silence
    if outcome.caption is None:
        raise CaptionError(
            f"no prompt came of this idea in {outcome.tries} tries: {outcome.problem}",
            "Put the idea differently, or use a larger model.",
        )
    return outcome.caption


def _captions(
    part: Sequence[ImageSet],
    captioner: VisionModel,
    judge: Callable[[str], str],
    look: Callable[[ImageSet], Ask],
    summary: Summary,
) -> Iterator[Outcome]:
    """Outcomes of some sets, those whose pictures cannot be read first."""
    asks = {}
    for image_set in part:
        try:
            asks[image_set.name] = look(image_set)
        except IcloraError as error:
            yield Outcome(image_set.name, None, error.problem)
    yield from _until_good(asks, captioner, judge, summary)


def _until_good(
    asks: dict[str, Ask], captioner: VisionModel, judge: Callable[[str], str], summary: Summary
) -> Iterator[Outcome]:
    """Ask, and ask again with the reason if an answer cannot be used.

    Args:
        judge: makes a caption of an answer, or raises CaptionError.
    """
    free = captioner.without_secrets
    prose: set[str] = set()
    for tries in range(1, _TRIES + 1):
        names = list(asks)
        again: dict[str, Ask] = {}
        for number, reply in captioner.answer([asks[name] for name in names]):
            name = names[number]
            if not isinstance(reply, Answer):
                # The captioner has tried again already, with pauses.
                yield Outcome(
                    name, None, reply.problem, tries=tries, silence=reply, advice=reply.advice
                )
                continue
            summary.read += reply.read
            summary.wrote += reply.written
            text = free(reply.text[:_KEPT])
            try:
                yield Outcome(name, free(judge(whole_text(reply, tries, asks[name]))), tries=tries)
            except Unanswerable as error:
                # An empty answer to the question itself is as good as none.
                problem = free(error.problem)
                none = not text.strip()
                silence = VisionModelError(problem, error.advice, error.setting) if none else None
                yield Outcome(name, None, problem, text, tries, silence, error.advice)
            except CaptionError as error:
                if isinstance(error, Unmarked) and name in prose:
                    problem = f'the model answers in prose, twice: "{" ".join(text.split())[:160]}"'
                    yield Outcome(name, None, problem, text, tries, advice=_NO_FORM)
                    continue
                if isinstance(error, Unmarked):
                    prose.add(name)
                objection = f"That cannot be used: {error.problem}. {error.advice}"
                # Some servers refuse a turn without words.
                turn = Turn(text if text.strip() else "(nothing)", objection, reply.whole)
                again[name] = replace(asks[name], earlier=(turn,))
                if tries == _TRIES:
                    yield Outcome(name, None, free(error.problem), text, tries)
        asks = again
        if not asks:
            return


def _pictures(panels: PanelSet, recipe: Recipe, send: Send, longest: int) -> list[Image.Image]:
    if send == "panels":
        return [shrink(panel, longest) for panel in panels.panels]
    layout = training_layouts(recipe.canvas, panels.sizes)[-1]  # as it will usually be trained
    return [shrink(compose(layout, panels.panels), longest)]


def _has_words(image_set: ImageSet) -> bool:
    """True if somebody wrote a caption; an empty file is none."""
    if image_set.caption_file is None:
        return False
    return bool(image_set.caption_bytes().strip(_BLANK))


def _list_failures(path: Path, failed: Sequence[Outcome]) -> None:
    if not failed:
        path.unlink(missing_ok=True)
        return
    rows = [
        {"set": f.name, "problem": f.problem, "last answer": f.answer, "tries": f.tries}
        for f in failed
    ]
    write_text(path, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
