"""The command line: one thin function per verb, over the functions a program would call.

Heavy modules are imported inside the verbs, so that `--help`, `recipes`, `compose` and `check`
start at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclora.cli.options import Words, make_parser
from iclora.cli.output import progress_bar
from iclora.errors import IcloraError, SettingsError
from iclora.progress import Progress

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from iclora.adapter.lora import Adapter
    from iclora.evaluate.metrics.base import Metric
    from iclora.evaluate.setup import Arm, Wish
    from iclora.making.request import GeneratedSet, Request
    from iclora.models import DiffusionModel
    from iclora.sets.dataset import Problem
    from iclora.sets.recipe import Recipe
    from iclora.settings import Precision, TrainSettings
    from iclora.vlm import Captioner

    _Wish = tuple[Request, dict[int, Image.Image], dict[int, Tensor]]

__all__ = ["main", "recomputes_unasked"]


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0, 2 for a user's error, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    verbs = (
        recipes,
        compose,
        caption,
        review,
        prompt,
        check,
        plan,
        train,
        generate,
        complete,
        reroll,
        extend,
        evaluate,
        demo,
        info,
    )
    parser = make_parser(arguments[0] if arguments else "", {v.__name__: v for v in verbs})
    words = parser.parse_args(arguments)
    _quiet()
    try:
        status = words.verb(words)
    except IcloraError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(
            f"out of memory: {str(error).splitlines()[0]}\nUse a smaller canvas or resolution, "
            "in training --vram auto (see `iclora plan`), or a GPU with more memory.",
            file=sys.stderr,
        )
        return 2
    return int(status or 0)


def _quiet() -> None:
    """Keep libraries' chatter out of the output; a user who sets these variables wins."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def _load(name: str, words: Words, weights: bool = True) -> DiffusionModel:
    import transformers

    from iclora.models import load_model

    transformers.utils.logging.disable_progress_bar()
    precision: Precision = getattr(words, "precision", None) or "full"
    return load_model(name, words.device, words.dtype, weights=weights, precision=precision)


def _say(message: str) -> None:
    print(message, flush=True)


def _warn(message: str) -> None:
    print(f"note: {message}", file=sys.stderr, flush=True)


# -- verbs --------------------------------------------------------------------------------------


def recipes(words: Words) -> None:
    """List the recipes, or show one in full."""
    from rich.console import Console
    from rich.table import Table

    from iclora.sets.recipe import load_recipe, recipe_names

    if words.name:
        _show_recipe(load_recipe(words.name))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("canvas", no_wrap=True)
    for column in ("markers", "what a set shows"):
        table.add_column(column, overflow="fold")
    for recipe in map(load_recipe, recipe_names()):
        canvas = recipe.canvas
        table.add_row(
            recipe.name,
            f"{canvas.width}x{canvas.height}",
            re.sub(r"[\[\]]", "", " ".join(recipe.markers)),
            recipe.summary,
        )
    Console().print(table)


def _show_recipe(recipe: Recipe) -> None:
    canvas, own = recipe.canvas, recipe.sampling
    rows = " over ".join(map(str, canvas.per_row)) if canvas.per_row else "free boxes"
    _say(
        f"{recipe.name}: {recipe.summary}\n\n"
        f"canvas       {canvas.width}x{canvas.height} px, {canvas.panels} panels ({rows})\n"
        f"prefix       {recipe.prefix or '(none)'}\n"
        f"markers      {' '.join(recipe.markers)}\n"
        f"sampling     {own.steps or 'usual'} steps, guidance "
        f"{'as usual' if own.guidance is None else own.guidance}\n\n"
        f"captioning instruction\n{recipe.instruction}\n\nexample prompt\n{recipe.example}"
    )


def compose(words: Words) -> None:
    """Join image sets into composites with captions, cropping nothing."""
    from iclora.sets.compose import compose_dataset
    from iclora.sets.dataset import open_dataset

    source = open_dataset(words.source, words.recipe)
    _say(f"{len(source.sets)} sets of {source.recipe.name} in {source.path}")
    problems = compose_dataset(
        source,
        words.out,
        resolution=words.resolution,
        progress=lambda name, layout: _say(
            f"  {name}  {layout.width}x{layout.height}  panels "
            + " ".join(f"{w}x{h}" for w, h in layout.sizes)
        ),
    )
    _show_problems(problems)
    _say(f"wrote {words.out}; look at it, then `iclora check {words.out}`")


