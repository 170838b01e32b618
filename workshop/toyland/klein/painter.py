"""The painter's training: first FLUX.1's toyland shows how, then the world itself.

From nothing FLUX.1's toyland took 7,450 steps of 10,240 tokens. Here the painter begins as its
translation (`translate`) and for the first part of the run is told, beside the truth, what FLUX.1
makes of the same noisy canvas and words: its velocity, which is the mean of what could be true
where the truth is one draw, and its tokens behind each block. Then both fade and the truth alone
is left, with the teller of `workshop.toyland.pretrain.painter`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from iclora.toyland.drawing import SIZE
from iclora.toyland.wording import Caption, draw_caption
from iclora.toyland.world import ARRANGEMENTS
from workshop.toyland.klein.network import Painting, new_painter
from workshop.toyland.klein.words import TEXT_TOKENS
from workshop.toyland.pretrain.canvases import RELATED, TOKEN, Encoded, draw_levels, panel_of_token
from workshop.toyland.pretrain.painter import TELL_WEIGHT, PlainAttention, Teller
from workshop.toyland.pretrain.stage import (
    Log,
    amp,
    load_state,
    optimizers_of,
    save_state,
    take_step,
)

__all__ = [
    "SHARES",
    "TRANSLATED",
    "Course",
    "Scene",
    "Shown",
    "averaged",
    "draw_scene",
    "held_out_loss",
    "train_painter",
]

SHARES = {"single": 0.08, "side by side": 0.18, "stacked": 0.12, "storyboard": 0.36, "grid": 0.26}
"""How often a step is of each arrangement."""
_UNTOLD = 0.08
"""Share of canvases without words: what guidance leads away from."""
_HELD = 16
"""Canvases at the end of each arrangement that are never trained on, for the held-out loss."""


_STATE = "painter-state.safetensors"
TRANSLATED = "translated.safetensors"
_PARTS = ("loss", "told", "like", "unlike")
_TOLD_BEHIND = 3
"""The block whose output the teller reads, counted from 0: the middle of the network."""
Read = Callable[[list[str]], Tensor]
"""From captions to the text's states, (B, T, 192)."""
_FULL: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}


@dataclass(frozen=True)
class Course:
    """How the painter is trained."""

    seed: int = 0
    steps: int = 3000
    shown_steps: int = 1800
    """Steps by whose end FLUX.1 has fallen silent; the last third of them fades."""
    cooldown: int = 500
    """Last steps, over which the learning rate falls to zero."""
    tokens: int = 6400
    """Tokens in a step, text tokens included; canvases of one arrangement."""
    rate: float = 1e-3
    average: float = 0.995

    def shown(self, step: int) -> float:
        """How much FLUX.1's example counts at a step, 1 to 0."""
        return min(1.0, max(0.0, 3 * (1 - step / self.shown_steps))) if self.shown_steps else 0.0


@dataclass(frozen=True)
class Scene:
    """A step's canvases of one arrangement, their words, noise and noise levels."""

    x0: Tensor
    eps: Tensor
    sigma: Tensor
    levels: Tensor
    weight: Tensor
    asked: Tensor
    truth: Tensor
    places: Tensor
    """(n, 4)"""
    captions: list[Caption | None]
    """None for a canvas without words."""

    @property
    def texts(self) -> list[str]:
        return [caption.text if caption else "" for caption in self.captions]

    @property
    def noisy(self) -> Tensor:
        levels = self.levels[..., None]
        return (1 - levels) * self.x0 + levels * self.eps


