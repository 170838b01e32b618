"""Arms, and the cases all of them are asked for, checked before anything is made.

OUT/ARM/0001/...       a set as `generate` writes it; numbers mean the same case in every arm
OUT/ARM/times.jsonl    what each cost
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from iclora.adapter import Adapter, Load, load_stack
from iclora.errors import SettingsError
from iclora.files.names import fault_on_windows
from iclora.making.made import GeneratedSet, holds, read_kept
from iclora.making.preparing import prepare
from iclora.making.request import Request
from iclora.models.base import DiffusionModel
from iclora.sets.dataset import Dataset
from iclora.sets.images import check_shown
from iclora.sets.recipe import Recipe
from iclora.settings import Mode, SampleSettings, split_strength

__all__ = ["Arm", "Case", "Setup", "arms_of", "cases_of_data", "cases_of_prompts", "set_up"]

_OTHER = "a set of another evaluation"


@dataclass(frozen=True)
class Arm:
    """One way to make sets."""

    name: str
    adapter: Adapter | None = None
    """None for the base alone."""
    mode: Mode | None = None
    """How panels are made around given ones; None for what `prepare` takes by itself."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Settings in which it differs from the others, such as {"resample": 3}."""

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        plain = re.sub(r"[^\w.+-]+", "-", self.name).strip(".-") or "arm"
        return f"arm-{plain}" if fault_on_windows(plain) else plain


@dataclass(frozen=True)
class Case:
    """One set that every arm is asked for."""

    name: str
    """The prompt's number or the set's name; cases of one name differ in their seed alone."""
    prompt: str
    seed: int
    given: Mapping[int, Image.Image] = field(default_factory=dict)
    """Given panels by number, counted from 1."""
    recipe: Recipe | None = None
    """What it is a set of, if that is not the evaluation's own: a prompt from outside, painted on
    this recipe's canvas."""

    @property
    def key(self) -> str:
        return f"{self.name}, seed {self.seed}"


def arms_of(
    files: Sequence[str], modes: Sequence[Mode | None] = (None,), load: Load = Adapter.load
) -> list[Arm]:
    """The base alone and every adapter, each in every mode.

    Args:
        files: adapter files, each by its path or as NAME=PATH, with =STRENGTH behind it where that
            is not 1; several that are added up are joined by +. Without a name an adapter is
            called by its file, or by its folder if the file is called adapter.
        load: reads one.
    Raises: AdapterError.
    """
    adapters: list[tuple[str, Adapter | None]] = [("base", None)]
    for text in files:
        name, sources = _sources(text)
        adapters.append((name or "+".join(map(_called, sources)), load_stack(sources, load)))
    return [
        Arm(f"{name}, {mode}" if mode else name, adapter, mode)
        for (name, adapter), mode in product(adapters, modes or (None,))
    ]


def _sources(text: str) -> tuple[str, list[str]]:
    """The name, if there is one, and the files of NAME=FILE=STRENGTH+FILE and so on."""
    name, mark, rest = text.partition("=")
    # A=0.7 is a file with its strength, and no name with a file called 0.7.
    begin = rest.split("+", 1)[0]
    strong = "=" not in begin and split_strength(f"file={begin}")[1] is not None
    if not mark or strong or Path(text).exists():
        name, rest = "", text
    whole = Path(split_strength(rest)[0]).exists()
    return name, [rest] if whole else rest.split("+")


def _called(source: str) -> str:
    file = Path(split_strength(source)[0])
    return file.resolve().parent.name if file.stem == "adapter" else file.stem


def cases_of_prompts(
    prompts: Sequence[str], seeds: Sequence[int], given: Mapping[int, Image.Image] | None = None
) -> list[Case]:
    """Every prompt with every seed, around the same given panels, if there are any."""
    return [
        Case(f"prompt {number}", prompt, seed, given or {})
        for number, prompt in enumerate(prompts, 1)
        for seed in seeds
    ]


def cases_of_data(dataset: Dataset, given: Collection[int], seeds: Sequence[int]) -> list[Case]:
    """Every set of a dataset made again from its caption, around its own panels of these numbers.

    Raises: DatasetError, ImageError, CaptionError for a set that cannot be read; SettingsError.
    """
    panels = dataset.recipe.canvas.panels
    wrong = sorted(set(given) - set(range(1, panels + 1)))
    if wrong:
        raise SettingsError(
            f"there is no panel {wrong[0]}; sets of {dataset.recipe.name} have {panels}",
            f"Name panels 1 to {panels}.",
            setting="given",
        )
    found = []
    for image_set in dataset.sets:
        own: dict[int, Image.Image] = {}
        if given:
            pictures = image_set.load(dataset.recipe).panels
            own = {n: pictures[n - 1] for n in sorted(given)}
            for number, picture in own.items():
                check_shown(picture, f'panel {number} of set "{image_set.name}"')
        found += [Case(image_set.name, image_set.caption(), seed, own) for seed in seeds]
    return found


