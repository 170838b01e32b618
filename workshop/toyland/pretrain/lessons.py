"""The captioner's lessons: questions as it will be asked, and answers in the tuning sets' words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from iclora.sets.recipe import Recipe, load_recipe, recipe_names
from iclora.toyland.drawing import SIZE
from iclora.toyland.tasks import TASKS, Task, draw_set
from iclora.toyland.wording import idea_of, phrases, write_caption
from iclora.toyland.world import IDENTITY, TOPICS, TRAITS, Canvas
from iclora.vlm.asking import ask_about, ask_for_prompt
from iclora.vlm.base import Ask
from workshop.toyland.pretrain.stage import Settings
from workshop.toyland.pretrain.tokenizers import unigram

__all__ = [
    "IDEAS",
    "PATCH",
    "Drawn",
    "answer_batch",
    "answer_of",
    "ask_for_idea",
    "ask_to_look",
    "draw_sets",
    "make_processor",
    "normalised",
    "single_batch",
]

PATCH = 16
"""Edge of a patch of the captioner's eyes, px."""
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
IDEAS = 0.5
"""Share of lessons without pictures: an idea is to become a prompt."""
_NAME = "Ida"
"""Everybody's name. Lessons with names drawn at random had not taught so small a model to
repeat the one it began with: 24 of 48 storyboards had two."""


def make_processor(settings: Settings) -> Any:
    """Tokenizer, picture preparation and chat template in one."""
    rng = random.Random(f"captioner words {settings.seed}")
    texts = [*phrases(), "user: assistant:", " picture 1 2 3 4 "]
    for task in TASKS.values():
        texts += [draw_set(task, rng)[1].text for _ in range(settings.captioner_texts)]
        panels = len(load_recipe(task.recipe).markers)
        for _ in range(20):
            texts += [ask_for_idea(rng, task)[0].as_text, ask_to_look(rng, task, panels).as_text]
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
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_TEMPLATE,
    )


def ask_to_look(rng: random.Random, task: Task, panels: int) -> Ask:
    """The question about a set; its pictures are left out."""
    blank = Image.new("RGB", (1, 1))
    return ask_about(load_recipe(task.recipe), [blank] * panels, rng.choice(_LIMITS))


def ask_for_idea(rng: random.Random, task: Task) -> tuple[Ask, str]:
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

    Inventions are decoded greedily. A captioner that was trained on panels in any order finds the
    same scene likeliest in every panel; in order, the next is never one that was there.
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


def normalised(pixels: Tensor) -> Tensor:
    """Pixels as the processor prepares pictures of this size."""
    return pixels.float() / 127.5 - 1


def answer_batch(rng: random.Random, processor: Any, drawn: Drawn, count: int) -> dict[str, Tensor]:
    """Conversations with their pictures, for the model's own loss: labels are the answers alone."""
    tokenizer = processor.tokenizer
    per_picture = (SIZE // PATCH) ** 2
    rows, pictures = [], []
    for _ in range(count):
        number = rng.randrange(len(drawn.sets))
        task, canvas = drawn.sets[number]
        panels = len(canvas.panels)
        if rng.random() < IDEAS:
            (ask, answer), panels = ask_for_idea(rng, task), 0
        else:
            ask, answer = ask_to_look(rng, task, panels), answer_of(rng, task, canvas)
            first = drawn.firsts[number]
            pictures.append(drawn.pixels[first : first + panels])
        shown = (f" picture {i} " + "<image>" * per_picture for i in range(1, panels + 1))
        question = "".join(shown) + ask.as_text
        start = tokenizer(f"user:{question}</s>assistant:").input_ids
        rows.append((start, tokenizer(f"{answer}</s>").input_ids))
    batch = _padded(tokenizer, rows)
    if pictures:
        batch["pixel_values"] = normalised(torch.cat(pictures))
    return batch


def single_batch(
    rng: random.Random, processor: Any, canvases: list[Canvas], pixels: Tensor, count: int
) -> dict[str, Tensor]:
    """One picture each, and everything that is to be seen in it: short, and mostly about pixels."""
    tokenizer = processor.tokenizer
    chosen = [rng.randrange(len(canvases)) for _ in range(count)]
    image = "<image>" * (SIZE // PATCH) ** 2
    rows = []
    for i in chosen:
        topic = canvases[i].panels[0].topic
        answer = write_caption(rng, canvases[i], [TOPICS[topic]]).text
        start = tokenizer(f"user: picture 1 {image}</s>assistant:").input_ids
        rows.append((start, tokenizer(f"{answer}</s>").input_ids))
    return {**_padded(tokenizer, rows), "pixel_values": normalised(pixels[chosen])}


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


def answer_of(rng: random.Random, task: Task, canvas: Canvas) -> str:
    """A set's caption as the tuning sets have it, in new words."""
    return write_caption(
        rng,
        canvas,
        [(*task.stated, *task.says_fixed)] * len(canvas.panels),
        prefix=load_recipe(task.recipe).prefix,
        name=_NAME if task.named else "",
        opening=task.opening or None,
    ).text
