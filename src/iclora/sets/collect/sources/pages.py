"""Decks: pages of a PDF or slides of a PPTX as pictures, and the pictures that lie in them.

Nothing of a document runs: PDFium is built without a JavaScript engine here, forms are not opened.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from iclora.errors import DatasetError, IcloraError
from iclora.files import natural_key, write_text
from iclora.progress import Progress
from iclora.sets.collect.picture import Found, Look, Origin, Picture
from iclora.sets.collect.sources.extras import needed
from iclora.sets.collect.sources.folders import loose_pictures
from iclora.sets.collect.sources.office import SLIDES, draw_slides, find_office
from iclora.sets.collect.sources.wanted import Wanted
from iclora.sets.images import picture_size
from iclora.sets.layout import Size
from iclora.sets.listing import Files, Problem, list_files
from iclora.sets.unread import is_image

__all__ = ["read_pdf", "read_pptx"]

_MOST_PAGES = 2000
_MOST_PIXELS = 144_000_000
"""Of a picture inside a page, as of any other picture."""
_MOST_SIDE = 4096
_LEAST_SIDE = 64
"""px of an embedded picture; smaller ones are bullets and icons."""
_FEW_WORDS = 20
"""On title and closing pages at most."""
_CLOSING = re.compile(
    r"\b(thank|thanks|questions?|contact|the end|q ?& ?a|merci|danke|fragen|gracias|grazie)\b", re.I
)
_EMPTY = 12
"""Least difference between the darkest and the brightest tone of a page with something on it."""
_BUILT = 0.9
"""Share of what is on a page that the next one shows as well if it is built up further."""
_INK = 32
"""Difference from the page's ground, and of two pages, that shows, in 256 levels."""
_COMPARED = 512
"""Longer side at which pages are compared, px."""
_PAGES = "pages.json"
_PNG_LEVEL = 1


def read_pdf(source: str, path: Path, want: Wanted) -> list[Found]:
    """Sets of a PDF's pages, or of the pictures in it.

    Raises: DatasetError for a document that is encrypted, damaged, empty or too long;
        SettingsError without pypdfium2.
    """
    about = path.stat()
    size = _wanted_size(want)
    key = (want.pages, str(size), str(path.resolve()), str(about.st_size), str(about.st_mtime_ns))
    make = partial(_extract, path, want.pages == "pictures", size, want.progress)
    folder = want.pool.folder("pages", *key, make=make)
    told = json.loads((folder / _PAGES).read_text(encoding="utf-8"))
    for text in told["refused"]:
        want.tell(Problem(source, text, "Export that page again, or leave it out."))
    if told.get("scripted"):
        want.tell(
            Problem(
                source,
                "its JavaScript is refused: nothing of a document runs, so what that would draw "
                "is missing",
                "Look at its pages.",
                "warning",
            )
        )
    rows = told["pages"]
    pictures = [
        Picture(
            Origin(source, {k: row[k] for k in ("page", "picture") if k in row}),
            (folder / row["file"]).read_bytes,
        )
        for row in rows
    ]
    if want.pages == "pictures":
        return loose_pictures(source, pictures, want)
    looks = want.looks.of_all(pictures)
    known = [
        _Page(picture, look, str(row["text"]), int(row["words"]), bool(row.get("built")))
        for picture, look, row in zip(pictures, looks, rows, strict=True)
        if look is not None
    ]
    return _slides(source, known, want)


def _wanted_size(want: Wanted) -> Size:
    """The largest box of the recipe, px."""
    return max(want.recipe.canvas.sizes, key=lambda size: size[0] * size[1])


@dataclass(frozen=True)
class _Page:
    picture: Picture
    look: Look
    text: str
    """How it begins."""
    words: int
    built: bool
    """True if the next page shows all of it, and maybe more."""


def _slides(source: str, pages: Sequence[_Page], want: Wanted) -> list[Found]:
    """Pages in order, as many a set as it has panels.

    The title page opens the first set and the closing page ends the last one, so what is left over
    is taken from the pages between. Empty pages are dropped, and pages that show less of what the
    next one shows.
    """
    shown = [p for p in pages if int(p.look.tones.max()) - int(p.look.tones.min()) >= _EMPTY]
    built = [page for page in shown if not page.built]
    title = built[:1] if built and 0 < built[0].words <= _FEW_WORDS else []
    rest = built[len(title) :]
    closing = rest[-1:] if rest and _is_closing(rest[-1]) else []
    between = rest[: len(rest) - len(closing)]
    count = len(built) // want.panels
    room = count * want.panels - len(title) - len(closing)
    if count and room >= 0:
        chosen = [*title, *between[:room], *closing]
    else:
        count, chosen = len(between) // want.panels, list(between)
    sets = [chosen[i * want.panels : (i + 1) * want.panels] for i in range(count)]
    want.note(
        f"{source}: {len(pages)} pages make {len(sets)} sets; "
        f"{len(pages) - len(built)} are empty or built up by the next one, "
        f"{len(built) - len(sets) * want.panels} are left over; "
        f"{'a' if title else 'no'} title page, {'a' if closing else 'no'} closing page"
    )
    return [Found(tuple(p.picture for p in own), source, "pages of one deck") for own in sets]


