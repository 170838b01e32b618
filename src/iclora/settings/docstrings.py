"""The docstrings of settings: what stands below a field is its help.

Pydantic can read them too, but it parses the text of every class by itself, and for some thirty of
them that takes a twentieth of a second of every command. Here a module is parsed once.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Described", "describe"]


class Described(BaseModel):
    """A model whose fields' docstrings are their descriptions in JSON schemas."""

    # Built when first used: by then the descriptions are there.
    model_config = ConfigDict(defer_build=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **more: Any) -> None:
        super().__pydantic_init_subclass__(**more)
        describe(cls)


def describe(model: type[BaseModel]) -> None:
    """Make the docstring below each of a model's own fields its description, if it has none."""
    for name, text in _of_module(model.__module__).get(model.__qualname__, {}).items():
        field = model.model_fields.get(name)
        if field and field.description is None:
            field.description = text


@cache
def _of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """The docstrings below annotated names, by the qualified names of a module's classes."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, SyntaxError, TypeError):  # made without a file
        return {}
    return dict(_classes(tree, ""))


def _classes(node: ast.AST, prefix: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, _of_class(child)
            yield from _classes(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(child, f"{prefix}{child.name}.<locals>.")


def _of_class(node: ast.ClassDef) -> Mapping[str, str]:
    return {
        first.target.id: inspect.cleandoc(then.value.value)
        for first, then in pairwise(node.body)
        if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name)
        if isinstance(then, ast.Expr) and isinstance(then.value, ast.Constant)
        if isinstance(then.value.value, str)
    }
