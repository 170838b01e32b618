"""The FLUX.2 family: klein, base and distilled, from a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch import Tensor, nn

from iclora.errors import ModelError
from iclora.models import flow
from iclora.models.base import Given, Panels, Part, Sampling, Text
from iclora.models.flux2.forward import Inputs, flux2_forward, shard_flux2
from iclora.models.flux2.names import flux2_names
from iclora.models.folder import FolderModel
from iclora.models.latents import PACK, fold, signal_of, to_pixels, unfold
from iclora.models.names import Names
from iclora.models.passes import attention_to, placed
from iclora.sets.caption import check_budget
from iclora.settings import Precision

__all__ = ["KleinModel", "empirical_mu"]

_LAYERS = (9, 18, 27)
"""Hidden states of Qwen3 that are the text, side by side: as diffusers' pipeline and Black Forest
Labs' code take them, not its training script (diffusers #13445)."""

_REFERENCE = 10
"""What lies between two references on the axis that counts pictures."""

_BASES = frozenset({"FLUX.2-klein-base-4B", "FLUX.2-klein-base-9B", "tiny-klein"})
"""Undistilled bases. One of another size does not fit, which is said when it is put on."""

_ADVICE = "Use FLUX.2-klein-base-4B or -9B, or their distilled kin, whole and in diffusers' layout."


def empirical_mu(tokens: int, steps: int) -> float:
    """mu of the schedule's shift for a canvas of so many tokens and a sampler of so many steps.

    It jumps at 4300 tokens, above which the number of steps does not matter.

    Source: `compute_empirical_mu` in Black Forest Labs' flux2 and in diffusers.
    """
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    # A line in the number of steps, through few at 10 and many at 200.
    return many + (few - many) * (200 - steps) / 190


