"""What the engine without torch does of jobs that make no sets: runs, stories, comparisons, words.

It writes what the verbs write, as far as the page looks at it.
"""

from __future__ import annotations

import fcntl
import json
import tomllib
from pathlib import Path

import tomli_w

from iclora.files import append_line, write_text
from iclora.making.words import Story, plan_windows
from iclora.serve.engine import Outcome, WorkerDied
from iclora.serve.records import Files, place_of
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import load_recipe
from iclora.train.asked import asked_of, forget

__all__ = ["WORK", "write_adapter"]


def waited(engine, order):
    """None once a step may be taken; how the job ends if it is cancelled meanwhile."""
    while not engine.steps.acquire(timeout=0.01):
        if order.job in engine.cancelled:
            return Outcome("cancelled")
        if engine.stopped:
            raise WorkerDied("SIGTERM")
    return None


def train(engine, order, report, drawing):
    """A run whose steps wait for `engine.step`, a semaphore, if there is one."""
    told, run = order.input, Path(order.folder)
    run.mkdir(parents=True, exist_ok=True)
    if "resume" not in told:
        write_text(run / "config.toml", tomli_w.dumps({"train": {**told, "base": "toyland"}}))
    settings = tomllib.loads((run / "config.toml").read_text())["train"]
    rows = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = {"type": "note", "text": "base toyland on cpu in <b>float32</b>"}
        report(said)
        logs = run.parent.parent / ".iclora" / "logs"
        logs.mkdir(exist_ok=True)
        append_line(Files(place_of(logs, str(run))).notes, json.dumps(said))
        for step in range(len(rows) + 1, settings["steps"] + 1):
            while not engine.steps.acquire(timeout=0.01):
                if order.job in engine.ended_now:
                    return Outcome("cancelled", {"step": step - 1})
                if engine.stopped:
                    raise WorkerDied("SIGTERM")
            row = {"step": step, "loss": 1 / step, "sets": ["0001"]}
            append_line(run / "log.jsonl", json.dumps(row))
            losses = {"held out": {"loss": 1.1 / step}, "trained": {"loss": 1 / step}}
            append_line(run / "validation.jsonl", json.dumps({"step": step, **losses}))
            if "preview" in asked_of(run) or step == settings["steps"]:
                (run / "previews").mkdir(exist_ok=True)
                for name in ("base-1", f"step-{step:06d}-1", f"step-{step:06d}"):
                    drawing(3, 1, step).save(run / "previews" / f"{name}.png")
            if "save" in asked_of(run):
                (run / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
            forget(run)
            told = {"stage": "training", "done": step, "total": settings["steps"], "eta_s": 9.0}
            report({"type": "progress", **told})
            if order.job in engine.cancelled:
                return Outcome("cancelled", {"step": step})
    write_adapter(run / "adapter.safetensors", open_dataset(settings["data"]).recipe)
    return Outcome("succeeded", {"step": settings["steps"]})


def write_adapter(path, recipe):
    about = {"base": "toyland", "recipe": recipe.model_dump(mode="json"), "steps": 6}
    about |= {"layout": recipe.canvas.to_json(), "conditional": 0.5, "rank": 16}
    head = json.dumps({"__metadata__": {"iclora": json.dumps(about)}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)


def extend(engine, order, report, drawing):
    """A story, a canvas for each `engine.steps`."""
    told, out = order.input, Path(order.folder)
    story = Story.read(told["story"])
    engine.cancelled.discard(order.job)  # It is tried again.
    given = {int(n) for n in told.get("given", {})}
    plan = plan_windows(story, 3, tuple(told.get("anchor", (1,))), told.get("fresh"), given)
    for number, window in enumerate(plan, 1):
        new = [n for n in window.images if not (out / f"{n:02d}.png").exists()]
        if not new:
            continue
        if ended := waited(engine, order):
            return ended
        out.mkdir(parents=True, exist_ok=True)
        for n in new:
            drawing(3, 1 + n % 3, told["seed"] % 1000 + n).save(out / f"{n:02d}.png")
            report({"type": "preview", "path": str(out / f"{n:02d}.png")})
        said = {"stage": "extending", "done": number, "total": len(plan), "eta_s": 1.0}
        report({"type": "progress", **said})
    return Outcome("succeeded", {"images": [f"{n:02d}.png" for n in range(1, 99)]})


def evaluate(engine, order, report, drawing):
    """Sets of two arms or more, each of which takes a step, and their figures."""
    told, out = order.input, Path(order.folder)
    arms = ["base", *(text.partition("=")[0] for text in told.get("adapter", ()))]
    cases = len(told["prompt"]) * told.get("seeds", 1)
    figures = {}
    for at, arm in enumerate(arms):
        for number in range(cases):
            place = out / arm.replace("~", "-") / f"{number + 1:04d}"
            if (place / "composite.png").exists():  # Made before the server was stopped.
                continue
            if ended := waited(engine, order):
                return ended
            place.mkdir(parents=True, exist_ok=True)
            drawing(3, 1, 10 * at + number).save(place / "composite.png")
            said = {"stage": "making", "done": number + 1, "total": cases, "eta_s": 1.0}
            report({"type": "progress", **said})
        less = {"mean": 0.2, "low": 0.1, "high": 0.3, "count": cases} if at else None
        mean = {"mean": 0.5 + 0.2 * at, "low": 0.4, "high": 0.9, "count": cases}
        figures[arm] = {**mean, "difference": less, "values": {}}
    table = {"arms": {arm: {} for arm in arms}, "compared with": "base", "notes": ["few prompts"]}
    table["figures"] = {"same character": {"meaning": "share of sets", "arms": figures}}
    write_text(out / "evaluation.json", json.dumps(table))
    write_text(out / "report.html", "<b>report</b>")
    return Outcome("succeeded", {"arms": arms, "notes": []})


def prompt(engine, order, report, drawing):
    """The idea behind each of the recipe's markers, after a step."""
    recipe = load_recipe(order.input["recipe"])
    words = " ".join(f"{marker} {order.input['idea']}" for marker in recipe.markers)
    if ended := waited(engine, order):
        return ended
    return Outcome("succeeded", {"prompt": f"{recipe.prefix} {order.input['idea']} {words}"})


WORK = {"train": train, "extend": extend, "evaluate": evaluate, "prompt": prompt}
