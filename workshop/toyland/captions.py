"""How true a captioner's words are: `python -m workshop.toyland.captions`.

It is asked about sets with identities that are held out of all training, and for prompts from ideas
of such sets.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence

import torch

from iclora.errors import CaptionError
from iclora.sets.caption import estimate_tokens
from iclora.toyland.captions import said_right
from iclora.toyland.tasks import TASKS, Task, draw_set
from iclora.toyland.wording import idea_of, traits_said
from iclora.toyland.world import IDENTITY
from iclora.vlm import VisionModel, load_vision_model
from iclora.vlm.asking import ask_about, ask_for_prompt, read_answer
from iclora.vlm.base import Answer

__all__ = ["measure", "measure_ideas"]


def measure(captioner: VisionModel, task: Task, count: int) -> Mapping[str, float]:
    """First answers to sets of held-out identities.

    Returns: the share of answers that are joint captions as they should be; the share of the
        traits they state that are true; how many a panel states; and, if the character bears a
        name, the share of captions that keep to one.
    """
    recipe = task.small_recipe
    drawn = [
        draw_set(task, random.Random(f"captions {task.recipe} {n}"), unseen=True)[0]
        for n in range(count)
    ]
    asks = [ask_about(recipe, [p.render() for p in canvas.panels], 128) for canvas in drawn]
    right: list[bool] = []
    whole = panels = named = 0
    for number, reply in captioner.answer(asks):
        if not isinstance(reply, Answer):
            continue
        try:
            caption = read_answer(reply.text, recipe, estimate_tokens, 512)
        except CaptionError:
            continue
        whole += 1
        panels += len(caption.words)
        named += len(set(re.findall(r"<\w+>", caption.render()))) == 1
        right += said_right(task, drawn[number], caption.words)
    found = {
        "whole": round(whole / count, 4),
        "true": round(sum(right) / max(1, len(right)), 4),
        "traits a panel": round(len(right) / max(1, panels), 2),
    }
    return found | ({"one name": round(named / max(1, whole), 4)} if task.named else {})


def measure_ideas(captioner: VisionModel, task: Task, count: int) -> Mapping[str, float]:
    """First answers to ideas that name some of what a set is to share.

    Returns: the share of answers that are joint prompts as they should be, and the share whose
        overview says all that the idea named.
    """
    recipe = task.small_recipe
    identity = [t for t in IDENTITY[task.topic] if t in task.relation]
    asks, named = [], []
    for number in range(count):
        rng = random.Random(f"ideas {task.recipe} {number}")
        canvas, _ = draw_set(task, rng, unseen=True)
        chosen = sorted(rng.sample(identity, rng.randint(1, len(identity))), key=identity.index)
        said = {t: canvas.panels[0].traits[t] for t in chosen}
        asks.append(ask_for_prompt(recipe, idea_of(rng, task.topic, said), 128))
        named.append(said)
    whole = kept = 0
    for number, reply in captioner.answer(asks):
        if not isinstance(reply, Answer):
            continue
        try:
            prompt = read_answer(reply.text, recipe, estimate_tokens, 128)
        except CaptionError:
            continue
        whole += 1
        kept += traits_said(prompt.overview, task.topic).items() >= named[number].items()
    return {"ideas whole": round(whole / count, 4), "ideas kept": round(kept / count, 4)}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captioner", default="toyland", help="another, such as local:FOLDER")
    parser.add_argument("--sets", type=int, default=50, help="held-out sets per task")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    captioner = load_vision_model(args.captioner, together=16)
    for task in TASKS.values():
        found = {**measure(captioner, task, args.sets), **measure_ideas(captioner, task, args.sets)}
        print(task.recipe, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
