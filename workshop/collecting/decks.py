"""Decks with known truth: PDF pages with titles, builds and closings, and pictures in a PPTX.

The files are written by hand, so that what reads them is not also what wrote them.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

__all__ = ["PAGE", "deck_pages", "write_pdf", "write_pptx"]

PAGE = (960, 540)
"""Points."""
_WORDS = ["plan", "market", "growth", "people", "values", "budget", "season", "garden", "light"]

Shape = tuple[tuple[float, float, float], tuple[int, int, int, int]]


def deck_pages(seed: int, pages: int) -> list[tuple[list[str], list[Shape], str]]:
    """A deck's pages: lines of text, filled boxes, and the kind: title, content, build, blank or
    closing. A build shows less of what the next page shows."""
    rng = random.Random(f"deck {seed}")
    tint = (rng.random() * 0.6, rng.random() * 0.6, 0.3 + rng.random() * 0.6)
    bar: Shape = (tint, (0, 470, 960, 70))
    found: list[tuple[list[str], list[Shape], str]] = [
        (["Report of the year", "by Ana"], [(tint, (0, 0, 960, 540))], "title")
    ]
    for number in range(pages):
        lines = [f"Chapter {number + 1}"]
        lines += [" ".join(rng.choices(_WORDS, k=6)) for _ in range(5)]
        shapes = [bar]
        for _ in range(3):
            left, low = rng.randrange(400, 700), rng.randrange(40, 260)
            size = rng.randrange(80, 220), rng.randrange(60, 180)
            shapes.append(((rng.random(), rng.random(), rng.random()), (left, low, *size)))
        if number % 5 == 3:
            found.append((lines[:-1], shapes, "build"))
        found.append((lines, shapes, "content"))
        if number % 7 == 5:
            found.append(([], [], "blank"))
    found.append((["Thank you", "Questions?"], [(tint, (0, 0, 960, 270))], "closing"))
    return found


def write_pdf(
    path: Path,
    pages: Sequence[tuple[list[str], list[Shape]]],
    *,
    count: int | None = None,
    trailer: str = "",
    catalog: str = "",
    picture: tuple[int, int] | None = None,
) -> None:
    """Write a PDF of text and boxes.

    Args:
        count: pages that it claims to have; by default as many as there are.
        trailer: more for its trailer, such as an /Encrypt entry.
        catalog: more for its catalog, such as an /OpenAction.
        picture: size in px that a picture on its first page claims to have.
    """
    objects: dict[int, bytes] = {}
    kids = []
    for number, (lines, shapes) in enumerate(pages):
        content = "".join(
            f"{r:.3f} {g:.3f} {b:.3f} rg {x} {y} {w} {h} re f\n"
            for (r, g, b), (x, y, w, h) in shapes
        )
        for row, line in enumerate(lines):
            size = 44 if row == 0 else 22
            content += f"0 0 0 rg BT /F1 {size} Tf 60 {440 - 60 * row} Td ({line}) Tj ET\n"
        resources = "/Font << /F1 3 0 R >>"
        if picture and number == 0:
            resources += " /XObject << /Im 4 0 R >>"
            content += "q 300 0 0 300 60 60 cm /Im Do Q\n"
        at = 10 + 2 * number
        kids.append(f"{at} 0 R")
        page = f"/MediaBox [0 0 {PAGE[0]} {PAGE[1]}] /Resources << {resources} >>"
        objects[at] = f"<< /Type /Page /Parent 2 0 R {page} /Contents {at + 1} 0 R >>".encode()
        data = content.encode()
        objects[at + 1] = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(data), data)
    objects[1] = f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode()
    total = len(pages) if count is None else count
    objects[2] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {total} >>".encode()
    objects[3] = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    if picture:
        about = f"/Width {picture[0]} /Height {picture[1]} /ColorSpace /DeviceGray"
        objects[4] = (
            f"<< /Type /XObject /Subtype /Image {about} /BitsPerComponent 8 /Length 4 >>\n"
            "stream\nabcd\nendstream"
        ).encode()
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    places = {}
    for number, body in sorted(objects.items()):
        places[number] = out.tell()
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 1\n0000000000 65535 f \n")
    for number, place in places.items():
        out.write(b"%d 1\n%010d 00000 n \n" % (number, place))
    size = max(objects) + 1
    out.write(f"trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\n".encode())
    out.write(b"startxref\n%d\n%%%%EOF\n" % start)
    path.write_bytes(out.getvalue())


def write_pptx(path: Path, slides: Sequence[Sequence[bytes]], order: Sequence[int]) -> None:
    """Write what a reader of pictures needs of a PPTX.

    Args:
        slides: the PNG files on each slide.
        order: the numbers of the slides, from 1, as they are shown.
    """
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    with zipfile.ZipFile(path, "w") as archive:
        shown = "".join(f'<p:sldId id="{255 + n}" r:id="rId{n}"/>' for n in order)
        archive.writestr(
            "ppt/presentation.xml",
            f"<p:presentation><p:sldIdLst>{shown}</p:sldIdLst></p:presentation>",
        )
        parts = "".join(
            f'<Relationship Id="rId{n}" Type="{kind}/slide" Target="slides/slide{n}.xml"/>'
            for n in range(1, len(slides) + 1)
        )
        head = f'<Relationships xmlns="{package}">'
        archive.writestr("ppt/_rels/presentation.xml.rels", f"{head}{parts}</Relationships>")
        media = 0
        for number, pictures in enumerate(slides, 1):
            archive.writestr(f"ppt/slides/slide{number}.xml", "<p:sld/>")
            parts = ""
            for at, data in enumerate(pictures, 1):
                media += 1
                archive.writestr(f"ppt/media/image{media}.png", data)
                target = f"../media/image{media}.png"
                parts += f'<Relationship Target="{target}" Id="rId{at}" Type="{kind}/image"/>'
            name = f"ppt/slides/_rels/slide{number}.xml.rels"
            archive.writestr(name, f"{head}{parts}</Relationships>")


def png(picture: Image.Image) -> bytes:
    """A picture as PNG bytes."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