def caption(words: Words) -> int:
    """Write joint captions with a multimodal language model, for sets that have none."""
    from iclora.sets.dataset import open_dataset
    from iclora.vlm import load_captioner
    from iclora.vlm.caption import FAILURES, Outcome, caption_dataset

    dataset = open_dataset(words.data, words.recipe)
    _show_problems(dataset.problems)
    captioner = load_captioner(
        words.captioner,
        url=words.api,
        together=words.together,
        device=words.model_device,
        schema=words.schema,
    )
    pictures = "the panels of a set one by one" if words.send == "panels" else "one composite a set"
    for notice in captioner.notices:
        _say(f"{notice}: {pictures}, no side above {words.longest_side} px")
    with progress_bar() as bar:

        def report(outcome: Outcome, done: int, total: int) -> None:
            if outcome.caption is None:
                _warn(f"{outcome.name}: no caption, {outcome.problem}")
            bar("captioning", done, total, outcome.name)

        summary = caption_dataset(
            dataset,
            captioner,
            **_token_budget(words),
            send=words.send,
            longest=words.longest_side,
            overwrite=words.overwrite,
            on_done=report,
        )
    _say(
        f"{len(summary.written)} captions written, {len(summary.kept)} sets had one already, "
        f"{len(summary.failed)} failed; the model read {summary.read:,} and wrote "
        f"{summary.wrote:,} tokens"
    )
    if summary.failed:
        _say(f"failed sets are listed in {dataset.path / FAILURES}; run again to try them again")
    _say(f"look through them: iclora review {dataset.path}")
    return 1 if summary.failed else 0


def _token_budget(words: Words) -> dict[str, Any]:
    """How to count tokens, and how many there may be, as --base does."""
    if not words.base:
        return {}
    model = _load(words.base, words, weights=False)
    return {"count_tokens": model.count_tokens, "limit": model.max_text_tokens}


def review(words: Words) -> None:
    """Make one page of all sets and their words, to look through."""
    from iclora.sets.dataset import check_dataset, open_dataset
    from iclora.sets.review import write_review

    dataset = open_dataset(words.data, words.recipe)
    budget = _token_budget(words)
    reports = list(check_dataset(dataset, **budget))
    place = dataset.path.resolve()
    name = place.stem if place.is_file() else place.name
    out = Path(words.out) if words.out else place.with_name(f"{name}-review.html")
    write_review(dataset, reports, out, budget.get("limit", 512))
    _say(f"wrote {out}; open it in a browser")


def prompt(words: Words) -> None:
    """Turn an idea into a joint prompt in a recipe's form."""
    from iclora.sets.recipe import load_recipe
    from iclora.vlm import load_captioner
    from iclora.vlm.caption import write_prompt

    captioner = load_captioner(
        words.captioner, url=words.api, device=words.model_device, schema=words.schema
    )
    _tell_of_ideas(captioner)
    _say(write_prompt(load_recipe(words.recipe), words.idea, captioner, **_token_budget(words)))


def _tell_of_ideas(captioner: Captioner) -> None:
    for notice in captioner.notices:
        _warn(notice.replace("pictures and instructions", "the idea and its instruction"))


