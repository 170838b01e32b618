"""Image sets on disk, in the two shapes people have them: finding and reading them.

    DATA/iclora.toml         recipe = "film-storyboard"
    DATA/0001.png            a composite, all panels joined ...
    DATA/0001.txt            ... and its joint caption: the pair other trainers read and write

    DATA/iclora.toml
    DATA/0001/1.png 2.png    a folder per set: the panels in natural order ...
    DATA/0001/caption.txt    ... and their joint caption

A zip archive of either works as well; it is read in place and never unpacked.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from iclora import files
from iclora.documents import parse_json, parse_toml
from iclora.errors import CaptionError, DatasetError, LayoutError, RecipeError
from iclora.sets.canvas import find_panels, split
from iclora.sets.caption import has_markers
from iclora.sets.images import IMAGE_SUFFIXES, png_text, read_image
from iclora.sets.layout import Layout, Size
from iclora.sets.listing import Files, Problem, list_files
from iclora.sets.recipe import Recipe, load_recipe, read_recipe, recipe_names

__all__ = [
    "LAYOUT_KEY",
    "MANIFEST",
    "Dataset",
    "ImageSet",
    "PanelSet",
    "Problem",
    "caption_path",
    "open_dataset",
]

MANIFEST = "iclora.toml"
LAYOUT_KEY = "iclora:layout"
_CAPTION = "caption.txt"
_HERE = PurePosixPath()


@dataclass(frozen=True)
class PanelSet:
    """A name and its panel pictures in order; knows nothing of files."""

    name: str
    panels: tuple[Image.Image, ...]
    found: Layout | None = None
    """The panels' places in the composite they were split from; None for single files."""
    unseen_seams: int = 0
    """Borders between panels of a composite that were assumed, since none shows."""

    @property
    def sizes(self) -> list[Size]:
        return [panel.size for panel in self.panels]

    @property
    def area(self) -> int:
        """Pixels the set really has; a canvas beyond it would be made up by enlarging."""
        return sum(width * height for width, height in self.sizes)


@dataclass(frozen=True)
class ImageSet:
    """One set in its dataset, unread."""

    name: str
    """Unique in its dataset, usable as a file name."""
    images: tuple[str, ...]
    """File names inside the dataset, in panel order."""
    composite: bool
    """True if its one image holds all panels; otherwise every image is a panel."""
    caption_file: str | None
    """Name of its caption file, None if it has none."""
    _files: Files = field(repr=False)

    def load(self, recipe: Recipe, found: Layout | None = None) -> PanelSet:
        """Read its panels; a composite is split by the recipe's layout, along its own seams.

        Args:
            found: the panels' places in the composite, if they were found before.
        Raises: ImageError for a picture that cannot be read; DatasetError for missing or
            surplus panels; LayoutError for a composite too small to hold them.
        """
        data = [self._files[name]() for name in self.images]
        pictures = [read_image(d, name) for d, name in zip(data, self.images, strict=True)]
        if self.composite:
            layout, unseen = found or _recorded_layout(data[0], pictures[0], recipe), 0
            if layout is None:
                layout, unseen = find_panels(recipe.canvas, pictures[0])
            return PanelSet(self.name, tuple(split(layout, pictures[0])), layout, unseen)
        if len(pictures) != recipe.canvas.panels:
            raise DatasetError(
                f'set "{self.name}" has {len(pictures)} images; "{recipe.name}" has '
                f"{recipe.canvas.panels} panels ({' '.join(recipe.markers)})",
                "Add the missing panels, or remove the surplus ones: "
                + ", ".join(PurePosixPath(n).name for n in self.images),
            )
        return PanelSet(self.name, tuple(pictures))

    def caption(self) -> str:
        """Its caption's text, without a byte-order mark and outer white space.

        Raises: DatasetError if there is none; CaptionError if it is empty or not UTF-8.
        """
        if self.caption_file is None:
            wanted = f"{self.name}.txt" if self.composite else f"{self.name}/{_CAPTION}"
            raise DatasetError(f'set "{self.name}" has no caption', f"Write {wanted}.")
        try:
            text = self._files[self.caption_file]().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise CaptionError(
                f"caption {self.caption_file} is not UTF-8 text ({error.reason} at byte "
                f"{error.start})",
                "Save it as UTF-8.",
            ) from error
        if not text:
            raise CaptionError(f"caption {self.caption_file} is empty", "Write a joint caption.")
        return text

    def caption_bytes(self) -> bytes:
        """The content of its caption file; nothing if there is none."""
        return b"" if self.caption_file is None else self._files[self.caption_file]()

    @cached_property
    def digest(self) -> str:
        """Content hash of its image files, in order."""
        return files.digest(*(self._files[name]() for name in self.images))


