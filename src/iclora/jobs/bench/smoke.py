"""Verbs that read, train or make, once each, on the device: a fault of one is found by name.

The verbs are the command line's own, told settings as a door tells them. A verb that fails costs
itself and those that need what it makes.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iclora.jobs.bench.child import in_short
from iclora.jobs.bench.measuring import clear
from iclora.jobs.bench.telling import Bench
from iclora.progress import Progress
from iclora.sets.recipe import load_recipe
from iclora.settings import settings_of

__all__ = ["Log", "compiled", "precisions", "verbs", "write_sets"]

_RECIPE = "film-storyboard"
_SIZE = "192x288"
"""Three panels of 192x96 px, a size that toyland knows."""


class Log:
    """A console that is a log."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def warn(self, text: str) -> None:
        print(f"note: {text}", flush=True)

    def tell(self, role: str, text: str) -> None:
        print(f"{role}: {text}", flush=True)

    def show(self, picture: Path) -> None:
        """Nothing."""

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        yield Progress()


class _Walk:
    """Verbs one after the other, on one base."""

    def __init__(self, bench: Bench, base: str) -> None:
        self.bench, self.base, self.folder = bench, base, bench.folder
        self.data = write_sets(bench.folder / "sets")
        self.prompt = _prompt(base)
        self.adapter = str(self.folder / "run" / "adapter.safetensors")
        self.passed = 0

    def do(self, what: str, verb: str, **told: Any) -> bool:
        """Run a verb as the command line does, and tell how long it took.

        Returns: True if it did what it should.
        Raises: RuntimeError if the card's context is lost: nothing on it works any more.
        """
        assert self.bench.verbs is not None
        found, console = self.bench.verbs().load(verb), Log()
        began = time.perf_counter()
        try:
            settings = (
                found.read(told, console) if found.read else settings_of(found.settings, told)
            )
            status = found.run(settings, console) or 0
        except Exception as error:
            traceback.print_exc()
            self.bench.fail(what, in_short(error))
            if self.bench.device != "cpu":
                torch.cuda.synchronize()
            return False
        if status:
            self.bench.fail(what, f"exit status {status}")
            return False
        self.passed += 1
        self.bench.tell(what, time.perf_counter() - began, "s")
        return True

    def machine(self, **more: Any) -> dict[str, Any]:
        """Settings of all verbs that compute."""
        return {"device": self.bench.device, "dtype": "bf16", **more}

    def train(self, what: str, run: str, **more: Any) -> bool:
        """Train three steps of two sets."""
        told: dict[str, Any] = {
            "base": self.base,
            "data": str(self.data),
            "out": str(self.folder / run),
            "steps": 3,
            "batch": 2,
            "rank": 4,
            "resolutions": (96, 128),
            "preview_every": 0,
            "trackers": (),
            "cache": str(self.folder / "cache"),
        }
        done = self.do(what, "train", **self.machine(**{**told, **more}))
        adapter = self.folder / run / "adapter.safetensors"
        if done and not adapter.is_file():
            self.bench.fail(what, "no adapter was written")
            return False
        return done

    def make(self, what: str, verb: str, out: str, **more: Any) -> bool:
        """Make a set by few steps, and look at its picture."""
        told: dict[str, Any] = {"steps": 3, "size": _SIZE, "prompt": (self.prompt,)}
        if not self.do(what, verb, **self.machine(**{**told, **more}), out=str(self.folder / out)):
            return False
        pictures = sorted((self.folder / out).glob("*/composite.png"))
        if not pictures:
            self.bench.fail(what, "no picture was written")
            return False
        low, high = Image.open(pictures[-1]).convert("L").getextrema()
        if low == high:
            self.bench.fail(what, "the picture has one colour: numbers overflowed")
        return low != high


def verbs(bench: Bench, base: str) -> None:
    """All verbs that need no network and no captioner, on one base in bf16."""
    walk = _Walk(bench, base)
    sets, made = walk.data, str(walk.folder / "made")
    first = str(sets / "0001" / "1.png")
    walk.do("recipes", "recipes")
    walk.do("compose", "compose", source=str(sets), out=str(walk.folder / "composed"))
    walk.do("check", "check", data=str(sets), base=base)
    walk.do("review", "review", data=str(sets), out=str(walk.folder / "review.html"))
    planned = {"base": base, "data": str(sets), "resolutions": (128,), "vram": 4.0}
    walk.do("plan", "plan", device=bench.device, **planned)
    trained = walk.train("train, with previews", "run", preview_every=3, preview_resolution=128)
    with_it: dict[str, Any] = (
        {"adapter": (walk.adapter,)} if trained else {"base": base, "recipe": _RECIPE}
    )
    if trained:
        walk.do("train, resumed", "train", resume=str(walk.folder / "run"), steps=5)
        walk.do("info", "info", file=walk.adapter)
        out = str(walk.folder / "kohya.safetensors")
        walk.do("export", "export", adapter=walk.adapter, format="kohya", out=out)
    if walk.make("generate", "generate", "made", **with_it):
        request = f"{made}/0001/request.json"
        again = {"request": request, "device": bench.device, "out": f"{made}-again"}
        walk.do("generate again", "generate", **again)
        on = {
            "set": f"{made}/0001",
            "panel": (2,),
            "out": f"{made}-rerolled",
            "device": bench.device,
        }
        walk.do("reroll", "reroll", **on)
    if bench.device != "cpu":
        replaying(walk, with_it)
    given = {"given": {1: first}}
    walk.make("complete", "complete", "completed", **with_it, **given)
    walk.make("complete, boosted", "complete", "boosted", **with_it, **given, mode="boost")
    _story(walk, with_it)
    walk.do(
        "evaluate",
        "evaluate",
        **walk.machine(steps=2, size=_SIZE, base=base, recipe=_RECIPE, prompt=(walk.prompt,)),
        metric=("toyland",),
        out=str(walk.folder / "evaluation"),
    )
    bench.tell("verbs that passed", walk.passed)


