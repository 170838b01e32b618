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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from iclora import files
from iclora.errors import CaptionError, DatasetError, LayoutError
from iclora.files.documents import parse_json
from iclora.sets.bars import find_edges, is_own, opposite
from iclora.sets.canvas import Panels, find_panels, is_likely, split
from iclora.sets.edges import Edges
from iclora.sets.finding import find_sets
from iclora.sets.images import BLANK, png_text, read_image
from iclora.sets.kinds import IMAGE_SUFFIXES
from iclora.sets.layout import Layout, Size
from iclora.sets.leftovers import find_in_file
from iclora.sets.listing import Files, Problem, list_files
from iclora.sets.manifest import MANIFEST, common_folder, manifest_recipe, other_manifests
from iclora.sets.origins import ORIGINS, SetOrigin, read_origins
from iclora.sets.recipe import Recipe, load_recipe
from iclora.sets.words import Words

__all__ = [
    "LAYOUT_KEY",
    "MANIFEST",
    "PLACED_KEY",
    "Dataset",
    "ImageSet",
    "PanelSet",
    "Problem",
    "caption_path",
    "open_dataset",
]

LAYOUT_KEY = "iclora:layout"
PLACED_KEY = "iclora:placed"
"""As LAYOUT_KEY, for boxes that somebody placed by hand: no seam need show there."""
_CAPTION = "caption.txt"


@dataclass(frozen=True)
class PanelSet:
    """A name and its panel pictures in order; knows nothing of files."""

    name: str
    panels: tuple[Image.Image, ...]
    found: Layout | None = None
    """The panels' places in the composite they were split from; None for single files."""
    unseen_seams: int = 0
    """Borders between panels of a composite that were assumed, since none shows."""
    bars: int = 0
    """Width of the widest bar around or between panels of a composite that was cut off, px."""
    rest: tuple[tuple[str, ...], ...] = ()
    """What may be no picture at each panel's edges, in words."""
    doubts: tuple[str, ...] = ()
    """Why the cuts of a composite are not certain, in words."""
    strips: tuple[str, ...] = ()
    """Strips of text that were cut off a composite's panels, in words."""

    @property
    def sizes(self) -> list[Size]:
        return [panel.size for panel in self.panels]


