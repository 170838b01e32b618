"""Image sets on disk, in the two shapes people have them, and what is wrong with them.

    DATA/iclora.toml         recipe = "film-storyboard"
    DATA/0001.png            a composite, all panels joined ...
    DATA/0001.txt            ... and its joint caption: the pair other trainers read and write

    DATA/iclora.toml
    DATA/0001/1.png 2.png    a folder per set: the panels in natural order ...
    DATA/0001/caption.txt    ... and their joint caption

A zip archive of either works as well; it is read in place and never unpacked.
"""

from __future__ import annotations

import json
import os
import statistics
import tomllib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from iclora import files
from iclora.errors import CaptionError, DatasetError, ImageError, LayoutError, RecipeError
from iclora.sets.caption import check_budget, has_markers
from iclora.sets.images import IMAGE_SUFFIXES, png_text, read_image
from iclora.sets.layout import MOST_STRETCH, Layout, Size
from iclora.sets.recipe import Recipe, load_recipe, read_recipe, recipe_names

__all__ = [
    "LAYOUT_KEY",
    "MANIFEST",
    "Dataset",
    "ImageSet",
    "PanelSet",
    "Problem",
    "SetReport",
    "caption_path",
    "check_dataset",
    "open_dataset",
    "training_layouts",
    "typical_layout",
]

