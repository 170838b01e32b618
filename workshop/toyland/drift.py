"""How long a story keeps its character: `python -m workshop.toyland.drift --out DIR`.

Stories of an identity held out of tuning are extended image by image from a true first one, as
`iclora extend` does; the judge compares each image's kind, colour and headwear with those of the
first. OUT/drift.png shows the rate per image, OUT/drift.json holds it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from iclora.adapter import Adapter
from iclora.evaluate.intervals import Estimate, bootstrap
from iclora.files import write_text
from iclora.making.story import Story, extend
from iclora.models import load_model
from iclora.models.base import DiffusionModel
from iclora.progress import Progress
from iclora.sets.caption import JointCaption
from iclora.settings import MakeSettings, settings_of
from iclora.toyland.judge import read
from iclora.toyland.tasks import TASKS, draw_set
from iclora.toyland.wording import NAMES, write_caption
from iclora.toyland.world import Canvas, Panel, draw_traits

__all__ = ["draw_story", "measure", "plot", "summary"]

TASK = TASKS["film-storyboard"]


def draw_story(number: int, images: int) -> tuple[Story, Panel]:
    """A story whose words leave the character's looks out, and the true first image."""
    rng, recipe = random.Random(f"drift {number}"), TASK.small_recipe
    shared = draw_set(TASK, rng, unseen=True)[0].panels[0].traits
    name = rng.choice(NAMES)
    texts: list[str] = []
    first: Panel | None = None
    overview = ""
    count = len(TASK.fixed)
    while len(texts) < images:
        panels = tuple(
            Panel(
                TASK.topic,
                {**draw_traits(rng, TASK.topic), **{t: shared[t] for t in TASK.relation}, **fixed},
                rng.randrange(2**31),
            )
            for fixed in TASK.fixed
        )
        caption = write_caption(
            rng, Canvas(TASK.arrangement, panels), [TASK.stated] * count, name=name
        )
        words = JointCaption.parse(caption.text, recipe.markers)
        texts += words.words
        overview = overview or words.overview.strip()
        first = first or panels[0]
    assert first is not None
    return Story(overview, tuple(texts[:images])), first


def kept(images: Sequence[Image.Image], truth: Panel) -> list[bool]:
    """For each image: True if it shows the identity of the true first one."""
    found = [read(image, TASK.topic, style="flat", weather="clear") for image in images]
    return [all(seen[t] == truth.traits[t] for t in TASK.relation) for seen in found]


def measure(
    model: DiffusionModel,
    adapter: Adapter | None,
    out: Path,
    *,
    stories: int,
    images: int = 12,
    steps: int = 20,
    given: bool = True,
    progress: Progress | None = None,
    **how: Any,
) -> list[list[bool]]:
    """Extend stories and judge every image; what a stopped run made is taken.

    Args:
        given: give the true first image; else the first that is made decides the looks.
        how: mode and its settings; see `iclora.making.story.extend`.
    Returns: for each story and image, True if it shows the identity.
    """
    rows = []
    recipe = TASK.small_recipe
    fixed = {"steps": steps, "size": recipe.canvas.size}
    for number in range(stories):
        story, first = draw_story(number, images)
        made = extend(
            model,
            story,
            out / "stories" / f"{number + 1:04d}",
            settings=settings_of(MakeSettings, {**fixed, "seed": number, **how}),
            recipe=recipe,
            adapter=adapter,
            given={1: first.render()} if given else None,
        )
        truth = first
        if not given:
            seen = read(made[0], TASK.topic, style="flat", weather="clear")
            truth = Panel(TASK.topic, {**first.traits, **seen}, 0)
        rows.append(kept(made, truth))
        if progress:
            progress("stories", number + 1, stories)
    return rows


def summary(rows: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Rates per image with intervals, and how later canvases compare with the first.

    The first canvas and the later ones are compared story by story; the first image, given or by
    definition right, is left out.
    """
    shown = np.asarray(rows, dtype=float)
    window = len(TASK.fixed)
    begin, later = shown[:, 1:window].mean(1), shown[:, window:].mean(1)
    return {
        "stories": len(rows),
        "images": [vars(bootstrap(column.tolist())) for column in shown.T],
        "first canvas": vars(bootstrap(begin.tolist())),
        "later canvases": vars(bootstrap(later.tolist())),
        "later less first": vars(bootstrap((later - begin).tolist())),
        "rows": [[bool(value) for value in row] for row in rows],
    }


def plot(rows: Sequence[Sequence[bool]], path: Path) -> None:
    """The rate of each image with its interval; a line at the first canvas's less 5 points."""
    from matplotlib.figure import Figure

    shown = np.asarray(rows, dtype=float)
    found: list[Estimate] = [bootstrap(column.tolist()) for column in shown.T]
    numbers = range(1, len(found) + 1)
    page = Figure(figsize=(8, 4.2), layout="constrained")
    axes = page.subplots()
    low = [100 * (e.mean if e.low is None else e.low) for e in found]
    high = [100 * (e.mean if e.high is None else e.high) for e in found]
    axes.fill_between(numbers, low, high, alpha=0.2, label="95% interval")
    axes.plot(numbers, [100 * e.mean for e in found], marker="o", label="identity as in image 1")
    window = len(TASK.fixed)
    bound = 100 * float(shown[:, 1:window].mean()) - 5
    axes.axhline(bound, linestyle="--", color="#a33", label="first canvas less 5 points")
    axes.axvline(window + 0.5, linestyle=":", color="grey", label="end of the first canvas")
    axes.set_xticks(list(numbers))
    axes.set_xlabel("image of the story")
    axes.set_ylabel("% of stories")
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)
    # Above the axes: rates of 0 and of 100% are both to be seen.
    page.legend(loc="outside upper center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and pictures")
    parser.add_argument("--adapter", type=Path, help="adapter file; by default the base alone")
    parser.add_argument("--base", default="toyland")
    parser.add_argument("--stories", type=int, default=40)
    parser.add_argument("--images", type=int, default=12, help="of each story")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument(
        "--mode",
        choices=("sdedit", "resample", "boost", "clean"),
        help="by default clean for adapters trained for it",
    )
    parser.add_argument("--free", action="store_true", help="do not give the true first image")
    parser.add_argument("--dtype", default="auto", help="of the base: fp32 or bf16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    adapter = Adapter.load(args.adapter) if args.adapter else None
    how = {"mode": args.mode} if args.mode else {}
    rows = measure(
        load_model(args.base, dtype=args.dtype),
        adapter,
        args.out,
        stories=args.stories,
        images=args.images,
        steps=args.sampling_steps,
        given=not args.free,
        **how,
        progress=Progress(lambda e: print(f"story {e.done} of {e.total}", flush=True)),
    )
    found = summary(rows)
    settings = {**vars(args), "out": str(args.out), "adapter": str(args.adapter or "")}
    write_text(
        args.out / "drift.json", json.dumps({"settings": settings, **found}, indent=2) + "\n"
    )
    plot(rows, args.out / "drift.png")
    for number, rate in enumerate(found["images"], 1):
        print(f"image {number:2}: {rate['mean']:.0%}")
    less = found["later less first"]
    interval = "" if less["low"] is None else f" ({less['low']:+.1%} to {less['high']:+.1%})"
    print(f"later canvases less the first: {less['mean']:+.1%}{interval}")


if __name__ == "__main__":
    main()