def draw_scene(
    rng: random.Random, data: Encoded, arrangement: str, count: int, *, held: bool = False
) -> Scene:
    """Draw canvases with new captions, noise and noise levels.

    Args:
        held: True draws from the canvases that are never trained on.
    """
    last = len(data.canvases) - _HELD
    related = [i for i in data.related if i < last]
    if held:
        chosen = [last + i % _HELD for i in range(count)]
    else:
        wanted = [bool(related) and rng.random() < RELATED for _ in range(count)]
        chosen = [rng.choice(related) if want else rng.randrange(last) for want in wanted]
    captions = [
        None if rng.random() < _UNTOLD else draw_caption(rng, data.canvases[i]) for i in chosen
    ]
    draws = torch.Generator().manual_seed(rng.randrange(2**62))
    x0 = data.latents[chosen].float()
    panel = panel_of_token(arrangement)
    eps = torch.randn(x0.shape, generator=draws)
    sigma, levels, weight = draw_levels(draws, count, panel)
    asked = torch.randperm(len(panel), generator=draws)[: len(panel) // 4]
    width, height = ARRANGEMENTS[arrangement].size
    edges = (1, height // TOKEN, width // TOKEN, 1)
    places = torch.cartesian_prod(*(torch.arange(edge) for edge in edges)).float()
    truth = data.truth[chosen][:, panel[asked]]
    return Scene(x0, eps, sigma, levels, weight, asked, truth, places, captions)


class Shown:
    """FLUX.1's toyland, painting the same canvas from the same words."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.net = pipeline.transformer.requires_grad_(False).eval()
        self.net.set_attn_processor(PlainAttention(compiled=False))
        self.net.x_embedder.register_forward_hook(lambda _module, _args, out: out.float())
        self._seen: list[Tensor] = []
        for block in [*self.net.transformer_blocks, *self.net.single_transformer_blocks]:
            block.register_forward_hook(lambda _module, _args, out: self._seen.append(out[1]))

    @torch.no_grad()
    def pooled(self, texts: list[str]) -> Tensor:
        """CLIP's one vector of each text."""
        ids = self.pipeline.tokenizer(texts, max_length=77, **_FULL).input_ids
        found: Tensor = self.pipeline.text_encoder(ids).pooler_output.float()
        return found

    @torch.no_grad()
    def __call__(self, scene: Scene) -> tuple[Tensor, list[Tensor]]:
        """The velocity (B, n, 32), and the image tokens behind each block."""
        p = self.pipeline
        t5 = p.tokenizer_2(scene.texts, max_length=TEXT_TOKENS, **_FULL).input_ids
        self._seen.clear()
        with amp(torch.device("cpu")):
            v = self.net(
                hidden_states=scene.noisy,
                encoder_hidden_states=p.text_encoder_2(t5)[0].float(),
                pooled_projections=self.pooled(scene.texts),
                timestep=scene.sigma,
                guidance=torch.ones_like(scene.sigma),
                img_ids=scene.places[:, :3],
                txt_ids=scene.places.new_zeros(TEXT_TOKENS, 3),
                return_dict=False,
            )[0]
        return v.float(), list(self._seen)


def _errors(v: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    mean: Tensor = ((v.float() - target).square().mean(-1) * weight).sum(-1).mean()
    return mean


def _unlike(seen: list[Tensor], shown: list[Tensor]) -> Tensor:
    """Mean square difference of tokens behind each block, a number's variance being one."""
    total = torch.zeros(())
    for mine, theirs in zip(seen, shown, strict=True):
        spread = theirs.float().var((0, 1))
        # Numbers that hardly vary in one batch must not outweigh all others.
        spread = spread.clamp(min=0.1 * float(spread.mean()))
        total = total + ((mine.float() - theirs.float()).square() / spread).mean()
    return total / len(seen)


def held_out_loss(paint: Callable[[Scene], Tensor], data: dict[str, Encoded]) -> float:
    """The mean velocity error on canvases that are never trained on; the same draw each time."""
    found = []
    for name in data:
        scene = draw_scene(random.Random(f"held {name}"), data[name], name, _HELD, held=True)
        with torch.no_grad():
            found.append(float(_errors(paint(scene), scene.eps - scene.x0, scene.weight)))
    return sum(found) / len(found)


def averaged(work: Path) -> Any:
    """The painter with the averaged weights of the last checkpoint."""
    net = new_painter()
    tensors = load_file(work / _STATE)
    net.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("extra/")})
    return net


class _Training:
    """The painter, what it is trained with, and a step."""

    def __init__(self, course: Course, work: Path, read: Read, shown: Shown) -> None:
        torch.manual_seed(course.seed + 2)
        self._course, self._work, self._read, self._shown = course, work, read, shown
        self.model = new_painter()
        if (work / TRANSLATED).is_file():
            self.model.load_state_dict(load_file(work / TRANSLATED))
        self._painting = Painting(self.model)
        self._teller = Teller(self.model.inner_dim)
        self._learners = nn.ModuleDict({"model": self.model, "teller": self._teller})
        self._optimizers = optimizers_of(self._learners, course.rate)
        self.start, extra = load_state(work / _STATE, self._learners, *self._optimizers)
        self._average = {
            name: extra[name] if self.start else p.detach().clone()
            for name, p in self.model.named_parameters()
        }

    def save(self, step: int) -> None:
        save_state(
            self._work / _STATE, step, self._learners, *self._optimizers, extra=self._average
        )

    def averaged(self) -> Any:
        net = new_painter()
        net.load_state_dict(self._average)
        return net

    def paint(self, scene: Scene, painting: Painting) -> tuple[Tensor, list[Tensor]]:
        with amp(torch.device("cpu")):
            return painting(scene.noisy, self._read(scene.texts), scene.sigma, scene.places)

    def held_out(self, data: dict[str, Encoded]) -> float:
        """Of the averaged weights."""
        painting = Painting(self.averaged())
        return round(held_out_loss(lambda s: self.paint(s, painting)[0], data), 4)

    def step(self, number: int, scene: Scene) -> tuple[float, ...]:
        """One update. Returns: the parts of the loss, as `_PARTS` calls them."""
        course = self._course
        left = (course.steps - number) / course.cooldown
        rate = course.rate * min(1.0, (number + 1) / 100, left)
        v, seen = self.paint(scene, self._painting)
        true = _errors(v, scene.eps - scene.x0, scene.weight)
        self._teller.heard = seen[_TOLD_BEHIND]
        told = self._teller.loss(scene.truth, scene.asked, scene.weight[:, scene.asked])
        loss, like, unlike = true + TELL_WEIGHT * told, *torch.zeros(2)
        share = course.shown(number)
        if share:
            velocity, tokens = self._shown(scene)
            like, unlike = _errors(v, velocity, scene.weight), _unlike(seen, tokens)
            loss = loss + share * (2 * like + 0.3 * unlike)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._learners.parameters(), 1.0)
        take_step(self._optimizers, rate)
        decay = min(course.average, (number + 1) / (number + 10))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self._average[name].lerp_(parameter, 1 - decay)
        return tuple(float(part.detach()) for part in (true, told, like, unlike))