@dataclass(frozen=True)
class Setup:
    """Everything that will be made and measured, checked in full."""

    recipe: Recipe
    """Of the cases that have none of their own."""
    arms: tuple[Arm, ...]
    """All are compared with the first."""
    cases: tuple[Case, ...]
    requests: Mapping[str, tuple[Request, ...]]
    """By arm, one per case."""
    out: Path
    notes: tuple[str, ...]

    @property
    def recipes(self) -> list[Recipe]:
        """All that cases are of, in their order."""
        return list({r.name: r for r in map(self.recipe_of, self.cases)}.values())

    @property
    def outside(self) -> bool:
        """Whether prompts come from outside a task, so that sets are compared with the base's."""
        return any(case.recipe for case in self.cases)

    def recipe_of(self, case: Case) -> Recipe:
        """What the case is a set of."""
        return case.recipe or self.recipe

    def folder(self, arm: Arm, number: int) -> Path:
        """The folder of an arm's set for case `number`, from 0."""
        return self.out / arm.folder / f"{number + 1:04d}"

    def is_made(self, arm: Arm, number: int) -> bool:
        """True if a set is there, by its request. Raises: SettingsError if it is another one."""
        return holds(self.folder(arm, number), self.requests[arm.name][number], _OTHER)

    def kept(
        self, arm: Arm, number: int, warn: Callable[[str], None] = lambda _: None
    ) -> GeneratedSet | None:
        """The set that is there, None if there is none; a damaged one is set aside, and said.

        Raises: SettingsError if it is another one; StorageError.
        """
        folder, request = self.folder(arm, number), self.requests[arm.name][number]
        return read_kept(folder, request, _OTHER, warn, latents=False)


def set_up(
    model: DiffusionModel,
    recipe: Recipe,
    arms: Sequence[Arm],
    cases: Sequence[Case],
    out: Path,
    settings: SampleSettings | None = None,
) -> Setup:
    """Turn arms and cases into requests; nothing is computed.

    All arms paint a case on the same canvas from the same noise: the first adapter's canvas, if
    there is one of the case's recipe.

    Args:
        recipe: of the cases that have none of their own.
        out: a new folder, or one that a stopped evaluation of the same setup left.
        settings: how sets are sampled; the seed is each case's own.
    Raises: SettingsError, CaptionError, LayoutError; SettingsError if `out` holds other sets.
    """
    _check(arms, cases, out)
    settings = settings or SampleSettings()
    shaping = next((a.adapter for a in arms if a.adapter and a.adapter.info), None)
    notes = _notes_of_adapters(arms)
    requests: dict[str, list[Request]] = {arm.name: [] for arm in arms}
    for case in cases:
        of, own = (case.recipe, {"size": None}) if case.recipe else (recipe, {})
        # Texts as the first arm reads them: a long one may fit panel by panel alone.
        text = {"text": arms[0].own["text"]} if "text" in arms[0].own else {}
        wish = settings.wish(case.prompt, seed=case.seed, **own, **text)
        first, _ = prepare(model, wish, recipe=of, adapter=shaping, given=case.given)
        for arm in arms:
            request, said = prepare(
                model,
                settings.wish(case.prompt, seed=case.seed, mode=arm.mode, **own, **arm.own),
                recipe=of,
                adapter=arm.adapter,
                layout=first.layout,
                given=case.given,
            )
            requests[arm.name].append(request)
            notes += [f"{arm.name}: {n}" if n.about == "adapter" else str(n) for n in said]
    notes += _notes_of_texts(arms, requests)
    found = Setup(
        recipe,
        tuple(arms),
        tuple(cases),
        {name: tuple(each) for name, each in requests.items()},
        out,
        tuple(dict.fromkeys(notes)),
    )
    for arm in arms:
        for number in range(len(cases)):
            found.is_made(arm, number)
    return found


def _notes_of_texts(arms: Sequence[Arm], requests: Mapping[str, Sequence[Request]]) -> list[str]:
    """What to know of arms whose panels read other texts, although nobody asked for it."""
    own = [arm.name for arm in arms if "text" not in arm.own]
    for case in zip(*(requests[name] for name in own), strict=True):
        kinds, texts = {r.text for r in case}, {r.texts for r in case}
        # A single picture reads the same in any way.
        if len(kinds) > 1 and len(texts) > 1:
            told = ", ".join(f"{r.text} in {name}" for name, r in zip(own, case, strict=True))
            return [f"panels read other texts by arm: {told}; set `text` to compare adapters alone"]
    return []


def _notes_of_adapters(arms: Sequence[Arm]) -> list[str]:
    """What their readers said of the adapters; each once, though it may stand in several arms."""
    found: dict[int, list[str]] = {}
    for arm in arms:
        if arm.adapter:
            said = [f"{arm.name}: {note}" for note in arm.adapter.notes]
            found.setdefault(id(arm.adapter), said)
    return [note for notes in found.values() for note in notes]


def _check(arms: Sequence[Arm], cases: Sequence[Case], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file", "Give a folder for `out`.", setting="out")
    folders = [arm.folder.lower() for arm in arms]
    for arm, folder in zip(arms, folders, strict=True):
        if folders.count(folder) > 1:
            raise SettingsError(
                f'two arms are called "{arm.name}"',
                "Name them in `adapter`: NAME=FILE.",
                setting="adapter",
            )
    if any(arm.mode for arm in arms) and not all(case.given for case in cases):
        raise SettingsError(
            "modes say how panels are made around given ones, and no panel is given",
            "Set `given`, or leave `mode` out.",
            setting="mode",
        )