@dataclass(frozen=True)
class Dataset:
    """Image sets of one recipe, and what is wrong with the folder itself."""

    path: Path
    """The folder or zip archive."""
    recipe: Recipe
    sets: tuple[ImageSet, ...]
    problems: tuple[Problem, ...]
    """Of the folder: sets of one name, captions without an image, folders that cannot be read."""

    @property
    def digest(self) -> str:
        """Content hash of its recipe and all images and captions."""
        parts = (part for s in self.sets for part in (s.digest, s.caption_bytes()))
        # As version 0.2 wrote recipes, so that its runs are resumed; sampling does not matter here.
        return files.digest(self.recipe.sampled(20, 3.5).model_dump_json(), *parts)


def caption_path(dataset: Dataset, image_set: ImageSet) -> Path:
    """The path of a set's caption, there or not, in a dataset that is a folder."""
    if image_set.caption_file is not None:
        # Perhaps 0001.TXT, which some disks take for the same file as 0001.txt.
        return dataset.path / image_set.caption_file
    image = dataset.path / image_set.images[0]
    return image.with_suffix(".txt") if image_set.composite else image.parent / _CAPTION


def _recorded_layout(data: bytes, picture: Image.Image, recipe: Recipe) -> Layout | None:
    """The layout that `compose` wrote into a PNG, if it still fits picture and recipe."""
    text = png_text(data, LAYOUT_KEY)
    if text is None:
        return None
    try:
        layout = Layout.from_json(parse_json(text, "layout", LayoutError))
    except (LayoutError, ValueError):
        return None
    fits = layout.size == picture.size and layout.panels == recipe.canvas.panels
    return layout if fits else None


# -- opening ------------------------------------------------------------------------------------


def open_dataset(path: str | Path, recipe: str | Path | None = None) -> Dataset:
    """Find the sets in a folder or zip archive.

    Args:
        recipe: name or TOML path; by default the manifest's.
    Raises: DatasetError if there is nothing to read, the archive is damaged or unsafe, or no
        recipe is known; RecipeError.
    """
    path = Path(path)
    listing, unlisted = list_files(path)
    root = _common_folder(listing)
    chosen = load_recipe(recipe) if recipe is not None else _manifest_recipe(path, listing, root)
    sets, problems = _find_sets(listing, root, chosen)
    if not sets:
        raise DatasetError(
            "; ".join([f"{path} holds no image sets", *map(str, unlisted)]),
            "Give a folder or zip with NAME.png + NAME.txt pairs, or with one folder of panels "
            f"per set. Images are {' '.join(IMAGE_SUFFIXES)}.",
        )
    return Dataset(path, chosen, tuple(sets), (*unlisted, *problems))


def _common_folder(listing: Files) -> PurePosixPath:
    """The folder that holds the manifest, or else the deepest that holds every image."""
    manifests = [PurePosixPath(n) for n in listing if PurePosixPath(n).name == MANIFEST]
    if manifests:
        return min(manifests, key=lambda p: len(p.parts)).parent
    # "x" makes every path relative to one folder, which commonpath demands.
    folders = [f"x/{PurePosixPath(n).parent}" for n in listing if _is_image(n)]
    return PurePosixPath(os.path.commonpath(folders)).relative_to("x") if folders else _HERE