def check(words: Words) -> int:
    """Read every image and caption of a dataset and say what is wrong."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from iclora.sets.dataset import check_dataset, open_dataset

    dataset = open_dataset(words.data, words.recipe)
    base: dict[str, Any] = {}
    if words.base:
        model = _load(words.base, words, weights=False)
        base = {
            "count_tokens": model.count_tokens,
            "limit": model.max_text_tokens,
            "grid": model.grid,
        }
    if words.resolutions:
        base["resolutions"] = words.resolutions
    reports = list(check_dataset(dataset, **base))
    problems = [*dataset.problems, *(p for r in reports for p in r.problems)]
    table = Table(box=None, pad_edge=False)
    for column in ("set", "panels", "sizes in px", "megapixels", "tokens", "state"):
        table.add_column(column, overflow="fold")
    for report in reports:
        worst = {p.severity for p in report.problems}
        state = "error" if "error" in worst else "warning" if worst else "ok"
        pixels = sum(w * h for w, h in report.sizes) / 1e6
        tokens = "-" if report.tokens is None else f"{'' if words.base else '~'}{report.tokens}"
        sizes = " ".join(f"{w}x{h}" for w, h in report.sizes)
        panels = str(len(report.sizes))
        table.add_row(escape(report.name), panels, sizes, f"{pixels:.2f}", tokens, state)
    Console().print(table)
    _show_problems(problems)
    errors = sum(p.severity == "error" for p in problems)
    if not words.base:
        _say("tokens are estimated; pass --base to count them with the base's own tokenizer")
    _say(
        f"{len(reports)} sets of {dataset.recipe.name}: {errors} errors, "
        f"{len(problems) - errors} warnings"
    )
    return 2 if errors else 0


def _show_problems(problems: Iterable[Problem]) -> None:
    for problem in problems:
        print(f"{problem.severity}: {problem}", file=sys.stderr)


def plan(words: Words) -> None:
    """Choose the settings with which a run fits a card, and say what it will take."""
    from iclora.settings import TrainSettings, read_settings
    from iclora.train.plan import plan_run

    usual = {"base": "black-forest-labs/FLUX.1-dev", "data": "DATA", "out": "RUN"}
    found = plan_run(
        read_settings(TrainSettings, words.run_file, _settings(words), usual), here=False
    )
    _say(str(found))
    if words.write:
        from iclora.files import write_text

        write_text(Path(words.write), found.run_file())
        _say(f"wrote {words.write}; train it with: iclora train {words.write}")


def _settings(words: Words) -> dict[str, Any]:
    """The training settings that the command line gives."""
    from iclora.settings import TrainSettings

    given = {k: v for k, v in vars(words).items() if k in TrainSettings.model_fields}
    return {k: v for k, v in given.items() if v is not None}


def train(words: Words) -> int:
    """Tune a LoRA on a dataset, or go on with a run."""
    from iclora.making.generate import make_preview
    from iclora.settings import TrainSettings, read_settings
    from iclora.train.plan import plan_run
    from iclora.train.run import resume_config
    from iclora.train.run import train as run_training

    say, warn = _voices()
    overrides = _settings(words)
    if words.resume:
        if words.run_file:
            raise SettingsError("a resumed run has its own settings", "Leave the run file out.")
        config = resume_config(words.resume, overrides, warn)
    else:
        config = read_settings(TrainSettings, words.run_file, overrides)
        if config.vram is not None:
            chosen = plan_run(config, here=True)
            say(str(chosen))
            config = chosen.config
    words.device, words.dtype, words.precision = config.device, config.dtype, config.precision
    model = _load(config.base, words)
    kept = "" if model.precision == "full" else f", its blocks in {model.precision}"
    number = str(model.dtype).removeprefix("torch.")
    say(f"base {config.base} on {model.device} in {number}{kept}")
    if recomputes_unasked(config, model.device.type):
        warn("every block is recomputed; --vram auto recomputes only as many as this card needs")

    def previewer(recipe: Recipe) -> Callable[[int, bool], None]:
        return make_preview(
            model,
            recipe,
            config.preview_prompts or (recipe.example,),
            resolution=config.preview_resolution,
            seed=config.seed,
            folder=Path(config.out, "previews"),
        )

    with progress_bar() as bar:
        try:
            result = run_training(
                config,
                model,
                resume=bool(words.resume),
                make_preview=previewer,
                warn=warn,
                on_encode=lambda what, done, total: bar(f"encoding {what}", done, total, ""),
                on_step=lambda r: bar("training", r.step, r.steps, f"loss {r.loss:.4f}"),
            )
        except KeyboardInterrupt:
            if Path(config.out, "config.toml").exists():
                say(f"go on with: iclora train --resume {config.out}")
            raise
    if not result.finished:
        say(
            f"stopped at step {result.step} of {config.steps}; nothing is lost\n"
            f"go on with: iclora train --resume {result.folder}"
        )
        return 130
    say(f"wrote {result.adapter}\nloss curve {result.folder / 'loss.png'}")
    if config.preview_every:
        say(f"previews {result.folder / 'previews'}")
    return 0


def _voices() -> tuple[Callable[[str], None], Callable[[str], None]]:
    """What a run says and warns with: of the processes that share it the first one speaks."""
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if shared and os.environ.get("RANK", "0") != "0":
        return (lambda _: None), (lambda _: None)
    return _say, _warn


def recomputes_unasked(config: TrainSettings, device: str) -> bool:
    """Whether a GPU is to take the slow way, safe on any card, that nobody chose."""
    own = {"recompute", "gradient_checkpointing"}
    return device == "cuda" and config.gradient_checkpointing and not own & config.model_fields_set


def generate(words: Words) -> None:
    """Make new sets from joint prompts, or repeat a request."""
    _make(words, {})


def complete(words: Words) -> None:
    """Make the missing panels of a set, or repeat a request."""
    from iclora.sets.images import open_image

    if not words.known and not words.request:
        raise SettingsError("no panel is known", "Give at least one, such as --known 1=shot.png.")
    files = {number: Path(file) for number, file in _pairs(words.known, "--known")}
    known = {number: open_image(file) for number, file in files.items()}
    _make(words, known, files)


def reroll(words: Words) -> None:
    """Make panels of a set again; the others stay, pixel for pixel."""
    from iclora.making.request import GeneratedSet, check_base, load_adapter_of
    from iclora.making.story import reroll as make_again

    made = GeneratedSet.load(words.set)
    request = made.request
    words.device = request.device if words.device == "auto" else words.device
    if words.dtype == "auto":
        words.dtype = {"float32": "fp32", "bfloat16": "bf16"}[request.dtype]
    words.precision = words.precision or request.precision
    adapter = load_adapter_of(request, words.adapter)
    model = _load(words.base or request.base, words)
    check_base(request, model)
    with progress_bar() as bar:
        on_step = partial(_sampling, bar, "painting")
        panels = set(words.panel)
        other = make_again(model, made, panels, seed=words.seed, adapter=adapter, on_step=on_step)
    _say(f"wrote {other.save_next(words.out)}")


def extend(words: Words) -> None:
    """Make a story of any length, a canvas at a time, in view of what was made before."""
    from iclora.making.story import Story, Window
    from iclora.making.story import extend as make_story
    from iclora.sets.images import open_image
    from iclora.sets.recipe import load_recipe

    story = Story.read(words.story)
    known = {n: open_image(Path(file)) for n, file in _pairs(words.known, "--known")}
    adapter, base = _adapter_and_base(words)
    model = _load(base, words)
    recipe = load_recipe(words.recipe) if words.recipe else None
    if recipe is None and adapter and adapter.info:
        recipe = adapter.info.recipe
    if recipe is None:
        raise SettingsError("no recipe is known", "Pass --recipe, such as film-storyboard.")
    names = ("size", "steps", "guidance", "mode", "boost", "resample", "resample_from", "strength")
    how = {name: getattr(words, name) for name in names if getattr(words, name) is not None}
    out = Path(words.out)
    with progress_bar() as bar:

        def report(window: Window, number: int, count: int) -> None:
            shows = " ".join(f"{n:02d}" for n in window.images[-window.made :])
            _say(f"canvas {number} of {count}: image {shows}")

        made = make_story(
            model,
            story,
            recipe,
            adapter,
            out,
            anchors=words.anchor or (1,),
            fresh=words.fresh,
            seed=words.seed or 0,
            known=known,
            on_window=report,
            on_step=partial(_sampling, bar, "painting"),
            **how,
        )
    _say(f"wrote {out}: {len(made)} images, and every canvas under {out / 'windows'}")


def evaluate(words: Words) -> None:
    """Measure what a base and adapters make of the same prompts and seeds, side by side."""
    from iclora.evaluate.report import as_text
    from iclora.evaluate.run import evaluate as run_evaluation
    from iclora.evaluate.setup import arms_of, plan

    arms = arms_of(words.adapter or (), words.mode or (None,))
    infos = [arm.adapter.info for arm in arms if arm.adapter and arm.adapter.info]
    base = words.base or next((info.base for info in infos), None)
    if base is None:
        raise SettingsError(
            "no base is given", "Pass --base, such as black-forest-labs/FLUX.1-dev."
        )
    recipe, wishes = _evaluation_wishes(words, arms)
    metrics = [_load_metric(name, words, recipe) for name in words.metric or ()]
    model = _load(base, words)
    names = ("steps", "guidance", "strength", "boost", "resample", "resample_from")
    how = {name: getattr(words, name) for name in names if getattr(words, name) is not None}
    planned = plan(model, recipe, arms, wishes, Path(words.out), size=words.size, **how)
    for note in planned.notes:
        _warn(note)
    _say(f"{len(wishes)} sets by each of: {'; '.join(arm.name for arm in arms)}")
    with progress_bar() as bar:
        try:
            table = run_evaluation(model, planned, metrics, together=words.together or 1, bar=bar)
        except KeyboardInterrupt:
            _say("sets that were made are kept; the same command goes on with the rest")
            raise
    for note in table.notes:
        if note not in planned.notes:
            _warn(note)
    _say(
        f"\n{as_text(planned, table)}\n\nwrote {planned.out / 'report.html'}; open it in a browser"
    )


def _evaluation_wishes(words: Words, arms: list[Arm]) -> tuple[Recipe, list[Wish]]:
    """What every arm is asked for, and of which recipe."""
    from iclora.evaluate.setup import wishes_of_data, wishes_of_prompts
    from iclora.sets.dataset import open_dataset
    from iclora.sets.images import open_image
    from iclora.sets.recipe import load_recipe

    first = words.seed or 0
    seeds = range(first, first + (words.seeds or 1))
    prompts = list(words.prompt or ())
    if words.prompts:
        prompts += [line for line in _read_lines(words.prompts) if line]
    if words.data:
        if prompts:
            raise SettingsError(
                "--data brings its own prompts", "Leave --prompt and --prompts out."
            )
        numbers = [text for text in words.known or () if not text.isdigit()]
        if numbers:
            raise SettingsError(
                f'--known "{numbers[0]}" beside --data', "Name the panel alone: --known 1."
            )
        dataset = open_dataset(words.data, words.recipe)
        _show_problems(dataset.problems)
        known = sorted({int(text) for text in words.known or ()})
        return dataset.recipe, wishes_of_data(dataset, known, seeds)
    if not prompts:
        raise SettingsError("there is no prompt", "Pass --prompts FILE, or --data SETS.")
    infos = [arm.adapter.info for arm in arms if arm.adapter and arm.adapter.info]
    recipe = load_recipe(words.recipe) if words.recipe else infos[0].recipe if infos else None
    if recipe is None:
        raise SettingsError("no recipe is known", "Pass --recipe, such as film-storyboard.")
    given = {n: open_image(Path(file)) for n, file in _pairs(words.known, "--known")}
    return recipe, wishes_of_prompts(prompts, list(seeds), given)


def _load_metric(name: str, words: Words, recipe: Recipe) -> Metric:
    import transformers

    from iclora.evaluate.metrics.load import load_metric
    from iclora.toyland.metric import Toyland

    transformers.utils.logging.disable_progress_bar()
    metric = load_metric(
        name, device=words.model_device, url=words.api, more={"toyland": lambda *_: Toyland()}
    )
    metric.check(recipe)
    return metric


def _make(
    words: Words, known: dict[int, Image.Image], files: dict[int, Path] | None = None
) -> None:
    from iclora.making.generate import run, use

    out = Path(words.out)
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file", "Give a folder.")
    if (words.best_of is None) != (words.score is None):
        raise SettingsError("--best-of and --score go together", "Pass both, or neither.")
    model, adapter, wishes = _wishes(words, known, files or {})
    keep = _keeper(words, adapter)
    texts = {prompt: model.encode_text(prompt) for prompt in {w[0].prompt for w in wishes}}
    if model.device.type != "cpu":
        # Some 10 GB that nothing needs any more, before the denoiser is loaded.
        model.release("text")
    use(model, adapter, wishes[0][0].strength)
    turns = words.best_of or 1
    with progress_bar() as bar:

        def made_of(start: int) -> Iterator[GeneratedSet]:
            for number, (request, given, latents) in enumerate(
                wishes[start : start + turns], start
            ):
                on_step = partial(_sampling, bar, f"set {number + 1} of {len(wishes)}")
                text = texts[request.prompt]
                yield run(model, request, given, latents=latents, text=text, on_step=on_step)

        for start in range(0, len(wishes), turns):
            made = keep(made_of(start))
            _say(
                f"wrote {made.save_next(out)}: composite.png, panel-1.png to "
                f"panel-{len(made.panels)}.png, request.json"
            )


def _keeper(
    words: Words, adapter: Adapter | None
) -> Callable[[Iterator[GeneratedSet]], GeneratedSet]:
    """What chooses the set that is kept; without --best-of there is but one."""
    if not words.best_of:
        return next
    from iclora.evaluate.making import scorer
    from iclora.making.best import best_of
    from iclora.sets.recipe import load_recipe

    recipe = load_recipe(words.recipe) if words.recipe else None
    if recipe is None and adapter and adapter.info:
        recipe = adapter.info.recipe
    assert recipe is not None, "prepare has found one"
    metric = _load_metric(words.score, words, recipe)

    def keep(candidates: Iterator[GeneratedSet]) -> GeneratedSet:
        made, scores = best_of(
            candidates, scorer(metric, recipe), f"{metric.source} ({metric.main})"
        )
        shown = ", ".join("-" if score is None else f"{score:.3f}" for score in scores)
        _say(f"{metric.name} {metric.main} of {len(scores)} sets: {shown}")
        return made

    return keep


def _sampling(bar: Progress, name: str, done: int, total: int) -> None:
    bar(name, done, total, "")


def _wishes(
    words: Words, known: dict[int, Image.Image], files: dict[int, Path]
) -> tuple[DiffusionModel, Adapter | None, list[_Wish]]:
    """The base, the adapter, and the requests with their known panels."""
    from iclora.making.request import Request, check_base, known_latents, load_adapter_of, prepare
    from iclora.sets.recipe import load_recipe

    if words.request:
        _refuse_with_request(words)
        request, given = Request.load(words.request)
        words.device = request.device if words.device == "auto" else words.device
        words.dtype = {"float32": "fp32", "bfloat16": "bf16"}[request.dtype]
        words.precision = request.precision
        adapter = load_adapter_of(request, words.adapter)
        model = _load(words.base or request.base, words)
        check_base(request, model)
        latents = known_latents(request, Path(words.request).parent)
        return model, adapter, [(request, given, latents)]
    adapter, base = _adapter_and_base(words)
    prompts = list(words.prompt or ())
    if words.prompts:
        lines = _read_lines(words.prompts)
        prompts += [line for line in lines if line]
    if not prompts and not words.idea:
        raise SettingsError(
            "there is no prompt", 'Pass --prompt "...", --prompts FILE or --idea "...".'
        )
    panel_seeds = {n: int(s) for n, s in _pairs(words.panel_seed, "--panel-seed", r"\d+")}
    write_ideas = _idea_writer(words, adapter)
    model = _load(base, words)
    prompts += write_ideas(model)
    latents = _latents_beside(model, files, known)
    how = {k: getattr(words, k, None) for k in ("mode", "boost", "resample", "resample_from")}
    wishes, said = [], set()
    for prompt in prompts:
        for turn in range((words.count or 1) * (words.best_of or 1)):
            request, notes = prepare(
                model,
                prompt,
                recipe=load_recipe(words.recipe) if words.recipe else None,
                adapter=adapter,
                strength=1.0 if words.strength is None else words.strength,
                size=words.size,
                seed=(words.seed or 0) + turn,
                panel_seeds=panel_seeds,
                steps=words.steps,
                guidance=words.guidance,
                known=known,
                latents=latents,
                **how,
            )
            wishes.append((request, known, latents))
            said.update(notes)
    for note in sorted(said):
        _warn(note)
    return model, adapter, wishes


def _adapter_and_base(words: Words) -> tuple[Adapter | None, str]:
    """The adapter, and the name of the base to use it with."""
    from iclora.adapter.lora import Adapter

    adapter = Adapter.load(words.adapter) if words.adapter else None
    base = words.base or (adapter.info.base if adapter and adapter.info else None)
    if base is None:
        raise SettingsError(
            "no base is given", "Pass --base, such as black-forest-labs/FLUX.1-dev."
        )
    return adapter, base


def _latents_beside(
    model: DiffusionModel, files: dict[int, Path], known: dict[int, Image.Image]
) -> dict[int, Tensor]:
    """The latents of known panels that this base's VAE made before: they need no encoding."""
    from iclora.making.request import read_latents

    found = {}
    for number, file in files.items():
        kept = read_latents(file, known[number])
        if kept and kept[1] == model.fingerprint("vae"):
            found[number] = kept[0]
    return found


