"""A small multimodal language model that captions toyland's sets from pixels, as LLaVA.

First its eyes learn to tell the traits of single panels, then eyes and decoder together learn to
answer what `iclora caption` and `iclora prompt` ask, in the words of the tuning sets.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.sets.recipe import Recipe, load_recipe, recipe_names
from iclora.toyland.drawing import SIZE
from iclora.toyland.tasks import TASKS, Task, draw_set
from iclora.toyland.wording import idea_of, phrases, write_caption
from iclora.toyland.world import IDENTITY, TOPICS, TRAITS, Canvas, draw_canvas
from iclora.vlm.asking import ask_about, ask_for_prompt
from iclora.vlm.base import Ask
from workshop.toyland.pretrain.stage import (
    Log,
    Settings,
    amp,
    load_state,
    optimizers_of,
    save_done,
    save_state,
    take_step,
    warm_then_cosine,
)
from workshop.toyland.pretrain.words import unigram

__all__ = ["new_captioner", "train_captioner"]

_PATCH = 16
_TEMPLATE = (
    # Numbered, or which picture is the second would have to be counted in tokens.
    "{% set seen = namespace(count=0) %}"
    "{% for message in messages %}{{ message['role'] }}:"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set seen.count = seen.count + 1 %}"
    " picture {{ seen.count }} <image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_LIMITS = (128, 512)
"""Token budgets of the bases it is asked for."""
_IDEAS = 0.5
"""Share of lessons without pictures: an idea is to become a prompt."""
_NAME = "Ida"
"""What it calls everybody. Lessons with names drawn at random had not taught so small a model to
repeat the one it began with: 24 of 48 storyboards had two."""


def make_processor(settings: Settings) -> Any:
    """Tokenizer, picture preparation and chat template in one."""
    rng = random.Random(f"captioner words {settings.seed}")
    texts = [*phrases(), "user: assistant:", " picture 1 2 3 4 "]
    for task in TASKS.values():
        texts += [draw_set(task, rng)[1].text for _ in range(300)]
        panels = len(load_recipe(task.recipe).markers)
        for _ in range(20):
            texts += [_idea(rng, task)[0].as_text, _look(rng, task, panels).as_text]
    texts += [load_recipe(name).example for name in recipe_names()]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=unigram(texts),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=2048,
    )
    pictures = transformers.CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_TEMPLATE,
    )


def new_captioner(processor: Any) -> Any:
    """CLIP eyes of 4 layers and width 192, a Llama of 4 layers and width 256."""
    tokenizer = processor.tokenizer
    eyes = transformers.CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=_PATCH,
    )
    decoder = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=eyes,
            text_config=decoder,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            pad_token_id=tokenizer.pad_token_id,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=True,
        )
    )


# -- questions and answers ----------------------------------------------------------------------


def _look(rng: random.Random, task: Task, panels: int) -> Ask:
    """What is asked about a set; its pictures are left out."""
    blank = Image.new("RGB", (1, 1))
    return ask_about(load_recipe(task.recipe), [blank] * panels, rng.choice(_LIMITS))


def _idea(rng: random.Random, task: Task) -> tuple[Ask, str]:
    """An idea that names some of what a set shares, and a prompt that says it in its overview."""
    canvas = _in_order(task, rng)
    # The example in a question is the recipe's own, or the one an adapter carries.
    recipe = _recipe(task.recipe, rng.random() < 0.5)
    identity = [t for t in IDENTITY[task.topic] if t in task.relation]
    said = sorted(rng.sample(identity, rng.randint(1, len(identity))), key=identity.index)
    idea = idea_of(rng, task.topic, {t: canvas.panels[0].traits[t] for t in said})
    caption = write_caption(
        rng,
        canvas,
        [(*task.stated, *task.says_fixed)] * len(canvas.panels),
        said,
        prefix=recipe.prefix,
        name=_NAME if task.named else "",
        opening=task.opening or None,
    )
    return ask_for_prompt(recipe, idea, rng.choice(_LIMITS)), caption.text


def _in_order(task: Task, rng: random.Random) -> Canvas:
    """A set whose panels differ in the first trait they state, in the order of its values.

    What a set invents is decoded greedily: had it learnt from panels in any order, the likeliest
    scene would be the likeliest in every panel. In order, the next is never one that was there.
    """
    canvas, _ = draw_set(task, rng)
    if not task.stated:
        return canvas
    first = task.stated[0]
    while len({panel.traits[first] for panel in canvas.panels}) < len(canvas.panels):
        canvas, _ = draw_set(task, rng)
    if any(first in fixed for fixed in task.fixed):
        return canvas
    panels = sorted(canvas.panels, key=lambda panel: TRAITS[first].index(panel.traits[first]))
    return Canvas(canvas.arrangement, tuple(panels), canvas.relation)


@cache
def _recipe(name: str, small: bool) -> Recipe:
    return TASKS[name].small_recipe if small else load_recipe(name)


@dataclass(frozen=True)
class Drawn:
    """Sets with their pictures: `pixels` (sum of panels, 3, SIZE, SIZE) uint8."""

    sets: list[tuple[Task, Canvas]]
    firsts: list[int]
    """Where each set's first panel lies in `pixels`."""
    pixels: Tensor


