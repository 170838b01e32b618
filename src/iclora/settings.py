"""Every knob of a training run, each defined once.

The same definition reads the [train] table of a run file, makes the command line's options and
their help, and refuses nonsense.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iclora.errors import ConfigError

__all__ = ["Precision", "TrainConfig", "problems_of", "read_config"]

Precision = Literal["base", "fp8", "int8", "nf4"]
"""How the frozen linear layers of a base are kept; see `iclora.models.quantize`."""

_Share = Annotated[float, Field(ge=0, lt=1)]
_Count = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """A training run. Defaults are those of the paper's released configuration.

    Raises: pydantic.ValidationError; `read_config` turns it into a ConfigError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base: str
    """base model: a folder in diffusers' layout, a hub id, toyland or tiny"""
    data: str
    """dataset: a folder or zip archive of image sets"""
    out: str
    """run folder, made anew"""
    recipe: str | None = None
    """recipe name or TOML path; by default the one the dataset names"""

    steps: _Count = 5000
    """optimizer steps"""
    batch: _Count = 4
    """sets per optimizer step"""
    micro_batch: _Count = 1
    """most sets of equal size in one pass; more is faster, needs more memory, learns the same"""
    micro_tokens: Annotated[int, Field(ge=0)] = 0
    """sets of equal size are computed together up to so many tokens, text included, where that is
    more than micro_batch"""
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """learning rate of AdamW"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's weight decay"""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """largest norm of a step's gradient"""
    ema: _Share = 0.99
    """decay of the averaged weights that become the adapter; 0 takes the last weights"""

    rank: _Count = 16
    """LoRA rank"""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """LoRA alpha; the update is scaled by alpha / rank"""
    targets: Literal["all", "attention+mlp", "attention"] = "all"
    """layers to adapt; all is every linear layer of every block, modulation included"""

    resolutions: tuple[Annotated[int, Field(ge=64, le=4096)], ...] = (512, 768, 1024, 1280, 1536)
    """canvas sizes to train at, px: sides of squares of the same area"""
    upscale: bool = False
    """whether sets smaller than a resolution are enlarged to it"""
    caption_dropout: _Share = 0.05
    """share of samples trained with an empty text"""
    guidance: float = 1.0
    """value of the guidance embedding in training; 1, not the 3.5 of sampling"""
    sigma_mean: float = 0.0
    """mean of the normal draw whose sigmoid is the noise level; above 0 favours noise"""
    sigma_std: Annotated[float, Field(gt=0)] = 1.0
    """standard deviation of that draw"""
    conditional: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of samples in which some panels are given, without noise, and only the others are
    learnt; the adapter then also completes sets in clean mode. 0 is the paper's training"""
    isolate_given: bool = False
    """whether given panels attend to themselves alone; completing then computes them only once"""
    shift: Literal["none", "resolution"] = "none"
    """whether noise levels are shifted by canvas size, as the base's sampler does"""

    seed: int = 0
    """with step and sample it decides all randomness of the run"""
    device: str = "auto"
    """auto, cuda, cuda:N, mps or cpu"""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """precision of the base; auto is bf16, on a CPU fp32"""
    precision: Precision = "base"
    """how the frozen linear layers of the blocks are kept: base is as dtype says, int8 and fp8
    half of bf16, nf4 a quarter; fp8 also computes in fp8 and needs a card that can"""
    compile: bool = False
    """whether blocks are compiled; the first step on each canvas size takes long, and the result
    is kept for later runs"""
    gradient_checkpointing: bool = True
    """recompute activations in the backward pass: a third slower, far less memory"""
    recompute: Annotated[int, Field(ge=0)] | None = None
    """blocks that keep only their input for the backward pass; by default all with
    gradient_checkpointing, else none"""
    shard: bool = False
    """spread the base over all processes that `accelerate launch` started (FSDP2): each keeps its
    part of every block; for bases that one card does not hold"""
    vram: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    """memory of the card, GB, or auto to ask it: what is not set of precision, recompute and
    micro_tokens is chosen to fit; `iclora plan` shows the choice"""
    save_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """precision of the adapter file"""

    held_out: _Share = 0.0
    """share of the sets that is not trained on but measured at every checkpoint; 0.1 is usual"""
    validation: str | None = None
    """folder or zip archive of further sets to measure on, instead of a share"""

    save_every: _Count = 250
    """steps between checkpoints"""
    keep: _Count = 4
    """checkpoints kept, the newest, and the best where sets are held out"""
    preview_every: Annotated[int, Field(ge=0)] = 250
    """steps between preview grids; 0 makes none"""
    preview_prompts: tuple[str, ...] = ()
    """joint prompts to preview; by default the recipe's example"""
    preview_resolution: Annotated[int, Field(ge=64, le=4096)] = 768
    """canvas size of previews, px: side of a square of the same area"""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """where losses are also shown: tensorboard (if it is installed), wandb, trackio"""
    cache: str | None = None
    """folder for latents and prompt embeddings; by default inside the run folder"""

    @model_validator(mode="after")
    def _sensible(self) -> TrainConfig:
        if not self.resolutions:
            raise ValueError("resolutions: give at least one")
        if self.held_out and self.validation:
            raise ValueError("held_out: leave it out beside validation")
        if self.isolate_given and not self.conditional:
            raise ValueError("isolate_given: it needs conditional above 0")
        if self.shard and (self.micro_batch > 1 or self.micro_tokens):
            # Processes must make the same number of passes, or some wait for ever.
            raise ValueError("shard: sets are computed singly; leave micro_batch and _tokens out")
        if self.shard and self.precision != "base":
            raise ValueError("shard: the base is kept as dtype says; leave out precision")
        if self.shard and self.vram is not None:
            raise ValueError("shard: what a part of a base takes is not counted; leave out vram")
        return self

    def recomputed(self, blocks: int) -> int:
        """How many of a base's blocks keep their input alone."""
        if self.recompute is None:
            return blocks if self.gradient_checkpointing else 0
        return min(self.recompute, blocks)

    def to_toml(self) -> str:
        """A run file that `read_config` reads back."""
        values = {k: v for k, v in self.model_dump(mode="json").items() if v is not None}
        return tomli_w.dumps({"train": values})