def _manifest_recipe(path: Path, listing: Files, root: PurePosixPath) -> Recipe:
    name = (root / MANIFEST).as_posix()
    if name not in listing:
        raise DatasetError(
            f"{path} does not say which recipe its sets follow (it has no {MANIFEST})",
            f'Name the `recipe`, or write {MANIFEST} with the line recipe = "film-storyboard".',
            setting="recipe",
        )
    try:
        recipe = parse_toml(listing[name](), f"{path}/{name}", DatasetError)["recipe"]
    except KeyError as error:
        raise DatasetError(
            f"{path}/{name} names no recipe",
            'It needs one line such as recipe = "film-storyboard".',
        ) from error
    own = (root / str(recipe)).as_posix()
    if recipe not in recipe_names() and own in listing:
        return read_recipe(listing[own]().decode("utf-8", "replace"), f"{path}/{own}")
    if recipe not in recipe_names():
        # Not a path elsewhere: a dataset must not make its reader open other files.
        raise RecipeError(
            f'{path}/{name} names the recipe "{recipe}", which is neither one of iclora\'s nor a '
            "file beside it",
            f"Use one of {', '.join(recipe_names())}, or put the TOML file into the dataset.",
        )
    return load_recipe(str(recipe))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _find_sets(
    listing: Files, root: PurePosixPath, recipe: Recipe
) -> tuple[list[ImageSet], list[Problem]]:
    folders: dict[PurePosixPath, list[str]] = defaultdict(list)
    for name in sorted(listing, key=files.natural_key):
        if PurePosixPath(name).is_relative_to(root):
            folders[PurePosixPath(name).parent].append(name)
    sets: list[ImageSet] = []
    problems: list[Problem] = []
    for folder, names in folders.items():
        images = [n for n in names if _is_image(n)]
        # In this order 0001.txt wins over 0001.TXT.
        written = sorted(n for n in names if n.lower().endswith(".txt"))
        texts = {n.rsplit(".", 1)[0]: n for n in written}
        joint = next((n for n in texts.values() if PurePosixPath(n).name.lower() == _CAPTION), None)
        paired = [n for n in images if n.rsplit(".", 1)[0] in texts]
        if images and (joint or (folder != root and len(images) > 1 and not paired)):
            name = _set_name(folder, root) or "set"
            sets.append(ImageSet(name, tuple(images), False, joint, listing))
            continue
        if folder == root and len(images) == recipe.canvas.panels > 1 and not paired:
            problems.append(_perhaps_one_set(images))
        for image in images:
            stem = image.rsplit(".", 1)[0]
            name = _set_name(PurePosixPath(stem), root)
            sets.append(ImageSet(name, (image,), True, texts.get(stem), listing))
        captioned = {s.caption_file for s in sets}
        for text in sorted(set(texts.values()) - captioned):
            words = listing[text]().decode("utf-8", "replace")
            problems.append(
                Problem(
                    text,
                    "a caption without an image",
                    "Add the image or remove the text.",
                    "error" if has_markers(words, recipe.markers) else "warning",
                    caption=True,
                )
            )
    counts = Counter(s.name for s in sets)
    problems += [
        Problem(name, "more than one image set of this name", "Rename or remove the others.")
        for name, count in counts.items()
        if count > 1
    ]
    return sets, problems


def _perhaps_one_set(images: Sequence[str]) -> Problem:
    return Problem(
        PurePosixPath(images[0]).name,
        f"{len(images)} images without captions lie side by side, as many as a set has panels; "
        "each is taken for a whole composite",
        "If they are the panels of one set, put them into a folder of their own.",
        "warning",
    )


def _set_name(path: PurePosixPath, root: PurePosixPath) -> str:
    return "-".join(path.relative_to(root).parts)
