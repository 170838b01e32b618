"""A base whose latents are packed 2x2 into tokens and that samples by Euler steps of a flow.

What the families here have in common beside their layout on disk: a VAE of diffusers, the token
grid, and diffusers' scheduler of flow matching with its shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iclora.errors import ModelError
from iclora.models import flow
from iclora.models.base import Given, Panels, Text
from iclora.models.folder import FolderModel
from iclora.models.latents import PACK, fold, signal_of, to_pixels, unfold
from iclora.models.levels import Step, once
from iclora.models.passes import Placed, placed

__all__ = ["PackedModel"]


class PackedModel(FolderModel):
    """Latents and schedule of a base in diffusers' layout.

    Here latents are normalised by the two numbers that the VAE's settings hold, and mu depends on
    the canvas as the scheduler's settings say; a family may do either in another way.
    """

    title: ClassVar[str]
    """What its bases are called in messages, such as "FLUX.1"."""
    ahead = True
    advice: ClassVar[str]
    """What somebody should take whose base is none."""
    vae_class: ClassVar[str] = "AutoencoderKL"
    """The VAE's class in diffusers."""
    frames: ClassVar[bool] = False
    """True if the VAE reads and paints films: a picture is one of one frame."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raises: ModelError in place of what settings of another family raise."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the settings of {self.name} are not those of a {self.title} ({error!r})",
                self.advice,
            ) from error

    def set_grid(self) -> int:
        """Set the token's edge by the VAE's settings. Returns: numbers of a token."""
        settings = self.config("vae")
        self.grid = self.multiple = 2 ** (len(settings["block_out_channels"]) - 1) * PACK
        return int(settings["latent_channels"]) * PACK**2

    def text_tokens(self, text: Text) -> int:
        return text["prompt"].shape[0]

    # -- latents --------------------------------------------------------------------------------

    @cached_property
    def _vae(self) -> Any:
        return self.load("vae", getattr(diffusers, self.vae_class), dtype=self.dtype)

    @cached_property
    def _two_numbers(self) -> tuple[float, float]:
        settings = self.config("vae")
        with self.reading():
            return float(settings["shift_factor"]), float(settings["scaling_factor"])

    def normalised(self, tokens: Tensor) -> Tensor:
        """Tokens (n, channels) of the VAE, float32, as the denoiser reads them."""
        shift, scale = self._two_numbers
        return (tokens - shift) * scale

    def unnormalised(self, tokens: Tensor) -> Tensor:
        """The reverse of `normalised`."""
        shift, scale = self._two_numbers
        return tokens / scale + shift

    @torch.no_grad()
    def encode_image(self, pixels: NDArray[np.uint8]) -> Tensor:
        image = signal_of(pixels).to(self.device, self.dtype)
        image = image[:, :, None] if self.frames else image
        latents = self._vae.encode(image).latent_dist.mode().float()
        tokens = fold(latents[:, :, 0] if self.frames else latents)
        return self.normalised(tokens).cpu()

    @torch.no_grad()
    def decode(self, tokens: Tensor, width: int, height: int) -> NDArray[np.uint8]:  # noqa: ARG002
        whole = self.unnormalised(tokens.to(self.device, torch.float32))
        latents = unfold(whole, width // self.grid).to(self.dtype)
        latents = latents[:, :, None] if self.frames else latents
        painted = self._vae.decode(latents, return_dict=False)[0][0]
        return to_pixels(painted[:, 0] if self.frames else painted)

    # -- passes ---------------------------------------------------------------------------------

    def once_there(self, step: Step | None, make: Callable[..., Tensor], *of: Any) -> Tensor:
        """What `make` makes of these on the device, moved there once in a sampling."""
        return once(step, (make.__name__, *of), lambda: make(*of).to(self.device))

    def in_passes(
        self,
        run: Callable[[dict[str, Tensor], Placed, Panels | None], Tensor],
        z: Tensor,
        position_ids: Tensor,
        sigma: Tensor,
        texts: Sequence[Text],
        guidance: float,
        given: Given | None,
        unguided: Sequence[Text] | None,
        panels: Panels | None,
        step: Step | None,
    ) -> Tensor:
        """The velocity of a base with two passes; see `DiffusionModel.velocity`.

        Args:
            run: the network's velocity in float32, from the texts of a pass on the device, the
                tokens it computes, and the panels that read texts of their own in it.
            position_ids: (n, axes), on the device.
        """
        sigma = sigma.to(self.device)

        def one(texts: Sequence[Text]) -> Tensor:
            # The unguided pass reads one text for all panels, as the base was trained to.
            apart = None if texts is unguided else panels
            # In each pass: the second may read what the first one cached.
            part = placed(z, position_ids, sigma, given, apart, step)
            return part.back(run(self.on_device(texts), part, apart))

        return self.by_two_passes(one, texts, guidance, unguided)

    @torch.no_grad()
    def prime(self, texts: Sequence[Text], guidance: float) -> None:
        if self.primed or self.applied is None or "sampling" not in self.compiled:
            return
        # What is compiled uses widened layers and cannot widen them: a plain pass over the
        # smallest canvas does.
        compiled, self.compiled = self.compiled, frozenset()
        edge = self.multiple
        z = torch.zeros(1, (edge // self.grid) ** 2, self.channels, device=self.device)
        try:
            self.velocity(z, z.new_ones(1), texts, (edge, edge), guidance)
        finally:
            self.compiled = compiled
        self.primed = True

    # -- schedule -------------------------------------------------------------------------------

    @cached_property
    def _scheduler(self) -> Any:
        self.config("scheduler", "scheduler_config.json")  # Refused, if it is absurd.
        return self.load("scheduler", diffusers.FlowMatchEulerDiscreteScheduler)

    def mu(self, tokens: int, steps: int) -> float:  # noqa: ARG002 (families know)
        """mu of the schedule's shift for a canvas of so many tokens and so many steps."""
        config = self._scheduler.config
        if not config.use_dynamic_shifting:
            return math.log(config.shift)
        return flow.resolution_shift(
            tokens,
            int(config.get("base_image_seq_len", 256)),
            int(config.get("max_image_seq_len", 4096)),
            float(config.get("base_shift", 0.5)),
            float(config.get("max_shift", 1.15)),
        )

    def sigmas(self, steps: int, tokens: int) -> list[float]:
        if steps == 1:
            # No shift moves 1, and a schedule that is stretched to its last level has no other.
            return [1.0, 0.0]
        self._scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps), mu=self.mu(tokens, steps), device="cpu"
        )
        return [float(s) for s in self._scheduler.sigmas]

    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        return flow.shift(sigma, self.mu(tokens, self.sampling.steps))
