"""Pages that need no other file: pictures inside, small enough to look through, nothing runs.

A page is a template in `templates/` that extends `base.html.jinja`. All text is escaped there;
pictures come as URLs that hold them, so that few large ones are in memory at once.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

__all__ = ["data_url", "render"]


def render(template: str, **values: Any) -> str:
    """One page as HTML.

    Args:
        template: "review", "report" or "demo".
        values: what it shows; every name it uses must be there.
    """
    return _pages().get_template(f"{template}.html.jinja").render(values)


def _pages() -> Environment:
    return Environment(
        loader=PackageLoader("iclora.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


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
