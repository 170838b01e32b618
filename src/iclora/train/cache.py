"""Encode once: latents and prompt embeddings on disk, keyed by content.

A key covers the image or text, the canvas, and the encoder's weights and number format, so an
edited image or caption, another canvas or another base is encoded again and nothing else is. An
entry that is not as it was written is encoded again too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iclora.errors import RunError
from iclora.files import clear_leftovers, digest, set_aside
from iclora.models.base import DiffusionModel, Text
from iclora.models.stored import Damaged, read_stored, store
from iclora.progress import Progress
from iclora.sets.canvas import compose
from iclora.sets.check import TrainingSet
from iclora.sets.layout import Layout
from iclora.sets.tokens import cells_of
from iclora.settings import Encoding
from iclora.train.workers import Workers

__all__ = ["Encoded", "EncodedSet", "encode"]

Warn = Callable[[str], None]


@dataclass(frozen=True)
class EncodedSet:
    """One set ready for training."""

    name: str
    layouts: tuple[Layout, ...]
    """The distinct canvases it trains at, the smallest first."""
    _latents: tuple[Path, ...]
    _texts: tuple[Path, ...]

    def latents(self, size: int) -> Tensor:
        """Read the clean latent tokens (n, c), float32, of its canvas number `size`."""
        return _read(self._latents[size])["latents"].float()

    def texts(self) -> list[Text]:
        """Read its prompt embeddings: one for all panels, or one for each."""
        return list(map(_read, self._texts))


@dataclass(frozen=True)
class Encoded:
    """Sets as tensors on disk."""

    sets: tuple[EncodedSet, ...]
    empty: Text
    """The embedding of the empty text, for caption dropout."""
    usual: tuple[int, ...] = ()
    """Panels that are usually given when such sets are completed, counted from 0."""


def encode(
    model: DiffusionModel,
    sets: Sequence[TrainingSet],
    folder: Path,
    *,
    workers: Workers,
    progress: Progress,
    warn: Warn = lambda _: None,
    read: Callable[[str], Sequence[str]] = lambda caption: (caption,),
    encoding: Encoding = "canvas",
) -> tuple[list[EncodedSet], Text]:
    """Encode what the cache lacks, then free the encoders.

    Text first, then images, so that the two kinds of encoder are never in memory together. Each
    process encodes its share, and waits until the others have done theirs.

    Args:
        folder: of the cache; it may serve several runs.
        warn: told of damaged entries.
        read: the texts that a caption is read as: one for all panels, or one for each.
        encoding: what the VAE sees at a time.
    Returns: the sets in their order, and the embedding of the empty text.
    Raises: CaptionError over the token limit; ImageError, DatasetError, StorageError; RunError for
        pictures or words that are encoded to numbers that are not finite.
    """
    if workers.main:
        clear_leftovers(folder)
    captions = [read(s.caption) for s in sets]
    every = ["", *chain.from_iterable(captions)]
    empty, *further = _encode_texts(model, every, folder, workers, progress, warn)
    texts = iter(further)
    encoder = f"{model.fingerprint('vae')} {model.dtype}" + " panels" * (encoding == "panels")
    encoded = [
        EncodedSet(
            source.name,
            source.layouts,
            tuple(folder / _latents_name(encoder, source, layout) for layout in source.layouts),
            tuple(islice(texts, len(own))),
        )
        for source, own in zip(sets, captions, strict=True)
    ]
    shapes = {
        path: (layout.width // model.grid * (layout.height // model.grid), model.channels)
        for entry in encoded
        for path, layout in zip(entry._latents, entry.layouts, strict=True)
    }
    missing = {path for path, shape in shapes.items() if not _is_whole(path, warn, shape)}

    def encode_set(number: int) -> None:
        panels = sets[number].load().panels
        for layout, path in zip(sets[number].layouts, encoded[number]._latents, strict=True):
            if path in missing:
                latents = _encode_canvas(model, layout, panels, encoding)
                # float32: under 3 MB a canvas, and no rounding that the encoder did not make.
                _keep(path, {"latents": latents.to(torch.float32)}, f'set "{sets[number].name}"')
                missing.discard(path)

    lacking = [n for n, entry in enumerate(encoded) if missing.intersection(entry._latents)]
    _share_out("encoding images", lacking, len(sets), encode_set, workers, progress)
    model.release("vae")
    return encoded, _read(empty)


def _encode_canvas(
    model: DiffusionModel, layout: Layout, panels: Sequence[Image.Image], encoding: Encoding
) -> Tensor:
    """The latent tokens of a set on a canvas, (n, channels)."""
    covered = sum(box.width * box.height for box in layout.boxes)
    if encoding == "canvas" or covered < layout.width * layout.height:
        whole = model.encode_image(np.asarray(compose(layout, panels)))
    else:
        whole = torch.empty(layout.width * layout.height // model.grid**2, model.channels)
    if encoding == "canvas":
        return whole
    # Of the canvas as a whole the gaps between panels alone stay.
    cells = whole.view(layout.height // model.grid, layout.width // model.grid, -1)
    for number, (box, panel) in enumerate(zip(layout.boxes, panels, strict=True), 1):
        place = cells[cells_of(box, model.grid)]
        alone = model.encode_image(np.asarray(layout.fit_panel(number, panel)))
        place.copy_(alone.view(place.shape))
    return whole


def _encode_texts(
    model: DiffusionModel,
    captions: Sequence[str],
    folder: Path,
    workers: Workers,
    progress: Progress,
    warn: Warn,
) -> list[Path]:
    encoder = f"{model.fingerprint('text')} {model.dtype}"
    paths = [folder / f"text-{digest(encoder, text)[:32]}.safetensors" for text in captions]

    def encode_text(number: int) -> None:
        _keep(paths[number], model.encode_text(captions[number]), f'"{captions[number][:60]}"')

    first = {path: number for number, path in reversed(list(enumerate(paths)))}
    lacking = [
        number
        for path, number in sorted(first.items(), key=lambda item: item[1])
        if not _is_whole(path, warn)
    ]
    _share_out("encoding captions", lacking, len(captions), encode_text, workers, progress)
    model.release("text")
    return paths


def _share_out(
    what: str,
    lacking: Sequence[int],
    total: int,
    work: Callable[[int], None],
    workers: Workers,
    progress: Progress,
) -> None:
    """Do the processes' shares of what is lacking; report what they have done together, about."""
    workers.wait()  # until all have seen what is lacking: from here on some of it is there
    there = total - len(lacking)
    progress(what, there, total)
    for done, number in enumerate(workers.share(lacking), 1):
        work(number)
        progress(what, min(total, there + done * workers.count), total)
    workers.wait()