def _is_closing(page: _Page) -> bool:
    return 0 < page.words <= _FEW_WORDS and bool(_CLOSING.search(page.text))


# -- PDF ----------------------------------------------------------------------------------------


def _extract(path: Path, embedded: bool, size: Size, progress: Progress, folder: Path) -> None:
    """Write a document's pages, or the pictures in them, into a folder."""
    pdfium = needed("pypdfium2", "pypdfium2", "PDF files")
    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    document = _opened(pdfium, path)
    before: tuple[int, Any] = (-2, None)
    try:
        scripted = _is_scripted(pdfium, document, path)
        for number in range(len(document)):
            progress("reading pages", number + 1, len(document))
            try:
                page = document[number]
                found = _pictures_of(pdfium, page) if embedded else [_drawn(pdfium, page, size)]
                for at, picture in enumerate(found, 1):
                    name = f"{len(rows) + 1:05d}.png"
                    row: dict[str, Any] = {"file": name, "page": number + 1}
                    picture.save(folder / name, compress_level=_PNG_LEVEL)
                    rows.append(row | ({"picture": at} if embedded else _told(page)))
                    if not embedded:
                        if before[0] == number - 1 and _shows_more(before[1], picture):
                            rows[-2]["built"] = True
                        before = number, picture
            except (pdfium.PdfiumError, IcloraError, MemoryError, ValueError) as error:
                why = error.problem if isinstance(error, IcloraError) else str(error)
                refused.append(f"page {number + 1} is not read: {why}")
    finally:
        document.close()
    told = json.dumps({"pages": rows, "refused": refused, "scripted": scripted})
    write_text(folder / _PAGES, told)


def _opened(pdfium: Any, path: Path) -> Any:
    try:
        document = pdfium.PdfDocument(path)
        pages = len(document)
    except (pdfium.PdfiumError, OSError) as error:
        locked = "password" in str(error).lower()
        why = "is encrypted" if locked else f"cannot be read: {error}"
        raise DatasetError(
            f"PDF {path} {why}", "Save it without a password." if locked else "Export it again."
        ) from error
    if not 0 < pages <= _MOST_PAGES:
        document.close()
        raise DatasetError(
            f"PDF {path} has {pages:,} pages; 1 to {_MOST_PAGES:,} are read", "Split it."
        )
    return document


