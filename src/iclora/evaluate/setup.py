"""Arms, and what all of them are asked for, checked before anything is made.

OUT/ARM/0001/...       a set as `generate` writes it; numbers mean the same request in every arm
OUT/ARM/times.jsonl    what each cost
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from iclora.adapter import Adapter
from iclora.errors import SettingsError
from iclora.making.request import Request, prepare
from iclora.models.base import DiffusionModel
from iclora.sets.dataset import Dataset
from iclora.sets.recipe import Recipe
from iclora.settings import Mode, SampleSettings, settings_of

__all__ = [
    "Arm",
    "Plan",
    "Wish",
    "arms_of",
    "is_made",
    "plan",
    "wishes_of_data",
    "wishes_of_prompts",
]


@dataclass(frozen=True)
class Arm:
    """One way to make sets.

    Attributes:
        adapter: None for the base alone.
        mode: how panels are made around known ones; None for what `prepare` takes by itself.
    """

    name: str
    adapter: Adapter | None = None
    mode: Mode | None = None

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^\w.+-]+", "-", self.name).strip(".-") or "arm"


@dataclass(frozen=True)
class Wish:
    """One set that every arm is asked for.

    Attributes:
        asked: what makes it comparable to other seeds: the prompt's number or the set's name.
        known: given panels by number, counted from 1.
    """

    asked: str
    prompt: str
    seed: int
    known: Mapping[int, Image.Image] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.asked}, seed {self.seed}"


def arms_of(files: Sequence[str], modes: Sequence[Mode | None] = (None,)) -> list[Arm]:
    """The base alone and every adapter, each in every mode.

    Args:
        files: adapter files, each by its path or as NAME=PATH. Without a name one is called by its
            file, or by its folder where the file is called adapter.
    Raises: AdapterError.
    """
    adapters: list[tuple[str, Adapter | None]] = [("base", None)]
    for text in files:
        name, mark, path = text.partition("=")
        if not mark or Path(text).exists():
            name, path = "", text
        file = Path(path)
        own = file.resolve().parent.name if file.stem == "adapter" else file.stem
        adapters.append((name or own, Adapter.load(file)))
    return [
        Arm(f"{name}, {mode}" if mode else name, adapter, mode)
        for (name, adapter), mode in product(adapters, modes or (None,))
    ]


def wishes_of_prompts(
    prompts: Sequence[str], seeds: Sequence[int], known: Mapping[int, Image.Image]
) -> list[Wish]:
    """Every prompt with every seed, around the same known panels, if there are any."""
    return [
        Wish(f"prompt {number}", prompt, seed, known)
        for number, prompt in enumerate(prompts, 1)
        for seed in seeds
    ]


def wishes_of_data(dataset: Dataset, known: Collection[int], seeds: Sequence[int]) -> list[Wish]:
    """Every set of a dataset made again from its caption, around its own panels of these numbers.

    Raises: DatasetError, ImageError, CaptionError for a set that cannot be read; SettingsError.
    """
    panels = dataset.recipe.canvas.panels
    wrong = sorted(set(known) - set(range(1, panels + 1)))
    if wrong:
        raise SettingsError(
            f"there is no panel {wrong[0]}; sets of {dataset.recipe.name} have {panels}",
            f"Name panels 1 to {panels}.",
        )
    found = []
    for image_set in dataset.sets:
        given: dict[int, Image.Image] = {}
        if known:
            pictures = image_set.load(dataset.recipe).panels
            given = {n: pictures[n - 1] for n in sorted(known)}
        found += [Wish(image_set.name, image_set.caption(), seed, given) for seed in seeds]
    return found


@dataclass(frozen=True)
class Plan:
    """Everything that will be made, checked in full."""

    recipe: Recipe
    arms: tuple[Arm, ...]
    wishes: tuple[Wish, ...]
    requests: Mapping[str, tuple[Request, ...]]
    """By arm, one per wish."""
    out: Path
    notes: tuple[str, ...]

    def folder(self, arm: Arm, number: int) -> Path:
        """Where wish `number`, from 0, of an arm lies."""
        return self.out / arm.folder / f"{number + 1:04d}"


def plan(
    model: DiffusionModel,
    recipe: Recipe,
    arms: Sequence[Arm],
    wishes: Sequence[Wish],
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    **how: Any,
) -> Plan:
    """Turn arms and wishes into requests; nothing is computed.

    All arms paint a wish on the same canvas from the same noise: the first adapter's canvas where
    there is one.

    Args:
        out: a new folder, or one that a stopped evaluation of the same plan left.
        how: steps, guidance, strength, boost, resample, resample_from; see `prepare`.
    Raises: SettingsError, CaptionError, LayoutError; SettingsError if `out` holds other sets.
    """
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file", "Give a folder.")
    folders = [arm.folder.lower() for arm in arms]
    for arm, folder in zip(arms, folders, strict=True):
        if folders.count(folder) > 1:
            raise SettingsError(
                f'two arms are called "{arm.name}"', "Name them: --adapter NAME=FILE."
            )
    if any(arm.mode for arm in arms) and not all(wish.known for wish in wishes):
        raise SettingsError(
            "modes say how panels are made around known ones, and no panel is known",
            "Add --known, or leave --mode out.",
        )
    shaping = next((a.adapter for a in arms if a.adapter and a.adapter.info), None)
    notes: list[str] = []
    requests: dict[str, list[Request]] = {arm.name: [] for arm in arms}
    for wish in wishes:
        shape = SampleSettings(size=size).wish(wish.prompt)
        first, _ = prepare(model, shape, recipe=recipe, adapter=shaping, given=wish.known)
        for arm in arms:
            request, said = prepare(
                model,
                settings_of(SampleSettings, how).wish(wish.prompt, seed=wish.seed, mode=arm.mode),
                recipe=recipe,
                adapter=arm.adapter,
                layout=first.layout,
                given=wish.known,
            )
            requests[arm.name].append(request)
            notes += [f"{arm.name}: {n}" if n.about == "adapter" else str(n) for n in said]
    found = Plan(
        recipe,
        tuple(arms),
        tuple(wishes),
        {name: tuple(r) for name, r in requests.items()},
        out,
        tuple(dict.fromkeys(notes)),
    )
    for arm in arms:
        for number in range(len(wishes)):
            is_made(found, arm, number)
    return found


def is_made(planned: Plan, arm: Arm, number: int) -> bool:
    """Whether a set is there. Raises: SettingsError if it is another one."""
    folder = planned.folder(arm, number)
    if not folder.exists():
        return False
    there, _ = Request.load(folder / "request.json")
    if not there.same_pixels(planned.requests[arm.name][number]):
        raise SettingsError(
            f"{folder} holds a set of another evaluation, or of this one with other settings",
            "Choose another --out, or remove it.",
        )
    return True