def _idea_writer(words: Words, adapter: Adapter | None) -> Callable[[DiffusionModel], list[str]]:
    """What will make joint prompts of --idea; refused before any weights are loaded."""
    from iclora.sets.recipe import load_recipe
    from iclora.vlm import load_captioner
    from iclora.vlm.caption import write_prompt

    if not words.idea:
        return lambda _: []
    if not words.captioner:
        raise SettingsError("an idea needs somebody to write it out", "Pass --captioner too.")
    if words.recipe:
        recipe = load_recipe(words.recipe)
    elif adapter and adapter.info:
        recipe = adapter.info.recipe
    else:
        raise SettingsError("an idea needs a recipe to be written in", "Pass --recipe.")
    captioner = load_captioner(words.captioner, url=words.api, device=words.device)
    _tell_of_ideas(captioner)

    def write(model: DiffusionModel) -> list[str]:
        budget: dict[str, Any] = {
            "count_tokens": model.count_tokens,
            "limit": model.max_text_tokens,
        }
        found = [write_prompt(recipe, idea, captioner, **budget) for idea in words.idea]
        for prompt in found:
            _say(f"prompt: {prompt}")
        return found

    return write


_DECIDED = (
    "idea",
    "captioner",
    "api",
    "recipe",
    "prompt",
    "prompts",
    "count",
    "best_of",
    "score",
    "size",
    "seed",
    "panel_seed",
    "steps",
    "guidance",
    "strength",
    "known",
    "mode",
    "boost",
    "resample",
    "resample_from",
    "precision",
)


