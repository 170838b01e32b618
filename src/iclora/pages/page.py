"""Pages that need no other file: pictures inside, small enough to look through, nothing runs.

A page is a template in `templates/` that extends `base.html.jinja`. All text is escaped there, and
control characters are shown;
pictures come as URLs that hold them, so that few large ones are in memory at once. A model card is
Markdown and has its pictures beside it.
"""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from iclora.files.visible import visible

__all__ = ["data_url", "render", "render_markdown"]


def render(template: str, **values: Any) -> str:
    """One page as HTML.

    Args:
        template: "review", "report" or "demo".
        values: what it shows; every name it uses must be there.
    """
    return visible(_pages().get_template(f"{template}.html.jinja").render(values))


def render_markdown(template: str, **values: Any) -> str:
    """A text in Markdown, from `templates/NAME.md.jinja`; values as for `render`."""
    return visible(_pages(escape=False).get_template(f"{template}.md.jinja").render(values))


def _fenced(text: str, language: str) -> str:
    """A block of code; no backticks in it end it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _cell(value: object) -> str:
    """A value in a table, which a bar or a new line would break."""
    return " ".join(str(value).split()).replace("|", "\\|")


@cache
def _pages(escape: bool = True) -> Environment:
    """One environment for all pages: it compiles each template once."""
    pages = Environment(
        loader=PackageLoader("iclora.pages"),
        autoescape=escape,  # noqa: S701 (Markdown is made safe where it is shown)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters.update(fenced=_fenced, cell=_cell)
    return pages


def data_url(picture: Image.Image, side: int, lossless: bool = False) -> str:
    """A picture as a URL that holds it.

    Args:
        side: longest side on the page, px. Toy pictures, a few dozen px, are enlarged whole
            towards it, so that they can be seen.
        lossless: PNG instead of JPEG.
    """
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if max(small.size) < side // 2:
        times = side // max(small.size)
        small = small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    small.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