def _latents_name(encoder: str, source: TrainingSet, layout: Layout) -> str:
    """The name of a cache entry. It covers the picture files, so that none has to be decoded."""
    places = json.dumps([source.sizes, layout.to_json()])
    return f"latents-{digest(encoder, source.digest, places)[:32]}.safetensors"


def _keep(path: Path, tensors: dict[str, Tensor], what: str) -> None:
    for value in tensors.values():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise RunError(
                f"the base encodes {what} to numbers that are not finite",
                "Use `dtype` fp32, or leave it out.",
                setting="dtype",
            )
    if path.exists() and not path.is_file():
        set_aside(path)  # A folder, pipe or device would stand in the way.
    # Its name is in it, or two entries that changed places would not be noticed.
    store(path, tensors, {"entry": path.stem})


def _read_entry(path: Path) -> dict[str, Tensor]:
    """Raises: Damaged; StorageError."""
    tensors, about = read_stored(path)
    if about.get("entry", path.stem) != path.stem:
        raise Damaged("it is another entry under this name")
    return tensors


def _is_whole(path: Path, warn: Warn, shape: tuple[int, int] | None = None) -> bool:
    """True if an entry is there and can be used; one that is damaged is said."""
    if not path.exists():
        return False
    try:
        tensors = _read_entry(path)
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if shape and shapes != {"latents": shape}:
            raise Damaged("its shape is another")
    except Damaged as bad:
        warn(f"cache entry {path} is damaged ({bad}); it is encoded again")
        return False
    return True


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return _read_entry(path)
    except Damaged as bad:
        raise RunError(
            f"cache entry {path} is gone or damaged ({bad})",
            "Resume the run: what is missing is encoded again.",
        ) from bad