def draw_sets(seed: int, count: int) -> Drawn:
    """Tuning sets of all tasks, none of them held out."""
    rng = random.Random(f"captioner sets {seed}")
    sets: list[tuple[Task, Canvas]] = []
    firsts: list[int] = []
    pixels: list[Any] = []
    for _ in range(count):
        task = TASKS[rng.choice(list(TASKS))]
        canvas, _ = draw_set(task, rng)
        sets.append((task, canvas))
        firsts.append(len(pixels))
        pixels += [np.asarray(panel.render()) for panel in canvas.panels]
    return Drawn(sets, firsts, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))


def _normal(pixels: Tensor) -> Tensor:
    """As the processor prepares pictures of this size."""
    return pixels.float() / 127.5 - 1


def answer_batch(rng: random.Random, processor: Any, drawn: Drawn, count: int) -> dict[str, Tensor]:
    """Conversations with their pictures, for the model's own loss: labels are the answers alone."""
    tokenizer = processor.tokenizer
    per_picture = (SIZE // _PATCH) ** 2
    rows, pictures = [], []
    for _ in range(count):
        number = rng.randrange(len(drawn.sets))
        task, canvas = drawn.sets[number]
        panels = len(canvas.panels)
        if rng.random() < _IDEAS:
            (ask, answer), panels = _idea(rng, task), 0
        else:
            ask, answer = _look(rng, task, panels), _words_for(rng, task, canvas)
            first = drawn.firsts[number]
            pictures.append(drawn.pixels[first : first + panels])
        shown = (f" picture {i} " + "<image>" * per_picture for i in range(1, panels + 1))
        question = "".join(shown) + ask.as_text
        start = tokenizer(f"user:{question}</s>assistant:").input_ids
        rows.append((start, tokenizer(f"{answer}</s>").input_ids))
    batch = _padded(tokenizer, rows)
    if pictures:
        batch["pixel_values"] = _normal(torch.cat(pictures))
    return batch


def single_batch(
    rng: random.Random, processor: Any, canvases: list[Canvas], pixels: Tensor, count: int
) -> dict[str, Tensor]:
    """One picture each, and everything that is to be seen in it: short, and mostly about pixels."""
    tokenizer = processor.tokenizer
    chosen = [rng.randrange(len(canvases)) for _ in range(count)]
    image = "<image>" * (SIZE // _PATCH) ** 2
    rows = []
    for i in chosen:
        topic = canvases[i].panels[0].topic
        answer = write_caption(rng, canvases[i], [TOPICS[topic]]).text
        start = tokenizer(f"user: picture 1 {image}</s>assistant:").input_ids
        rows.append((start, tokenizer(f"{answer}</s>").input_ids))
    return {**_padded(tokenizer, rows), "pixel_values": _normal(pixels[chosen])}


def _padded(tokenizer: Any, rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Questions and answers as one batch; labels are the answers alone."""
    width = max(len(start) + len(end) for start, end in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (start, end) in enumerate(rows):
        ids[i, : len(start) + len(end)] = torch.tensor(start + end)
        labels[i, len(start) : len(start) + len(end)] = torch.tensor(end)
    mask = (ids != tokenizer.pad_token_id).long()
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _words_for(rng: random.Random, task: Task, canvas: Canvas) -> str:
    """A set's caption as the tuning sets have it, in new words."""
    return write_caption(
        rng,
        canvas,
        [(*task.stated, *task.says_fixed)] * len(canvas.panels),
        prefix=load_recipe(task.recipe).prefix,
        name=_NAME if task.named else "",
        opening=task.opening or None,
    ).text


# -- training -----------------------------------------------------------------------------------


class _Eyes(nn.Module):
    """The vision tower and a head that tells the traits of a panel; the head is thrown away."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.sizes = [len(values) for values in TRAITS.values()]
        self.head = nn.Linear(tower.config.hidden_size, sum(self.sizes))

    def loss(self, pixels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and the share told right; truth is (B, traits), -100 for none."""
        seen = self.tower(pixels).last_hidden_state[:, 1:].mean(1)
        total, right = seen.new_zeros(()), seen.new_zeros(())
        for logits, values in zip(
            self.head(seen.float()).split(self.sizes, -1), truth.unbind(-1), strict=True
        ):
            total = total + F.cross_entropy(logits, values, reduction="sum")
            right = right + ((logits.argmax(-1) == values) & (values >= 0)).sum()
        told = (truth >= 0).sum()
        return total / told, right / told


def _draw_singles(seed: int) -> tuple[list[Canvas], Tensor]:
    """Single panels of every kind, and their pixels (N, 3, SIZE, SIZE) uint8."""
    rng = random.Random(f"eyes {seed}")
    canvases = [draw_canvas(rng, arrangement="single") for _ in range(6000)]
    drawn = np.stack([np.asarray(canvas.panels[0].render()) for canvas in canvases])
    return canvases, torch.from_numpy(drawn).permute(0, 3, 1, 2)


def _train_eyes(settings: Settings, work: Path, log: Log, tower: Any) -> None:
    done = work / "eyes.safetensors"
    eyes = _Eyes(tower).to(settings.device)
    if not done.is_file():
        canvases, pixels = _draw_singles(settings.seed)
        panels = [canvas.panels[0] for canvas in canvases]
        truth = torch.tensor(
            [
                [v.index(p.traits[t]) if t in p.traits else -100 for t, v in TRAITS.items()]
                for p in panels
            ]
        )
        optimizers = optimizers_of(eyes, settings.eyes_lr)
        for step in range(settings.eyes_steps):
            rng = random.Random(f"eyes {settings.seed} {step}")
            chosen = torch.tensor([rng.randrange(len(panels)) for _ in range(64)])
            with amp(settings.device):
                loss, right = eyes.loss(
                    _normal(pixels[chosen].to(settings.device)), truth[chosen].to(settings.device)
                )
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
            take_step(optimizers, settings.eyes_lr * warm_then_cosine(step, settings.eyes_steps))
            if (step + 1) % 50 == 0:
                log(
                    stage="eyes",
                    step=step + 1,
                    loss=round(float(loss.detach()), 4),
                    right=round(float(right), 4),
                )
        save_done(done, tower.state_dict())
    tower.load_state_dict(load_file(done, str(settings.device)))


def train_captioner(
    settings: Settings, work: Path, log: Log, out: Path, warm: Path | None = None
) -> None:
    """Train the captioner and write it to `out`, in transformers' layout, bf16.

    Args:
        warm: a captioner's folder to go on from; its eyes and words are learnt already.
    """
    torch.manual_seed(settings.seed + 3)
    device = settings.device
    if warm:
        processor = transformers.AutoProcessor.from_pretrained(warm)
        model = new_captioner(processor)
        kept = transformers.LlavaForConditionalGeneration.from_pretrained(warm)
        model.load_state_dict(kept.state_dict())
        model.to(device)
        _learn_to_answer(settings, work, log, processor, model, out)
        return
    folder = work / "captioner-processor"
    if not folder.is_dir():
        make_processor(settings).save_pretrained(work / "captioner-processor.part")
        (work / "captioner-processor.part").rename(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = new_captioner(processor).to(device)
    _train_eyes(settings, work, log, model.model.vision_tower)
    # Words first: in a set's caption few tokens depend on pixels, and 1,000 steps of those alone
    # had taught it to write, and not to look.
    canvases, pixels = _draw_singles(settings.seed)
    _learn(
        settings,
        work,
        log,
        model,
        "captioner-words",
        settings.words_steps,
        lambda rng: single_batch(rng, processor, canvases, pixels, settings.words_batch),
    )
    _learn_to_answer(settings, work, log, processor, model, out)


def _learn_to_answer(
    settings: Settings, work: Path, log: Log, processor: Any, model: Any, out: Path
) -> None:
    """The last lessons; then the captioner is written."""
    drawn = draw_sets(settings.seed, settings.captioner_sets)
    _learn(
        settings,
        work,
        log,
        model,
        "captioner",
        settings.captioner_steps,
        lambda rng: answer_batch(rng, processor, drawn, settings.captioner_batch),
    )
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    processor.save_pretrained(out)


def _learn(
    settings: Settings,
    work: Path,
    log: Log,
    model: Any,
    stage: str,
    steps: int,
    draw: Callable[[random.Random], dict[str, Tensor]],
) -> None:
    """Steps on conversations that `draw` makes; resumable."""
    state = work / f"{stage}-state.safetensors"
    optimizers = optimizers_of(model, settings.captioner_lr)
    start, _ = load_state(state, model, *optimizers)
    for step in range(start, steps):
        batch = draw(random.Random(f"{stage} {settings.seed} {step}"))
        with amp(settings.device):
            loss = model(**{k: value.to(settings.device) for k, value in batch.items()}).loss
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        take_step(optimizers, settings.captioner_lr * warm_then_cosine(step, steps))
        if (step + 1) % 25 == 0:
            log(stage=stage, step=step + 1, loss=round(float(loss.detach()), 4))
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(state, step + 1, model, *optimizers)
