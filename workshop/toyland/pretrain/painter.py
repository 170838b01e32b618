"""The transformer: rectified flow on canvases, with captions that leave things out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.toyland.drawing import SIZE
from iclora.toyland.world import ARRANGEMENTS, TRAITS
from workshop.toyland.pretrain.canvases import TOKEN, Batch, Encoded, draw_batch
from workshop.toyland.pretrain.readers import Readers
from workshop.toyland.pretrain.stage import (
    Log,
    Settings,
    amp,
    load_state,
    optimizers_of,
    save_state,
    take_step,
)
from workshop.toyland.pretrain.tokenizers import TEXT_TOKENS

__all__ = ["PlainAttention", "Teller", "flow_loss", "new_transformer", "train_flow"]

_SHARES = {"single": 0.06, "side by side": 0.18, "stacked": 0.14, "storyboard": 0.34, "grid": 0.28}
"""How often a step is of each arrangement."""


def new_transformer() -> Any:
    """2 double and 4 single blocks of width 192."""
    return diffusers.FluxTransformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=48,
        num_attention_heads=4,
        joint_attention_dim=192,
        pooled_projection_dim=96,
        guidance_embeds=True,
        axes_dims_rope=(8, 20, 20),
    )


def _norm_and_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS norm and rotary embedding of queries or keys.

    Args:
        x: (B, S, heads, d).
        weight: (d,).
        cos, sin: (1, S, 1, d / 2).
    Returns: (B, heads, S, d) in x's type.
    """
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight
    a, b = y.view(*y.shape[:-1], -1, 2).unbind(-1)
    rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(3)
    return rotated.to(x.dtype).transpose(1, 2).contiguous()


TELL_AFTER = 1
"""The single block whose output the teller reads, counted from 0: the middle of the network."""
TELL_WEIGHT = 0.2
"""Of the teller's cross-entropy in the loss, beside the velocity's mean square."""


class Teller(nn.Module):
    """Tells from a token in the middle of the transformer the traits its panel will have.

    Copying between panels is the slow part to learn: in the velocity's error an identity is a few
    per cent. Asked outright, tokens too noisy to show anything must find it in the words or in
    another panel. The teller is thrown away, as the encoders' heads are. The idea of a second
    loss on the tokens inside is that of representation alignment (arXiv 2410.06940).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self._sizes = [len(values) for values in TRAITS.values()]
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sum(self._sizes))
        self.heard: Tensor | None = None
        """The image tokens of the last forward pass, (B, n, width)."""

    def listen(self, model: Any) -> None:
        """Keep the image tokens that leave block `TELL_AFTER` from now on."""

        def keep(_module: nn.Module, _args: object, output: tuple[Tensor, Tensor]) -> None:
            self.heard = output[1]

        model.single_transformer_blocks[TELL_AFTER].register_forward_hook(keep)

    def loss(self, truth: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
        """Mean cross-entropy of the traits of some tokens of the last forward pass.

        Args:
            truth: (B, k, traits), value of each trait in a token's panel, -100 where it has none.
            tokens: (k,), which tokens of a canvas are asked.
            weight: (B, k), 0 for tokens that are not asked after all.
        """
        assert self.heard is not None
        told = self.head(self.norm(self.heard[:, tokens].float())).flatten(0, 1)
        truth = truth.masked_fill((weight == 0)[..., None], -100).flatten(0, 1)
        total = told.new_zeros(())
        for logits, values in zip(told.split(self._sizes, -1), truth.unbind(-1), strict=True):
            total = total + F.cross_entropy(logits, values, reduction="sum")
        self.heard = None
        mean: Tensor = total / (truth >= 0).sum().clamp(min=1)
        return mean


class PlainAttention:
    """Attention as two matrix products.

    On a CPU in bf16, it takes a third of scaled_dot_product_attention's time. It is
    used for pre-training alone; a test holds it equal to diffusers' own.
    """

    def __init__(self, *, compiled: bool) -> None:
        self._rotate = (
            torch.compile(_norm_and_rotate, dynamic=True) if compiled else _norm_and_rotate
        )

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        assert image_rotary_emb is not None
        cos, sin = (t[None, :, None, ::2] for t in image_rotary_emb)
        d = attn.head_dim

        def project(x: Tensor, layers: tuple[Any, ...], part: slice) -> list[Tensor]:
            q, k, v = (layer(x).unflatten(-1, (-1, d)) for layer in layers[:3])
            c, s = cos[:, part], sin[:, part]
            q, k = self._rotate(q, layers[3].weight, c, s), self._rotate(k, layers[4].weight, c, s)
            return [q, k, v.transpose(1, 2)]

        img_layers = (attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        if encoder_hidden_states is None:
            q, k, v = project(hidden_states, img_layers, slice(None))
            return self._attend(q, k, v, d)
        text_tokens = encoder_hidden_states.shape[1]
        txt_layers = (
            attn.add_q_proj,
            attn.add_k_proj,
            attn.add_v_proj,
            attn.norm_added_q,
            attn.norm_added_k,
        )
        txt = project(encoder_hidden_states, txt_layers, slice(text_tokens))
        img = project(hidden_states, img_layers, slice(text_tokens, None))
        q, k, v = (torch.cat(pair, 2) for pair in zip(txt, img, strict=True))
        out = self._attend(q, k, v, d)
        return attn.to_out[0](out[:, text_tokens:]), attn.to_add_out(out[:, :text_tokens])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, d: int) -> Tensor:
        scores = q @ (k.transpose(-1, -2) * d**-0.5)
        # Under autocast softmax would go to fp32 and double the traffic; bf16 is exact enough.
        return (torch._softmax(scores, -1, False) @ v).transpose(1, 2).flatten(2)


def flow_loss(model: Any, teller: Teller, readers: Readers, batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean velocity error of a step's canvases, and the teller's cross-entropy."""
    levels = batch.levels[..., None]
    z = (1 - levels) * batch.x0 + levels * batch.eps
    with amp(z.device):
        with torch.no_grad():
            text = readers.t5(batch.t5_ids)[0].float()
            pooled = readers.clip(batch.clip_ids).pooler_output.float()
        v = model(
            hidden_states=z,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=batch.sigma,
            guidance=torch.ones_like(batch.sigma),
            img_ids=batch.places,
            txt_ids=batch.places.new_zeros(TEXT_TOKENS, 3),
            return_dict=False,
        )[0]
    error = (v.float() - (batch.eps - batch.x0)).square().mean(-1)
    told = teller.loss(batch.truth, batch.asked, batch.weight[:, batch.asked])
    return (error * batch.weight).sum(-1).mean(), told


