"""The settings of a training run, and of the verbs about one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, model_validator

from iclora.settings.fields import (
    RESOLUTIONS,
    Count,
    Encoding,
    FilePath,
    Guidance,
    Machine,
    Number,
    Prompts,
    Seed,
    Share,
    Side,
    TextKind,
    about,
    setting,
)

__all__ = ["PlanSettings", "RunSettings", "TrainSettings"]


class TrainSettings(Machine):
    """A training run. Defaults are those of the paper's released configuration."""

    base: FilePath = setting(example="toyland")
    """base model: a diffusers folder, a hub id, toyland, toyland-klein, tiny, tiny-klein and kin"""
    data: FilePath = setting(example="my-sets")
    """dataset: a folder or zip archive of image sets"""
    out: FilePath = setting(example="my-run", metavar="FOLDER")
    """new run folder"""
    recipe: FilePath | None = None
    """recipe name or TOML path; by default the one the dataset names"""
    distilled: bool = setting(False, resume="free")
    """train on a base that was distilled to few steps, although training undoes that"""

    steps: Number = setting(5000, resume="free")
    """optimizer steps"""
    batch: Count = 4
    """sets per optimizer step"""
    micro_batch: Count = setting(1, resume="differs")
    """most sets of equal size in one pass; more is faster, needs more memory, learns the same"""
    micro_tokens: Annotated[int, Field(ge=0, le=10**7)] = setting(0, resume="differs")
    """sets of equal size are computed together up to this many tokens, text included, if that is
    more than `micro_batch`"""
    lr: Annotated[float, Field(gt=0, le=1)] = setting(1e-4, resume="differs")
    """learning rate of AdamW"""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.01
    """AdamW's weight decay"""
    grad_clip: Annotated[float, Field(gt=0, le=1e6)] = setting(1.0, resume="differs")
    """largest norm of a step's gradient"""
    ema: Share = setting(0.99, metavar="DECAY")
    """decay of the averaged weights that become the adapter; 0 takes the last weights"""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """LoRA rank"""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    """LoRA alpha; the update is scaled by alpha / rank"""
    targets: Literal["all", "attention+mlp", "attention", "full"] = "all"
    """layers to adapt; all is every linear layer of every block, modulation included. full trains
    no LoRA but every weight of the denoiser, for small bases; the result is a base of its own"""

    resolutions: tuple[Side, ...] = setting(RESOLUTIONS, many="list")
    """canvas sizes to train at, px: sides of squares of the same area"""
    upscale: bool = False
    """enlarge sets that are smaller than a resolution"""
    text: TextKind = "joint"
    """what a panel reads: joint is one text for all, the paper's; isolated is the overview and its
    own words, encoded apart and seen by no other panel, each as long as the base reads; alone is
    the same without the overview"""
    encode: Encoding = "canvas"
    """what the VAE sees: the whole canvas, the paper's, or panels, each alone"""
    caption_dropout: Share = 0.05
    """share of samples trained with an empty text"""
    guidance: Guidance = 1.0
    """value of the guidance embedding in training, for bases that have one; 1, not the 3.5 of
    sampling"""
    sigma_mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """mean of the normal draw whose sigmoid is the noise level; above 0 favours noise"""
    sigma_std: Annotated[float, Field(gt=0, le=100)] = 1.0
    """standard deviation of that draw"""
    conditional: Annotated[float, Field(ge=0, le=1)] = setting(0.0, metavar="SHARE")
    """share of samples in which some panels are given, without noise, and only the others are
    learned; the adapter then also completes sets in clean mode. 0 is the paper's training"""
    isolate_given: bool = False
    """given panels attend only to themselves; completing then computes them only once"""
    shift: Literal["none", "resolution"] = "none"
    """shift noise levels by canvas size, as the base's sampler does"""

    seed: Seed = 0
    """with step and sample it decides all randomness of the run"""
    compile: bool = setting(False, resume="differs")
    """compile the blocks; the first step on each canvas size takes long, and the result is kept
    for later runs"""
    gradient_checkpointing: bool = setting(True, resume="differs")
    """recompute activations in the backward pass: a third slower, far less memory"""
    recompute: Annotated[int, Field(ge=0, le=10_000)] | None = setting(None, resume="differs")
    """blocks that keep only their input for the backward pass; by default all with
    `gradient_checkpointing`, else none"""
    shard: bool = setting(False, resume="differs")
    """spread the base over all processes that `accelerate launch` started (FSDP2): each keeps its
    part of every block; for bases that one card does not hold"""
    vram: Annotated[float, Field(gt=0, le=10_000)] | Literal["auto"] | None = setting(
        None, metavar="GB"
    )
    """memory of the card, GB, or auto to ask it: `precision`, `recompute` and `micro_tokens` are
    chosen to fit, unless set; `iclora plan` shows the choice"""
    save_dtype: Literal["fp16", "bf16", "fp32"] = setting("fp16", resume="differs")
    """number format of the adapter file, or of the weights of a base with `targets` full"""

    held_out: Share = 0.0
    """share of the sets that is not trained on but measured at every checkpoint; 0.1 is usual"""
    validation: FilePath | None = setting(None, metavar="DATA")
    """folder or zip archive of further sets to measure on, instead of a share"""

    save_every: Number = setting(250, resume="free")
    """steps between checkpoints"""
    keep: Count = setting(4, resume="free")
    """checkpoints kept, the newest, and the best if sets are held out"""
    preview_every: Annotated[int, Field(ge=0, le=10**9)] = setting(250, resume="free")
    """steps between preview grids; 0 makes none"""
    preview_prompts: Prompts = setting((), resume="free", many="list")
    """joint prompts to preview; by default the recipe's example"""
    preview_resolution: Side = setting(768, resume="free")
    """canvas size of previews, px: side of a square of the same area"""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = setting(
        ("tensorboard",), resume="free", many="list"
    )
    """where losses are also shown: tensorboard (if it is installed), wandb, trackio"""
    cache: FilePath | None = setting(None, metavar="FOLDER")
    """folder for latents and prompt embeddings; by default inside the run folder"""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if not self.resolutions:
            raise ValueError("`resolutions`: give at least one")
        if self.held_out and self.validation:
            raise ValueError("`held_out`: leave it out beside `validation`")
        if self.isolate_given and not self.conditional:
            raise ValueError("`isolate_given`: it needs `conditional` above 0")
        if self.shard and (self.micro_batch > 1 or self.micro_tokens):
            # Processes must make the same number of passes, or some wait forever.
            raise ValueError("`shard`: leave out `micro_batch` and `micro_tokens`; sets go singly")
        if self.targets == "full" and self.precision != "full":
            raise ValueError(
                "`precision`: leave it out with `targets` full; quantised weights stay"
            )
        if self.offload == "blocks" and (self.targets == "full" or self.shard):
            raise ValueError("`offload`: blocks is for one card and a base that stays as it is")
        if self.targets == "full" and self.shard:
            raise ValueError("`shard`: leave it out with `targets` full")
        if self.shard and self.precision != "full":
            raise ValueError("`shard`: leave out `precision`; the base is kept as dtype says")
        if self.shard and self.vram is not None:
            raise ValueError("`shard`: leave out `vram`; the memory of a part of a base is unknown")
        return self

    def recomputed(self, blocks: int) -> int:
        """Return how many of a base's blocks keep only their input for the backward pass."""
        if self.offload == "blocks":
            # What a block keeps for its backward pass would be gone with its weights.
            return blocks
        if self.recompute is None:
            return blocks if self.gradient_checkpointing else 0
        return min(self.recompute, blocks)

    def previewed(self, example: str) -> tuple[str, ...]:
        """Return the joint prompts of previews; the recipe's example if there are none."""
        return self.preview_prompts or (example,)

    def shown(self) -> dict[str, Any]:
        """Return what shapes the result, by name, without what is this machine's: paths, device."""
        own = {"base", "data", "out", "recipe", "validation", "cache", "device"}
        names = [n for n in type(self).model_fields if n not in own]
        kept = {n for n in names if n == "steps" or about(type(self), n).get("resume") != "free"}
        return self.table(include=kept)

    def to_toml(self) -> str:
        """Write a run file that `read_settings` reads back."""
        return tomli_w.dumps({"train": self.table()})

    def table(self, **which: Any) -> dict[str, Any]:
        """Return plain values by name, required settings first, without those that are None.

        Args:
            which: fields, as pydantic's model_dump takes them.
        """
        values = self.model_dump(mode="json", exclude_none=True, **which)
        first = [n for n, field in type(self).model_fields.items() if field.is_required()]
        return {
            k: values[k] for k in (*first, *(k for k in values if k not in first)) if k in values
        }


class _RunFile(TrainSettings):
    run_file: FilePath | None = setting(None, position=True)
    """TOML run file with a [train] table"""

    def training(self) -> TrainSettings:
        """Return the training run without the rest; settings that were set stay marked as set."""
        values = {n: getattr(self, n) for n in self.model_fields_set}
        own = {n: v for n, v in values.items() if n in TrainSettings.model_fields}
        return TrainSettings.model_validate(own)


class RunSettings(_RunFile):
    """Settings of the verb `train`: a new training run, or one to resume."""

    resume: FilePath | None = setting(None, metavar="RUN")
    """resume the run in this folder"""


class PlanSettings(_RunFile):
    """Settings of the verb `plan`: a training run, and a file for the choice."""

    write: FilePath | None = setting(None, metavar="FILE")
    """write a run file with the choice"""
