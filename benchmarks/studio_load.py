"""Measure the page: first paint, requests, galleries of many sets, and what it costs when idle.

    python benchmarks/studio_load.py            # prints the figures
    python benchmarks/studio_load.py --write    # and puts them into RESULTS.md

A Chromium of the distribution without a cache opens the page of a server on loopback, in a process
of its own with the tests' engine: no base is loaded, so the figures are the page's and the web
process's. Needs playwright; every figure is the median of `--runs` new browsers' profiles.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from results import put

ROOT = Path(__file__).parents[1]
SCREENS = ("make", "sets", "story", "train", "compare", "gallery", "queue")
PHONE = {"width": 375, "height": 780}
MANY = 10_000
MARK = "## The page"
AIM = "0.8 s; -; 25; 150 KB"
IN_VIEW = """() => {
  const seen = [...document.querySelectorAll(".card img")].filter((image) => {
    const box = image.getBoundingClientRect();
    return box.height && box.top < innerHeight;
  });
  return seen.length > 3 && seen.every((image) => image.complete && image.naturalWidth);
}"""


SCROLL = """() => {
  document.querySelector(".end")?.scrollIntoView();
  return document.querySelectorAll(".card").length;
}"""


def serve(folder: Path) -> None:
    """Serve a studio until the input ends."""
    from tests.serve.studio.toys import Studio

    studio = Studio(folder)
    print(studio.link, flush=True)
    sys.stdin.read()
    studio.stop()


class Served:
    """A studio in a process of its own."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self.process.stdout
        self.link = self.process.stdout.readline().strip()

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(20)


def load(browser: Any, link: str, screen: str) -> dict[str, float]:
    """One first visit: requests and bytes until the network is quiet, and when something shows."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    asked: set[str] = set()
    sizes: list[float] = []
    shown: set[str] = set()

    def hear(event: dict[str, Any]) -> None:
        asked.add(event["requestId"])
        if event.get("type") in ("Image", "EventSource"):
            shown.add(event["requestId"])

    network.on("Network.requestWillBeSent", hear)
    network.on(
        "Network.loadingFinished",
        lambda e: e["requestId"] not in shown and sizes.append(e["encodedDataLength"]),
    )
    token = link.partition("#token=")[2]
    # The token is there already, as after the first visit, so that one address is one load.
    page.goto(link.partition("#")[0] + "healthz")
    page.evaluate(f"localStorage.setItem('iclora-token /', '{token}')")
    asked.clear()
    sizes.clear()
    began = time.perf_counter()
    page.goto(link.partition("#")[0] + f"#/{screen}")
    page.wait_for_selector("main :is(h1, h2, .canvas, .field, input)")
    usable = time.perf_counter() - began
    page.wait_for_timeout(1500)
    paint = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
    )
    found = {
        "requests": len(asked - shown),
        "pictures": len(shown),
        "kb": sum(sizes) / 1000,
        "paint": paint / 1000,
        "usable": usable,
    }
    context.close()
    return found


def gallery(browser: Any, link: str) -> float:
    """Seconds until the pictures in view of a gallery are there."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.goto(link)
    page.wait_for_selector("footer")
    began = time.perf_counter()
    page.evaluate("location.hash = '#/gallery'")
    # The page's policy lets nothing be compiled from text, so waiting is done here.
    while not page.evaluate(IN_VIEW):
        page.wait_for_timeout(20)
        if time.perf_counter() - began > 120:
            raise SystemExit("the gallery's pictures did not come within two minutes")
    seconds = time.perf_counter() - began
    context.close()
    return seconds


def widths(browser: Any, link: str) -> dict[str, int]:
    """How wide each screen is, px, on a phone, each with something on it and one of its own."""
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(link)
    page.wait_for_selector("footer")
    below = "sets/data~toyland-storyboards"
    screens = [*SCREENS, below, f"{below}/0001"]
    found = {}
    for screen in screens:
        page.evaluate(f"location.hash = '#/{screen}'")
        page.wait_for_timeout(800)
        found[screen] = page.evaluate("document.documentElement.scrollWidth")
        if screen == "gallery":
            made = page.locator(".card a").first.get_attribute("href")
            screens.append(made.removeprefix("#/").partition("?")[0])
    context.close()
    return found


