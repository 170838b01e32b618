"""Sets among files: which pictures belong together, which words tell of them, what is left over."""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from iclora import files
from iclora.errors import CaptionError, DatasetError, ImageError
from iclora.files.documents import parse_json
from iclora.files.names import fault_on_windows
from iclora.sets.caption import has_markers
from iclora.sets.images import picture_size
from iclora.sets.listing import Files, Problem
from iclora.sets.order import panel_order
from iclora.sets.recipe import Recipe
from iclora.sets.unread import as_lost_sets, is_image, name_unread
from iclora.sets.words import MOST_TEXT, TEXT_SUFFIXES, Library, Words, read_text

__all__ = ["Found", "find_sets"]

_LONGEST_NAME = 180
"""Bytes of a set's name at most, so that files can be called by it: disks take 255."""


@dataclass(frozen=True)
class Found:
    """One set among the files of a dataset."""

    name: str
    images: tuple[str, ...]
    composite: bool
    """True if its one image holds all panels."""
    words: Words | None
    sure: bool = True
    """False if only the alphabet tells the order of its images."""


def find_sets(
    listing: Files,
    root: PurePosixPath,
    recipe: Recipe,
    ours: Sequence[str],
    unlisted: Sequence[Problem] = (),
) -> tuple[list[Found], list[Problem]]:
    """Find the sets below a folder of a listing.

    Args:
        root: the folder that holds them all.
        ours: names of files that are read for something else, such as the manifest.
        unlisted: what could not be listed.
    Returns: the sets, and everything that is not read, with the reason.
    """
    folders: dict[PurePosixPath, list[str]] = defaultdict(list)
    for name in sorted(listing, key=files.natural_key):
        if is_image(name):
            folders[PurePosixPath(name).parent].append(name)
    library = Library(listing, recipe)
    sets: list[Found] = []
    problems = list(unlisted)
    for folder, images in folders.items():
        if not folder.is_relative_to(root):
            continue
        sets += _sets_of_folder(listing, library, folder, images, root, recipe, problems)
    used = {
        *ours,
        *library.used,
        *(p.subject for p in library.problems),
        *(image for found in sets for image in found.images),
    }
    left = [name for name in listing if name not in used]
    orphans = [n for n in left if n.lower().endswith((".txt", ".caption"))]
    problems += library.problems
    problems += [_orphan(listing, name, recipe) for name in orphans]
    problems += name_unread(listing, [n for n in left if n not in orphans], root)
    homes = [PurePosixPath(f.images[0]).parent.as_posix() for f in sets if not f.composite]
    problems = as_lost_sets(problems, homes)
    counts = Counter(found.name for found in sets)
    problems += [
        Problem(name, "more than one image set of this name", "Rename or remove the others.")
        for name, count in counts.items()
        if count > 1
    ]
    problems += [
        _unlike_windows(f.name, fault) for f in sets if (fault := fault_on_windows(f.name))
    ]
    problems += _unsure(sets, recipe)
    joined = [f.name for f in sets if f.words and len(f.words.files) >= recipe.canvas.panels]
    if joined:
        problems.append(
            Problem(
                joined[0],
                "the texts beside its panels are joined behind the markers of the recipe"
                + (f", as in {len(joined) - 1} other sets" if len(joined) > 1 else ""),
                "Look at the joint captions with `iclora review`; one overview in caption.txt, of "
                "what all panels share, teaches more.",
                "warning",
                caption=True,
            )
        )
    return sets, problems


def _sets_of_folder(
    listing: Files,
    library: Library,
    folder: PurePosixPath,
    images: list[str],
    root: PurePosixPath,
    recipe: Recipe,
    problems: list[Problem],
) -> list[Found]:
    place = "" if folder == PurePosixPath() else folder.as_posix()
    request = f"{place}/request.json".lstrip("/")
    if request in listing and (made := _made_set(listing, request, images)):
        library.used.update({request, *images})
        panels, whole, prompt = made
        # What somebody wrote for it since counts more than what it was made of.
        own = library.use(library.of_folder(place, panels))
        return [Found(_set_name(folder, root), panels, whole, own or prompt)]
    if _is_one_set(listing, library, folder, images, root, recipe):
        images, sure = panel_order(images, recipe.markers)
        words = library.use(library.of_folder(place, images))
        return [Found(_set_name(folder, root), tuple(images), False, words, sure)]
    told = any(library.has_text(image) for image in images)
    if folder == root and len(images) == recipe.canvas.panels > 1 and not told:
        problems.append(_perhaps_one_set(images))
    return [
        Found(
            _set_name(PurePosixPath(image.rsplit(".", 1)[0]), root),
            (image,),
            True,
            library.use(library.beside(image)),
        )
        for image in images
    ]