def _open_transformer(work: Path, device: torch.device) -> Any:
    """A new transformer, or the one that `export.warm_start` left, ready to be trained."""
    model = new_transformer().to(device)
    if (work / "warm.safetensors").is_file():
        model.load_state_dict(load_file(work / "warm.safetensors"))
    if device.type == "cpu":
        model.set_attn_processor(PlainAttention(compiled=True))
    # In fp32 from the first layer on, or the noise level would be told in bf16's coarse steps.
    model.x_embedder.register_forward_hook(lambda _module, _args, out: out.float())
    return model


def _draw(
    settings: Settings, tokenizers: tuple[Any, Any], data: dict[str, Encoded], step: int
) -> Batch:
    """The canvases of a step, all of one arrangement."""
    rng = random.Random(f"flow {settings.seed} {step}")
    arrangement = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    length = TEXT_TOKENS + (SIZE // TOKEN) ** 2 * ARRANGEMENTS[arrangement].panels
    count = settings.flow_tokens // length
    return draw_batch(rng, tokenizers, data[arrangement], arrangement, count)


def train_flow(
    settings: Settings,
    work: Path,
    log: Log,
    readers: Readers,
    tokenizers: tuple[Any, Any],
    data: dict[str, Encoded],
    export: Callable[[Any], None],
) -> None:
    """Train the transformer.

    Args:
        export: called with its averaged weights every `Settings.export_every` steps, and last.
    """
    torch.manual_seed(settings.seed + 2)
    device = settings.device
    model = _open_transformer(work, device)
    teller = Teller(model.inner_dim).to(device)
    teller.listen(model)
    learners = nn.ModuleDict({"model": model, "teller": teller})
    optimizers = optimizers_of(learners, settings.flow_lr)
    start, extra = load_state(work / "flow-state.safetensors", learners, *optimizers)
    names = list(dict(model.named_parameters()))
    parameters = list(model.parameters())
    average = [
        extra[n].to(device) if start else p.detach().clone()
        for n, p in zip(names, parameters, strict=True)
    ]
    recent: list[tuple[float, float]] = []
    began = time.monotonic()
    for step in range(start, settings.flow_steps):
        left = (settings.flow_steps - step) / settings.flow_cooldown
        rate = settings.flow_lr * min(1.0, (step + 1) / 200, left)
        batch = _draw(settings, tokenizers, data, step).to(device)
        loss, told = flow_loss(model, teller, readers, batch)
        torch.autograd.backward(loss + TELL_WEIGHT * told)
        norm = nn.utils.clip_grad_norm_(learners.parameters(), 1.0)
        take_step(optimizers, rate)
        decay = min(settings.flow_ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - decay)
        recent.append((float(loss.detach()), float(told.detach())))
        last = step + 1 == settings.flow_steps
        if (step + 1) % 50 == 0:
            means = [round(sum(each) / len(recent), 4) for each in zip(*recent, strict=True)]
            log(
                stage="transformer",
                step=step + 1,
                loss=means[0],
                told=means[1],
                norm=round(float(norm), 2),
                rate=round(rate, 6),
                seconds=round((time.monotonic() - began) / len(recent), 3),
            )
            recent, began = [], time.monotonic()
        if (step + 1) % settings.export_every == 0 or last:
            averaged = new_transformer()
            averaged.load_state_dict(dict(zip(names, average, strict=True)))
            export(averaged)
        # Behind the export: a run that is whole has exported its last weights.
        if (step + 1) % 250 == 0 or last:
            ema = dict(zip(names, average, strict=True))
            save_state(work / "flow-state.safetensors", step + 1, learners, *optimizers, extra=ema)