@dataclass(frozen=True)
class ImageSet:
    """One set in its dataset, unread."""

    name: str
    """Unique in its dataset, usable as a file name."""
    images: tuple[str, ...]
    """File names inside the dataset, in panel order."""
    composite: bool
    """True if its one image holds all panels; otherwise every image is a panel."""
    words: Words | None
    """Its caption, unread; None if it has none."""
    _files: Files = field(repr=False)
    background: str = "white"
    """What transparent parts are filled with."""
    cuts: tuple[Edges, ...] = ()
    """What is cut off each panel; nothing if empty, and of a composite."""

    @property
    def caption_file(self) -> str | None:
        """Name of the file its caption is read from, the first of several; None without one."""
        return self.words.files[0] if self.words else None

    @property
    def caption_place(self) -> PurePosixPath:
        """Where its caption lies in the dataset, or would."""
        if self.words is not None and self.words.own:
            # Perhaps 0001.TXT, which some disks take for the same file as 0001.txt.
            return PurePosixPath(self.words.files[0])
        image = PurePosixPath(self.images[0])
        return image.with_suffix(".txt") if self.composite else image.parent / _CAPTION

    def load(self, recipe: Recipe, found: Layout | None = None) -> PanelSet:
        """Read its panels; a composite is split by the recipe's layout, along its own seams.

        Args:
            found: the panels' places in the composite, if they were found before.
        Raises: ImageError for a picture that cannot be read; DatasetError for missing or
            surplus panels; LayoutError for a composite too small to hold them.
        """
        if self.composite:
            data = self._files[self.images[0]].read()
            picture = self._picture(data, self.images[0])
            layout = found or _recorded_layout(data, picture, recipe)
            seen = Panels(layout) if layout else find_panels(recipe.canvas, picture)
            panels = tuple(split(seen.layout, picture))
            told = seen.unseen, seen.bars, seen.rest, seen.doubts, seen.strips
            return PanelSet(self.name, panels, seen.layout, *told)
        # Before any is decoded: a folder of many large pictures is no set.
        self._check_count(recipe)
        return PanelSet(self.name, tuple(self.panel(number) for number in range(len(self.images))))

    def panel(self, number: int) -> Image.Image:
        """One file's picture, counted from 0, without what is cut off. Raises: as `load`."""
        return self._cut(self._picture(self.read(number), self.images[number]), number)

    def read(self, number: int) -> bytes:
        """One of its files as it lies there, counted from 0. Raises: DatasetError."""
        return self._files[self.images[number]].read()

    def _cut(self, picture: Image.Image, number: int) -> Image.Image:
        if not self.cuts or not any(self.cuts[number]):
            return picture
        left, top, right, bottom = self.cuts[number]
        return picture.crop((left, top, picture.width - right, picture.height - bottom))

    def measure(self, recipe: Recipe) -> Measured:
        """Read its panels one at a time, and keep their sizes alone. Raises: as `load` does."""
        if self.composite:
            panels = self.load(recipe)
            sizes = tuple(panels.sizes)
            seen = panels.unseen_seams, panels.bars
            lost = self.images if any(BLANK in panel.info for panel in panels.panels) else ()
            return Measured(
                self.name,
                sizes,
                panels.found,
                *seen,
                blank=lost,
                rest=panels.rest,
                doubts=panels.doubts,
                strips=panels.strips,
            )
        self._check_count(recipe)
        found: list[tuple[Size, Edges, Edges, tuple[str, ...]]] = []
        blank: list[str] = []

        def each() -> Iterator[bytes]:
            for number, name in enumerate(self.images):
                data = self._files[name].read()
                picture = self._cut(self._picture(data, name), number)
                edges = find_edges(picture)
                pairs = opposite(picture, edges) if any(edges) else edges
                if edges != pairs and is_own(picture, edges):
                    edges = pairs
                found.append((picture.size, edges, pairs, tuple(find_in_file(picture))))
                if BLANK in picture.info:
                    blank.append(name)
                del picture
                yield data

        # Every file is read once for both.
        self.__dict__["digest"] = files.digest_each(each())
        sizes, edges, pairs, rest = zip(*found, strict=True) if found else ((), (), (), ())
        return Measured(self.name, sizes, edges=edges, pairs=pairs, blank=tuple(blank), rest=rest)

    def _picture(self, data: bytes, name: str) -> Image.Image:
        if self.background == "white":
            return read_image(data, name)
        return read_image(data, name, self.background)

    def _check_count(self, recipe: Recipe) -> None:
        """Raises: DatasetError unless there is one picture a panel."""
        if len(self.images) != recipe.canvas.panels:
            names = [PurePosixPath(n).name for n in self.images]
            rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
            raise DatasetError(
                f'set "{self.name}" has {len(self.images)} images; "{recipe.name}" has '
                f"{recipe.canvas.panels} panels ({' '.join(recipe.markers)})",
                "Add the missing panels, or remove the surplus ones: "
                + ", ".join(names[:12])
                + rest,
            )

    def caption(self) -> str:
        """Its caption's text, without a byte-order mark and outer white space.

        Raises: DatasetError if there is none; CaptionError if it is empty or not UTF-8.
        """
        if self.words is None:
            raise DatasetError(f'set "{self.name}" has no caption', f"Write {self.caption_place}.")
        text = self.words.read()
        if not text:
            raise CaptionError(f"caption {self.caption_file} is empty", "Write a joint caption.")
        return text

    def caption_bytes(self) -> bytes:
        """The content of its caption file; nothing if there is none."""
        if self.words is None:
            return b""
        if self.words.own:
            return self._files[self.words.files[0]].read()
        try:
            return self.words.read().encode()
        except (CaptionError, DatasetError):
            return b""

    @cached_property
    def digest(self) -> str:
        """Content hash of its image files, in order."""
        return files.digest_each(self._files[name].read() for name in self.images)


@dataclass(frozen=True)
class Measured:
    """The panels of a set without their pixels."""

    name: str
    sizes: tuple[Size, ...]
    """Width and height of each panel, px."""
    found: Layout | None = None
    """The panels' places in the composite they were split from; None for single files."""
    unseen_seams: int = 0
    """Borders between panels of a composite that were assumed, since none shows."""
    bars: int = 0
    """Width of the widest bar around or between panels of a composite that was cut off, px."""
    edges: tuple[Edges, ...] = ()
    """Bars in single files at each panel's edges."""
    pairs: tuple[Edges, ...] = ()
    """Those of them that lie opposite each other; `compose` cuts them off."""
    blank: tuple[str, ...] = ()
    """Transparent pictures of which nothing shows on the background."""
    rest: tuple[tuple[str, ...], ...] = ()
    """What may be no picture at each panel's edges, in words."""
    doubts: tuple[str, ...] = ()
    """Why the cuts of a composite are not certain, in words."""
    strips: tuple[str, ...] = ()
    """Strips of text that were cut off a composite's panels, in words."""

    @property
    def area(self) -> int:
        """Pixels the set really has; a canvas beyond it would be made up by enlarging."""
        return sum(width * height for width, height in self.sizes)


