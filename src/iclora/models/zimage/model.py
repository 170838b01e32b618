"""The Z-Image family: the base, and Turbo distilled from it, from a folder in diffusers' layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from iclora.errors import ModelError
from iclora.models.attention import Attend, alone, attention_to, pick_attention
from iclora.models.base import Given, Panels, Sampling, Text
from iclora.models.graphs import graphs_for
from iclora.models.latents import PACK
from iclora.models.levels import Step
from iclora.models.names import Names
from iclora.models.passes import Placed
from iclora.models.qwen3 import Qwen3Model
from iclora.models.zimage.forward import FILLED, ZIMAGE, Attends, Inputs, zimage_forward
from iclora.models.zimage.names import zimage_names
from iclora.settings import Precision

__all__ = ["ZImageModel", "attends_of"]

_BASES = frozenset({"Z-Image", "tiny-zimage", "z-image"})
"""Undistilled bases by name; in small letters, too."""

_TURBO_SHIFT = 3.0
"""The shift of Turbo's schedule; the base's is 6."""


class ZImageModel(Qwen3Model):
    """Z-Image by diffusers' own models, each part loaded when it is first needed.

    Args:
        folder: a diffusers layout: model_index.json, transformer/, vae/ (FLUX.1's), text_encoder/
            (Qwen3), tokenizer/ with a chat template, scheduler/.
    Raises: ModelError if a part is missing, damaged or not in safetensors.
    """

    family = "zimage"
    title = "Z-Image"
    advice = "Use Tongyi-MAI/Z-Image, or -Turbo to generate, whole and in diffusers' layout."
    network = "ZImageTransformer2DModel"
    thinking = True
    targets: ClassVar = {
        "all": r".*",
        "attention+mlp": r"(?!.*\.adaLN_modulation\.).*",
        "attention": r".*\.attention\..*",
    }
    block_prefixes = ("layers.", "noise_refiner.", "context_refiner.")
    by_token = ("prompt", "real")
    reads_apart = True
    passes = ZIMAGE
    kin_remark = "; what others report of it ranges from weak to good"

    def __init__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> None:
        super().__init__(folder, name, device, dtype, precision)
        config = self.config("transformer")
        with self.reading():
            packed = self.set_grid()
            self.channels = int(config["in_channels"]) * PACK**2
            self._joint, self._refiners = int(config["n_layers"]), int(config["n_refiner_layers"])
            width, self._edges = int(config["cap_feat_dim"]), list(config["axes_lens"])[1:]
            encoder = self.config("text_encoder")
            read = int(encoder["hidden_size"])
            # The last layer but one, as it is before the norm at the end.
            self._layer = int(encoder["num_hidden_layers"]) - 1
            patches = zip(config["all_patch_size"], config["all_f_patch_size"], strict=True)
            plain = (PACK, 1) in patches and config.get("siglip_feat_dim") is None
        if (self.channels, width) != (packed, read) or not plain:
            raise ModelError(
                f"{name} takes {self.channels} numbers a token and texts {width} wide, and its "
                f"other parts make {packed} and {read}, or it reads pictures: it is not a "
                "text-to-image Z-Image",
                self.advice,
            )
        self.sampling = Sampling(steps=50, guidance=5.0, guided="two-pass")
        if self._is_turbo():
            self.sampling = Sampling(steps=8, guidance=None, guided="none", fixed_steps=True)
            self.takes_adapters_of = _BASES

    def _is_turbo(self) -> bool:
        """True for the distilled base, which has the base's sizes and says nowhere what it is.

        Its name tells, or where it was saved from; else the shift of its schedule.
        """
        index = self.config("", "model_index.json")
        paths = (self.name, str(self.folder), str(index.get("_name_or_path", "")))
        for own in (name for path in paths for name in _names_in(path)):
            if "turbo" in own:
                return re.search("de-?turbo", own) is None
            if own in _BASES:
                return False
        scheduler = self.config("scheduler", "scheduler_config.json")
        return bool(scheduler.get("shift") == _TURBO_SHIFT)

    @property
    def text_layers(self) -> tuple[int, ...]:
        return (self._layer,)

    def encode_text(self, text: str) -> Text:
        states, real = self.read(text)
        prompt = states[real].cpu()
        # Filled up here, so that texts of nearly one length are computed together.
        fill = -len(prompt) % FILLED
        return {
            "prompt": F.pad(prompt, (0, 0, 0, fill)).contiguous(),
            "real": F.pad(torch.ones(len(prompt), dtype=prompt.dtype), (0, fill)),
        }

    # -- flow -----------------------------------------------------------------------------------

    def velocity(
        self,
        z: Tensor,
        sigma: Tensor,
        texts: Sequence[Text],
        size: tuple[int, int],
        guidance: float,
        given: Given | None = None,
        unguided: Sequence[Text] | None = None,
        panels: Panels | None = None,
        step: Step | None = None,
    ) -> Tensor:
        lengths = panels.lengths if panels else (self.text_tokens(texts[0]),)
        free = (self.text_tokens(unguided[0]),) if unguided else ()
        # The frame is where the longest text ends, in both passes: they may share cached keys.
        ids = self.once_there(step, self._position_ids, size, 1 + max(*lengths, *free, 0))
        fill = -z.shape[1] % FILLED

        def run(text: dict[str, Tensor], part: Placed, apart: Panels | None) -> Tensor:
            own = apart.lengths if apart else (text["prompt"].shape[1],)
            out = zimage_forward(
                self.denoiser,
                Inputs(
                    _turned(part.z, PACK**2).to(self.dtype),
                    text["prompt"],
                    text["real"],
                    part.levels,
                    part.position_ids,
                    own,
                    fill,
                ),
                attends_of(given, apart, own, self.device, fill, part.order, self._refiners),
                recompute=self.recompute,
                shapes=self.compiling(),
                graphs=graphs_for(self, given, apart),
            )
            # It gives x0 - eps.
            return -_turned(out.float(), self.channels // PACK**2)

        return self.in_passes(run, z, ids, sigma, texts, guidance, given, unguided, panels, step)

    @property
    def blocks(self) -> int:
        return self._joint + 2 * self._refiners

    def _position_ids(self, size: tuple[int, int], frame: int) -> Tensor:
        """(n, 3) whole numbers: frame, row, column of every token, for the rotary embedding.

        Raises: ModelError for a canvas with more rows or columns than the base has places for.
        """
        rows, columns = size[1] // self.grid, size[0] // self.grid
        if rows > self._edges[0] or columns > self._edges[1]:
            most = [edge * self.grid for edge in reversed(self._edges)]
            raise ModelError(
                f"a canvas of {size[0]}x{size[1]} px is larger than the {most[0]}x{most[1]} that "
                f"{self.name} has positions for",
                "Choose a smaller one.",
                setting="size",
            )
        axes = (torch.tensor([frame]), torch.arange(rows), torch.arange(columns))
        return torch.cartesian_prod(*axes)

    def names_of(self, linears: Mapping[str, tuple[int, int]]) -> Names:
        return zimage_names(linears)


def attends_of(
    given: Given | None,
    panels: Panels | None,
    lengths: tuple[int, ...],
    device: torch.device,
    fill: int,
    order: Tensor | None = None,
    refiners: int = 0,
    kernel: Attend | None = None,
) -> Attends:
    """Attention of a pass as given tokens and texts are to be read; see `attention_to`.

    Args:
        lengths: of the texts.
        fill: tokens that fill up the canvas.
        refiners: those of the image, whose keys come first in a cache.
    """
    kernel = kernel or pick_attention(device)
    first = rest = given
    if given and given.cache:
        first, rest = (
            replace(given, cache=part) for part in (given.cache[:refiners], given.cache[refiners:])
        )
    return Attends(
        attention_to(rest, sum(lengths), device, panels, order, fill, kernel),
        attention_to(first, 0, device, None, order, fill, kernel),
        alone(kernel, lengths),
    )


def _names_in(path: str) -> Iterator[str]:
    """Yield what a base is called by its path: its own name, or the hub's name of its cache."""
    parts = re.split(r"[/\\]+", path.lower().rstrip("/\\"))
    yield parts[-1]
    yield from (part.rpartition("--")[2] for part in parts if part.startswith("models--"))


def _turned(x: Tensor, inner: int) -> Tensor:
    """Tokens whose numbers stand in the model's order, place before channel, or back in ours.

    Args:
        inner: how many numbers stand together: the places of a channel, or a place's channels.
    """
    return x.view(*x.shape[:-1], -1, inner).transpose(-1, -2).flatten(-2)
