"""Verbs over training runs and their adapters: import plan train info export push."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclora.cli.output import Terminal, as_options
from iclora.errors import DatasetError, RunError, SettingsError
from iclora.files import check_file, check_folder
from iclora.jobs.at_once import check_words
from iclora.jobs.opening import Opener, quiet_loading
from iclora.progress import Cancelled, Console
from iclora.sets.recipe import load_recipe
from iclora.settings import (
    ExportSettings,
    ImportSettings,
    InfoSettings,
    PlanSettings,
    PushSettings,
    RunSettings,
    TrainSettings,
    read_settings,
    verb,
)
from iclora.train.trackers import find_trackers

if TYPE_CHECKING:
    pass

__all__ = ["export", "import_run", "info", "plan", "push", "train"]


@verb(ImportSettings)
def import_run(settings: ImportSettings, console: Console) -> None:
    """Make a run file of ai-toolkit's configuration, and say what becomes of every field."""
    from iclora.files import write_text
    from iclora.train import aitoolkit

    out = Path(settings.write or f"{Path(settings.file).stem}.toml")
    if out.exists():
        raise SettingsError(f"{out} is there already", "Choose another `write`.", setting="write")
    check_file(out, "write")
    found = aitoolkit.import_run(settings.file, recipe=settings.recipe, data=settings.data)
    console.say(as_options(str(found), ImportSettings))
    for note in found.notes:
        console.warn(note)
    write_text(out, found.run_file())
    console.say(f"wrote {out}; see what it takes with: iclora plan {out} --vram 24")


def _read_plan(given: dict[str, Any], _: Console) -> PlanSettings:
    usual = {"base": "black-forest-labs/FLUX.1-dev", "data": "DATA", "out": "RUN"}
    return read_settings(PlanSettings, given.get("run_file"), given, usual)


@verb(PlanSettings, _read_plan)
def plan(settings: PlanSettings, console: Console) -> None:
    """Choose the settings with which a run fits a card, and say what it will take."""
    if settings.write:
        check_file(settings.write, "write")
    from iclora.files import write_text
    from iclora.train.plan import plan_run

    found = plan_run(settings.training(), here=False, warn=console.warn)
    console.say(as_options(str(found), PlanSettings))
    if settings.write:
        write_text(Path(settings.write), found.run_file())
        console.say(f"wrote {settings.write}; train it with: iclora train {settings.write}")


def _read_run(given: dict[str, Any], console: Console) -> RunSettings:
    """Settings of a new run, or those of the run in the folder `resume`."""
    _check_launcher()
    folder = given.get("resume")
    if folder is None:
        return read_settings(RunSettings, given.get("run_file"), given)
    if given.get("run_file"):
        raise SettingsError("a resumed run has its own settings", "Leave the run file out.")
    from iclora.train.resuming import resumed

    changes = {name: value for name, value in given.items() if name != "resume"}
    return resumed(folder, changes, _first(console).warn)


@verb(RunSettings, _read_run)
def train(settings: RunSettings, console: Console) -> int:
    """Tune a LoRA on a dataset, or go on with a run."""
    _check_at_once(settings)
    from iclora.jobs.training import train as run_training

    console = _first(console)

    def show_plan(text: str) -> None:
        console.say(as_options(text, RunSettings))

    go_on = f"go on with: iclora train --resume {settings.out}"
    try:
        config, result = run_training(settings, console, Opener(), show_plan)
    except (KeyboardInterrupt, Cancelled):
        if Path(settings.out, "config.toml").exists():
            console.say(go_on)
        raise
    if not result.finished:
        console.say(f"stopped at step {result.step} of {config.steps}; nothing is lost\n{go_on}")
        return 130
    console.say(
        f"wrote {result.made}\n{_beside(config, result.folder)}\n"
        f"loss curve {result.folder / 'loss.png'}"
    )
    if config.preview_every:
        console.say(f"previews {result.folder / 'previews'}")
    return 0