@dataclass(frozen=True)
class Dataset:
    """Image sets of one recipe, and what is wrong with the folder itself."""

    path: Path
    """The folder or zip archive."""
    recipe: Recipe
    sets: tuple[ImageSet, ...]
    problems: tuple[Problem, ...]
    """Of the folder: sets of one name, captions without an image, folders that cannot be read."""
    origins: Mapping[str, SetOrigin] = field(default_factory=dict)
    """Where sets came from, by name, for those that were collected."""

    @property
    def digest(self) -> str:
        """Content hash of its recipe and all images and captions."""
        parts = (part for s in self.sets for part in (s.digest, s.caption_bytes()))
        # As version 0.2 wrote recipes, so that its runs are resumed; sampling does not matter here.
        return files.digest(self.recipe.sampled(20, 3.5).model_dump_json(), *parts)

    def refuse(self, problems: Sequence[Problem]) -> None:
        """Raises: DatasetError with these problems, if there are any."""
        if problems:
            raise DatasetError(
                f"{len(problems)} problem{'s' * (len(problems) > 1)} in {self.path}:\n"
                + "\n".join(f"  {p}" for p in problems),
                "Nothing was done. Fix these; `iclora check` shows them again.",
            )


def caption_path(dataset: Dataset, image_set: ImageSet) -> Path:
    """The path of a set's caption, there or not, in a dataset that is a folder."""
    return dataset.path / image_set.caption_place


def _recorded_layout(data: bytes, picture: Image.Image, recipe: Recipe) -> Layout | None:
    """The layout in a PNG, by hand or by `compose`, if it still fits picture and recipe."""
    placed = _layout_in(data, PLACED_KEY)
    if placed and placed.size == picture.size and placed.panels == recipe.canvas.panels:
        return placed
    layout = _layout_in(data, LAYOUT_KEY)
    if layout is None or layout.size != picture.size or not layout.has_places_of(recipe.canvas):
        return None
    return layout if is_likely(layout, picture, recipe.canvas) else None


def _layout_in(data: bytes, key: str) -> Layout | None:
    """The layout in a PNG's text; None if there is none."""
    text = png_text(data, key)
    if text is None:
        return None
    try:
        return Layout.from_json(parse_json(text, "layout", LayoutError))
    except (LayoutError, ValueError):
        return None


# -- opening ------------------------------------------------------------------------------------


def open_dataset(
    path: str | Path, recipe: str | Path | None = None, background: str = "white"
) -> Dataset:
    """Find the sets in a folder or zip archive.

    Args:
        recipe: name or TOML path; by default the manifest's.
        background: what transparent parts of pictures are filled with; see `read_image`.
    Raises: DatasetError if there is nothing to read, the archive is damaged or unsafe, or no
        recipe is known; RecipeError.
    """
    path = Path(path)
    listing, unlisted = list_files(path)
    root = common_folder(listing)
    said: list[Problem] = []
    if recipe is not None:
        chosen = load_recipe(recipe)
    else:
        chosen, said = manifest_recipe(path, listing, root, unlisted)
    told = (root / ORIGINS).as_posix()
    origins, wrong = read_origins(listing[told]) if told in listing else ({}, [])
    own = [name for name in listing if name.lower().endswith(".toml") or name == told]
    found, problems = find_sets(listing, root, chosen, own, unlisted)
    problems = [*said, *other_manifests(listing, root, chosen), *wrong, *problems]
    if not found:
        raise DatasetError(
            "; ".join([f"{path} holds no image sets", *map(str, problems)]),
            "Give a folder or zip with NAME.png + NAME.txt pairs, or with one folder of panels "
            f"per set. Images are {' '.join(IMAGE_SUFFIXES)}.",
        )
    sets = [ImageSet(f.name, f.images, f.composite, f.words, listing, background) for f in found]
    return Dataset(path, chosen, tuple(sets), tuple(problems), origins)
