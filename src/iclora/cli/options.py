"""Options made from the settings models: one per field, and its docstring is the help.

Only what the user gave is passed on, as text; pydantic reads the values. Imports nothing that
takes long: `--help` starts at once.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from iclora import __version__
from iclora.cli.output import as_options, option_of, show_error
from iclora.settings import Shown, Verb, about
from iclora.settings.findings import nearest

__all__ = ["list_verbs", "options_of", "verb_parser"]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all others."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        # -1e3 and -inf are values too: the setting's own range refuses them, in its own words.
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)")

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        names = {flag.lstrip("-").replace("-", "_"): flag for flag in known}
        near = nearest(unknown[1].lstrip("-"), names) if unknown else None
        if near:
            message += f"; did you mean {names[near]}?"
        show_error(message, f"`{self.prog} --help` lists what there is.")
        self.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own passes over a reader that has left, and ends as if all had been read.
        if message:
            (file or sys.stderr).write(message)


class _Once(argparse.Action):
    """Store one value; refuse a second one, of which argparse would say nothing."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"{option} is given twice, and takes one value")
        setattr(namespace, self.dest, values)


def list_verbs(verbs: Mapping[str, Verb[Any]]) -> argparse.ArgumentParser:
    """The parser of no verb yet: it lists them all."""
    parser = _Parser(
        prog="iclora",
        description="In-Context LoRA: compose panel sets, train on them, generate and complete.",
    )
    parser.add_argument("--version", action="version", version=f"iclora {__version__}")
    listed = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for name, verb in verbs.items():
        listed.add_parser(name, help=verb.summary, add_help=False)
    return parser


def verb_parser(name: str, verb: Verb[Any]) -> argparse.ArgumentParser:
    """The parser of one verb; it gives what the user gave, by the fields' names."""
    parser = _Parser(prog=f"iclora {name}", description=verb.summary)
    options_of(parser, verb.settings)
    return parser


def options_of(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Add one option per field of a settings model, those it adds to its parents' first."""
    for name in _in_order(model):
        field = model.model_fields[name]
        known = about(model, name)
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(model, name)}
        if known.get("position"):
            if known.get("many") == "list":
                how["nargs"], how["metavar"] = "+", name.upper().removesuffix("S")
            elif not field.is_required():
                how["nargs"] = "?"
            parser.add_argument(name, **how)
            continue
        if _plain(field.annotation) is bool:
            how["action"] = argparse.BooleanOptionalAction
        else:
            how["metavar"] = known.get("metavar") or _metavar(name, field)
            if known.get("many") == "list":
                how["nargs"], how["action"] = "+", _Once
            elif _many(_plain(field.annotation)):
                how["action"] = "append"
            else:
                how["action"] = _Once
        also = [f"--{other.replace('_', '-')}" for other in known.get("also", ())]
        parser.add_argument(option_of(model, name), *also, dest=name, **how)


def _in_order(model: type[BaseModel]) -> Iterator[str]:
    """The fields: first those that the model itself adds, last those of its oldest parent."""
    seen: set[str] = set()
    for kind in model.__mro__:
        for name in inspect.get_annotations(kind):
            if name in model.model_fields and name not in seen:
                seen.add(name)
                yield name


def _help(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    text = as_options(" ".join((field.description or "").split()), model)
    if field.is_required():
        shown = "" if about(model, name).get("position") else " (required)"
    else:
        shown = _default(field.default)
    return (text + shown).replace("%", "%%")


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return f" (default {'yes' if value else 'no'})"
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return "" if value in (None, "", {}) else f" (default {value})"


def _metavar(name: str, field: FieldInfo) -> str:
    """{one,two} if only these may be given, the word of its type, N, NUMBER, or else its name."""
    shown = _shown(field.annotation) or next(_words(field.metadata), None)
    if shown:
        return shown
    kind = _plain(field.annotation)
    if _many(kind):
        kind = _plain(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    numbers = {int: "N", float: "NUMBER"}
    return numbers[kind] if kind in numbers else name.upper().split("_")[-1]


def _shown(annotation: Any) -> str | None:
    """The word that a type, or the type of its elements, has for help."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return next(_words(inner[1:]), None) or _shown(inner[0])
    return next(filter(None, map(_shown, inner)), None)


def _words(metadata: Iterable[Any]) -> Iterator[str]:
    return (each.word for each in metadata if isinstance(each, Shown))


def _many(kind: Any) -> bool:
    """True for any number of values: tuple[int, ...] or dict, but not a width and a height."""
    return get_origin(kind) is dict or (get_origin(kind) is tuple and ... in get_args(kind))


def _plain(annotation: Any) -> Any:
    """A type without its limits, and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        if len(kinds) == 1:
            return _plain(kinds[0])
    return annotation
