"""Working on sets that were made: one panel again, or a story of any length.

Panels that are kept go on as the latents they were decoded from, so nothing drifts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from iclora.adapter import Adapter, AdapterInfo
from iclora.errors import SettingsError
from iclora.files import clear_leftovers
from iclora.files.locks import LOCK, alone
from iclora.making.checks import Note, check_mode, repetitions
from iclora.making.given import describe_given
from iclora.making.made import GeneratedSet, read_kept
from iclora.making.preparing import check_base, machine_of, panel_seed, prepare, recipe_of
from iclora.making.request import Request
from iclora.making.session import Ask, Session
from iclora.making.words import Story, Window, plan_windows, windows
from iclora.models.base import DiffusionModel
from iclora.progress import Progress
from iclora.sets.caption import JointCaption
from iclora.sets.images import write_png
from iclora.sets.recipe import Recipe, load_recipe, recipe_names
from iclora.settings import MakeSettings, Mode

__all__ = ["Story", "Window", "ask_again", "extend", "reroll", "windows"]


def reroll(
    model: DiffusionModel,
    made: GeneratedSet,
    panels: Collection[int],
    *,
    progress: Progress | None = None,
    **how: Any,
) -> GeneratedSet:
    """Make some panels of a set again and leave the others as they are, pixel for pixel.

    Args:
        how: as in `ask_again`.
    Raises: as `ask_again`.
    """
    ask = ask_again(model, made, panels, **how)
    return next(again for _, again in Session(model, progress).make([ask]))


def ask_again(
    model: DiffusionModel,
    made: GeneratedSet,
    panels: Collection[int],
    *,
    seed: int,
    adapter: Adapter | None = None,
    mode: Mode | None = None,
    boost: float | None = None,
    resample: int | None = None,
    resample_from: float | None = None,
) -> Ask:
    """The ask for a set some of whose panels are made again.

    Args:
        made: the set; `GeneratedSet.load` reads one.
        panels: numbers of the panels to make again, counted from 1.
        seed: of their new noise.
        adapter: the one the set was made with; see `asks.load_adapter_of`.
        mode: how they are made around those that stay; by default as the set was completed, or,
            if no panel was given then, clean for adapters trained with `conditional`, else sdedit.
        boost: factor on the attention that panels that stay get, in mode boost; this and what
            follows are by default as the set was made.
        resample: how often an early step is repeated.
        resample_from: the lowest noise level from which steps are repeated.
    Raises: SettingsError for panels that do not exist, if none would stay, or for other weights of
        the base than the set was made with; AdapterError for another adapter.
    """
    given = _that_stay(made, panels)
    check_base(made.request, model)
    old = made.request
    info = adapter.info if adapter else None
    usual: Mode = "clean" if info and info.conditional else "sdedit"
    how = mode or (old.mode if old.given else usual)
    check_mode(model, how, old.text)
    where = [part.path for part in adapter.beside] if adapter else []
    latents = _latents(model, made, given)
    told = {"boost": boost, "resample": resample, "resample_from": resample_from}
    if mode == "resample" and resample is None and not old.resample:
        told["resample"] = repetitions(None, mode)
    request = Request.model_validate(
        old.model_dump()
        | machine_of(model)
        | {
            "adapter": str(adapter.path) if adapter and adapter.path else None,
            # The session compares their hashes, however many there are.
            "beside": [
                each.model_dump() | {"file": path and str(path)}
                for each, path in zip(old.beside, chain(where, repeat(None)), strict=False)
            ],
            "seeds": [
                panel_seed(seed, n) if n in panels else before
                for n, before in enumerate(old.seeds, 1)
            ],
            "given": describe_given(given, latents),
            "mode": how,
            "markers": old.markers or _markers_of(old, info, needed=how == "reference"),
            "isolate_given": bool(how == "clean" and info and info.isolate_given),
        }
        | {name: value for name, value in told.items() if value is not None}
    )
    return Ask(request, given, latents, adapter)


def _markers_of(request: Request, info: AdapterInfo | None, needed: bool) -> tuple[str, ...]:
    """The markers of a request of before, which does not hold them.

    Args:
        needed: True if words change with them.
    Raises: SettingsError if they are needed, and the recipe neither comes with the adapter nor
        ships with iclora.
    """
    if info and info.recipe.name == request.recipe:
        return info.recipe.markers
    if request.recipe in recipe_names():
        return load_recipe(request.recipe).markers
    if needed and "[" in request.prompt:
        raise SettingsError(
            "in mode reference given panels are called by their number in place of their markers, "
            f'and nothing says which those of the recipe "{request.recipe}" are',
            "Complete it instead, with `given` and `recipe`, or choose another `mode`.",
            setting="mode",
        )
    return ()


def _that_stay(made: GeneratedSet, panels: Collection[int]) -> dict[int, Image.Image]:
    every = range(1, len(made.panels) + 1)
    wrong = sorted(set(panels) - set(every))
    if wrong or not panels:
        raise SettingsError(
            f"there is no panel {wrong[0]} in this set" if wrong else "no panel is named",
            f"Name panels 1 to {len(every)}.",
            setting="panel",
        )
    given = {n: made.panels[n - 1] for n in every if n not in panels}
    if not given:
        raise SettingsError("no panel would stay", "Make a new set with `iclora generate`.")
    return given


def _latents(
    model: DiffusionModel, made: GeneratedSet, panels: Collection[int]
) -> dict[int, Tensor]:
    """The latents of these panels, if this base can read them."""
    if not made.latents or made.vae != model.fingerprint("vae"):
        return {}
    return {n: made.latents[n - 1] for n in panels}


# -- stories ------------------------------------------------------------------------------------


def extend(
    model: DiffusionModel,
    story: Story,
    out: Path,
    *,
    settings: MakeSettings | None = None,
    recipe: Recipe | None = None,
    adapter: Adapter | None = None,
    anchors: Sequence[int] = (1,),
    fresh: int | None = None,
    given: Mapping[int, Image.Image] | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _: None,
    show: Callable[[Path], None] = lambda _: None,
    session: Session | None = None,
) -> list[Image.Image]:
    """Make a story of any length by sliding the canvas over panels that are given.

    Writes OUT/01.png and on, one for each image, and every canvas as a set under OUT/windows. What
    is there already from a run that was stopped is taken, if it is what would be made.

    Args:
        settings: how canvases are made; panel seeds count images.
        recipe: by default the one the settings name, else the adapter's.
        anchors: images of the first canvas that stay in view; see `windows`.
        fresh: new images on each further canvas; by default a third of its panels, at least 1.
        given: pictures of images, by number: they stay as they are.
        show: told of every image that is written.
        warn: told what to know of the canvases, and of those that are damaged and made again.
        session: makes them; by default a new one that reports to `progress`.
    Returns: the images in order.
    Raises: CaptionError, SettingsError, also if another process is at it; LayoutError,
        AdapterError, StorageError.
    """
    settings = settings or MakeSettings()
    task = recipe_of(settings.recipe, adapter, recipe)
    panels = task.canvas.panels
    given = dict(given or {})
    plan = plan_windows(story, panels, anchors, fresh, given)
    session = session or Session(model, progress)
    teller = _Teller(model, task, adapter, settings, out, session, warn, show)
    with alone(out / LOCK, out, partial(SettingsError, setting="out")):
        return _tell(teller, story, plan, given, progress)


def _tell(
    teller: _Teller,
    story: Story,
    plan: Sequence[Window],
    given: Mapping[int, Image.Image],
    progress: Progress | None,
) -> list[Image.Image]:
    for folder in (teller.out, teller.out / "windows"):
        clear_leftovers(folder, alone=True)
    prompts = [_prompt(story, window, teller.recipe) for window in plan]
    # Every text is checked before the first picture is made, and encoded once.
    ready = [teller.prepare(w, p) for w, p in zip(plan, prompts, strict=True)]
    teller.session.encode(ask.request for ask, _ in ready)
    # What they say of modes waits until panels are given.
    teller.say(n for _, notes in ready for n in notes if n.about in ("adapter", "prompt"))
    shown: dict[int, _Shown] = {n: (image, None) for n, image in given.items()}
    written: set[int] = set()
    for number, (window, prompt) in enumerate(zip(plan, prompts, strict=True), 1):
        made = teller.tell(window, prompt, shown, f"{number:04d}")
        for image in sorted(made.keys() - written):
            shown[image] = made[image]
            path = teller.out / f"{image:02d}.png"
            write_png(path, made[image][0])
            written.add(image)
            teller.show(path)
        if progress:
            new = " ".join(f"{n:02d}" for n in window.images[-window.made :])
            progress("extending", number, len(plan), f"image {new}")
    return [shown[n][0] for n in sorted(shown)]


_Shown = tuple[Image.Image, Tensor | None]
"""An image of a story and, once it was on a canvas, its latents."""


def _prompt(story: Story, window: Window, recipe: Recipe) -> str:
    texts = [story.images[n - 1] for n in window.images]
    return JointCaption.join(story.overview, texts, recipe.markers, recipe.prefix).render()


@dataclass(frozen=True)
class _Teller:
    """Makes one canvas of a story after another."""

    model: DiffusionModel
    recipe: Recipe
    adapter: Adapter | None
    settings: MakeSettings
    out: Path
    session: Session
    warn: Callable[[str], None]
    show: Callable[[Path], None]
    said: set[str] = field(default_factory=set)

    def say(self, notes: Iterable[Note]) -> None:
        """Tell notes, each once for all canvases."""
        for text in dict.fromkeys(map(str, notes)):
            if text not in self.said:
                self.said.add(text)
                self.warn(text)

    def prepare(
        self, window: Window, prompt: str, given: Mapping[int, _Shown] | None = None
    ) -> tuple[Ask, list[Note]]:
        """The ask for one canvas, and what to know of it.

        Args:
            given: what its given panels show, by panel number.
        """
        # Each image's noise is its own, whichever panel of a canvas it takes.
        own = self.settings.panel_seeds
        seeds = {
            panel: own.get(image, panel_seed(self.settings.seed, image))
            for panel, image in enumerate(window.images, 1)
        }
        pictures = {panel: image for panel, (image, _) in (given or {}).items()}
        latents = {panel: kept for panel, (_, kept) in (given or {}).items() if kept is not None}
        request, notes = prepare(
            self.model,
            self.settings.wish(prompt, panel_seeds=seeds),
            recipe=self.recipe,
            adapter=self.adapter,
            given=pictures,
            latents=latents,
        )
        return Ask(request, pictures, latents, self.adapter), notes

    def tell(
        self, window: Window, prompt: str, shown: Mapping[int, _Shown], name: str
    ) -> dict[int, _Shown]:
        """The images of one canvas by number: read if it was made before, else made and saved."""
        given = {p: shown[image] for p, image in enumerate(window.images, 1) if image in shown}
        if len(given) == len(window.images):
            return {image: shown[image] for image in window.images}
        ask, notes = self.prepare(window, prompt, given)
        if given:
            self.say(notes)
        folder = self.out / "windows" / name
        made = read_kept(folder, ask.request, "a canvas of another story", self.warn, latents=True)
        if made is None:
            made = next(made for _, made in self.session.make([ask]))
            made.save(folder)
        pairs = zip(made.panels, made.latents, strict=True)
        return dict(zip(window.images, pairs, strict=True))