def replaying(walk: _Walk, with_it: dict[str, Any]) -> None:
    """A set by replayed passes; it fails where none could be recorded, which is only warned of."""
    what, heard = "generate, passes replayed", _Heard()
    logger = logging.getLogger("iclora.models")
    logger.addHandler(heard)
    try:
        walk.make(what, "generate", "replayed", **with_it, graphs=True)
    finally:
        logger.removeHandler(heard)
    if heard.said:
        walk.bench.fail(what, heard.said[0])


class _Heard(logging.Handler):
    """Keeps what recording and replaying warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.module == "graphs":
            self.said.append(record.getMessage())


def _story(walk: _Walk, with_it: dict[str, Any]) -> None:
    story = walk.folder / "story.txt"
    parts = walk.prompt.replace("[MOVIE-SHOTS]", "").split("[SCENE-")
    lines = [part.split("]", 1)[-1].strip(" ,") for part in parts]
    story.write_text("\n".join([lines[0], "", *lines[1:], lines[-1]]) + "\n", encoding="utf-8")
    told = walk.machine(steps=2, size=_SIZE, **with_it)
    walk.do("extend", "extend", story=str(story), **told, out=str(walk.folder / "story"))


def precisions(bench: Bench, base: str) -> None:
    """Training and making with quantised blocks, and with some blocks recomputed."""
    walk = _Walk(bench, base)
    for kind in ("int8", "nf4", "fp8"):
        if walk.train(f"train in {kind}", kind, precision=kind):
            run = walk.folder / kind
            walk.do(f"train in {kind}, resumed", "train", resume=str(run), steps=5)
            adapter = str(run / "adapter.safetensors")
            how = {"precision": kind, "adapter": (adapter,)}
            walk.make(f"generate in {kind}", "generate", f"made-{kind}", **how)
        clear(torch.device(bench.device))
    walk.train("train, one block recomputed", "recomputed", recompute=1)
    walk.train("train, none recomputed, given panels", "given", recompute=0, conditional=0.5)
    at_home = {"offload": "blocks"}
    if walk.train("train, blocks in the machine's memory", "streamed", **at_home):
        adapter = str(walk.folder / "streamed" / "adapter.safetensors")
        walk.make("generate so", "generate", "made-streamed", adapter=(adapter,), **at_home)
    walk.train("train, texts apart", "apart", text="isolated", micro_batch=2)
    bench.tell("commands that passed", walk.passed)


def compiled(bench: Bench, base: str) -> None:
    """A run with compiled blocks; its first steps compile."""
    walk = _Walk(bench, base)
    walk.train("train, compiled: compiling and 3 steps", "one", compile=True, resolutions=(128,))
    walk.train("the same again in this process", "two", compile=True, resolutions=(128,))


def write_sets(folder: Path, count: int = 2) -> Path:
    """Write storyboards of three panels, with words that every small base reads."""
    for number in range(1, count + 1):
        place = folder / f"{number:04d}"
        place.mkdir(parents=True)
        for panel in range(1, 4):
            shade = (40 * number + 30, 60 * panel, 200 - 50 * panel)
            picture = Image.new("RGB", (192, 96), shade)
            picture.paste((230, 200, 90), (24 * panel, 16, 24 * panel + 60, 80))
            picture.save(place / f"{panel}.png")
        (place / "caption.txt").write_text(_prompt("toyland"), encoding="utf-8")
    (folder / "iclora.toml").write_text(f'recipe = "{_RECIPE}"\n', encoding="utf-8")
    return folder


def _prompt(base: str) -> str:
    if base == "toyland":
        # In the words that its small text encoder was trained on.
        return (
            "[MOVIE-SHOTS] In a meadow by day, a red lion with a hat, [SCENE-1] the lion stands on "
            "the left, [SCENE-2] the lion stands in the middle, [SCENE-3] the lion stands on the "
            "right."
        )
    return load_recipe(_RECIPE).example.strip()