class KleinModel(FolderModel):
    """FLUX.2 klein by diffusers' own models, each part loaded when it is first needed.

    Args:
        folder: a diffusers layout: model_index.json, transformer/, vae/, text_encoder/ (Qwen3),
            tokenizer/ with a chat template, scheduler/.
    Raises: ModelError if a part is missing, damaged or not in safetensors.
    """

    family = "flux2"
    network = "Flux2Transformer2DModel"
    # A single block's attention and MLP are one layer, so "attention" adapts both there.
    targets = {  # noqa: RUF012
        "all": r".*",
        "attention+mlp": r".*",
        "attention": r".*\.attn\..*",
    }
    block_prefixes = ("transformer_blocks.", "single_transformer_blocks.")
    reads_apart = True
    max_text_tokens = 512
    reads_references = True
    folders = {  # noqa: RUF012
        "text": ("text_encoder", "tokenizer"),
        "vae": ("vae",),
        "denoiser": ("transformer",),
    }
    held = {"text": ("_encoder",), "vae": ("_vae",), "denoiser": ("denoiser",)}  # noqa: RUF012

    def __init__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> None:
        super().__init__(folder, name, device, dtype, precision)
        config, vae = self.config("transformer"), self.config("vae")
        try:
            self.grid = 2 ** (len(vae["block_out_channels"]) - 1) * PACK
            self.channels = int(config["in_channels"])
            packed = int(vae["latent_channels"]) * PACK**2
            width = int(config["joint_attention_dim"])
            read = len(_LAYERS) * int(self.config("text_encoder")["hidden_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the settings of {name} are not those of a FLUX.2 klein ({error!r})", _ADVICE
            ) from error
        if (self.channels, width) != (packed, read):
            raise ModelError(
                f"{name} takes {self.channels} channels a token and texts {width} wide, and its "
                f"other parts make {packed} and {read}: they are not of one FLUX.2 klein",
                _ADVICE,
            )
        self.multiple = self.grid
        self.distilled = bool(self.config("", "model_index.json").get("is_distilled", False))
        self.sampling = Sampling(steps=50, guidance=4.0, guided="two-pass")
        if self.distilled:
            self.sampling = Sampling(steps=4, guidance=None, guided="none", fixed_steps=True)
            self.takes_adapters_of = _BASES

    # -- parts ----------------------------------------------------------------------------------

    @cached_property
    def _vae(self) -> Any:
        return self.load("vae", diffusers.AutoencoderKLFlux2, dtype=self.dtype)

    @cached_property
    def _encoder(self) -> Any:
        config = self._encoder_config()
        model = self.load("text_encoder", transformers.Qwen3Model, config=config, dtype=self.dtype)
        return _without_end(model)

    def new_encoder(self) -> nn.Module:
        """The part of the text encoder that is read, its weights not loaded."""
        return _without_end(transformers.Qwen3Model(self._encoder_config()))

    def _encoder_config(self) -> Any:
        """The text encoder's settings, without what is behind the last layer that is read."""
        settings, last = self.config("text_encoder"), _LAYERS[-1]
        try:
            config = transformers.Qwen3Config.from_dict(settings)
        except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
            raise ModelError(
                f"text_encoder/config.json of {self.name} describes no Qwen3 ({error!r})", _ADVICE
            ) from error
        if config.num_hidden_layers < last:
            raise ModelError(
                f"the text encoder of {self.name} has {config.num_hidden_layers} layers, and "
                f"FLUX.2 klein reads number {last}",
                _ADVICE,
            )
        config.num_hidden_layers = last
        config.layer_types = config.layer_types[:last]
        return config

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self.load("tokenizer", transformers.Qwen2TokenizerFast)
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {self.name} has no chat template, which says how FLUX.2 reads "
                "a text",
                "Download the model again, with tokenizer/chat_template.jinja.",
            )
        return tokenizer

    @cached_property
    def _scheduler(self) -> Any:
        return self.load("scheduler", diffusers.FlowMatchEulerDiscreteScheduler)

    def shard(self, net: nn.Module) -> None:
        shard_flux2(net, self.mesh)

    def beside(self, part: Part) -> Iterator[str]:
        if part == "text":
            yield f"{self.max_text_tokens} {_LAYERS}"

    # -- text -----------------------------------------------------------------------------------

    def _message(self, text: str) -> str:
        """A text as the chat template puts it: one message of the user, without thinking."""
        message: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return message

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer(self._message(text), truncation=False, verbose=False).input_ids)

    def text_tokens(self, text: Text) -> int:
        return text["prompt"].shape[0]

    @torch.no_grad()
    def encode_text(self, text: str) -> Text:
        check_budget(text, self.count_tokens, self.max_text_tokens, "the text")
        read = self._tokenizer(
            self._message(text),
            padding="max_length",
            max_length=self.max_text_tokens,
            return_tensors="pt",
        ).to(self.device)
        states = self._encoder(
            read.input_ids,
            attention_mask=read.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        # What stands on the padding goes to the denoiser too, unmasked: it was trained to see it.
        prompt = torch.cat([states[number][0] for number in _LAYERS], -1)
        return {"prompt": prompt.to(self.dtype).cpu().contiguous()}

    # -- latents --------------------------------------------------------------------------------

    def _normal(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of every number of a token, each (channels,) float32."""
        norm = self._vae.bn
        variance = norm.running_var.float() + self._vae.config.batch_norm_eps
        return norm.running_mean.float(), variance.sqrt()

    @torch.no_grad()
    def encode_image(self, pixels: NDArray[np.uint8]) -> Tensor:
        image = signal_of(pixels).to(self.device, self.dtype)
        tokens = fold(self._vae.encode(image).latent_dist.mode().float())
        mean, deviation = self._normal()
        return ((tokens - mean) / deviation).cpu()

    @torch.no_grad()
    def decode(self, tokens: Tensor, width: int, height: int) -> NDArray[np.uint8]:  # noqa: ARG002
        mean, deviation = self._normal()
        latents = unfold(tokens.to(mean) * deviation + mean, width // self.grid)
        return to_pixels(self._vae.decode(latents.to(self.dtype), return_dict=False)[0][0])

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
    ) -> Tensor:
        sigma = sigma.to(self.device)
        ids = self._position_ids(size, given.references if given else None).to(self.device)

        def one(texts: Sequence[Text]) -> Tensor:
            prompt = self.on_device(texts)["prompt"]
            # The unguided pass reads one text for all panels, as the base was trained to.
            apart = None if texts is unguided else panels
            # In each pass: the second may read what the first one cached.
            part = placed(z, ids, sigma, given, apart)
            out = flux2_forward(
                self.denoiser,
                Inputs(
                    part.z.to(self.dtype),
                    prompt,
                    part.levels,
                    None,
                    part.position_ids,
                    apart.lengths if apart else None,
                ),
                recompute=self.recompute,
                attend=attention_to(given, prompt.shape[1], self.device, apart, part.order),
                shapes=self.shapes if self.compiled else None,
            )
            return part.back(out.float())

        return self.by_two_passes(one, texts, guidance, unguided)

    @property
    def blocks(self) -> int:
        config = self.config("transformer")
        return int(config["num_layers"]) + int(config["num_single_layers"])

    def _position_ids(self, size: tuple[int, int], references: Tensor | None = None) -> Tensor:
        """(n, 4) float32: picture, row, column, 0 of every token, for the rotary embedding.

        References count their own rows and columns, as picture 10, 20 and so on; the canvas counts
        those that are left of it.
        """
        h, w = size[1] // self.grid, size[0] // self.grid
        ids = torch.cartesian_prod(*(torch.arange(edge) for edge in (1, h, w, 1))).float()
        if references is None:
            return ids
        cells = ids.view(h, w, 4)
        for number in range(int(references.max()) + 1):
            own = (references == number).view(h, w)
            rows, columns = own.any(1).cumsum(0) - 1, own.any(0).cumsum(0) - 1
            counted = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).float()
            cells[..., 0][own] = _REFERENCE * number
            cells[..., 1:3][own] = counted[own]
        return ids

    def sigmas(self, steps: int, tokens: int) -> list[float]:
        self._scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps), mu=empirical_mu(tokens, steps), device="cpu"
        )
        return [float(s) for s in self._scheduler.sigmas]

    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        return flow.shift(sigma, empirical_mu(tokens, self.sampling.steps))

    def names_of(self, linears: Mapping[str, tuple[int, int]]) -> Names:
        return flux2_names(linears)


def _without_end(decoder: Any) -> nn.Module:
    """A decoder cut short: the norm at its end is that of the whole one's last layer."""
    assert isinstance(decoder, nn.Module)
    decoder.norm = nn.Identity()
    return decoder