def train_painter(
    course: Course,
    work: Path,
    log: Log,
    read: Read,
    shown: Shown,
    data: dict[str, Encoded],
    *,
    save_minutes: float = 5.0,
    until: int | None = None,
) -> Any:
    """Train the painter, or go on where it was stopped.

    With each checkpoint the loss on canvases that are never trained on is logged.

    Args:
        until: stop behind this step without ending the run.
    Returns: the averaged painter.
    """
    training = _Training(course, work, read, shown)
    arrangements = tuple(data)
    recent: list[tuple[float, ...]] = []
    began = saved = time.monotonic()
    last = min(course.steps, until or course.steps)
    for step in range(training.start, last):
        rng = random.Random(f"painter {course.seed} {step}")
        name = rng.choices(arrangements, [SHARES[a] for a in arrangements])[0]
        length = TEXT_TOKENS + (SIZE // TOKEN) ** 2 * ARRANGEMENTS[name].panels
        scene = draw_scene(rng, data[name], name, course.tokens // length)
        recent.append(training.step(step, scene))
        if (step + 1) % 10 == 0:
            means = [round(sum(each) / len(recent), 4) for each in zip(*recent, strict=True)]
            each = round((time.monotonic() - began) / len(recent), 2)
            parts = dict(zip(_PARTS, means, strict=True))
            log(stage="painter", step=step + 1, **parts, seconds=each)
            recent, began = [], time.monotonic()
        if time.monotonic() - saved > 60 * save_minutes or step + 1 == last:
            training.save(step + 1)
            log(stage="painter", step=step + 1, held_out=training.held_out(data))
            saved = time.monotonic()
    return training.averaged()
