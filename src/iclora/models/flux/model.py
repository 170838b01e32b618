"""The FLUX.1 family: -dev, -schnell and -Krea-dev, from a folder in diffusers' layout."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from iclora.errors import ModelError, SettingsError
from iclora.files import digest
from iclora.models import flow
from iclora.models.attention import Attend, boosted, isolated, pick_attention, reading
from iclora.models.base import DiffusionModel, Given, Part, Sampling, Text
from iclora.models.flux.forward import Levels, flux_forward, shard_blocks
from iclora.models.quantize import quantize
from iclora.sets.caption import check_budget
from iclora.settings import Precision

__all__ = ["FluxModel"]

_PACK = 2
"""A token is a 2x2 block of latent pixels."""

_PARTS: dict[Part, tuple[str, ...]] = {
    "text": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "vae": ("vae",),
    "denoiser": ("transformer",),
}


class FluxModel(DiffusionModel):
    """FLUX.1 by diffusers' own models, each part loaded when it is first needed.

    Args:
        folder: a diffusers layout: model_index.json, transformer/, vae/, text_encoder/ (CLIP),
            text_encoder_2/ (T5), tokenizer/, tokenizer_2/, scheduler/.
        name: what the user called it; recorded in adapters and requests.
        precision: of the denoiser's blocks.
    Raises: ModelError if a part is missing, damaged or not in safetensors.
    """

    family = "flux"
    block_prefixes = ("transformer_blocks.", "single_transformer_blocks.")

    def __init__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> None:
        self.folder, self.name, self.device, self.dtype = folder, name, device, dtype
        self.precision = precision
        config = self._config("transformer")
        vae = self._config("vae")
        try:
            self.grid = 2 ** (len(vae["block_out_channels"]) - 1) * _PACK
            self._vae_shift = float(vae["shift_factor"])
            self._vae_scale = float(vae["scaling_factor"])
            self.channels = int(config["in_channels"])
            packed = int(vae["latent_channels"]) * _PACK**2
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the settings of {name} are not those of a FLUX.1 ({error!r})",
                "Use FLUX.1-dev, -schnell or -Krea-dev in diffusers' layout.",
            ) from error
        self.multiple = self.grid
        if self.channels != packed:
            raise ModelError(
                f"{name} takes {self.channels} channels a token, a text-to-image FLUX.1 takes "
                f"{packed}: it is a Fill, Depth, Canny or Redux "
                "variant",
                "Use FLUX.1-dev, -schnell or -Krea-dev.",
            )
        self._guided = bool(config.get("guidance_embeds", False))
        # schnell is distilled to 4 unguided steps and was trained on half the text.
        longest = 512 if self._guided else 256
        # FLUX.1's own tokenizer says 512; a small base may have been trained on less.
        tokenizer = self._config("tokenizer_2", "tokenizer_config.json")
        self.max_text_tokens = min(longest, int(tokenizer.get("model_max_length") or longest))
        schnell = Sampling(steps=4, guidance=None, guided="none", fixed_steps=True)
        self.sampling = Sampling() if self._guided else schnell

    # -- parts ----------------------------------------------------------------------------------

    def _config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        path = self.folder / part / file
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{self.name} lacks a readable {part}/{file} ({error})",
                "Download the model again, whole and in diffusers' layout.",
            ) from error
        assert isinstance(config, dict)
        return config

    def _load(self, part: str, cls: Any, **options: Any) -> Any:
        try:
            model = cls.from_pretrained(
                self.folder / part, use_safetensors=True, local_files_only=True, **options
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"{part} of {self.name} cannot be loaded: {str(error).splitlines()[0]}",
                "Download it again as safetensors; weights in pickle files (.bin, .pt) are never "
                "opened.",
            ) from error
        if isinstance(model, nn.Module):
            model.requires_grad_(False).eval()
            if part == "transformer":
                # Layer by layer, so that the device never holds them whole.
                quantize(model, self.precision, self.device)
                if self.mesh is not None:
                    shard_blocks(model, self.mesh)
            model.to(self.device)
        return model

    @cached_property
    def denoiser(self) -> nn.Module:
        model = self._load("transformer", diffusers.FluxTransformer2DModel, dtype=self.dtype)
        assert isinstance(model, nn.Module)
        return model

    @cached_property
    def _vae(self) -> Any:
        return self._load("vae", diffusers.AutoencoderKL, dtype=self.dtype)

    @cached_property
    def _clip(self) -> Any:
        return self._load("text_encoder", transformers.CLIPTextModel, dtype=self.dtype)

    @cached_property
    def _t5(self) -> Any:
        return self._load("text_encoder_2", transformers.T5EncoderModel, dtype=self.dtype)

    @cached_property
    def _clip_tokenizer(self) -> Any:
        return self._load("tokenizer", transformers.CLIPTokenizer)

    @cached_property
    def _t5_tokenizer(self) -> Any:
        return self._load("tokenizer_2", transformers.T5TokenizerFast)

    @cached_property
    def _scheduler(self) -> Any:
        return self._load("scheduler", diffusers.FlowMatchEulerDiscreteScheduler)

    def release(self, *parts: Part) -> None:
        held = {"text": ("_clip", "_t5"), "vae": ("_vae",), "denoiser": ("denoiser",)}
        for part in parts:
            for attribute in held[part]:
                self.__dict__.pop(attribute, None)
            if part == "denoiser":
                self.applied = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def fingerprint(self, part: Part) -> str:
        # How far a text is padded is part of what its encoders make of it.
        pieces = [str(self.max_text_tokens)] if part == "text" else []
        try:
            for folder in _PARTS[part]:
                for path in sorted((self.folder / folder).iterdir()):
                    pieces += [f"{folder}/{path.name}", _content(path) if path.is_file() else ""]
        except OSError as error:
            raise ModelError(
                f"{self.name} lacks a readable {part} part ({error})",
                "Download the model again, whole and in diffusers' layout.",
            ) from error
        return digest(*pieces)

    # -- text -----------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        return len(self._t5_tokenizer(text, truncation=False, verbose=False).input_ids)

    def text_tokens(self, text: Text) -> int:
        return text["prompt"].shape[0]

    @torch.no_grad()
    def encode_text(self, text: str) -> Text:
        check_budget(text, self.count_tokens, self.max_text_tokens, "the text")
        # CLIP reads 77 tokens and only lends a pooled vector: cut there in every FLUX.1 tool.
        clip = self._clip_tokenizer(
            text,
            padding="max_length",
            max_length=self._clip_tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        # No attention mask over T5's padding: FLUX.1 was trained to see it.
        t5 = self._t5_tokenizer(
            text, padding="max_length", max_length=self.max_text_tokens, return_tensors="pt"
        )
        pooled = self._clip(clip.input_ids.to(self.device)).pooler_output[0]
        prompt = self._t5(t5.input_ids.to(self.device))[0][0]
        return {
            "prompt": prompt.to(self.dtype).cpu().contiguous(),
            "pooled": pooled.to(self.dtype).cpu().contiguous(),
        }

    # -- latents --------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_image(self, pixels: NDArray[np.uint8]) -> Tensor:
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = self._vae.encode(image.to(self.device, self.dtype)).latent_dist.mode()
        latents = (latents.float() - self._vae_shift) * self._vae_scale
        _, c, h, w = latents.shape
        cells = latents.view(c, h // _PACK, _PACK, w // _PACK, _PACK).permute(1, 3, 0, 2, 4)
        tokens: Tensor = cells.reshape(-1, self.channels).cpu()
        return tokens

    @torch.no_grad()
    def decode(self, tokens: Tensor, width: int, height: int) -> NDArray[np.uint8]:
        h, w = height // self.grid, width // self.grid
        cells = tokens.float().view(h, w, -1, _PACK, _PACK).permute(2, 0, 3, 1, 4)
        latents = cells.reshape(1, -1, h * _PACK, w * _PACK) / self._vae_scale + self._vae_shift
        image = self._vae.decode(latents.to(self.device, self.dtype), return_dict=False)[0][0]
        scaled = (image.float() / 2 + 0.5).clamp(0, 1) * 255
        array: NDArray[np.uint8] = scaled.round().byte().permute(1, 2, 0).cpu().numpy()
        return array

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
    ) -> Tensor:
        if unguided is not None:
            raise ModelError(
                f"{self.name} is not guided by two passes, so it reads no text for an unguided one",
                "Leave `negative` empty.",
                setting="negative",
            )

        def joined(key: str) -> Tensor:
            return torch.stack([text[key] for text in texts]).to(self.device, self.dtype)

        prompt = joined("prompt")
        levels, order = _segments(sigma.to(self.device), given, z.shape[1])
        places = self._positions(size)
        if order is not None:
            z, places = _in_order(z, order), places[order]
        if given and given.cache:
            # What is given has been computed: the rest reads its keys and values.
            levels = Levels(levels.sigma[:, :1], levels.tokens[:1])
            z, places = z[:, : levels.tokens[0]], places[..., : levels.tokens[0], :]
        out = flux_forward(
            self.denoiser,
            z.to(self.dtype),
            prompt,
            joined("pooled"),
            levels,
            torch.full((len(z),), guidance, device=self.device) if self._guided else None,
            places,
            recompute=self.recompute,
            attend=self._attention(given, prompt.shape[1]),
            compiled=self.compiled,
        ).float()
        if order is None:
            return out
        back = out.new_zeros(len(out), order.shape[-1], out.shape[-1])
        return back.scatter(1, _wide(order[..., : out.shape[1]], out), out)

    def _attention(self, given: Given | None, words: int) -> Attend:
        attend = pick_attention(self.device)
        if given is None or not given.count:
            return attend
        if given.cache:
            return reading(attend, given.cache)
        if given.isolated:
            assert given.clean, "noisy tokens are in no order of their own"
            return isolated(attend, given.count, given.cache)
        if given.scale != 1:
            return boosted(attend, given.tokens.to(self.device), words, given.scale)
        return attend

    @property
    def blocks(self) -> int:
        config = self._config("transformer")
        return int(config["num_layers"]) + int(config["num_single_layers"])

    def _positions(self, size: tuple[int, int]) -> Tensor:
        """(n, 3) float32: 0, row, column of every token, for the rotary embedding."""
        h, w = size[1] // self.grid, size[0] // self.grid
        rows, columns = torch.meshgrid(
            torch.arange(h, device=self.device), torch.arange(w, device=self.device), indexing="ij"
        )
        return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()

    def sigmas(self, steps: int, tokens: int) -> list[float]:
        self._scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps), mu=self._mu(tokens), device="cpu"
        )
        return [float(s) for s in self._scheduler.sigmas]

    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        return flow.shift(sigma, self._mu(tokens))

    def _mu(self, tokens: int) -> float:
        config = self._scheduler.config
        if not config.use_dynamic_shifting:
            return 0.0
        return flow.resolution_shift(
            tokens,
            int(config.get("base_image_seq_len", 256)),
            int(config.get("max_image_seq_len", 4096)),
            float(config.get("base_shift", 0.5)),
            float(config.get("max_shift", 1.15)),
        )

    # -- adapters -------------------------------------------------------------------------------

    def lora_targets(self, kind: str) -> list[str]:
        patterns = {
            "all": r".*",
            "attention+mlp": r"(?!.*\.norm\w*\.linear$).*",
            "attention": r".*\.attn\..*",
        }
        if kind not in patterns:
            raise SettingsError(
                f'"{kind}" is no choice of LoRA targets', f"Use one of {', '.join(patterns)}."
            )
        return [
            name
            for name, module in self.denoiser.named_modules()
            if isinstance(module, nn.Linear)
            and name.startswith(self.block_prefixes)
            and re.fullmatch(patterns[kind], name)
        ]


def _segments(sigma: Tensor, given: Given | None, count: int) -> tuple[Levels, Tensor | None]:
    """The levels of all tokens, noisy ones first, and the order that brings them there.

    The order is (n,), or (B, n) where samples differ in which tokens are given.
    """
    if given is None or not given.clean or not given.count:
        return Levels(sigma[:, None], (count,)), None
    clean = given.tokens
    order = torch.argsort(clean.to(torch.uint8), dim=-1, stable=True).to(sigma.device)
    noisy = count - given.count
    both = torch.stack([sigma, torch.zeros_like(sigma)], 1)
    return Levels(both, (noisy, count - noisy)), order


def _wide(order: Tensor, x: Tensor) -> Tensor:
    """An order (n,) or (B, n) as an index into x's second dimension, (B, n, c)."""
    return order[..., None].expand(len(x), -1, x.shape[-1])


def _in_order(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, _wide(order, x))


def _content(path: Path) -> str:
    """What stands for a file in a fingerprint: all of a small one, 64 samples of a large one.

    Reading 9 GB of T5 at every start would take longer than what the cache saves.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= 2**22:
            return digest(file.read())
        samples = []
        for i in range(64):
            file.seek(i * (size - 4096) // 63)
            samples.append(file.read(4096))
    return digest(str(size), *samples)
