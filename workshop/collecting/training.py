"""From a film to an adapter: is what `iclora collect` cuts out as good as sets made by hand?

    python -m workshop.collecting.training FOLDER
    python -m workshop.collecting.training FOLDER --films 3   # films with their truth, and no more

A film of toyland, each scene three or four shots of one character in one place, goes through
`collect`, `caption` with toyland's captioner, `compose` and `train`; adapters are tuned likewise on
as many sets of the same scenes that are cut out of the film where its truth says, as a patient hand
would, and on the originals, which no film has grained and compressed. All make sets of held-out
prompts, and toyland's judge reads these. Without an adapter no set of the base shows one character
(docs/toyland.md).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import tomli_w
from PIL import Image

from iclora.adapter import Adapter
from iclora.cli.main import main as iclora
from iclora.evaluate.setup import Arm
from iclora.files import write_text
from iclora.models import load_model
from iclora.sets.images import write_png
from iclora.settings import SampleSettings
from iclora.toyland.drawing.characters import draw_character
from iclora.toyland.drawing.pen import SCALE, SIZE
from iclora.toyland.judge import agreement, read
from iclora.toyland.measuring import measure_arms, prompt_cases
from iclora.toyland.tasks import TASKS, held_out
from iclora.toyland.tuning import tune
from iclora.toyland.world import draw_traits
from workshop.collecting.films import Film, Shot, Transition
from workshop.toyland.claims import pool

__all__ = ["draw_scenes", "run", "write_story"]

_TASK = TASKS["film-storyboard"]
_FPS = 24
_SIDE, _BAR = 256, 96
"""Of a picture in the film, and of the black at both its sides, px."""
Scene = list[tuple[dict[str, str], int]]
"""The traits and the seed of each shot."""


def draw_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of one character in one place, none of whose looks are held out for judging."""
    scenes: list[Scene] = []
    rng = random.Random("a film to train on" + f" {seed}" * bool(seed))
    while len(scenes) < count:
        own = draw_traits(rng, "character") | {"style": "flat", "weather": "clear"}
        if held_out(own, _TASK.relation):
            continue
        views = {(own["position"], own["pose"])}
        wanted = rng.choice((3, 4))
        while len(views) < wanted:
            more = draw_traits(rng, "character")
            views.add((more["position"], more["pose"]))
        shots = [own | {"position": a, "pose": b} for a, b in sorted(views)]
        rng.shuffle(shots)
        scenes.append([(shot, rng.randrange(2**31)) for shot in shots])
    return scenes