def _beside(config: TrainSettings, folder: Path) -> str:
    """What goes with the result of a run."""
    if config.targets == "full":
        return f"a base of its own: iclora generate --base {folder / 'base'} --recipe NAME"
    return f"model card {folder / 'README.md'}"


def _check_at_once(settings: TrainSettings) -> None:
    """Check what can be known of a run before torch is imported. Raises: IcloraError."""
    check_folder(settings.out, "out")
    if settings.cache:
        check_folder(settings.cache, "cache")
    find_trackers(settings)
    for name, path in (("data", settings.data), ("validation", settings.validation)):
        if path and not Path(path).exists():
            raise DatasetError(
                f"there is no folder or zip archive {path}", "Check the path.", setting=name
            )
    if settings.recipe:
        recipe = load_recipe(settings.recipe)
        for prompt in settings.preview_prompts:
            recipe.prompt(prompt)
    for path in (settings.data, settings.validation):
        if path:
            check_words(path, settings.recipe)


def _check_launcher() -> None:
    """Raises: RunError for variables of a launcher that did not start this process.

    They stay in shells and containers after a run, and this one would wait for others for hours.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    found = {name: os.environ[name] for name in names if name in os.environ}
    wrong = [name for name, value in found.items() if not re.fullmatch(r"[0-9]{1,6}", value)]
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    lacking = [name for name in needed if not os.environ.get(name)]
    shared = found.get("WORLD_SIZE", "1") != "1" or "LOCAL_RANK" in found
    odd = not wrong and not int(found.get("RANK", "0")) < int(found.get("WORLD_SIZE", "1"))
    if not wrong and not odd and not (shared and lacking):
        return
    stand = " and ".join(f"{name}={value}" for name, value in found.items())
    raise RunError(
        f"{stand} in the environment say that several processes share this run, but "
        + (
            f"{wrong[0]} is no number"
            if wrong
            else "RANK counts from 0 and is none of them"
            if odd
            else f"{' and '.join(lacking)} say not where"
        ),
        f"Unset {' '.join(found)}, or start the run by `accelerate launch`.",
    )


def _first(console: Console) -> Console:
    """The console in the first of the processes that share a run; in the others a silent one."""
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    first = not shared or os.environ.get("RANK", "0") == "0"
    return console if first else Terminal(RunSettings, silent=True)


@verb(InfoSettings)
def info(settings: InfoSettings, console: Console) -> None:
    """Say what an adapter, a request or a run is."""
    path = Path(settings.file)
    if (path / "request.json").is_file():  # a made set
        path /= "request.json"
    if path.is_dir() and (path / "config.toml").is_file():
        console.say((path / "config.toml").read_text(encoding="utf-8").rstrip())
        if (path / "base" / "model_index.json").is_file():
            console.say(
                f"\nmade         {path / 'base'}, a base of its own; see `iclora info` of it"
            )
    elif path.suffix == ".json":
        from iclora.making.request import Request

        console.say(Request.load(path)[0].model_dump_json(indent=2))
    elif (path / "model_index.json").is_file():
        _show_base(path, console)
    else:
        _show_adapter(settings.file, console)


@verb(ExportSettings)
def export(settings: ExportSettings, console: Console) -> None:
    """Write an adapter as another tool reads it, its recipe kept inside."""
    out = Path(settings.out)
    if os.path.lexists(out):
        raise SettingsError(f"{out} is there already", "Choose another `out`.", setting="out")
    check_folder(out.parent, "out")
    is_file, is_named = settings.format != "peft", out.suffix.lower() == ".safetensors"
    if is_file != is_named and settings.format in ("peft", "diffusers", "comfyui", "kohya"):
        # Other tools tell a file by its ending, and would take a folder for one.
        right = out.with_suffix("" if is_named else ".safetensors")
        what = "writes one .safetensors file" if is_file else "writes a folder"
        raise SettingsError(f"the format {settings.format} {what}", f"Name it {right}.", "out")
    from iclora.adapter import Adapter
    from iclora.adapter.export import SAVE_DTYPES, write_export
    from iclora.adapter.export import export as export_weights
    from iclora.making.asks import base_of
    from iclora.models import load_model
    from iclora.models.outline import shipped_outline

    adapter = Adapter.load(settings.adapter)
    for note in adapter.notes:
        console.warn(note)
    base = base_of(settings.base, adapter)
    quiet_loading()
    model = load_model(str(shipped_outline(base) or base), "cpu", weights=False)
    dtype = SAVE_DTYPES[settings.save_dtype]
    files = export_weights(adapter.weights, settings.format, model.names, adapter.info, dtype)
    write_export(out, files)
    console.say(f"wrote {out}")


@verb(PushSettings)
def push(settings: PushSettings, console: Console) -> None:
    """Send a run's adapter, model card and last previews to the Hugging Face hub."""
    key = os.environ.get("HF_TOKEN", "").strip()
    if not key and not settings.dry_run:
        raise SettingsError(
            "there is no key for the hub in the environment variable HF_TOKEN",
            "Make one that may write at https://huggingface.co/settings/tokens, and set it.",
        )
    from iclora.train.resuming import find_run

    find_run(settings.run, "run")
    from iclora.train.push import collect, send

    files = collect(Path(settings.run), settings.repository)
    kind = "public" if settings.public else "private"
    console.say(f"to {settings.repository} on the hub, {kind} if it is new:")
    for name, content in files.items():
        console.say(f"  {name}  {len(content) / 1e6:.2f} MB")
    if settings.dry_run:
        console.say("nothing was sent")
        return
    where = send(files, settings.repository, key=key, public=settings.public)
    console.say(f"sent; see {where}")


