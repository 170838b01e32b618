"""Sets changed by hand: what becomes of their files.

Every function returns changes, and writes nothing: who asks decides how they are written and taken
back. A composite of which a panel is changed becomes a folder of its panels, pixel for pixel; a
composite whose borders are moved keeps its pixels and carries the boxes in its own file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import tomli_w

from iclora import files
from iclora.errors import DatasetError, IcloraError
from iclora.sets.caption import JointCaption
from iclora.sets.dataset import MANIFEST, PLACED_KEY, Dataset, ImageSet, caption_path
from iclora.sets.images import encode_png, read_image, with_png_text
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe, load_recipe, recipe_names

__all__ = [
    "Changes",
    "boxes_by_hand",
    "leave_out_panel",
    "leave_out_set",
    "manifest_of",
    "replace_panel",
    "swap_panels",
]

Changes: TypeAlias = dict[str, bytes | None]
"""New contents of files, by their paths in the dataset; None for a file that goes."""


def boxes_by_hand(
    dataset: Dataset, image_set: ImageSet, boxes: Sequence[Sequence[int]]
) -> tuple[Changes, Layout]:
    """Place the panels of a composite.

    A PNG keeps its pixels as they are encoded; another format becomes a PNG, for it cannot hold
    boxes.

    Args:
        boxes: left, top, width and height of each panel, px of the upright picture.
    Returns: the changes, and the layout.
    Raises: DatasetError for a set of single files; LayoutError for impossible boxes; ImageError.
    """
    _refuse(dataset, image_set)
    if not image_set.composite:
        raise DatasetError(
            f'set "{image_set.name}" has a file for each panel, and no borders between them',
            "Replace a file to change it.",
        )
    name = image_set.images[0]
    data = _read(dataset, name)
    picture = read_image(data, name, image_set.background)
    layout = _layout_of(dataset.recipe, boxes, picture.size)
    text = json.dumps(layout.to_json())
    if data[:4] == b"\x89PNG":
        return {name: with_png_text(data, PLACED_KEY, text)}, layout
    png = PurePosixPath(name).with_suffix(".png").as_posix()
    changes: Changes = {name: None, png: encode_png(picture, {PLACED_KEY: text})}
    if png != name and (dataset.path / png).exists():
        raise DatasetError(f"there is a {png} beside {name}", "Remove or rename one of them.")
    changes |= _caption_at(image_set, PurePosixPath(png).with_suffix(".txt").as_posix())
    return changes, layout


def swap_panels(dataset: Dataset, image_set: ImageSet, one: int, other: int) -> Changes:
    """Let two panels change places, pictures with their words.

    Args:
        one, other: numbers of panels, counted from 1.
    Raises: DatasetError, ImageError, LayoutError.
    """
    names, changes = _as_files(dataset, image_set)
    first, second = _numbered(names, one, image_set), _numbered(names, other, image_set)
    if first == second:
        raise DatasetError("a panel cannot change places with itself", "Name two panels.")
    a, b = names[first], names[second]
    held = {name: _content(dataset, changes, name) for name in (a, b)}
    for place, source in ((a, b), (b, a)):
        changes |= _moved(dataset, changes, place, source, held[source], keep=(a, b))
    return changes | _swapped_words(dataset, image_set, changes, first, second)


def replace_panel(
    dataset: Dataset, image_set: ImageSet, number: int, data: bytes, suffix: str
) -> Changes:
    """Put another picture in a panel's place, or add one behind the last.

    Args:
        number: of the panel, counted from 1; one more than there are adds a panel.
        data: a picture that can be read.
        suffix: of its format, such as .png.
    Raises: DatasetError, ImageError, LayoutError.
    """
    names, changes = _as_files(dataset, image_set)
    if number == len(names) + 1 <= dataset.recipe.canvas.panels:
        last = PurePosixPath(names[-1])
        digits = re.search(r"\d+$", last.stem)
        stem = f"{last.stem}-2"
        if digits:
            stem = f"{last.stem[: digits.start()]}{int(digits[0]) + 1:0{len(digits[0])}d}"
        return changes | {(last.parent / f"{stem}{suffix}").as_posix(): data}
    name = names[_numbered(names, number, image_set)]
    new = PurePosixPath(name).with_suffix(suffix).as_posix()
    return changes | {name: None} | {new: data}


def leave_out_panel(dataset: Dataset, image_set: ImageSet, number: int) -> Changes:
    """Take a panel's picture away. Raises: DatasetError, ImageError, LayoutError."""
    names, changes = _as_files(dataset, image_set)
    name = names[_numbered(names, number, image_set)]
    if len(names) < 3:
        raise DatasetError(
            f'set "{image_set.name}" would have one picture left, which is no set',
            "Replace the panel, or leave out the whole set.",
        )
    return changes | {name: None}


def leave_out_set(dataset: Dataset, image_set: ImageSet) -> Changes:
    """Take all files of a set away, its own words too. Raises: DatasetError."""
    _refuse(dataset, image_set)
    words = image_set.words
    own = words.files if words and (words.own or _beside(image_set, words.files)) else ()
    return dict.fromkeys([*image_set.images, *own])


def manifest_of(recipe: Recipe, name: str) -> Changes:
    """The files by which a dataset says its recipe; one of the user's own goes along.

    Args:
        name: of the recipe, if it is one that ships; else anything.
    """
    changes: Changes = {}
    if name not in recipe_names() or load_recipe(name) != recipe:
        name = "recipe.toml"
        content = recipe.model_dump(mode="json", exclude_defaults=True)
        changes[name] = tomli_w.dumps(content).encode()
    note = "# The task these sets belong to; read by iclora.\n"
    return changes | {MANIFEST: (note + tomli_w.dumps({"recipe": name})).encode()}