def write_story(path: Path, scenes: list[Scene], seed: int = 0) -> None:
    """Encode a film: cuts within scenes, cuts, fades and dissolves between them, black at both
    sides, grain, and a camera that drifts; its truth in a .json beside it, as of `films`."""
    noise = np.random.default_rng(seed)
    film = Film((_SIDE + 2 * _BAR, _SIDE), (_BAR, 0, _SIDE, _SIDE))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(_FPS))
        stream.width, stream.height, stream.pix_fmt = _SIDE + 2 * _BAR, _SIDE, "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        for pixels in _frames(scenes, seed, film):
            grain = noise.normal(0, 2, (_SIDE // 2, _SIDE // 2, 1)).repeat(2, 0).repeat(2, 1)
            shown = np.pad(pixels + grain, ((0, 0), (_BAR, _BAR), (0, 0)))
            rgb = shown.round().clip(0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    write_text(path.with_suffix(".json"), json.dumps(asdict(film)))


def _frames(scenes: list[Scene], seed: int, film: Film) -> Iterator[np.ndarray[Any, Any]]:
    rng = random.Random("cameras" + f" {seed}" * bool(seed))
    at = 0
    before = np.zeros((_SIDE, _SIDE, 3))
    for number, scene in enumerate(scenes):
        kind = "cut" if number == 0 else rng.choice(("cut", "fade", "dissolve"))
        for place, (traits, seed) in enumerate(scene):
            whole = draw_character(traits, random.Random(seed))
            drift, length = rng.choice((0, 0, 4)), rng.randrange(36, 60)

            def view(frame: float, whole: Image.Image = whole, drift: int = drift) -> Any:
                off = drift * min(1.0, frame / 36)
                box = (off, 0, whole.width - 4 + off, whole.height - 4)
                small = whole.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box)
                return np.asarray(small, dtype=np.float64)

            start = at
            if place == 0 and kind != "cut":
                first, black = view(0), np.zeros_like(before)
                legs = (
                    ((before, first),) if kind == "dissolve" else ((before, black), (black, first))
                )
                for one, other in legs:
                    for step in range(1, 10):
                        yield one + (other - one) * step / 10
                        at += 1
            if film.shots:
                how = kind if place == 0 else "cut"
                film.transitions.append(Transition(start, max(at, start + 1), how))
            film.shots.append(Shot(at, at + length, number, drift == 0))
            at += length
            for frame in range(length):
                before = view(frame)
                yield before


def _write_drawn(folder: Path, scenes: list[Scene]) -> None:
    """The scenes' first three shots as they were drawn, before any film, a folder a set."""
    _write_recipe(folder)
    for number, scene in enumerate(scenes, 1):
        for panel, (traits, seed) in enumerate(scene[:3], 1):
            drawn = draw_character(traits, random.Random(seed)).reduce(SCALE)
            write_png(folder / f"{number:04d}" / f"{panel}.png", drawn)


def _cut_by_hand(folder: Path, film: Path, count: int) -> None:
    """The first three shots of the first scenes, cut out of the film where its truth says."""
    _write_recipe(folder)
    told = json.loads(film.with_suffix(".json").read_text())
    left, top, width, height = told["box"]
    wanted: dict[int, tuple[int, int]] = {}
    seen: dict[int, int] = {}
    for shot in told["shots"]:
        place = seen[shot["scene"]] = seen.get(shot["scene"], 0) + 1
        if place <= 3 and shot["scene"] < count:
            wanted[(shot["first"] + shot["end"]) // 2] = (shot["scene"] + 1, place)
    with av.open(str(film)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                scene, panel = wanted[number]
                whole = Image.fromarray(frame.to_ndarray(format="rgb24"))
                picture = whole.crop((left, top, left + width, top + height))
                write_png(folder / f"{scene:04d}" / f"{panel}.png", picture)


def _is_of_one(folder: Path) -> bool:
    """True if a set's pictures show one character, as toyland's judge reads them."""
    panels = [Image.open(folder / f"{n}.png").convert("RGB") for n in (1, 2, 3)]
    small = [panel.resize((SIZE, SIZE), Image.Resampling.BOX) for panel in panels]
    return all(agreement([read(each, "character") for each in small], _TASK.relation).values())


def _write_recipe(folder: Path) -> Path:
    path = folder / "storyboard.toml"
    told = _TASK.small_recipe.model_dump(mode="json", exclude_defaults=True)
    write_text(path, tomli_w.dumps(told))
    write_text(folder / "iclora.toml", tomli_w.dumps({"recipe": path.name}))
    return path


def run(
    out: Path, count: int = 40, steps: int = 75, prompts: int = 8, seeds: int = 3, runs: int = 1
) -> dict[str, Any]:
    """Figures of adapters of hand-made sets and of collected sets, as many tuning runs of each."""
    scenes = draw_scenes(count)
    film, collected = out / "film.mp4", out / "collected"
    cut, drawn = out / "by-hand", out / "drawn"
    recipe = _write_recipe(out / "recipe")
    if not film.exists():
        write_story(film, scenes)
    told = ["collect", str(film), "--recipe", str(recipe), "--out", str(collected / "sets")]
    iclora([*told, "--no-review"])
    found = [json.loads(x) for x in (collected / "sets/sets.jsonl").read_text().splitlines()]
    alike = [
        _is_of_one(collected / "sets" / each["set"])
        for each in found
        if (collected / "sets" / each["set"]).exists()
    ]
    if not drawn.exists():
        _write_drawn(drawn / "sets", scenes[: len(found)])
    if not cut.exists():
        _cut_by_hand(cut / "sets", film, len(found))
    arms, seconds, captioned = [], {}, {}
    model = load_model("toyland", device="cpu", dtype="bf16")
    for place in (cut, collected, drawn):
        iclora(["caption", str(place / "sets"), "--captioner", "toyland"])
        for each in (place / "sets").glob("[0-9]*"):
            if not (each / "caption.txt").exists():  # The captioner could not tell what they show.
                shutil.rmtree(each)
        captioned[place.name] = len(list((place / "sets").glob("[0-9]*")))
        for seed in range(runs):
            adapter = place / f"adapter{f'-{seed}' * bool(seed)}.safetensors"
            name = f"{place.name}, run {seed + 1}"
            if not adapter.exists():
                shutil.rmtree(place / "run", ignore_errors=True)  # Another's, or a stopped one.
                made, seconds[name] = tune(model, _TASK, place, steps=steps, seed=seed)
                made.save(adapter)
            arms.append(Arm(name, Adapter.load(adapter)))
    cases = prompt_cases(_TASK, prompts, seeds)
    sampling = SampleSettings(steps=20)
    _, table = measure_arms(model, _TASK, arms, cases, out / "made", sampling)
    names = [arm.name for arm in arms] + [*pool(table)]
    figures = {
        row.name: {name: asdict(e) for name in names if (e := row.estimate(name))}
        for row in table.rows.values()
        if row.name.startswith(("toyland same", "toyland stated", "toyland diversity"))
    }
    return {
        "scenes": count,
        "sets": len(found),
        "of one": sum(alike),
        "captioned": captioned,
        "seconds": seconds,
        **figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--steps", type=int, default=75)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--runs", type=int, default=1, help="adapters of each kind of sets")
    parser.add_argument("--films", type=int, default=0, help="make only so many films")
    args = parser.parse_args()
    if args.films:
        args.folder.mkdir(parents=True, exist_ok=True)
        for seed in range(args.films):
            path = args.folder / f"story-{seed}.mp4"
            write_story(path, draw_scenes(args.scenes, seed), seed)
        return
    found = run(args.folder, args.scenes, args.steps, args.prompts, runs=args.runs)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
