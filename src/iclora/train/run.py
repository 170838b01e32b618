"""The training run: check, encode once, tune a LoRA, finish.

All randomness comes from (seed, number of the sample), never from hidden state, so a run that was
stopped and resumed computes the same as one that was not: on one CPU, to the byte. (CUDA's
attention may sum in another order each time, resumed or not.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from iclora.adapter import AdapterInfo
from iclora.adapter.export import shared_name
from iclora.errors import RunError, SettingsError
from iclora.files import is_leftover, write_text
from iclora.files.locks import LOCK, alone
from iclora.models.base import DiffusionModel
from iclora.models.passes import COMPILED_SHAPES
from iclora.progress import Progress
from iclora.sets.check import typical_layout
from iclora.sets.recipe import Recipe, recipe_names
from iclora.settings import TrainSettings
from iclora.train.cache import Encoded, EncodedSet, encode
from iclora.train.data import RunData, check_base, check_place, find_data
from iclora.train.folder import RunFolder
from iclora.train.launcher import unheeded
from iclora.train.loop import Loop, Preview, interruptible
from iclora.train.model_card import CARD, write_card
from iclora.train.resuming import Warn, resume_settings
from iclora.train.state import TrainState
from iclora.train.trackers import tracking
from iclora.train.validation import Validation
from iclora.train.whole import check_whole, folder_of
from iclora.train.workers import Workers

__all__ = ["RunResult", "resume_settings", "train"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: Path
    step: int
    """Steps taken."""
    finished: bool
    """False if it was interrupted; its checkpoint is in the folder."""
    best: int | None = None
    """The step that is best on held-out sets; None if no sets are held out."""
    made: Path | None = None
    """What the run makes, there once it is finished: the adapter's file, or the folder of the
    tuned base with `targets` full."""

    @property
    def adapter(self) -> Path:
        """The adapter file; it is there once the run is finished."""
        return self.folder / "adapter.safetensors"


def train(
    settings: TrainSettings,
    model: DiffusionModel,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    data: RunData | None = None,
    make_preview: Callable[[Recipe], Preview] | None = None,
    warn: Warn | None = None,
) -> RunResult:
    """Tune a LoRA, or with `targets` full the whole denoiser, on a dataset.

    Ctrl-C, SIGTERM or `progress.cancel()` ends it after its step with a checkpoint, a second
    Ctrl-C at once. Several processes that `accelerate launch` started share every step.

    Args:
        model: the base, opened by `load_model(settings.base, ...)`.
        resume: go on from the newest whole checkpoint in `settings.out`; a run with these very
            settings that was stopped there goes on in any case.
        progress: hears of "encoding captions", "encoding images" and, after every optimizer step,
            of "training" with its `loss`: the mean squared error of the velocity.
        data: the sets, if these settings' plan has checked them, and said what is odd about them.
        make_preview: called once with the dataset's recipe, before the encoders are freed. What it
            returns is called every `settings.preview_every` steps, while the base carries the
            adapter's averaged weights, with the step and whether to write. (Processes that share a
            base must all draw; one of them writes.)
        warn: called with anything the user should know that does not stop the run.
    Raises: SettingsError for `settings.vram`, which `iclora.train.plan` turns into settings;
        DatasetError with every problem `check` finds, before anything is encoded; RunError if
        the folder holds another run, there is nothing to resume, or the loss is not finite;
        StorageError; Cancelled before the first step.
    """
    _refuse_vram(settings)
    workers = Workers(model.device)
    _check_shares(settings, workers)
    if not workers.main:
        # The first process speaks; the others draw only if the base is spread over all.
        warn, progress = None, None
        make_preview = make_preview if settings.shard else None
    warn, progress = warn or _silent, progress or Progress()
    _tell_processes(settings, workers, model.device.type, warn)
    check_base(settings, model)
    if settings.targets == "full":
        check_whole(settings, model, warn)
    check_place(settings)
    folder = Path(settings.out)
    with _alone(folder) if workers.main else nullcontext():
        if not resume and _holds_it(settings, model):
            resume = True
            warn(f"{folder} holds this run, stopped before its end: it goes on")
        workers.wait()  # Until all have seen what was there.
        try:
            return _train(settings, model, workers, resume, progress, data, make_preview, warn)
        finally:
            if settings.targets == "full":
                # Its weights are no longer those of the base whose name and fingerprint it has.
                model.release("denoiser")


def _train(
    settings: TrainSettings,
    model: DiffusionModel,
    workers: Workers,
    resume: bool,
    progress: Progress,
    data: RunData | None,
    make_preview: Callable[[Recipe], Preview] | None,
    warn: Warn,
) -> RunResult:
    model.check_text(settings.text)
    data = data or find_data(settings, model, warn)
    draw = make_preview if settings.preview_every else None
    preview = draw(data.dataset.recipe) if draw else None
    info = _describe(settings, model, data)
    source = folder_of(model) if settings.targets == "full" else None
    run = RunFolder(settings, info, data.dataset.digest, model.identity(), source)
    if workers.main:
        run.clear()
        write_text(run.path / "config.toml", _anywhere(settings, model).to_toml())
    if settings.shard:
        model.release("denoiser")
    encoded, held = _encode(settings, model, data, run.path, workers, progress, warn)
    if settings.compile:
        _tell_shapes(encoded, warn)
    state = _start(run, model, workers, resume, warn)
    validation = Validation.of(settings, held, encoded.sets, run.measures)
    with interruptible() as stop, tracking(settings, run.path, state.step, workers.main) as track:
        track.settings({"base": shared_name(model.name), **settings.shown()}, state.step)
        finished = Loop(
            run, model, encoded, state, workers, validation, preview, track, stop, progress, warn
        ).run_to_end()
    if finished and workers.main:
        told = info.model_copy(update={"steps": state.step})
        # A card tells how an adapter is loaded.
        if not source and not write_card(
            run.path, told, settings, len(data.trained), model.sampling
        ):
            warn(f"{run.path / CARD} is your own and is left as it is")
        run.finish(state, warn)  # At the end: a run with an adapter is finished.
    workers.wait()
    workers.close()
    return RunResult(run.path, state.step, finished, run.best_step(), run.result)


def _refuse_vram(settings: TrainSettings) -> None:
    """Refuse a wish that a plan must first turn into settings."""
    if settings.vram is not None:
        raise SettingsError(
            "vram is a wish, and the settings that meet it are still to be chosen",
            "Train with the settings of `iclora.train.plan.plan_run(settings, here=True)`.",
            setting="vram",
        )


def _silent(_: str) -> None:
    """Say nothing: what one process says is enough."""


def _tell_processes(settings: TrainSettings, workers: Workers, device: str, warn: Warn) -> None:
    """Say how many processes share the run, and which settings of accelerate's do not count."""
    if workers.count > 1:
        warn(f"{workers.count} processes share the {settings.batch} sets of every step")
    if ignored := unheeded(os.environ, device):
        warn(f"of accelerate's settings these do not count here: {'; '.join(ignored)}")