def _is_scripted(pdfium: Any, document: Any, path: Path) -> bool:
    """True if a document holds JavaScript, as far as that shows without running or unpacking it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        own = data.find(b"/JavaScript") >= 0
    return own or pdfium.raw.FPDFDoc_GetJavaScriptActionCount(document.raw) > 0


def _drawn(pdfium: Any, page: Any, size: Size) -> Any:
    """A page as a picture of the area of `size`. Raises: DatasetError if it holds a bomb."""
    for picture in page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE], max_depth=4):
        _check_pixels(*picture.get_px_size())
    width, height = page.get_size()
    if not (width > 1 and height > 1):
        raise DatasetError(f"it is of {width:.0f}x{height:.0f} points", "Export it again.")
    scale = (size[0] * size[1] / (width * height)) ** 0.5
    scale = min(scale, _MOST_SIDE / max(width, height))
    return page.render(scale=scale, may_draw_forms=False).to_pil().convert("RGB")


def _shows_more(page: Any, after: Any) -> bool:
    """True if a page shows what the one before shows, in the same places."""
    if page.size != after.size:
        return False
    small = []
    for picture in (page, after):
        grey = picture.convert("L")
        grey.thumbnail((_COMPARED, _COMPARED))
        small.append(np.asarray(grey, dtype=np.int16))
    one, other = small
    ink = np.abs(one - np.median(one)) > _INK
    same = np.abs(one - other)[ink] <= _INK
    return bool(ink.any() and same.mean() >= _BUILT)


def _told(page: Any) -> dict[str, Any]:
    """How many words a page has, and its first ones."""
    text = page.get_textpage().get_text_bounded()
    return {"words": len(text.split()), "text": text[:400]}


def _pictures_of(pdfium: Any, page: Any) -> Iterator[Any]:
    for each in page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE], max_depth=4):
        width, height = each.get_px_size()
        _check_pixels(width, height)
        if min(width, height) >= _LEAST_SIDE:
            yield each.get_bitmap().to_pil().convert("RGB")


def _check_pixels(width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise DatasetError(
            f"it holds a picture of {width}x{height} px, which can exhaust the memory",
            "Scale it down.",
        )


# -- PPTX ---------------------------------------------------------------------------------------


def read_pptx(source: str, path: Path, want: Wanted) -> list[Found]:
    """Sets of a PPTX's slides, drawn by LibreOffice, or of the pictures that lie in them.

    Raises: DatasetError for what is no such file.
    """
    listing, problems = list_files(path, deck=True)
    for problem in problems:
        want.tell(problem)
    if not any(name.startswith("ppt/") for name in listing):
        raise DatasetError(f"{path} is not a PPTX file", "Save it again as .pptx.")
    if want.pages == "drawn":
        slides = _drawn_slides(source, path, listing, want)
        if slides is not None:
            return read_pdf(source, slides, want)
    return _pictures_of_slides(source, listing, want)


def _drawn_slides(source: str, path: Path, listing: Files, want: Wanted) -> Path | None:
    """The slides as a PDF; None if they cannot be drawn here, which is told."""
    office, why = find_office(), "LibreOffice, which would draw its slides, is not installed"
    outside = _outside(listing)
    if outside:
        why = f"its slides are not drawn, for they show what lies outside of it ({outside})"
    elif office:
        about = path.stat()
        key = ("slides", str(path.resolve()), str(about.st_size), str(about.st_mtime_ns))
        try:
            folder = want.pool.folder(*key, make=partial(draw_slides, office, path))
        except DatasetError as error:
            why = error.problem
        else:
            want.note(f"{source}: its slides are drawn by LibreOffice")
            return folder / SLIDES
    want.note(f"{source}: {why}; the pictures in it are taken. Save it as PDF to have its slides")
    return None


def _outside(listing: Files) -> str:
    """Something beyond the file that a slide draws on, if there is any; a link draws nothing."""
    for name in listing:
        if name.endswith(".rels"):
            for fields in _relations(listing, name):
                kind = fields.get("Type", "").rsplit("/", 1)[-1]
                if fields.get("TargetMode") == "External" and kind != "hyperlink":
                    return f"{kind} {fields.get('Target', '')}"[:120]
    return ""


def _pictures_of_slides(source: str, listing: Files, want: Wanted) -> list[Found]:
    """Sets of the pictures in a PPTX, in the order of its slides."""
    pictures: list[Picture] = []
    seen: set[str] = set()
    slides = _slide_names(listing)
    _tell_drawn(source, [_media_of(listing, slide) for slide in slides], want)
    for number, slide in enumerate(slides, 1):
        for media in _media_of(listing, slide):
            if media in seen:
                continue
            seen.add(media)
            origin = Origin(source, {"slide": number, "picture": PurePosixPath(media).name})
            if not is_image(media):
                want.tell(
                    Problem(
                        origin.name, "it is no picture of pixels", "Export it as PNG.", "warning"
                    )
                )
                continue
            picture = Picture(origin, listing[media].read)
            try:
                size = picture_size(picture.read(), origin.name)
            except IcloraError as error:
                want.tell(Problem(origin.name, error.problem, error.advice))
                continue
            if min(size) >= _LEAST_SIDE:
                pictures.append(picture)
    return loose_pictures(source, pictures, want)


def _tell_drawn(source: str, media: Sequence[Sequence[str]], want: Wanted) -> None:
    drawn = [number for number, own in enumerate(media, 1) if not own]
    if drawn:
        shown = ", ".join(map(str, drawn[:6])) + ", ..." * (len(drawn) > 6)
        want.tell(
            Problem(
                source,
                f"{len(drawn)} of its {len(media)} slides hold no picture ({shown}): their shapes "
                "and words are drawn by an office program alone",
                "Export it as PDF and collect that.",
                "warning",
            )
        )


def _slide_names(listing: Files) -> list[str]:
    """The slides in the order in which they are shown."""
    there = [n for n in listing if re.fullmatch(r"ppt/slides/slide\d+\.xml", n)]
    there.sort(key=natural_key)
    order = re.findall(
        r"<p:sldId\b[^>]*\br:id=\"([^\"]+)\"", _text(listing, "ppt/presentation.xml")
    )
    targets = _related(listing, "ppt/presentation.xml")
    shown = [targets[key] for key in order if targets.get(key) in there]
    return shown or there


def _media_of(listing: Files, slide: str) -> list[str]:
    targets = _related(listing, slide).values()
    return sorted(
        (t for t in targets if t.startswith("ppt/media/") and t in listing), key=natural_key
    )


def _related(listing: Files, part: str) -> dict[str, str]:
    """What a part of the file refers to, by its id: names inside the archive."""
    place = PurePosixPath(part)
    own = (place.parent / "_rels" / f"{place.name}.rels").as_posix()
    found: dict[str, str] = {}
    for fields in _relations(listing, own):
        if fields.get("TargetMode") == "External" or "Id" not in fields:
            continue
        target = fields.get("Target", "")
        parts: list[str] = [] if target.startswith("/") else list(place.parent.parts)
        for step in target.split("/"):
            parts = (
                parts[:-1] if step == ".." else [*parts, step] if step not in ("", ".") else parts
            )
        found[fields["Id"]] = "/".join(parts)
    return found


def _relations(listing: Files, name: str) -> Iterator[dict[str, str]]:
    """The fields of each relation that a file of them lists."""
    for tag in re.findall(r"<Relationship\b[^>]*>", _text(listing, name)):
        yield dict(re.findall(r"(\w+)=\"([^\"]*)\"", tag))


def _text(listing: Files, name: str) -> str:
    if name not in listing:
        return ""
    return listing[name].read(16 * 2**20).decode("utf-8", "replace")