# -- parts --------------------------------------------------------------------------------------


def _refuse(dataset: Dataset, image_set: ImageSet) -> None:
    """Raises: DatasetError for what cannot be changed."""
    if not dataset.path.is_dir():
        raise DatasetError(f"{dataset.path.name} is a zip, which is only read", "Unpack it.")
    folder = PurePosixPath(image_set.images[0]).parent
    if not image_set.composite and (dataset.path / folder / "request.json").is_file():
        raise DatasetError(
            f'set "{image_set.name}" was made by iclora, and its request.json says how',
            "Copy its panels into a folder of their own to change them.",
        )


def _read(dataset: Dataset, name: str) -> bytes:
    place = files.inside(dataset.path, name, DatasetError)
    try:
        return place.read_bytes()
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {error.strerror}", "Look again.") from error


def _content(dataset: Dataset, changes: Changes, name: str) -> bytes:
    data = changes.get(name)
    return _read(dataset, name) if data is None else data


def _as_files(dataset: Dataset, image_set: ImageSet) -> tuple[list[str], Changes]:
    """The files of a set's panels in order, and the changes that make them of a composite."""
    _refuse(dataset, image_set)
    if not image_set.composite:
        return list(image_set.images), {}
    whole = PurePosixPath(image_set.images[0])
    folder = whole.with_suffix("")
    if (dataset.path / folder).exists():
        raise DatasetError(f"there is a folder {folder} beside {whole}", "Remove or rename one.")
    panels = image_set.load(dataset.recipe).panels
    names = [(folder / f"{number}.png").as_posix() for number in range(1, len(panels) + 1)]
    changes: Changes = {whole.as_posix(): None}
    changes |= {name: encode_png(panel) for name, panel in zip(names, panels, strict=True)}
    return names, changes | _caption_at(image_set, (folder / "caption.txt").as_posix())


def _caption_at(image_set: ImageSet, place: str) -> Changes:
    """Its caption as a file of its own at a new place, if it has one that can be read."""
    words = image_set.words
    if words is None:
        return {}
    try:
        text = image_set.caption()
    except IcloraError:
        return {}
    old: Changes = {words.files[0]: None} if words.own else {}
    return old | {place: f"{text}\n".encode()}


def _numbered(names: Sequence[str], number: int, image_set: ImageSet) -> int:
    if not 1 <= number <= len(names):
        raise DatasetError(
            f'set "{image_set.name}" has no panel {number}', f"Name panels 1 to {len(names)}."
        )
    return number - 1


def _moved(
    dataset: Dataset, changes: Changes, place: str, source: str, data: bytes, keep: Sequence[str]
) -> Changes:
    """The content of a file in another's place, under that one's name and its own ending."""
    suffix = PurePosixPath(source).suffix
    new = PurePosixPath(place).with_suffix(suffix).as_posix()
    if new != place and new not in keep and (dataset.path / new).exists():
        raise DatasetError(f"there is a {new} beside {place}", "Remove or rename one of them.")
    own: Changes = {} if new == place or place in changes else {place: None}
    return own | {new: data}


def _swapped_words(
    dataset: Dataset, image_set: ImageSet, changes: Changes, first: int, second: int
) -> Changes:
    words = image_set.words
    if words is None:
        return {}
    if not words.own and len(words.files) >= len(image_set.images) > 1:
        a, b = words.files[first], words.files[second]
        return {a: _read(dataset, b), b: _read(dataset, a)}
    try:
        parsed = dataset.recipe.parse(image_set.caption())
    except IcloraError:
        return {}  # What is wrong with it is shown, and stays as it is.
    cores, texts = list(parsed.words), list(parsed.panels)
    for place, source in ((first, second), (second, first)):
        texts[place] = texts[place].replace(cores[place], cores[source], 1)
    text = JointCaption(parsed.overview, tuple(texts), parsed.markers).render()
    written = [name for name in changes if name.endswith("caption.txt") and changes[name]]
    own = caption_path(dataset, image_set).relative_to(dataset.path).as_posix()
    return {(written[0] if written else own): f"{text}\n".encode()}


def _beside(image_set: ImageSet, names: Sequence[str]) -> bool:
    """True if words lie in the set's own folder, one file a panel."""
    if image_set.composite:
        return False
    home = Path(image_set.images[0]).parent
    return home != Path() and all(Path(name).parent == home for name in names)


def _layout_of(recipe: Recipe, boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> Layout:
    """Boxes as rows that fill the picture, if they are that, else as free boxes."""
    free = Layout.free(boxes, *size)
    if free.panels != recipe.canvas.panels:
        raise DatasetError(
            f"{free.panels} boxes for the {recipe.canvas.panels} panels of {recipe.name}",
            "Give every panel a box.",
            setting="boxes",
        )
    small = [n for n, box in enumerate(free.boxes, 1) if min(box.size) < 8]
    if small:
        raise DatasetError(
            f"panel {small[0]} would be under 8 px", "Leave it more room.", setting="boxes"
        )
    per_row = recipe.canvas.per_row
    if not per_row:
        return free
    at, heights, widths = 0, [], []
    for count in per_row:
        row = free.boxes[at : at + count]
        heights.append(row[0].height)
        widths.append([box.width for box in row])
        at += count
    try:
        rows = Layout.stacked(heights, widths)
    except IcloraError:
        return free
    return rows if rows.boxes == free.boxes and rows.size == size else free