# -- before anything is written -----------------------------------------------------------------


def _check_shares(settings: TrainSettings, workers: Workers) -> None:
    """Raises: RunError if the processes cannot share a GPU or the base as they are told to."""
    if workers.count > 1 and re.fullmatch(r"cuda:\d+", settings.device):
        raise RunError(
            f"{workers.count} processes cannot share {settings.device}: each needs its own GPU",
            "Leave `device` at auto or cuda, and choose the GPUs by CUDA_VISIBLE_DEVICES.",
            setting="device",
        )
    if not settings.shard:
        return
    if workers.count == 1:
        raise RunError(
            "`shard` spreads the base over several processes, and this is the only one",
            "Start it by `accelerate launch` with two processes or more.",
            setting="shard",
        )
    if settings.batch % workers.count:
        raise RunError(
            f"{workers.count} processes cannot share a `batch` of {settings.batch} evenly, and "
            "those that share a base must make as many passes each",
            f"Choose a `batch` that {workers.count} divides.",
            setting="batch",
        )


def _alone(folder: Path) -> AbstractContextManager[None]:
    return alone(folder / LOCK, folder, partial(RunError, setting="out"))


def _holds_it(settings: TrainSettings, model: DiffusionModel) -> bool:
    """True if the folder `out` holds a run with these settings, stopped before its end.

    Raises: RunError if it holds anything else; False is for an empty one.
    """
    folder = Path(settings.out)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if all(name == LOCK or is_leftover(name) for name in names):
        return False
    if "config.toml" not in names:
        raise RunError(f"{folder} is not an empty folder", "Choose another `out`.", setting="out")
    ours = _anywhere(settings, model).model_copy(update={"out": str(folder)})
    finished = "base" if settings.targets == "full" else "adapter.safetensors"
    if finished not in names and resume_settings(folder, {}) == ours:
        return True
    raise RunError(
        f"{folder} already holds a run",
        "Resume it, or choose another folder as `out`.",
        setting="out",
    )