def _show_base(path: Path, console: Console) -> None:
    from iclora.models import load_model

    quiet_loading()
    base = load_model(str(path), "cpu", weights=False)
    usual = base.sampling
    steps = f"{usual.steps} steps" + (", to which it was distilled" if usual.fixed_steps else "")
    console.say(
        f"{path}\na base of its own, and no adapter\nfamily       {base.family}\n"
        f"texts        of at most {base.max_text_tokens} tokens\nsampling     {steps}\n"
        f"panel edges  multiples of {base.grid} px"
    )
    card = path / "README.md"
    if card.is_file():
        console.say(f"card         {card}")


def _show_adapter(path: str, console: Console) -> None:
    from iclora.adapter import Adapter

    adapter = Adapter.load(path)
    for note in adapter.notes:
        console.warn(note)
    downs = {k: v for k, v in adapter.weights.items() if ".lora_A." in k}
    ranks = sorted({int(v.shape[0]) for v in downs.values()})
    count = sum(v.numel() for v in adapter.weights.values())
    formats = sorted({str(v.dtype).removeprefix("torch.") for v in adapter.weights.values()})
    console.say(
        f"{path}\nmodules      {len(downs)}\nranks        {', '.join(map(str, ranks))}\n"
        f"parameters   {count:,} in {', '.join(formats)}\nformat       {adapter.origin}\n"
        f"sha256       {adapter.sha256}"
    )
    if adapter.info is None:
        console.say(
            "origin       another tool: no recipe and layout inside; pass --recipe to generate"
        )
        return
    about, canvas = adapter.info, adapter.info.layout
    console.say(
        f"base         {about.base} ({about.family})\ntrained      {about.steps} steps, "
        f"rank {about.rank}, alpha {about.alpha:g}, targets {about.targets}\n"
        f"texts        {about.text}\n"
        f"recipe       {about.recipe.name}: {' '.join(about.recipe.markers)}\n"
        f"layout       {canvas.width}x{canvas.height} px, {canvas.panels} panels\n"
        f"written by   iclora {about.iclora}\n\n"
        f"example prompt\n{about.recipe.example}"
    )
