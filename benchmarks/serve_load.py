"""Measure the server: its start and memory, its queue under load, and what kills leave of it.

    python -m benchmarks.serve_load start queue web-kills overhead worker-kills soak
    python -m benchmarks.serve_load web-kills --kills 50 --seed 1
    python -m benchmarks.serve_load kills soak --base toyland --write
    python -m benchmarks.serve_load ray ray-same ray-kills --base toyland   # needs iclora[ray]

Everything runs on loopback in a folder that is removed. `start`, `overhead`, `kills`,
`worker-kills` and `soak` run `iclora serve` itself, by default with a base of random weights
(`--base`); `queue` and `web-kills` run the same web process with the tests' engine, which makes
sets of one colour in no time, so that the figures are the web process's own. `kills` is `web-kills`
with real workers. With `--write` each puts what it found into RESULTS.md.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.results import put

ROOT = Path(__file__).parents[1]
PROMPT = "[MOVIE-SHOTS] A day, [SCENE-1] a fox runs, [SCENE-2] it rests, [SCENE-3] it eats."
SAID: list[str] = []
SMALL = {"recipe": "film-storyboard", "size": "64x96", "steps": 2}
TOLD = {"recipe": "film-storyboard", "size": "128x192", "steps": 4}


class Web:
    """A server as a process of its own.

    Args:
        command: what starts it; its first line of output names the port.
    """

    def __init__(self, folder: Path, *command: str) -> None:
        self.began = time.perf_counter()
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.log = (folder / "log.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        )
        assert self.process.stdout
        line = ""
        while not line.startswith(("serving", "http")) and not line.strip().isdecimal():
            line = self.process.stdout.readline()
            assert line, "it ended"
        self.port = int(re.findall(r"([0-9]+)(?= with |$)", line)[-1])
        self.token = (folder / ".iclora" / "token").read_text().strip()
        self._mine = threading.local()
        while True:
            try:
                self.ask("GET", "/healthz")
                break
            except OSError:
                time.sleep(0.005)
        self.first_byte = time.perf_counter() - self.began

    def ask(
        self, method: str, path: str, body: Any = None, key: str | None = None, again: bool = True
    ) -> tuple[int, Any]:
        """A request on this thread's own connection. Returns: status and JSON."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        if body and body.get("wait"):
            headers["Prefer"] = f"wait={body.pop('wait')}"
        try:
            self._mine.connection.request(method, path, body and json.dumps(body), headers)
            answer = self._mine.connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in b"{[" else text
        except (OSError, http.client.HTTPException) as error:
            self._mine.connection.close()
            del self._mine.connection
            if method == "GET" and again:  # It was idle for long.
                return self.ask(method, path, again=False)
            raise ConnectionError(str(error)) from error

    def post(self, key: str | None = None, **told: Any) -> tuple[int, Any]:
        wait = told.pop("wait", None)
        body = {"kind": "generate", "input": {"prompt": [PROMPT], **told}}
        return self.ask("POST", "/api/v1/jobs", {**body, "wait": wait} if wait else body, key)

    def done(self) -> int:
        """Jobs that have succeeded."""
        text = self.ask("GET", "/metrics")[1].decode()
        counts = re.findall(r"^iclora_jobs_total.*succeeded.* ([0-9.]+)$", text, re.MULTILINE)
        return int(sum(map(float, counts)))

    def made(self, **told: Any) -> dict[str, Any]:
        """A job once it has ended, however long a busy machine takes."""
        job = self.post(**told, wait=60)[1]
        while job["status"] in ("queued", "running"):
            time.sleep(0.1)
            job = self.ask("GET", f"/api/v1/jobs/{job['id']}")[1]
        return dict(job)

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.ask("GET", f"/api/v1/jobs?limit=1000{cursor}")[1]
            found += page["jobs"]
            if page["cursor"] is None:
                return found
            cursor = f"&cursor={page['cursor']}"

    def wait_until_ready(self) -> float:
        while self.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.1)
        return time.perf_counter() - self.began

    def wait_until_done(self, every: float = 0.1) -> None:
        while True:
            state = self.ask("GET", "/api/v1/queue")[1]
            if not state["waiting"] and not state["running"]:
                return
            time.sleep(every)

    def memory(self, pid: int | None = None) -> float:
        """MB that a process holds now."""
        status = Path(f"/proc/{pid or self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+([0-9]+)", status)[0]) / 1e3

    def workers(self, *kinds: str) -> list[int]:
        """Numbers of the worker processes, or of others that it started, directly or not."""
        parents: dict[int, int] = {}
        named: list[int] = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, fields = int(path.parent.name), path.read_text().rpartition(")")[2].split()
                words = (path.parent / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            parents[pid] = int(fields[1])
            if any(kind in words for kind in kinds or ("iclora.serve.worker",)):
                named.append(pid)

        def is_own(pid: int) -> bool:
            while pid in parents and pid != self.process.pid:
                pid = parents[pid]
            return pid == self.process.pid

        return [pid for pid in named if is_own(pid)]

    def end(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.communicate(timeout=120)
        self.log.close()


def real(folder: Path, base: str, *more: str) -> Web:
    return Web(folder, "iclora", "serve", str(folder), "--base", base, "--port", "0", *more)


def fake(folder: Path, how: str) -> Web:
    return Web(folder, "tests.serve.serving", str(folder), how)


def say(text: str) -> None:
    """Print a finding, and keep it for RESULTS.md."""
    print(text, flush=True)
    SAID.append(text)


def spread(values: list[float], unit: str = "s") -> str:
    middle = statistics.median(values)
    return f"{middle:.3g} {unit} ({min(values):.3g} to {max(values):.3g}, {len(values)} times)"


def start(args: argparse.Namespace, folder: Path) -> None:
    """From the command to the first byte, and to a loaded base; what the web process holds."""
    first, ready, memory = [], [], []
    for _ in range(args.rounds):
        web = real(folder, args.base)
        first.append(web.first_byte)
        ready.append(web.wait_until_ready())
        web.post(**TOLD, wait=60)
        memory.append(web.memory())
        web.end()
    say(f"start to first byte  {spread(first)}; until {args.base} is loaded {spread(ready)}")
    say(f"memory of the web process after a job  {spread(memory, 'MB')}")


def queue(args: argparse.Namespace, folder: Path) -> None:
    """Posts one after the other, 1,000 from 32 clients, a list, and cancelling all."""
    web = fake(folder, "paused")
    one = []
    for _ in range(200):
        began = time.perf_counter()
        assert web.post()[0] == 202
        one.append((time.perf_counter() - began) * 1e3)
    web.ask("POST", "/api/v1/queue", {"cancel_waiting": True})
    say(f"POST a job: p50 {statistics.median(one):.2f} ms, p95 {sorted(one)[189]:.2f} ms")
    for _ in range(args.rounds):
        began = time.perf_counter()
        with ThreadPoolExecutor(32) as clients:
            ids = [job["id"] for _, job in clients.map(lambda _: web.post(), range(1000))]
        took = time.perf_counter() - began
        began = time.perf_counter()
        listed = web.ask("GET", "/api/v1/jobs?status=queued&limit=1000")[1]["jobs"]
        list_ms = (time.perf_counter() - began) * 1e3
        lost = len(set(ids) - {job["id"] for job in listed})
        began = time.perf_counter()
        gone = web.ask("POST", "/api/v1/queue", {"cancel_waiting": True})[1]["cancelled"]
        cancel = time.perf_counter() - began
        say(
            f"1,000 posts from 32 clients {took:.2f} s, {lost} lost; list of 1,000 "
            f"{list_ms:.0f} ms; cancel all {gone} {cancel:.2f} s; memory {web.memory():.0f} MB"
        )
    web.end()


def web_kills(args: argparse.Namespace, folder: Path) -> None:
    """SIGKILL of the web process at random moments while four clients post."""
    draw = random.Random(args.seed)
    acknowledged: dict[str, tuple[str, int]] = {}
    asked: dict[str, int] = {}
    lock = threading.Lock()
    back = []

    def client(web: Web, stop: threading.Event) -> None:
        while not stop.is_set():
            with lock:
                key, seed = f"key-{len(asked)}", len(asked)
                asked[key] = seed
            try:
                status, job = web.post(key, seed=seed)
            except ConnectionError:
                return
            if status in (200, 202):
                with lock:
                    acknowledged[key] = job["id"], seed

    for _ in range(args.kills):
        web, stop = fake(folder, "0.02"), threading.Event()
        back.append(web.first_byte)
        clients = [threading.Thread(target=client, args=(web, stop)) for _ in range(4)]
        for each in clients:
            each.start()
        time.sleep(draw.uniform(0.0, 0.8))
        web.end(signal.SIGKILL)
        stop.set()
        for each in clients:
            each.join()
    web = fake(folder, "0.0")
    # What was asked and never answered is asked again with its key.
    for key, seed in asked.items():
        if key not in acknowledged:
            acknowledged[key] = web.post(key, seed=seed)[1]["id"], seed
    web.wait_until_done()
    found = {job["id"]: job for job in web.jobs()}
    web.end()
    report(folder, found, acknowledged, args.kills, lambda seed: _colour(folder, seed))
    say(f"  back after a kill: {spread(back)}")


def kills(args: argparse.Namespace, folder: Path) -> None:
    """SIGKILL of the web process at random moments while clients post, with real workers.

    Its worker ends with it, and the next one's loads the base anew. Each kill but every fifth comes
    after a further job has ended, or one job would take them all and be given up after five.
    """
    from tests.serve.broker import broker

    draw, took = random.Random(args.seed), 1.0
    acknowledged: dict[str, tuple[str, int]] = {}
    asked: dict[str, int] = {}
    hit = {"loading": 0, "idle": 0, "at work": 0}
    place = folder / "broker"

    def web() -> Web:
        return Web(folder, "tests.serve.serving", str(folder), "real", args.base, str(place))

    def client(web: Web, stop: threading.Event) -> None:
        while not stop.wait(took):
            key, seed = f"key-{len(asked)}", len(asked)
            try:
                if web.ask("GET", "/api/v1/queue")[1]["waiting"] > 4:
                    continue
                asked[key] = seed
                status, job = web.post(key, seed=seed, **SMALL)
            except ConnectionError:
                return
            if status in (200, 202):
                acknowledged[key] = job["id"], seed

    with broker(place):
        for number in range(args.kills):
            at, stop = web(), threading.Event()
            posting = threading.Thread(target=client, args=(at, stop))
            posting.start()
            before = at.done()
            while (number + 1) % 5 and at.done() == before:
                time.sleep(0.1)
            if ended := at.ask("GET", "/api/v1/jobs?status=succeeded&limit=1")[1]["jobs"]:
                took = min(5.0, max(0.1, ended[0]["ended"] - ended[0]["started"]))
            time.sleep(draw.uniform(0.0, 2 * took))
            busy = at.ask("GET", "/api/v1/queue")[1]["running"]
            ready = at.ask("GET", "/readyz")[0] == 200
            hit["at work" if busy else "idle" if ready else "loading"] += 1
            at.end(signal.SIGKILL)
            stop.set()
            posting.join()
            print(number + 1, hit, len(asked), flush=True)
        at = web()
        for key, seed in asked.items():
            if key not in acknowledged:
                acknowledged[key] = at.post(key, seed=seed, **SMALL)[1]["id"], seed
        at.wait_until_done(0.5)
        found = {job["id"]: job for job in at.jobs()}
        # The same jobs again, undisturbed.
        alone = {seed: at.made(seed=seed, **SMALL)["id"] for seed in asked.values()}
        at.end()
    say(f"the web process was killed {', '.join(f'{n} times {what}' for what, n in hit.items())}")
    places = {seed: folder / "out" / job / "0001" for seed, job in alone.items()}
    report(folder, found, acknowledged, args.kills, lambda seed: _digest(places[seed]))


def _colour(folder: Path, seed: int) -> str:
    from tests.serve.fake import make_set

    alone = make_set(folder / "alone" / str(seed), {"seed": seed, "prompt": [PROMPT]})
    return _digest(alone)


def _digest(made: Path) -> str:
    names = sorted(path for path in made.iterdir() if path.suffix == ".png")
    return hashlib.sha256(b"".join(path.read_bytes() for path in names)).hexdigest()


def report(
    folder: Path,
    found: dict[str, dict[str, Any]],
    acknowledged: dict[str, tuple[str, int]],
    kills: int,
    alone: Callable[[int], str],
) -> None:
    """How many acknowledged jobs were lost, doubled, given up, or made differently."""
    ids = {job for job, _ in acknowledged.values()}
    states = [found[job]["status"] for job in ids & found.keys()]
    doubled, differ, leftovers = 0, 0, 0
    for job, seed in acknowledged.values():
        place = folder / "out" / job
        sets = sorted(place.glob("0*")) if place.is_dir() else []
        doubled += len(sets) > 1
        leftovers += len(list(place.glob(".*.tmp"))) if place.is_dir() else 0
        if found.get(job, {}).get("status") == "succeeded":
            differ += len(sets) != 1 or _digest(sets[0]) != alone(seed)
    again = sum(job["attempt"] > 1 for job in found.values())
    say(
        f"{kills} kills under load: {len(ids)} acknowledged jobs, {len(ids - found.keys())} lost, "
        f"{len(found) - len(ids)} more than asked for, {doubled} with two sets, {differ} not as "
        f"undisturbed; {states.count('succeeded')} succeeded, {states.count('failed')} given up "
        f"after five attempts, {again} tried again, {leftovers} half-written files left"
    )


def overhead(args: argparse.Namespace, folder: Path) -> None:
    """A job's time, from its post to its end, over the same `generate` in one warm process."""
    from iclora.jobs.making import make
    from iclora.progress import Progress
    from iclora.serve.warm import Warm
    from iclora.serve.worker import JobConsole
    from iclora.settings import GenerateSettings, settings_of

    web = real(folder, args.base)
    web.wait_until_ready()
    warm, bare, served, inside = Warm(), [], [], []
    for number in range(args.jobs + 2):
        out = folder / "bare" / str(number)
        told = {**TOLD, "prompt": (PROMPT,), "seed": number, "base": args.base, "out": str(out)}
        settings = settings_of(GenerateSettings, told)
        console = JobConsole(str(out), lambda _: None)
        assert isinstance(console.work, Progress)
        began = time.perf_counter()
        make(settings, console, warm)
        bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        job = web.post(**TOLD, seed=number, wait=60)[1]
        served.append(time.perf_counter() - began)
        inside.append(job["ended"] - job["started"])
        assert _digest(out / "0001") == _digest(folder / "out" / job["id"] / "0001"), "other bytes"
    web.end()
    bare, served, inside = bare[2:], served[2:], inside[2:]
    more = statistics.median(s - b for s, b in zip(served, bare, strict=True)) * 1e3
    say(
        f"job over HTTP {spread(served)}, from claim to end {spread(inside)}, bare generate "
        f"{spread(bare)}: {more:.0f} ms more; same bytes"
    )


def worker_kills(args: argparse.Namespace, folder: Path) -> None:
    """SIGKILL of the worker at random moments while jobs run."""
    from tests.serve.broker import broker

    place = folder / "broker"
    with broker(place) as pids:
        web = Web(folder, "tests.serve.serving", str(folder), "real", args.base, str(place))
        kill_some(args, folder, web, find=lambda _: pids[-1:])


def ray_kills(args: argparse.Namespace, folder: Path) -> None:
    """SIGKILL of a Ray replica, its worker or its bridge at random moments while jobs run."""
    web = real(folder, args.base, "--engine", "ray", "--cpus", "2")
    kill_some(args, folder, web, "ray::Replica", "iclora.serve.worker", "cluster.bridge")


def kill_some(
    args: argparse.Namespace,
    folder: Path,
    web: Web,
    *kinds: str,
    find: Callable[[str], list[int]] | None = None,
) -> None:
    """Kill one process of each kind after the other, each after a further job has ended.

    Args:
        find: gives the numbers of the processes of a kind; by default those that the server runs.
    """
    draw = random.Random(args.seed)
    web.wait_until_ready()
    acknowledged = {}
    by_kind: dict[str, int] = {}
    kills = 0

    def ended() -> int:
        state = web.ask("GET", "/api/v1/queue")[1]
        return len(acknowledged) - int(state["waiting"]) - int(state["running"])

    while kills < args.kills:
        for seed in range(len(acknowledged), len(acknowledged) + 2):
            acknowledged[f"key-{seed}"] = web.post(f"key-{seed}", seed=seed, **TOLD)[1]["id"], seed
        done = ended()
        while ended() == done:  # Else one job takes every kill, and is given up after five.
            time.sleep(0.1)
        time.sleep(draw.uniform(0.0, 1.0))
        kind = kinds[kills % len(kinds)] if kinds else "iclora.serve.worker"
        if there := (find or web.workers)(kind):
            os.kill(draw.choice(there), signal.SIGKILL)
            kills += 1
            by_kind[kind] = by_kind.get(kind, 0) + 1
            print(by_kind, len(acknowledged), flush=True)
        if not kinds:
            web.wait_until_ready()
    web.wait_until_done()
    say(", ".join(f"{count} of {kind}" for kind, count in by_kind.items()))
    found = {job["id"]: job for job in web.jobs()}
    seeds = dict(acknowledged.values())
    alone = {}
    for seed in seeds.values():  # The same jobs again, undisturbed.
        alone[seed] = _digest(folder / "out" / web.made(seed=seed, **TOLD)["id"] / "0001")
    web.end()
    report(folder, found, acknowledged, kills, alone.__getitem__)


def ray(args: argparse.Namespace, folder: Path) -> None:
    """Two Ray replicas against one, a thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    told = {**TOLD, "steps": args.steps}
    minutes: dict[int, list[float]] = {1: [], 2: []}
    made: dict[tuple[int, int, int], str] = {}
    for number in range(args.rounds):
        for count in (1, 2):
            place = folder / f"{number}-{count}"
            place.mkdir()
            web = real(place, args.base, "--engine", "ray", "--cpus", str(count))
            ready = web.wait_until_ready()
            web.ask("POST", "/api/v1/queue", {"paused": True})
            jobs = {seed: web.post(**told, seed=seed)[1]["id"] for seed in range(args.jobs)}
            began = time.time()
            web.ask("POST", "/api/v1/queue", {"paused": False})
            web.wait_until_done(1.0)  # Asking takes a share of the cores, too.
            ended = max(job["ended"] for job in web.jobs())
            minutes[count].append(args.jobs / (ended - began) * 60)
            for seed, job in jobs.items():
                made[number, count, seed] = _digest(place / "out" / job / "0001")
            if number == 0:
                held = sum(map(web.memory, web.workers("cluster.bridge"))) / count
                say(
                    f"{count} replicas: ready after {ready:.1f} s; the web process holds "
                    f"{web.memory():.0f} MB, a bridge {held:.0f} MB"
                )
            web.end()
    one, two = (statistics.median(minutes[count]) for count in (1, 2))
    say(
        f"sets a minute: one replica {spread(minutes[1], '')}, two {spread(minutes[2], '')}: "
        f"{two / one:.2f} times; {len(set(made.values()))} different sets of {args.jobs} requests"
    )


def ray_same(args: argparse.Namespace, folder: Path) -> None:
    """One request by the command line, the API and Ray; sets and an evaluation shared on a cluster.

    All with a thread each, or sums round otherwise.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    prompts = [PROMPT, PROMPT.replace("fox", "bear")]
    (folder / "prompts.txt").write_text("\n\n".join(prompts))
    how = ["--recipe", TOLD["recipe"], "--size", TOLD["size"], "--steps", str(args.steps)]
    words = ["--base", args.base, "--prompts", str(folder / "prompts.txt"), *how]
    on_ray = ["--engine", "ray", "--workers", "2", "--device", "cpu"]

    def run(name: str, verb: str, *more: str) -> Path:
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        subprocess.run(
            [sys.executable, "-m", "iclora", verb, *words, *more, "--out", str(folder / name)],
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return folder / name

    def served(name: str, *more: str) -> str:
        place = folder / name
        place.mkdir()
        web = real(place, args.base, *more)
        job = web.made(**{**TOLD, "steps": args.steps}, seed=0)["id"]
        web.end()
        return _digest(place / "out" / job / "0001")

    line, shared = run("line", "generate"), run("shared", "generate", *on_ray)
    ways = {_digest(line / "0001"), served("api"), served("ray", "--engine", "ray", "--cpus", "2")}
    say(f"one request by the command line, the API and Ray: {len(ways)} different sets")
    pairs = [(_whole(line / name), _whole(shared / name)) for name in ("0001", "0002")]
    equal = sum(one == two for one, two in pairs)
    say(f"`generate --workers 2 --engine ray`: {equal} of {len(pairs)} sets as by one process")
    told: list[str] = ["--seeds", "2"]
    if args.base == "toyland":
        from benchmarks.serve_warm import write_adapters

        adapters = write_adapters(folder)
        told += [word for file in adapters for word in ("--adapter", str(file))]
    one, two = run("one", "evaluate", *told), run("two", "evaluate", *told, *on_ray)
    sets = sorted(path.parent.relative_to(one) for path in one.rglob("request.json"))
    equal = sum(_whole(one / each) == _whole(two / each) for each in sets)
    rows = [_figures_of(each) for each in (one, two)]
    same = sum(rows[1].get(name) == row for name, row in rows[0].items())
    say(
        f"`evaluate --workers 2 --engine ray`: {equal} of {len(sets)} sets and {same} of "
        f"{len(rows[0])} rows of figures as by one process (seconds and memory left out)"
    )


def _whole(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _figures_of(out: Path) -> dict[str, Any]:
    found = json.loads((out / "evaluation.json").read_text())["figures"]
    return {name: row for name, row in found.items() if name not in ("seconds", "memory")}


def soak(args: argparse.Namespace, folder: Path) -> None:
    """Many jobs: what every process holds after the first tenth, and at the end.

    With toyland's base they take two adapters, five jobs each, and a hundred prompts: the texts
    that a worker keeps are all there after the first hundred jobs.
    """
    told = [dict(TOLD)]
    if args.base == "toyland":
        from benchmarks.serve_warm import TASK, write_adapters
        from iclora.toyland.tasks import draw_set

        (folder / "adapters").mkdir()
        for file in write_adapters(folder / "made"):
            shutil.move(file, folder / "adapters" / f"{file.parent.name}.safetensors")
        texts = [draw_set(TASK, random.Random(f"soak {n}"))[1].text for n in range(100)]
        own = {"size": TOLD["size"], "steps": 2}
        told = [
            own | {"adapter": [f"adapter-{n // 5 % 2 + 1}"], "prompt": [text]}
            for n, text in enumerate(texts)
        ]
    web = real(folder, args.base)
    web.wait_until_ready()
    sizes: list[tuple[int, float, float]] = []
    began = time.perf_counter()
    for number in range(1, args.soak + 1):
        job = web.made(**told[number % len(told)], seed=number)
        assert job["status"] == "succeeded", job
        if number % max(1, args.soak // 10) == 0:
            sizes.append((number, web.memory(), sum(map(web.memory, web.workers()))))
            print(*sizes[-1], flush=True)
    took = time.perf_counter() - began
    web.end()
    for name, at in (("web process", 1), ("worker", 2)):
        first, last = sizes[0][at], sizes[-1][at]
        most = max(size[at] for size in sizes)
        say(
            f"{name}: {first:.0f} MB after {sizes[0][0]} jobs, {last:.0f} MB after {args.soak} "
            f"({last / first - 1:+.1%}), {most:.0f} MB at most ({most / first - 1:+.1%})"
        )
    say(f"{args.soak} jobs of {args.base} in {took:.0f} s")


WHAT: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "start": start,
    "queue": queue,
    "web-kills": web_kills,
    "kills": kills,
    "overhead": overhead,
    "worker-kills": worker_kills,
    "soak": soak,
    "ray": ray,
    "ray-same": ray_same,
    "ray-kills": ray_kills,
}


TITLES = {
    "kills": "The web process is killed while real workers make sets",
    "worker-kills": "Workers are killed",
    "soak": "A thousand jobs",
    "ray": "Replicas of a Ray cluster",
    "ray-same": "The same bytes on a Ray cluster",
}


def write(name: str, args: argparse.Namespace) -> None:
    """Put what was said into RESULTS.md, with the command, the day and how busy the machine was."""
    words = [name, *(["--base", args.base] if args.base != "tiny" else [])]
    words += [f"--seed {args.seed}"] * bool(args.seed)
    words += [f"--steps {args.steps}"] * (name.startswith("ray") and args.steps != 20)
    busy = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    command = f"`python -m benchmarks.serve_load {' '.join(words)}`"
    lines = [f"{command}, {time.strftime('%Y-%m-%d, %H:%M')}, {busy}:", ""]
    put(f"### {TITLES.get(name, name)}", "\n".join([*lines, *(f"- {text}" for text in SAID)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", nargs="+", choices=WHAT)
    parser.add_argument("--base", default="tiny", help="of what runs `iclora serve` itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=20, help="of overhead and ray")
    parser.add_argument("--steps", type=int, default=20, help="of a set of ray")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--soak", type=int, default=1000, help="jobs of soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put it into RESULTS.md")
    args = parser.parse_args()
    for name in args.what:
        SAID.clear()
        folder = Path(tempfile.mkdtemp(prefix="serve-load-"))
        try:
            WHAT[name](args, folder)
            if args.write:
                write(name, args)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