def _refuse_with_request(words: Words) -> None:
    """A request says everything; an option beside it would be ignored."""
    given = [f"--{o.replace('_', '-')}" for o in _DECIDED if getattr(words, o, None) is not None]
    given += ["--dtype"] * (words.dtype != "auto")
    if given:
        raise SettingsError(
            f"{words.request} already decides what {', '.join(given)} would",
            "Repeat it without, or write a new prompt instead of it.",
        )


def _read_lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"prompts {path} cannot be read: {error}", "Check the file.") from error
    return [line.strip() for line in text.splitlines()]


def _pairs(values: list[str] | None, option: str, form: str = ".+") -> list[tuple[int, str]]:
    found = []
    for value in values or ():
        match = re.fullmatch(rf"(\d+)=({form})", value)
        if not match:
            raise SettingsError(
                f'{option} "{value}" is not of the form PANEL=...',
                f"Write for instance {option} 1=...; panels count from 1.",
            )
        found.append((int(match[1]), match[2]))
    if len({number for number, _ in found}) < len(found):
        raise SettingsError(f"{option} names a panel twice", "Name every panel once.")
    return found


def demo(words: Words) -> None:
    """Show the whole method on the small base that ships with iclora."""
    import transformers

    from iclora.toyland.demo import run_demo

    transformers.utils.logging.disable_progress_bar()
    with progress_bar() as bar:
        page = run_demo(Path(words.out), words.task, quick=words.quick, say=_say, bar=bar)
    _say(f"\nwrote {page}; open it in a browser")


