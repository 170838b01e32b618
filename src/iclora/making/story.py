"""Working on sets that were made: one panel again, or a story of any length.

Panels that are kept go on as the latents they were decoded from, so nothing drifts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from iclora.adapter import Adapter
from iclora.errors import SettingsError
from iclora.files import digest
from iclora.making.generate import Progress, run, use
from iclora.making.request import GeneratedSet, Request, describe_known, prepare
from iclora.models.base import DiffusionModel
from iclora.sets.caption import JointCaption
from iclora.sets.images import write_png
from iclora.sets.recipe import Recipe

__all__ = ["Story", "Window", "extend", "reroll", "windows"]


def reroll(
    model: DiffusionModel,
    made: GeneratedSet,
    panels: Collection[int],
    *,
    seed: int,
    adapter: Adapter | None = None,
    on_step: Progress | None = None,
) -> GeneratedSet:
    """Make some panels of a set again and leave the others as they are, pixel for pixel.

    Args:
        made: the set; `GeneratedSet.load` reads one.
        panels: numbers of the panels to make again, counted from 1.
        seed: of their new noise.
        adapter: the one the set was made with; see `request.load_adapter_of`.
    Raises: SettingsError for panels that do not exist, or if none would stay.
    """
    every = range(1, len(made.panels) + 1)
    wrong = sorted(set(panels) - set(every))
    if wrong or not panels:
        raise SettingsError(
            f"there is no panel {wrong[0]} in this set" if wrong else "no panel is named",
            f"Name panels 1 to {len(every)}.",
        )
    known = {n: made.panels[n - 1] for n in every if n not in panels}
    if not known:
        raise SettingsError("no panel would stay", "Make a new set with `iclora generate`.")
    latents = _kept(model, made, known)
    info = adapter.info if adapter else None
    learnt = bool(info and info.conditional)
    values = made.request.model_dump() | {
        "seeds": [
            _seed(seed, n) if n in panels else old
            for n, old in zip(every, made.request.seeds, strict=True)
        ],
        "known": describe_known(known, latents),
        "mode": "clean" if learnt else "sdedit",
        "isolate_given": bool(learnt and info and info.isolate_given),
    }
    use(model, adapter, made.request.strength)
    return run(model, Request.model_validate(values), known, latents=latents, on_step=on_step)


def _kept(model: DiffusionModel, made: GeneratedSet, panels: Collection[int]) -> dict[int, Tensor]:
    """The latents of these panels, if this base can read them."""
    if not made.latents or made.vae != model.fingerprint("vae"):
        return {}
    return {n: made.latents[n - 1] for n in panels}


def _seed(seed: int, number: int) -> int:
    return int(digest("seed", str(seed), str(number))[:8], 16)


# -- stories ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """What a row of pictures is to show."""

    overview: str
    """What they share."""
    images: tuple[str, ...]
    """Each one's own words."""

    @classmethod
    def read(cls, path: str | Path) -> Story:
        """A text file: the overview in the first line, then a line for every image.

        Raises: SettingsError.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"story {path} cannot be read: {error}", "Check the file."
            ) from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise SettingsError(
                f"story {path} has {len(lines)} lines",
                "Write what all images share into the first line, then a line for each image.",
            )
        return cls(lines[0], tuple(lines[1:]))


@dataclass(frozen=True)
class Window:
    """One canvas of a story: which image each of its panels shows, counted from 1."""

    images: tuple[int, ...]
    made: int
    """How many of them, the last ones, are made here; the others are known."""

    @property
    def known(self) -> dict[int, int]:
        """Known images by panel number."""
        return dict(enumerate(self.images[: len(self.images) - self.made], 1))


def windows(count: int, panels: int, anchors: Sequence[int], fresh: int) -> list[Window]:
    """Slide a canvas of `panels` over `count` images.

    The first canvas is made whole; each further one shows the anchors, the latest images that fit,
    and `fresh` new ones.

    Args:
        anchors: images of the first canvas that stay in view, counted from 1.
    Raises: SettingsError if they do not fit together.
    """
    if count < panels:
        raise SettingsError(
            f"the story has {count} images and the canvas {panels} panels",
            "Write more lines, or use a recipe with fewer panels.",
        )
    if not 1 <= fresh < panels:
        raise SettingsError(
            f"{fresh} new images on a canvas of {panels} panels", f"Use 1 to {panels - 1}."
        )
    anchors = sorted(set(anchors))
    if any(not 1 <= n <= panels for n in anchors) or len(anchors) > panels - fresh:
        raise SettingsError(
            f"anchors {anchors} on a canvas of {panels} panels with {fresh} new ones",
            f"Name at most {panels - fresh} of the images 1 to {panels}.",
        )
    found = [Window(tuple(range(1, panels + 1)), panels)]
    done = panels
    while done < count:
        new = min(fresh, count - done)
        others = [n for n in range(1, done + 1) if n not in anchors]
        latest = others[len(others) - (panels - new - len(anchors)) :]
        shown = (*sorted((*anchors, *latest)), *range(done + 1, done + new + 1))
        found.append(Window(shown, new))
        done += new
    return found


def extend(
    model: DiffusionModel,
    story: Story,
    recipe: Recipe,
    adapter: Adapter | None,
    out: Path,
    *,
    anchors: Sequence[int] = (1,),
    fresh: int | None = None,
    seed: int = 0,
    known: dict[int, Image.Image] | None = None,
    on_step: Progress | None = None,
    on_window: Callable[[Window, int, int], None] | None = None,
    **how: Any,
) -> list[Image.Image]:
    """Make a story of any length by sliding the canvas over panels that are known.

    Writes OUT/01.png and on, one for each image, and every canvas as a set under OUT/windows. What
    is there already from a run that was stopped is taken, if it is what would be made.

    Args:
        anchors: images of the first canvas that stay in view; see `windows`.
        fresh: new images on each further canvas; by default a third of its panels, at least 1.
        known: pictures of the first canvas that are given, by number.
        how: strength, size, steps, guidance, mode and on; see `request.prepare`.
    Returns: the images in order.
    Raises: CaptionError, SettingsError, LayoutError, AdapterError, StorageError.
    """
    panels = recipe.canvas.panels
    plan = windows(len(story.images), panels, anchors, fresh or max(1, panels // 3))
    prompts = [
        JointCaption.join(
            story.overview,
            [story.images[n - 1] for n in window.images],
            recipe.markers,
            recipe.prefix,
        ).render()
        for window in plan
    ]
    how = {"recipe": recipe, "adapter": adapter, "seed": seed, **how}
    for prompt in prompts:
        # Every text is checked before the first picture is made.
        prepare(model, prompt, **{k: v for k, v in how.items() if k != "mode"})
    use(model, adapter, how.get("strength", 1.0))
    shown: dict[int, _Shown] = {n: (image, None) for n, image in (known or {}).items()}
    written: set[int] = set()
    for number, (window, prompt) in enumerate(zip(plan, prompts, strict=True), 1):
        given = {p: shown[image] for p, image in enumerate(window.images, 1) if image in shown}
        folder = out / "windows" / f"{number:04d}"
        made = _window(model, window, prompt, given, folder, how, on_step)
        for panel, image in enumerate(window.images, 1):
            if image not in written:
                shown[image] = (made.panels[panel - 1], made.latents[panel - 1])
                write_png(out / f"{image:02d}.png", made.panels[panel - 1])
                written.add(image)
        if on_window:
            on_window(window, number, len(plan))
    return [shown[n][0] for n in sorted(shown)]


_Shown = tuple[Image.Image, Tensor | None]
"""An image of a story and, once it was on a canvas, its latents."""


def _window(
    model: DiffusionModel,
    window: Window,
    prompt: str,
    given: dict[int, _Shown],
    folder: Path,
    how: dict[str, Any],
    on_step: Progress | None,
) -> GeneratedSet:
    """One canvas: read if it was made before, else made and written."""
    known = {panel: image for panel, (image, _) in given.items()}
    latents = {panel: kept for panel, (_, kept) in given.items() if kept is not None}
    if known:
        how = {**how, "known": known, "latents": latents}
    else:
        how = {k: v for k, v in how.items() if k != "mode"}
    # Each image's noise is its own, whichever panel of a canvas it takes.
    own = {panel: _seed(how["seed"], image) for panel, image in enumerate(window.images, 1)}
    request, _ = prepare(model, prompt, panel_seeds=own, **how)
    if folder.exists():
        made = GeneratedSet.load(folder)
        if made.request == request and made.latents:
            return made
        raise SettingsError(
            f"{folder} holds a canvas of another story, or of this one with other settings",
            "Choose another --out, or remove it.",
        )
    made = run(model, request, known, latents=latents, on_step=on_step)
    made.save(folder)
    return made