MANIFEST = "iclora.toml"
LAYOUT_KEY = "iclora:layout"
_CAPTION = "caption.txt"
# T5 makes some 4 bytes of English a token; less here, so that the estimate errs to the safe side.
_BYTES_PER_TOKEN = 3.5
_LARGEST_FILE = 512 * 2**20
_HERE = PurePosixPath()
_CLUTTER = ("__macosx", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Problem:
    """Something about a set, and what to do about it."""

    subject: str
    """The set or file it is about."""
    text: str
    advice: str
    severity: Literal["error", "warning"] = "error"
    caption: bool = False
    """Whether it concerns the words and not the pictures."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}. {self.advice}"


@dataclass(frozen=True)
class PanelSet:
    """A name and its panel pictures in order; knows nothing of files."""

    name: str
    panels: tuple[Image.Image, ...]
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
    """One set where it lies.

    Attributes:
        name: unique in its dataset, usable as a file name.
        images: file names inside the dataset, in panel order.
        composite: whether its one image holds all panels; otherwise every image is a panel.
        caption_file: name of its caption file, None where it has none.
    """

    name: str
    images: tuple[str, ...]
    composite: bool
    caption_file: str | None
    _files: Mapping[str, Callable[[], bytes]] = field(repr=False)

    def load(self, recipe: Recipe) -> PanelSet:
        """Read its panels; a composite is split by the recipe's layout, along its own seams.

        Raises: ImageError for a picture that cannot be read; DatasetError for missing or
            surplus panels.
        """
        data = [self._files[name]() for name in self.images]
        pictures = [read_image(d, name) for d, name in zip(data, self.images, strict=True)]
        if self.composite:
            layout, unseen = _recorded_layout(data[0], pictures[0], recipe), 0
            if layout is None:
                layout, unseen = recipe.canvas.find_seams(pictures[0])
            return PanelSet(self.name, tuple(layout.split(pictures[0])), unseen)
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
        """What its caption file holds; nothing where there is none."""
        return b"" if self.caption_file is None else self._files[self.caption_file]()

    @cached_property
    def digest(self) -> str:
        """Content hash of its image files, in order."""
        return files.digest(*(self._files[name]() for name in self.images))


@dataclass(frozen=True)
class Dataset:
    """Image sets of one recipe, and what was odd about the folder itself."""

    path: Path
    recipe: Recipe
    sets: tuple[ImageSet, ...]
    problems: tuple[Problem, ...]

    @property
    def digest(self) -> str:
        """Content hash of its recipe and all images and captions."""
        captions = (s._files[s.caption_file]() if s.caption_file else b"" for s in self.sets)
        parts = (part for s, c in zip(self.sets, captions, strict=True) for part in (s.digest, c))
        # As version 0.2 wrote recipes, so that its runs are resumed; sampling does not matter here.
        return files.digest(self.recipe.sampled(20, 3.5).model_dump_json(), *parts)


def caption_path(dataset: Dataset, image_set: ImageSet) -> Path:
    """Where a set's caption lies, or would lie, in a dataset that is a folder."""
    if image_set.caption_file is not None:
        # Perhaps 0001.TXT, which some disks take for the same file as 0001.txt.
        return dataset.path / image_set.caption_file
    image = dataset.path / image_set.images[0]
    return image.with_suffix(".txt") if image_set.composite else image.parent / _CAPTION


def _recorded_layout(data: bytes, picture: Image.Image, recipe: Recipe) -> Layout | None:
    """The layout that `compose` wrote into a PNG, where it still fits picture and recipe."""
    text = png_text(data, LAYOUT_KEY)
    if text is None:
        return None
    try:
        layout = Layout.from_json(json.loads(text))
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
    listing = _list_zip(path) if path.is_file() else _list_folder(path)
    root = _common_folder(listing)
    chosen = load_recipe(recipe) if recipe is not None else _manifest_recipe(path, listing, root)
    sets, problems = _find_sets(listing, root, chosen)
    if not sets:
        raise DatasetError(
            f"{path} holds no image sets",
            "Give a folder or zip with NAME.png + NAME.txt pairs, or with one folder of panels "
            f"per set. Images are {' '.join(IMAGE_SUFFIXES)}.",
        )
    return Dataset(path, chosen, tuple(sets), tuple(problems))


def _clutter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any((p.startswith(".") and p != "..") or p.lower() in _CLUTTER for p in parts)


def _list_folder(path: Path) -> dict[str, Callable[[], bytes]]:
    if not path.is_dir():
        raise DatasetError(f"there is no folder or zip archive {path}", "Check the path.")
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            relative = file.relative_to(path).as_posix()
            if _clutter(relative):
                continue
            if any(sign < " " or "\ud800" <= sign <= "\udfff" for sign in relative):
                raise DatasetError(
                    f"{path} holds a file with an unreadable name, {relative!a}", "Rename it."
                )
            found[relative] = _file_reader(file)
    return found


def _file_reader(file: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return file.read_bytes()
        except OSError as error:
            raise DatasetError(f"{file} cannot be read: {error.strerror}", "Check it.") from error

    return read


def _list_zip(path: Path) -> dict[str, Callable[[], bytes]]:
    def reader(name: str) -> Callable[[], bytes]:
        def read() -> bytes:
            try:
                with zipfile.ZipFile(path) as archive, archive.open(name) as member:
                    return member.read(_LARGEST_FILE)
            except Exception as error:
                # Damaged archives make zipfile raise almost anything, zlib.error among it.
                raise DatasetError(
                    f'"{name}" in {path} cannot be read: {error}', "Make the archive again."
                ) from error

        return read

    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not _clutter(m.filename)]
    except Exception as error:
        raise DatasetError(
            f"{path} is not a zip archive, or a damaged one ({error})",
            "Give a folder or a zip archive of image sets.",
        ) from error
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
            raise DatasetError(
                f'{path} holds the unsafe name "{member.filename}", which leads out of the archive',
                "Do not trust this archive; make it again from the images.",
            )
        if member.flag_bits & 1:
            raise DatasetError(f'"{name}" in {path} is encrypted', "Unpack it yourself first.")
        if member.file_size > _LARGEST_FILE:
            raise DatasetError(
                f'"{name}" in {path} unpacks to {member.file_size / 2**20:.0f} MiB',
                f"Files of more than {_LARGEST_FILE // 2**20} MiB are refused.",
            )
    return {member.filename: reader(member.filename) for member in members}


def _common_folder(listing: Mapping[str, Callable[[], bytes]]) -> PurePosixPath:
    """The folder that holds the manifest, or else the deepest that holds every image."""
    manifests = [PurePosixPath(n) for n in listing if PurePosixPath(n).name == MANIFEST]
    if manifests:
        return min(manifests, key=lambda p: len(p.parts)).parent
    # "x" makes every path relative to one folder, which commonpath demands.
    folders = [f"x/{PurePosixPath(n).parent}" for n in listing if _is_image(n)]
    return PurePosixPath(os.path.commonpath(folders)).relative_to("x") if folders else _HERE


def _manifest_recipe(
    path: Path, listing: Mapping[str, Callable[[], bytes]], root: PurePosixPath
) -> Recipe:
    name = (root / MANIFEST).as_posix()
    if name not in listing:
        raise DatasetError(
            f"{path} does not say which recipe its sets follow (it has no {MANIFEST})",
            f'Pass --recipe, or write {MANIFEST} with the line recipe = "film-storyboard".',
        )
    try:
        recipe = tomllib.loads(listing[name]().decode("utf-8"))["recipe"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise DatasetError(
            f"{path}/{name} names no recipe ({error!r})",
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
    listing: Mapping[str, Callable[[], bytes]], root: PurePosixPath, recipe: Recipe
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


# -- checking -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetReport:
    """What `check` found out about one set."""

    name: str
    sizes: tuple[Size, ...]
    """Panel sizes in px as they lie there."""
    tokens: int | None
    """Tokens of the caption; an estimate where they were not counted; None without a caption."""
    problems: tuple[Problem, ...]


def check_dataset(
    dataset: Dataset,
    *,
    count_tokens: Callable[[str], int] | None = None,
    limit: int = 512,
    resolutions: Sequence[int] = (512, 768, 1024, 1280, 1536),
    upscale: bool = False,
    grid: int = 16,
) -> Iterator[SetReport]:
    """Read every image and caption, and report each set as it is done.

    Args:
        count_tokens: the base's tokenizer. Without it the number is estimated, and only a caption
            of more words than `limit` is known to be too long: every word is at least one token.
        limit: tokens the base reads.
        resolutions: training resolutions (side of a square of the same area, px).
        upscale: whether sets are enlarged to them.
        grid: token edge of the base, px.
    Yields: one report per set, in order; errors in it stop `train`.
    """
    seen: dict[str, str] = {}
    for image_set in dataset.sets:
        problems: list[Problem] = []
        sizes: tuple[Size, ...] = ()
        tokens = None
        try:
            panels = image_set.load(dataset.recipe)
            sizes = tuple(panels.sizes)
            layouts = training_layouts(dataset.recipe.canvas, sizes, resolutions, grid, upscale)
            problems += _judge_sizes(panels, layouts, min(resolutions))
            twin = seen.setdefault(image_set.digest, image_set.name)
            if twin != image_set.name:
                problems.append(
                    Problem(
                        image_set.name,
                        f'the same images as set "{twin}"',
                        "Remove one, or it counts double.",
                        "warning",
                    )
                )
        except (ImageError, DatasetError, LayoutError) as error:
            problems.append(Problem(image_set.name, error.problem, error.advice))
        try:
            text = image_set.caption()
            dataset.recipe.parse(text)
            name = f'the caption of "{image_set.name}"'
            if count_tokens:
                tokens = check_budget(text, count_tokens, limit, name)
            else:
                check_budget(text, lambda t: len(t.split()), limit, name)
                tokens = round(len(text.encode()) / _BYTES_PER_TOKEN)
                if tokens > limit:
                    problems.append(
                        Problem(
                            image_set.name,
                            f"the caption may be too long, some {tokens} tokens of {limit}",
                            "Count them with --base.",
                            "warning",
                        )
                    )
        except (CaptionError, DatasetError) as error:
            problems.append(Problem(image_set.name, error.problem, error.advice, caption=True))
        yield SetReport(image_set.name, sizes, tokens, tuple(problems))


def _judge_sizes(panels: PanelSet, layouts: Sequence[Layout], least: int) -> Iterator[Problem]:
    if panels.unseen_seams:
        yield Problem(
            panels.name,
            f"{panels.unseen_seams} of the borders between its panels do not show in the picture, "
            "so it is split where they would usually be",
            "Look at it; a folder with one file per panel leaves no doubt.",
            "warning",
        )
    worst = max(max(layout.stretch(panels.sizes)) for layout in layouts)
    if worst > MOST_STRETCH:
        yield Problem(
            panels.name,
            f"a panel is {100 * (worst - 1):.0f}% off the shape of its box, and nothing is cropped",
            "Bring it into that shape, or use a recipe of rows and larger resolutions.",
        )
    elif worst > 1.06:
        yield Problem(
            panels.name,
            f"a panel is stretched by {100 * (worst - 1):.0f}% at a training size, since its edges "
            "move to the token grid",
            "Use larger resolutions, or panels of less extreme shape.",
            "warning",
        )
    if panels.area < least**2:
        yield Problem(
            panels.name,
            f"only {panels.area / 1e6:.2f} megapixels in all, less than the smallest training size "
            f"of {least}x{least}",
            "It trains at its own size; larger originals would teach more.",
            "warning",
        )


def training_layouts(
    canvas: Layout,
    sizes: Sequence[Size],
    resolutions: Sequence[int],
    grid: int,
    upscale: bool = False,
) -> list[Layout]:
    """The distinct canvases a set trains at, smallest first.

    A resolution beyond the set's own pixels falls back to these (unless `upscale`), and
    resolutions that come to the same canvas count once, so no size is seen double.

    Args:
        resolutions: sides of squares of the wanted areas, px.
    """
    own = sum(width * height for width, height in sizes)
    areas = sorted({r * r if upscale else min(r * r, own) for r in resolutions})
    return list(dict.fromkeys(canvas.fit(sizes, area, grid) for area in areas))


def typical_layout(canvas: Layout, sizes: Sequence[Sequence[Size]], grid: int) -> Layout:
    """The canvas for sets like these: `canvas`'s area, each panel of its median shape.

    Args:
        sizes: panel sizes of each set.
    """
    if not canvas.per_row:
        return canvas
    ratios = [statistics.median(w / h for w, h in column) for column in zip(*sizes, strict=True)]
    shapes = [(round(1000 * ratio), 1000) for ratio in ratios]
    return canvas.fit(shapes, canvas.width * canvas.height, grid)