def _is_one_set(
    listing: Files,
    library: Library,
    folder: PurePosixPath,
    images: Sequence[str],
    root: PurePosixPath,
    recipe: Recipe,
) -> bool:
    """True if the pictures of a folder are the panels of one set, and not composites."""
    if library.is_told("" if folder == PurePosixPath() else folder.as_posix()):
        return True
    told = [image for image in images if library.has_text(image)]
    if len(images) == 1 or any(map(library.has_joint_text, told)):
        return False
    whole = [image for image in images if library.has_joint_text(image)]
    if len(whole) == len(images):
        return False
    if folder != root:
        # A text beside some: of panels if they are as many as panels, or numbered as panels are.
        numbered = all(re.fullmatch(r"\D*\d\d?", PurePosixPath(i).stem) for i in images)
        return not told or len(images) == recipe.canvas.panels or numbered
    if len(images) != recipe.canvas.panels or len(told) not in (0, len(images)):
        return False
    like = _like_panels(listing, images, recipe)
    # Squares in a square: a folder of its own speaks for one set.
    return like if like is not None else root != PurePosixPath()


def _like_panels(listing: Files, images: Sequence[str], recipe: Recipe) -> bool | None:
    """True if pictures have the shapes of panels, False if those of composites, None if neither."""
    canvas = math.log(recipe.canvas.width / recipe.canvas.height)
    lean = 0.0
    for image, (width, height) in zip(images, recipe.canvas.sizes, strict=True):
        try:
            wide, high = picture_size(listing[image].read(), image)
        except (ImageError, DatasetError):
            continue
        own = math.log(wide / high)
        lean += abs(own - canvas) - abs(own - math.log(width / height))
    return lean > 0 if abs(lean) > 0.2 * len(images) else None


def _made_set(
    listing: Files, request: str, images: Sequence[str]
) -> tuple[tuple[str, ...], bool, Words] | None:
    """A set that iclora made: its panels, without their composite, and its prompt."""
    panels = [n for n in images if re.fullmatch(r"panel-\d+\.png", PurePosixPath(n).name)]
    try:
        data = listing[request].read(16 * MOST_TEXT)
        prompt = parse_json(data, request, DatasetError)["prompt"]
    except (DatasetError, TypeError, KeyError):
        return None
    if not panels or not isinstance(prompt, str):
        return None
    return tuple(panels), False, Words((request,), False, lambda: prompt.strip())


def _orphan(listing: Files, name: str, recipe: Recipe) -> Problem:
    try:
        told = has_markers(read_text(listing[name]), recipe.markers)
    except (CaptionError, DatasetError):
        told = False
    images = ", ".join(TEXT_SUFFIXES)
    return Problem(
        name,
        "a text that no image or set takes for its caption",
        "Rename or remove it, or add its image. A caption has the name of its image "
        f"({images}), or lies as caption.txt in a folder of panels.",
        "error" if told else "warning",
        caption=True,
    )


def _perhaps_one_set(images: Sequence[str]) -> Problem:
    return Problem(
        PurePosixPath(images[0]).name,
        f"{len(images)} images without captions lie side by side, as many as a set has panels; "
        "each is taken for a whole composite",
        "If they are the panels of one set, put them into a folder of their own.",
        "warning",
    )


def _unlike_windows(name: str, fault: str) -> Problem:
    # Written there, its files would go to the device, or over another set's.
    return Problem(
        name,
        f"the name of this set is {fault}",
        "Rename its folder or files, so that the dataset can go anywhere.",
        "error" if os.name == "nt" else "warning",
    )


def _unsure(sets: Sequence[Found], recipe: Recipe) -> list[Problem]:
    """A warning of sets whose panels are in the order of the alphabet, which may be another."""
    unsure = [f for f in sets if not f.sure and len(f.images) == recipe.canvas.panels]
    if not unsure:
        return []
    names = ", ".join(PurePosixPath(image).name for image in unsure[0].images)
    more = f", as in {len(unsure) - 1} other sets" if len(unsure) > 1 else ""
    return [
        Problem(
            unsure[0].name,
            f"only the alphabet tells the order of its panels ({names}{more})",
            "If it is another, put numbers into the names: 1.png, 2.png.",
            "warning",
        )
    ]


def _set_name(path: PurePosixPath, root: PurePosixPath) -> str:
    name = "-".join(path.relative_to(root).parts) or root.name or "set"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    start = name.encode()[: _LONGEST_NAME - 9].decode(errors="ignore")
    return f"{start}-{files.digest(name)[:8]}"
