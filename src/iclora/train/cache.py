"""Encode once: latents and prompt embeddings on disk, keyed by content.

A key covers the image or text, the canvas, and the encoder's weights and precision, so an edited
image or caption, another canvas or another base is encoded anew and nothing else is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from iclora.errors import RunError
from iclora.files import digest, write_bytes
from iclora.models.base import DiffusionModel, Text
from iclora.sets.check import training_layouts
from iclora.sets.dataset import Dataset, PanelSet
from iclora.sets.layout import Layout

__all__ = ["Encoded", "EncodedSet", "encode_dataset"]

Progress = Callable[[str, int, int], None]
"""Called with what is being encoded, how many are done, and how many there are."""


@dataclass(frozen=True)
class EncodedSet:
    """One set ready for training.

    Attributes:
        layouts: the distinct canvases it trains at.
    """

    name: str
    layouts: tuple[Layout, ...]
    _latents: tuple[Path, ...]
    _text: Path

    def latents(self, size: int) -> Tensor:
        """Clean latent tokens (n, c), float32, of its canvas number `size`."""
        return _read(self._latents[size])["latents"].float()

    def text(self) -> Text:
        return _read(self._text)


@dataclass(frozen=True)
class Encoded:
    """A dataset as tensors on disk.

    Attributes:
        empty: the embedding of the empty text, for caption dropout.
        usual: panels that are usually given when such sets are completed, counted from 0.
    """

    sets: tuple[EncodedSet, ...]
    empty: Text
    usual: tuple[int, ...] = ()


def encode_dataset(
    model: DiffusionModel,
    dataset: Dataset,
    *,
    resolutions: tuple[int, ...],
    upscale: bool,
    folder: Path,
    progress: Progress | None = None,
) -> Encoded:
    """Encode what the cache lacks, then free the encoders.

    Text first, then images, so that the two kinds of encoder are never in memory together.

    Args:
        folder: where the cache lies; it may serve several runs.
    Raises: CaptionError over the token limit; ImageError, DatasetError, StorageError.
    """
    report = progress or (lambda *_: None)
    captions = ["", *(image_set.caption() for image_set in dataset.sets)]
    texts = []
    encoder = f"{model.fingerprint('text')} {model.dtype}"
    for done, caption in enumerate(captions, 1):
        path = folder / f"text-{digest(encoder, caption)[:32]}.safetensors"
        if not _whole(path):
            write_bytes(path, save(model.encode_text(caption)))
        texts.append(path)
        report("captions", done, len(captions))
    model.release("text")
    sets = []
    encoder = f"{model.fingerprint('vae')} {model.dtype}"
    for done, (image_set, text) in enumerate(zip(dataset.sets, texts[1:], strict=True), 1):
        panels = image_set.load(dataset.recipe)
        layouts = training_layouts(
            dataset.recipe.canvas, panels.sizes, resolutions, model.grid, upscale
        )
        paths = [_encode_image(model, panels, layout, encoder, folder) for layout in layouts]
        sets.append(EncodedSet(image_set.name, tuple(layouts), tuple(paths), text))
        report("images", done, len(dataset.sets))
    model.release("vae")
    usual = tuple(number - 1 for number in dataset.recipe.usually_known)
    return Encoded(tuple(sets), _read(texts[0]), usual)


def _encode_image(
    model: DiffusionModel, panels: PanelSet, layout: Layout, encoder: str, folder: Path
) -> Path:
    pixels = (np.asarray(panel).tobytes() for panel in panels.panels)
    key = digest(encoder, json.dumps(panels.sizes), json.dumps(layout.to_json()), *pixels)
    path = folder / f"latents-{key[:32]}.safetensors"
    if not _whole(path):
        latents = model.encode_image(np.asarray(layout.compose(panels.panels)))
        # float32: under 3 MB a canvas, and no rounding that the encoder did not make.
        write_bytes(path, save({"latents": latents.to(torch.float32).contiguous()}))
    return path


def _whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cache entry {path} is gone or damaged ({error})",
            "Resume the run: what is missing is encoded again.",
        ) from error