def read_config(
    path: str | Path | None,
    overrides: dict[str, Any],
    defaults: dict[str, Any] | None = None,
) -> TrainConfig:
    """A run's settings from a TOML file's [train] table and overrides, which win.

    Args:
        path: a run file, or None. Relative paths in it are relative to where the program runs.
        overrides: settings by name, as numbers or strings.
        defaults: settings that neither may have.
    Raises: ConfigError naming every setting that is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"run file {path} cannot be read: {error}", "Check it.") from error
        unknown = sorted(set(table) - {"train"})
        if unknown or not isinstance(table.get("train"), dict):
            raise ConfigError(
                f"run file {path} needs its settings in one table [train]"
                + (f", but has {', '.join(unknown)} outside of it" if unknown else ""),
                "Write [train] on the first line.",
            )
        values = table["train"]
    values = {**(defaults or {}), **values, **overrides}
    missing = [k for k in ("base", "data", "out") if not values.get(k)]
    if missing:
        raise ConfigError(
            f"a run needs {' and '.join(missing)}",
            "Pass "
            + " ".join(f"--{k} ..." for k in missing)
            + ", or write them into the run file.",
        )
    try:
        return TrainConfig.model_validate(
            {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        )
    except ValidationError as error:
        raise ConfigError(
            f"settings that make no sense: {problems_of(error)}",
            "See `iclora train --help` for each setting's meaning.",
        ) from error


def problems_of(error: ValidationError) -> str:
    """Pydantic's findings as "setting: problem" in one line."""
    found = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        found.append(f"{place}: {message}" if place else message)
    return "; ".join(found)
