"""Encode once: latents and prompt embeddings on disk, keyed by content.

A key covers the image or text, the canvas, and the encoder's weights and number format, so an
edited image or caption, another canvas or another base is encoded again and nothing else is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
from iclora.progress import Progress
from iclora.sets.canvas import compose
from iclora.sets.check import TrainingSet
from iclora.sets.layout import Layout
from iclora.train.workers import Workers

__all__ = ["Encoded", "EncodedSet", "encode"]


@dataclass(frozen=True)
class EncodedSet:
    """One set ready for training."""

    name: str
    layouts: tuple[Layout, ...]
    """The distinct canvases it trains at, the smallest first."""
    _latents: tuple[Path, ...]
    _text: Path

    def latents(self, size: int) -> Tensor:
        """Read the clean latent tokens (n, c), float32, of its canvas number `size`."""
        return _read(self._latents[size])["latents"].float()

    def text(self) -> Text:
        """Read its prompt embedding."""
        return _read(self._text)


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
) -> tuple[list[EncodedSet], Text]:
    """Encode what the cache lacks, then free the encoders.

    Text first, then images, so that the two kinds of encoder are never in memory together. Each
    process encodes its share, and waits until the others have done theirs.

    Args:
        folder: of the cache; it may serve several runs.
    Returns: the sets in their order, and the embedding of the empty text.
    Raises: CaptionError over the token limit; ImageError, DatasetError, StorageError.
    """
    texts = _encode_texts(model, ["", *(s.caption for s in sets)], folder, workers, progress)
    encoder = f"{model.fingerprint('vae')} {model.dtype}"
    encoded = [
        EncodedSet(
            source.name,
            source.layouts,
            tuple(folder / _latents_name(encoder, source, layout) for layout in source.layouts),
            text,
        )
        for source, text in zip(sets, texts[1:], strict=True)
    ]

    def encode_set(number: int) -> None:
        panels = sets[number].load().panels
        for layout, path in zip(sets[number].layouts, encoded[number]._latents, strict=True):
            if not _whole(path):
                latents = model.encode_image(np.asarray(compose(layout, panels)))
                # float32: under 3 MB a canvas, and no rounding that the encoder did not make.
                write_bytes(path, save({"latents": latents.to(torch.float32).contiguous()}))

    lacking = [n for n, entry in enumerate(encoded) if not all(map(_whole, entry._latents))]
    _share_out("encoding images", lacking, len(sets), encode_set, workers, progress)
    model.release("vae")
    return encoded, _read(texts[0])


def _encode_texts(
    model: DiffusionModel,
    captions: Sequence[str],
    folder: Path,
    workers: Workers,
    progress: Progress,
) -> list[Path]:
    encoder = f"{model.fingerprint('text')} {model.dtype}"
    paths = [folder / f"text-{digest(encoder, text)[:32]}.safetensors" for text in captions]

    def encode_text(number: int) -> None:
        write_bytes(paths[number], save(model.encode_text(captions[number])))

    first = {path: number for number, path in reversed(list(enumerate(paths)))}
    lacking = [
        number
        for path, number in sorted(first.items(), key=lambda item: item[1])
        if not _whole(path)
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
