"""The command line's options: what every verb takes, and how it is told in `--help`.

Imports nothing that takes long: `--help` starts at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any

from iclora import __version__

__all__ = ["TOY_TASKS", "Verb", "Words", "make_parser"]

Words = argparse.Namespace

Verb = Callable[[Words], "int | None"]
"""What a verb runs; it returns the exit status where that is not 0."""

_CAPTIONER = (
    "who writes: openai:MODEL for any OpenAI-compatible server (key in $OPENAI_API_KEY), "
    "local:PATH for a transformers model on this machine, toyland for the small one that ships"
)
_METRIC = (
    "dino:MODEL or clip:MODEL (a folder or hub id), openai:MODEL or local:MODEL (a "
    "vision-language model as the judge), toyland (knows the truth of toyland's sets)"
)
# Named here so that `--help` need not load them; a test holds them equal to toyland's.
TOY_TASKS = (
    "film-storyboard",
    "portrait-photography",
    "portrait-illustration",
    "sandstorm-effect",
    "visual-identity",
    "font-design",
    "ppt-template",
    "home-decoration",
)


def make_parser(verb: str, verbs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """The parser of all verbs.

    Args:
        verb: the one that is called, as far as is known: only it gets options whose making takes
            long.
        verbs: what each runs, by name; its docstring is the help.
    """
    parser = argparse.ArgumentParser(
        prog="iclora",
        description="In-Context LoRA: compose panel sets, train on them, generate and complete.",
    )
    parser.add_argument("--version", action="version", version=f"iclora {__version__}")
    parsers = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def add(name: str) -> argparse.ArgumentParser:
        summary = verbs[name].__doc__ or ""
        sub = parsers.add_parser(name, help=summary, description=summary)
        sub.set_defaults(verb=verbs[name])
        return sub

    p = add("recipes")
    p.add_argument("name", nargs="?", help="show this recipe (a name or a TOML file) in full")
    p = add("compose")
    p.add_argument("source", help="folder or zip archive of image sets")
    p.add_argument("--recipe", help="recipe name or TOML path; by default the source's own")
    p.add_argument("--out", required=True, help="new folder for the composites")
    p.add_argument(
        "--resolution",
        type=_side,
        default=1536,
        help="largest canvas, px: side of a square of the same area (default 1536)",
    )
    p = add("caption")
    p.add_argument("data", help="folder of image sets")
    p.add_argument("--recipe", help="recipe name or TOML path; by default the dataset's own")
    p.add_argument(
        "--send",
        choices=("panels", "composite"),
        default="panels",
        help="show the model the panels one by one (default), or joined",
    )
    p.add_argument(
        "--longest-side",
        type=_side,
        default=768,
        help="pictures are scaled down to this before they are sent, px (default 768)",
    )
    p.add_argument("--together", type=_positive, help="requests at the same time (default 4)")
    p.add_argument("--overwrite", action="store_true", help="also replace captions that are there")
    _captioner_options(p)
    p = add("review")
    p.add_argument("data", help="folder or zip archive of image sets")
    p.add_argument("--recipe", help="recipe name or TOML path; by default the dataset's own")
    p.add_argument("--base", help="count tokens as this base does")
    p.add_argument("--out", help="HTML file; by default DATA-review.html beside the dataset")
    p.set_defaults(device="cpu", dtype="fp32")
    p = add("prompt")
    p.add_argument("idea", help="one line, such as: a shy boy at a carnival")
    p.add_argument("--recipe", required=True, help="recipe name or TOML path")
    _captioner_options(p)
    p = add("check")
    p.add_argument("data", help="folder or zip archive of image sets")
    p.add_argument("--recipe", help="recipe name or TOML path; by default the dataset's own")
    p.add_argument("--base", help="count tokens as this base does")
    p.add_argument("--resolutions", type=_side, nargs="+", help="training resolutions to judge by")
    p.set_defaults(device="cpu", dtype="fp32")
    p = add("plan")
    if verb == "plan":
        _train_options(p)
        p.add_argument("--write", metavar="FILE", help="write a run file with the choice")
    p = add("train")
    if verb == "train":
        _train_options(p)
        p.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    for name in ("generate", "complete"):
        p = add(name)
        _prompt_options(p)
    _known_options(p)
    p = add("reroll")
    p.add_argument("set", help="folder of a set that generate or complete wrote")
    p.add_argument(
        "--panel",
        type=_positive,
        action="append",
        required=True,
        help="a panel to make again, counted from 1; repeat for more",
    )
    p.add_argument("--seed", type=int, default=1, help="of its new noise (default 1)")
    p.add_argument("--base", help="base model; by default the one the set was made with")
    p.add_argument("--adapter", help="adapter file; by default the one the set was made with")
    _machine_options(p)
    p = add("extend")
    p.add_argument("story", help="text file: what all images share, then a line for each image")
    p.add_argument(
        "--anchor",
        type=_positive,
        action="append",
        help="an image of the first canvas that stays in view (default 1); repeat for more",
    )
    p.add_argument("--fresh", type=_positive, help="new images on each further canvas")
    _sampling_options(p)
    _known_options(p)
    p = add("evaluate")
    _evaluation_options(p)
    p = add("demo")
    p.add_argument("--out", default="demo", help="new folder (default demo)")
    p.add_argument("--task", default="film-storyboard", choices=TOY_TASKS, help="another recipe")
    p.add_argument("--quick", action="store_true", help="a smoke run, whose figures mean nothing")
    p = add("info")
    p.add_argument("file", help="an adapter file, a request.json or a run folder")
    return parser


def _train_options(parser: argparse.ArgumentParser) -> None:
    """One option per field of TrainSettings; pydantic reads the values."""
    from typing import get_origin

    from iclora.settings import TrainSettings

    parser.add_argument("run_file", nargs="?", help="TOML run file with a [train] table")
    for name, field in TrainSettings.model_fields.items():
        many = get_origin(field.annotation) is tuple
        shown = field.default
        if many:
            shown = " ".join(map(str, field.default))
        default = "" if field.is_required() or shown in (None, "") else f" (default {shown})"
        options: dict[str, Any] = {"metavar": name.upper().split("_")[-1]}
        if field.annotation is bool:
            options = {"action": argparse.BooleanOptionalAction, "default": None}
        elif many:
            options["nargs"] = "+"
        text = f"{field.description}{default}".replace("%", "%%")
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **options)


def _prompt_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("request", nargs="?", help="a request.json to repeat exactly")
    add("--prompt", action="append", help="a joint prompt; repeat for more sets")
    add("--prompts", metavar="FILE", help="text file with one joint prompt per line")
    add("--idea", action="append", help="one line that a captioner turns into a joint prompt")
    add("--captioner", help=f"for --idea, {_CAPTIONER}")
    add("--api", metavar="URL", help="for --idea, the server's base URL")
    add("--count", type=_positive, help="sets per prompt, with seeds one apart (default 1)")
    add(
        "--best-of",
        type=_positive,
        metavar="N",
        help="make N of each set, keep the best by --score",
    )
    add("--score", metavar="METRIC", help=f"for --best-of, {_METRIC}")
    add("--model-device", default="auto", help="where the model of --score runs (default auto)")
    add(
        "--panel-seed",
        action="append",
        metavar="PANEL=SEED",
        help="own seed for one panel, to re-roll it alone",
    )
    _sampling_options(parser)


def _evaluation_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt", action="append", help="a joint prompt; repeat for more")
    add("--prompts", metavar="FILE", help="text file with one joint prompt per line")
    add("--data", help="folder or zip of image sets, whose captions are the prompts")
    add(
        "--known",
        action="append",
        metavar="PANEL[=FILE]",
        help="a given panel, counted from 1: of each set of --data, or a file; repeat for more",
    )
    add("--seeds", type=_positive, help="seeds per prompt, the same in every arm (default 1)")
    add("--metric", action="append", help=f"{_METRIC}; repeat for more")
    add("--model-device", default="auto", help="where metrics' models run (default auto)")
    add("--api", metavar="URL", help="for openai:, the server's base URL")
    add("--together", type=_positive, help="sets in one batch (default 1)")
    _sampling_options(parser, many=True)
    _mode_options(parser, many=True)


def _sampling_options(parser: argparse.ArgumentParser, many: bool = False) -> None:
    add = parser.add_argument
    add("--base", help="base model; by default the one the adapter was trained on")
    if many:
        add(
            "--adapter",
            action="append",
            metavar="[NAME=]FILE",
            help="adapter file; repeat for more arms",
        )
    else:
        add("--adapter", help="adapter file")
    add("--strength", type=float, help="factor on the adapter (default 1)")
    add("--recipe", help="recipe name or TOML path; by default the adapter's")
    add("--size", type=_size, metavar="WxH", help="canvas in px; by default the recipe's")
    add("--seed", type=int, help="decides the noise of all panels (default 0)")
    add("--steps", type=int, help="Euler steps; by default the base's or the recipe's")
    add("--guidance", type=float, help="guidance value; by default the recipe's")
    add(
        "--resample",
        type=_positive,
        metavar="N",
        help="take every early step N times more from new noise: panels agree better, and it takes "
        "longer (default 0; in mode resample 3)",
    )
    add(
        "--resample-from",
        type=float,
        metavar="SIGMA",
        help="steps below this noise level are taken once (default 0.6)",
    )
    _machine_options(parser, "evaluation" if many else "out")


def _machine_options(parser: argparse.ArgumentParser, out: str = "out") -> None:
    add = parser.add_argument
    add("--out", default=out, help=f"folder for what is made (default {out})")
    add("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    add("--dtype", default="auto", choices=("auto", "bf16", "fp32"), help="precision of the base")
    add(
        "--precision",
        choices=("full", "fp8", "int8", "nf4"),
        help="how the base's blocks are kept: base is as dtype says, int8 and fp8 half of bf16, "
        "nf4 a quarter (default base)",
    )


def _known_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--known",
        action="append",
        metavar="PANEL=FILE",
        help="a given panel, counted from 1; repeat for more",
    )
    _mode_options(parser)


def _mode_options(parser: argparse.ArgumentParser, many: bool = False) -> None:
    add = parser.add_argument
    add(
        "--mode",
        action="append" if many else "store",
        choices=("sdedit", "resample", "boost", "clean"),
        help="how the others are made; by default clean for adapters trained with --conditional, "
        "else sdedit" + many * "; repeat for more arms",
    )
    add("--boost", type=float, help="mode boost: factor on attention (default 2)")


def _captioner_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--captioner", required=True, help=_CAPTIONER)
    add("--api", metavar="URL", help="the server's base URL; by default $OPENAI_BASE_URL")
    add("--model-device", default="auto", help="where a local model runs (default auto)")
    add(
        "--schema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="hold a server's answers to a JSON schema, where it can (default)",
    )
    add("--base", help="count tokens as this base does")
    parser.set_defaults(device="cpu", dtype="fp32")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f'"{text}" is not WIDTHxHEIGHT, such as 1024x1536')
    return int(match[1]), int(match[2])


def _side(text: str) -> int:
    if not text.isdigit() or not 64 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of px from 64 to 4096')
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number from 1')
    return int(text)
