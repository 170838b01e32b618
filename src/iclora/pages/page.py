"""Pages that need no other file: pictures inside, small enough to look through, nothing runs."""

from __future__ import annotations

import base64
import html
import io

from PIL import Image

__all__ = ["STYLE", "picture_tag"]

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #26231f; background: #f7f5f1; margin: 0 auto;
       max-width: 1280px; padding: 1rem 1.5rem 4rem }
h1 { font-size: 1.5rem; margin: 1rem 0 .2rem } .note { color: #6b645a }
"""
"""What all pages begin with."""


def picture_tag(picture: Image.Image, side: int, kind: str = "", title: str = "") -> str:
    """An <img> with the picture inside.

    Args:
        side: longest side on the page, px. Toy pictures, a few dozen px, are enlarged whole
            towards it, so that they can be seen.
        kind: its class. title: shown when it is pointed at.
    """
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if max(small.size) < side // 2:
        times = side // max(small.size)
        small = small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    said = html.escape(title, quote=True)
    return (
        f'<img class="{kind}" src="data:image/jpeg;base64,{data}" alt="{said}" title="{said}" '
        'loading="lazy">'
    )
