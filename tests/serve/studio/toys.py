"""An engine without torch that draws toyland's sets, and a server with its page in a thread."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from functools import cache
from pathlib import Path

import uvicorn
from PIL import Image
from pydantic import TypeAdapter

from iclora.cli.serving import _listen
from iclora.errors import SettingsError
from iclora.files import work_folder
from iclora.serve.engine import Outcome, WorkerDied
from iclora.serve.inputs import asks
from iclora.serve.routes.jobs import submit
from iclora.serve.server import Server
from iclora.serve.studio.app import link, make_studio
from iclora.serve.studio.toys import with_its_own, write_toy_recipes, write_toy_sets
from iclora.sets.dataset import caption_path, open_dataset
from iclora.sets.images import open_image
from iclora.sets.recipe import load_recipe
from iclora.settings import StudioSettings
from iclora.toyland.tasks import TASKS, draw_set
from tests.serve.fake import FakeEngine
from tests.serve.studio.toywork import WORK


class ToyEngine(FakeEngine):
    """Draws what a base would paint; `pause` is the time of each of its four steps, s."""

    pause = 0.0

    def __init__(self):
        super().__init__()
        self.steps = threading.Semaphore(10**6)
        """Steps of runs and canvases of stories that may be taken."""

    def run(self, worker, order, report):
        self.orders.append(order)
        if order.kind in WORK:
            return WORK[order.kind](self, order, report, drawing)
        for step in range(5):
            report(
                {"type": "progress", "stage": "sampling", "done": step, "total": 4, "eta_s": 2.0}
            )
            time.sleep(self.pause)
            while not self.go.wait(0.005):
                if order.job in self.cancelled:
                    return Outcome("cancelled")
                if self.stopped:
                    raise WorkerDied("SIGTERM")
        if self.failure:
            raise self.failure
        if order.kind == "caption":
            return Outcome("succeeded", caption(order))
        for number in range(order.input.get("count", 1)):
            folder = Path(order.folder) / f"{number + 1:04d}"
            if not folder.exists():
                paint(folder, order.input, number)
        return Outcome("succeeded", {})


def caption(order):
    """Write the recipe's example beside the sets that an order names, as the verb does."""
    dataset = open_dataset(order.input["data"])
    only = order.input.get("only") or [s.name for s in dataset.sets if s.words is None]
    for image_set in dataset.sets:
        if image_set.name in only:
            text = dataset.recipe.example.replace(";", f", {image_set.name};", 1)
            caption_path(dataset, image_set).write_text(f"{text}\n")
    return {"problems": [], "written": list(only), "kept": [], "failed": []}


def _given(number):
    return {"file": f"panel-{number}.png", "sha256": "x"}


def paint(folder, told, number=0):
    """Write a set as `GeneratedSet.save` does, as far as the page looks at it."""
    old = told.get("request") or (Path(told["set"]) / "request.json" if "set" in told else None)
    if old:
        request = json.loads(Path(old).read_text(encoding="utf-8"))
        given = {}
        seeds = list(request["seeds"])
        for panel in told.get("panel", ()):
            seeds[panel - 1] = told["seed"]
        request["seeds"] = seeds
        if "panel" in told:  # What stays is given to the others, by its latents.
            stays = set(range(1, len(seeds) + 1)) - set(told["panel"])
            request["given"] = {str(n): {**_given(n), "latents": "x"} for n in stays}
    else:
        recipe = load_recipe(told["recipe"])
        given = {int(n): open_image(path) for n, path in told.get("given", {}).items()}
        canvas = recipe.canvas.model_dump(mode="json")
        start = told["seed"] + number
        request = {
            "base": "toyland", "base_fingerprint": "x", "device": "cpu", "dtype": "fp32",
            "recipe": recipe.name, "prompt": recipe.prompt(told["prompt"][0])[0],
            "layout": canvas, "seeds": [start * 10 + n for n in range(len(canvas["boxes"]))],
            "steps": told.get("steps", 20), "guidance": 3.5, "mode": told.get("mode", "sdedit"),
            "given": {str(n): _given(n) for n in given},
            "adapter": (told.get("adapter") or [None])[0],
        }  # fmt: skip
    boxes = request["layout"]["boxes"]
    whole = Image.new("RGB", (request["layout"]["width"], request["layout"]["height"]), "white")
    with work_folder(folder) as work:
        for n, (left, top, width, height) in enumerate(boxes, 1):
            picture = given.get(n) or drawing(len(boxes), n, request["seeds"][n - 1])
            picture.save(work / f"panel-{n}.png")
            whole.paste(picture.resize((width, height)), (left, top))
        whole.save(work / "composite.png")
        (work / "request.json").write_text(json.dumps(request), encoding="utf-8")


@cache
def drawing(panels, number, seed):
    """A panel of a drawn set of so many panels."""
    task = {2: "visual-identity", 3: "film-storyboard"}.get(panels, "portrait-photography")
    return draw_set(TASKS[task], random.Random(seed))[0].panels[number - 1].render()


def below(app, prefix="/a/b"):
    """An app that is also reached below a prefix, which a proxy in front would take away."""

    async def stripped(scope, receive, send):
        if scope.get("path", "").startswith(f"{prefix}/"):
            scope = {**scope, "path": scope["path"].removeprefix(prefix)}
        await app(scope, receive, send)

    return stripped


def listen_aside():
    """A socket at a port that no outgoing connection is given while the server is stopped."""
    while True:
        with contextlib.suppress(SettingsError):  # Another server has it.
            return _listen(StudioSettings(port=random.randrange(20_000, 32_000)))


class Studio:
    """A server with its page on a port of this machine; `stop` and `start` keep folder and port."""

    def __init__(self, folder, engine=None):
        self.folder, self.engine, self.port = folder, engine or ToyEngine(), 0
        write_toy_recipes(folder)
        write_toy_sets(folder)
        self.start()

    def start(self):
        # As the command listens: another socket holds each answer back for 40 ms.
        self.listening = _listen(StudioSettings(port=self.port)) if self.port else listen_aside()
        self.port = self.listening.getsockname()[1]
        settings = with_its_own(StudioSettings(folder=str(self.folder)), "toyland")
        self.server = Server(settings, "toyland", self.engine)
        app = make_studio(self.server)
        config = uvicorn.Config(
            below(app), log_config=None, access_log=False, timeout_graceful_shutdown=2
        )
        self._web = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._web.run, args=([self.listening],), daemon=True)
        self._thread.start()

    def stop(self):
        self.server.go_down()
        self._web.should_exit = True
        self._thread.join(200)
        self.listening.close()

    @property
    def link(self):
        return link(self.server, f"http://127.0.0.1:{self.port}")

    def post(self, kind, told):
        """Queue a job, as another program would."""
        ask = TypeAdapter(asks).validate_python({"kind": kind, "input": told})
        return submit(self.server, ask, "")[0]