def scrolled(browser: Any, link: str, count: int) -> float:
    """Seconds until a gallery that is scrolled on and on shows so many sets."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.goto(f"{link}")
    page.wait_for_selector("footer")
    began = time.perf_counter()
    page.evaluate("location.hash = '#/gallery'")
    while page.evaluate(SCROLL) < count:
        page.wait_for_timeout(20)
        if time.perf_counter() - began > 300:
            raise SystemExit(f"the gallery did not show {count} sets within five minutes")
    seconds = time.perf_counter() - began
    context.close()
    return seconds


def pages(served: Served, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of list pages of 60, at random places and with words, of a folder of sets."""
    address = urlparse(served.link)
    server = http.client.HTTPConnection("127.0.0.1", address.port)
    headers = {"Authorization": f"Bearer {served.link.partition('#token=')[2]}"}

    def ask(query: str) -> tuple[dict[str, Any], float]:
        began = time.perf_counter()
        server.request("GET", f"/api/v1/sets?limit=60{query}", headers=headers)
        said = server.getresponse().read()
        return json.loads(said), 1000 * (time.perf_counter() - began)

    while not ask(f"&q={count - 1}")[0]["sets"]:  # The last one is in the index.
        time.sleep(0.2)
    cursors, cursor = [""], None
    while (page := ask(f"&cursor={cursor}" if cursor else "")[0])["cursor"]:
        cursor = page["cursor"]
        cursors.append(f"&cursor={cursor}")
    assert 60 * (len(cursors) - 1) + len(page["sets"]) == count, "sets are missing in the list"
    drawn = random.Random(0)
    plain = [ask(drawn.choice(cursors))[1] for _ in range(300)]
    worded = [ask(f"&q=prompt+{drawn.randrange(count)}")[1] for _ in range(300)]
    server.close()
    return plain, worded


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def idle(browser: Any, served: Served, seconds: float) -> float:
    """Percent of a core that the server and the page take while nothing happens."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.link)
    page.wait_for_selector("footer")
    page.wait_for_timeout(3000)
    network = context.new_cdp_session(page)
    network.send("Performance.enable")

    def spent() -> float:
        metrics = network.send("Performance.getMetrics")["metrics"]
        return served.cpu() + next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    before = spent()
    page.wait_for_timeout(seconds * 1000)
    share = 100 * (spent() - before) / seconds
    context.close()
    return share


def another(out: Path, number: int) -> None:
    """One more set with the pictures of the first, which are not written anew."""
    first, place = out / "0000", out / f"{number:04d}"
    hidden = out / f".{number:04d}"
    hidden.mkdir()
    for picture in first.glob("*.png"):
        os.link(picture, hidden / picture.name)
    told = json.loads((first / "request.json").read_text())
    told |= {"seeds": [number, number + 1]}
    (hidden / "request.json").write_text(json.dumps(told))
    hidden.rename(place)


def measure(runs: int) -> list[tuple[str, str, str]]:
    """Rows of the table: what, measured, aim."""
    from playwright.sync_api import sync_playwright

    from tests.serve.fake import make_set

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = Path(place)
        served = Served(folder)
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        rows = []
        for screen in SCREENS:
            found = [load(browser, served.link, screen) for _ in range(runs)]
            mid = {key: statistics.median(each[key] for each in found) for key in found[0]}
            measured = (
                f"{mid['paint']:.2f} s; {mid['usable']:.2f} s; {mid['requests']:.0f}; "
                f"{mid['kb']:.0f} KB"
            )
            rows.append((f"`#/{screen}`: first paint; usable; requests; compressed", measured, AIM))
        rows.append(("nothing happens: page and server", f"{idle(browser, served, 20):.1f}%", "1%"))
        for number in range(1000):
            make_set(folder / "out" / f"{number:04d}", {"seed": number})
        first, *again = [gallery(browser, served.link) for _ in range(runs + 1)]
        rows.append(
            (
                "1,000 sets: pictures in view at the first visit; later ones",
                f"{first:.2f} s; {statistics.median(again):.2f} s",
                "1.5 s",
            )
        )
        wide = widths(browser, served.link)
        over = [screen for screen, width in wide.items() if width > PHONE["width"]]
        rows.append(
            (
                f"{len(wide)} screens at 375 px: widest; scroll sideways",
                f"{max(wide.values())} px; {', '.join(over) or 'none'}",
                "none",
            )
        )
        shown = scrolled(browser, served.link, 1000)
        rows.append(("1,000 sets: scrolled to the last one", f"{shown:.1f} s", "-"))
        for number in range(1000, MANY):
            another(folder / "out", number)
        plain, worded = pages(served, MANY)
        rows.append(
            (
                f"{MANY:,} sets: a list page, median, p95; with words, p95",
                f"{statistics.median(plain):.0f} ms, {p95(plain):.0f} ms; {p95(worded):.0f} ms",
                "p95 50 ms",
            )
        )
        seen = statistics.median(gallery(browser, served.link) for _ in range(runs))
        rows.append((f"{MANY:,} sets: pictures in view", f"{seen:.2f} s", "-"))
        browser.close()
        served.stop()
    return rows


def cpu() -> str:
    """The name of this machine's processor."""
    said = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*:\s*(.*)", said)
    return found[1] if found else "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.serve:
        serve(told.serve)
        return
    rows = measure(told.runs)
    lines = ["| what | measured | aim |", "|---|---|---|"]
    table = "\n".join([*lines, *(f"| {a} | {b} | {c} |" for a, b, c in rows)])
    busy = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores of an {cpu()}"
    print(f"{table}\nload average {busy}")
    if told.write:
        put(
            MARK,
            f"`python benchmarks/studio_load.py --write`, {time.strftime('%Y-%m-%d')}: a "
            f"browser without a cache for each of {told.runs} runs, medians; load\naverage {busy}. "
            f"Pictures and the stream of events are not counted among\nrequests.\n\n{table}",
        )


if __name__ == "__main__":
    main()