def info(words: Words) -> None:
    """Say what an adapter, a request or a run is."""
    path = Path(words.file)
    if path.is_dir() and (path / "config.toml").is_file():
        _say((path / "config.toml").read_text(encoding="utf-8").rstrip())
    elif path.suffix == ".json":
        from iclora.making.request import Request

        _say(Request.load(path)[0].model_dump_json(indent=2))
    else:
        _show_adapter(path)


def _show_adapter(path: Path) -> None:
    from iclora.adapter.lora import Adapter
    from iclora.sets.layout import Layout

    adapter = Adapter.load(path)
    downs = {k: v for k, v in adapter.weights.items() if ".lora_A." in k}
    ranks = sorted({int(v.shape[0]) for v in downs.values()})
    count = sum(v.numel() for v in adapter.weights.values())
    precision = ", ".join(sorted({str(v.dtype)[6:] for v in adapter.weights.values()}))
    _say(
        f"{path}\nmodules      {len(downs)}\nranks        {', '.join(map(str, ranks))}\n"
        f"parameters   {count:,} in {precision}\nsha256       {adapter.sha256}"
    )
    if adapter.info is None:
        _say("origin       another tool: no recipe and layout inside; pass --recipe to generate")
        return
    about, canvas = adapter.info, Layout.from_json(adapter.info.layout)
    _say(
        f"base         {about.base} ({about.family})\ntrained      {about.steps} steps, "
        f"rank {about.rank}, alpha {about.alpha:g}, targets {about.targets}\n"
        f"recipe       {about.recipe.name}: {' '.join(about.recipe.markers)}\n"
        f"layout       {canvas.width}x{canvas.height} px, {canvas.panels} panels\n"
        f"written by   iclora {about.iclora}\n\n"
        f"example prompt\n{about.recipe.example}"
    )
