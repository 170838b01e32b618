"""Pictures during training: what the base makes, and what the adapter so far makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from iclora.making.preparing import prepare
from iclora.making.session import AS_IS, Ask, Session
from iclora.models.base import DiffusionModel
from iclora.progress import Event, Progress
from iclora.sets.images import write_png
from iclora.sets.recipe import Recipe
from iclora.settings import TextKind, Wish, settings_of

__all__ = ["make_preview"]


def make_preview(
    model: DiffusionModel,
    recipe: Recipe,
    prompts: Sequence[str],
    *,
    resolution: int,
    seed: int,
    folder: Path,
    text: TextKind = "joint",
    progress: Progress | None = None,
) -> Callable[[int, bool], Image.Image]:
    """Make a function that draws each prompt by the base alone and by the adapter so far.

    The prompts are encoded here, so that the text encoders can be freed before training.

    Args:
        resolution: side of a square of the previews' area, px.
        text: what a panel reads.
        progress: hears of "drawing previews" at every step of sampling: on a CPU they take minutes.
    Returns: a function of the step that draws a grid, the base beside the adapter, and writes it as
        folder/step-000250.png if it is told to, and each picture alone: folder/base-1.png and
        folder/step-000250-1.png, which a model card and a page show beside their prompts. Of a
        denoiser without a LoRA, all of whose weights are trained, there is no base any more.
    Raises: CaptionError, SettingsError for a prompt that would fail later.
    """
    # The canvas itself, for equal rows of its size may have other panels.
    canvas = recipe.canvas.fit(recipe.canvas.sizes, resolution**2, model.multiple)
    told = {"seed": seed, "text": text}
    wishes = [settings_of(Wish, {**told, "prompt": prompt}) for prompt in prompts]
    requests = [prepare(model, wish, recipe=recipe, layout=canvas)[0] for wish in wishes]
    # Training decides when parts of the base are freed.
    session = Session(model, _of_previews(progress), free=False)
    session.encode(requests)
    asks = [Ask(request, adapter=AS_IS) for request in requests]
    plain: list[Image.Image] = []

    def draw() -> list[Image.Image]:
        return [made.composite for _, made in session.make(asks)]

    def preview(step: int, write: bool = True) -> Image.Image:
        denoiser: Any = model.denoiser
        lora = bool(getattr(denoiser, "peft_config", None))
        if lora and not plain:
            denoiser.disable_adapters()
            try:
                plain.extend(draw())
            finally:
                denoiser.enable_adapters()
        adapted = draw()
        columns = {"base": plain, f"adapter, step {step}": adapted}
        grid = _side_by_side(columns if lora else {f"step {step}": adapted})
        if write:
            name = f"step-{step:06d}"
            for what, pictures in (("base", plain), (name, adapted)):
                for number, picture in enumerate(pictures, 1):
                    write_png(folder / f"{what}-{number}.png", picture)
            write_png(folder / f"{name}.png", grid)
        return grid

    return preview


def _of_previews(progress: Progress | None) -> Progress | None:
    """What a session reports, by names that tell it from the run's own work."""
    if progress is None:
        return None
    told = progress
    names = {"painting": "drawing previews", "encoding texts": "encoding texts of previews"}

    def show(event: Event) -> None:
        what = names.get(event.what, event.what)
        told(what, event.done, event.total, event.note, **event.values)

    return Progress(show)


def _side_by_side(columns: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Pictures of equal size, a column per name, named above."""
    first = next(iter(columns.values()))[0]
    gap, head = 16, 40
    height = head + len(next(iter(columns.values()))) * (first.height + gap)
    sheet = Image.new("RGB", (gap + len(columns) * (first.width + gap), height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, pictures) in enumerate(columns.items()):
        left = gap + i * (first.width + gap)
        draw.text((left, 10), name, fill="#333333", font=ImageFont.load_default(18))
        for j, picture in enumerate(pictures):
            sheet.paste(picture, (left, head + j * (first.height + gap)))
    return sheet
