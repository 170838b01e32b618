"""The docstrings of settings: their help, read when somebody asks for it.

Pydantic can read them too, but as it makes a model, and that takes a twentieth of a second of every
command, for some thirty models.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler

__all__ = ["described", "help_of"]


def help_of(model: type[BaseModel], name: str) -> str:
    """What a field means, as stands below it; nothing if there is no docstring."""
    return model.model_fields[name].description or _docstrings(model).get(name, "")


def described(model: type[BaseModel], schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
    """The JSON schema of a model, its fields' docstrings as their descriptions.

    Args:
        schema: the core schema, and
        handler: what pydantic hands to `__get_pydantic_json_schema__`.
    """
    found: dict[str, Any] = handler(schema)
    for name, field in handler.resolve_ref_schema(found).get("properties", {}).items():
        if name in model.model_fields and help_of(model, name):
            field.setdefault("description", help_of(model, name))
    return found


@cache
def _docstrings(model: type[BaseModel]) -> Mapping[str, str]:
    """By the names of a model's fields, its parents' included."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel):
            found |= _of_module(kind.__module__).get(kind.__qualname__, {})
    return found


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