def _describe(settings: TrainSettings, model: DiffusionModel, data: RunData) -> AdapterInfo:
    usual, recipe = model.sampling, data.dataset.recipe
    layout = typical_layout(recipe.canvas, [s.sizes for s in data.sets], model.grid)
    return AdapterInfo(
        # Adapters are given to others, who have no folders of this machine; see `base_beside`.
        base=shared_name(model.name),
        family=model.family,
        rank=settings.rank,
        alpha=settings.alpha,
        targets=settings.targets,
        steps=0,
        # A base with a fixed number of steps says nothing of others, which may use the adapter too.
        recipe=recipe if usual.fixed_steps else recipe.sampled(usual.steps, usual.guidance or 0.0),
        layout=layout,
        conditional=settings.conditional,
        isolate_given=settings.isolate_given,
        text=settings.text,
    )


# -- the start ----------------------------------------------------------------------------------


def _anywhere(settings: TrainSettings, model: DiffusionModel) -> TrainSettings:
    """Make paths absolute, so that the run can be resumed from any folder."""
    # A recipe's name stays a name, even if a folder is called like it.
    own = settings.recipe is not None and settings.recipe not in recipe_names()
    paths = {
        "data": settings.data,
        "validation": settings.validation,
        "cache": settings.cache,
        "recipe": settings.recipe if own else None,
    }
    found = {key: str(Path(path).resolve()) for key, path in paths.items() if path}
    return settings.model_copy(update={**found, "base": model.name})


def _encode(
    settings: TrainSettings,
    model: DiffusionModel,
    data: RunData,
    folder: Path,
    workers: Workers,
    progress: Progress,
    warn: Warn,
) -> tuple[Encoded, list[EncodedSet]]:
    """Encode the sets to train on and those to measure on."""
    cache = Path(settings.cache) if settings.cache else folder / "cache"
    sets = [*data.trained, *data.held]
    recipe = data.dataset.recipe
    encoded, empty = encode(
        model,
        sets,
        cache,
        workers=workers,
        progress=progress,
        warn=warn,
        read=lambda caption: recipe.texts(caption, settings.text),
        encoding=settings.encode,
    )
    usual = tuple(number - 1 for number in recipe.usually_known)
    count = len(data.trained)
    return Encoded(tuple(encoded[:count]), empty, usual), encoded[count:]


def _tell_shapes(encoded: Encoded, warn: Warn) -> None:
    shapes = {layout.size for entry in encoded.sets for layout in entry.layouts}
    if len(shapes) > COMPILED_SHAPES:
        warn(
            f"the sets have {len(shapes)} canvas sizes; blocks are compiled for the first "
            f"{COMPILED_SHAPES} that come up, and the others run uncompiled. Fewer `resolutions` "
            "make fewer"
        )


def _start(
    run: RunFolder, model: DiffusionModel, workers: Workers, resume: bool, warn: Warn
) -> TrainState:
    """Load the denoiser, put the LoRA on it, and take over the newest checkpoint if asked to."""
    settings = run.settings
    if settings.shard:
        model.mesh = workers.mesh()
        # In turn: each reads the whole base into the machine's memory before it keeps its part.
        with workers.in_turn():
            model.denoiser  # noqa: B018
    state = TrainState.fresh(model, settings)
    if resume:
        # The main process first: it sets damaged checkpoints aside.
        if not workers.main:
            workers.wait()
        run.restore(state, warn, main=workers.main)
        if workers.main:
            workers.wait()
    model.recompute = settings.recomputed(model.blocks)
    model.compiled = frozenset({"training"} if settings.compile else ())
    return state


def base_beside(adapter: Path, name: str) -> str | None:
    """Find the folder of a base that an adapter names without its path.

    Args:
        adapter: a file in a run's folder or in one of its checkpoints, or anywhere else.
        name: of the base, as the adapter says.
    Returns: the base of that run if it has this name; else None.
    """
    for folder in (adapter.parent, adapter.parent.parent.parent):
        try:
            base = resume_settings(folder, {}).base
        except (RunError, SettingsError):
            continue
        if shared_name(base) == name:
            return base
    return None
