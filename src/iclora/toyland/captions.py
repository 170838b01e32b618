"""What a captioner says of toyland's sets, held against the truth.

`python -m iclora.toyland.captions --captioner local:FOLDER` measures a captioner on sets with
identities that are held out of all training.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping

import torch

from iclora.captioners import Captioner, load_captioner
from iclora.captioners.asking import ask_about, read_answer
from iclora.captioners.base import Answer
from iclora.captioning import estimate_tokens
from iclora.errors import CaptionError
from iclora.toyland.tasks import TASKS, Task, draw_set
from iclora.toyland.world import Canvas, traits_said

__all__ = ["measure", "said_right"]


def said_right(task: Task, canvas: Canvas, panels: tuple[str, ...]) -> Iterator[bool]:
    """Whether each trait that a panel's words state is true of it."""
    for panel, words in zip(canvas.panels, panels, strict=True):
        for trait, value in traits_said(words, task.topic).items():
            yield panel.traits[trait] == value


def measure(captioner: Captioner, task: Task, count: int) -> Mapping[str, float]:
    """First answers to sets of held-out identities.

    Returns: the share of answers that are joint captions as they should be; the share of the
        traits they state that are true; and how many a panel states.
    """
    recipe = task.small_recipe
    drawn = [draw_set(task, random.Random(f"captions {task.recipe} {n}"), unseen=True)[0]
             for n in range(count)]  # fmt: skip
    asks = [ask_about(recipe, [p.render() for p in canvas.panels], 128) for canvas in drawn]
    right: list[bool] = []
    whole = panels = 0
    for number, reply in captioner.answer(asks):
        if not isinstance(reply, Answer):
            continue
        try:
            caption = read_answer(reply.text, recipe, estimate_tokens, 512)
        except CaptionError:
            continue
        whole += 1
        panels += len(caption.words)
        right += said_right(task, drawn[number], caption.words)
    return {
        "whole": round(whole / count, 4),
        "true": round(sum(right) / max(1, len(right)), 4),
        "traits a panel": round(len(right) / max(1, panels), 2),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captioner", required=True, help="such as local:FOLDER")
    parser.add_argument("--sets", type=int, default=50, help="held-out sets per task")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    captioner = load_captioner(args.captioner, together=16)
    for task in TASKS.values():
        print(task.recipe, json.dumps(measure(captioner, task, args.sets)), flush=True)


if __name__ == "__main__":
    main()
