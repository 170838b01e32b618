"""A run: train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from iclora.jobs.opening import Opener
from iclora.making.preview import make_preview
from iclora.models.base import DiffusionModel
from iclora.progress import Console
from iclora.sets.recipe import Recipe
from iclora.settings import Machine, RunSettings, TrainSettings
from iclora.train.data import RunData
from iclora.train.loop import Preview
from iclora.train.plan import plan_run
from iclora.train.run import RunResult
from iclora.train.run import train as run

__all__ = ["recomputes_unasked", "train"]


def train(
    settings: RunSettings,
    console: Console,
    opener: Opener,
    show_plan: Callable[[str], None] | None = None,
) -> tuple[TrainSettings, RunResult]:
    """Tune a LoRA on a dataset, or go on with a run.

    Args:
        show_plan: told what `vram` led to, settings in backticks; by default the console is.
    Returns: the settings it was trained with, and how it ended.
    Raises: IcloraError, Cancelled before the first step.
    """
    config, data = settings.training(), None
    if config.vram is not None and not settings.resume:
        chosen = plan_run(config, here=True, warn=console.warn)
        (show_plan or console.say)(str(chosen))
        config, data = chosen.settings, chosen.data
    # Which passes are compiled is the run's own affair.
    own = set(Machine.model_fields) - {"compile"}
    machine = Machine.model_validate(config.model_dump(include=own))
    model = opener.base(config.base, machine)
    kept = "" if model.precision == "full" else f", its blocks in {model.precision}"
    number = str(model.dtype).removeprefix("torch.")
    console.say(f"base {config.base} on {model.device} in {number}{kept}")
    if recomputes_unasked(config, model.device.type):
        console.warn(
            "every block is recomputed; `vram` auto recomputes only as many as this card needs"
        )
    return config, _train(config, model, bool(settings.resume), data, console)


def _train(
    config: TrainSettings,
    model: DiffusionModel,
    resume: bool,
    data: RunData | None,
    console: Console,
) -> RunResult:
    with console.progress() as progress:

        def previewer(recipe: Recipe) -> Preview:
            return make_preview(
                model,
                recipe,
                config.previewed(recipe.example),
                resolution=config.preview_resolution,
                seed=config.seed,
                folder=Path(config.out, "previews"),
                text=config.text,
                progress=progress,
            )

        return run(
            config,
            model,
            resume=resume,
            data=data,
            make_preview=previewer,
            warn=console.warn,
            progress=progress,
        )


def recomputes_unasked(config: TrainSettings, device: str) -> bool:
    """True if every block is recomputed on a GPU only because no setting said otherwise."""
    own = {"recompute", "gradient_checkpointing"}
    return device == "cuda" and config.gradient_checkpointing and not own & config.model_fields_set
