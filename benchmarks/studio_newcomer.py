"""Measure a newcomer's first minutes: a set is made, one is completed, a run is trained and used.

    python benchmarks/studio_newcomer.py            # prints the figures
    python benchmarks/studio_newcomer.py --write    # and puts them into RESULTS.md

The real command in an empty folder with the embedded base, and a Chromium that presses what the
page offers, by the words on it: the example's words, a made panel used as given, a run with the
settings that stand there. Nothing is read or thought about meanwhile: that time is their own.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import put

ROOT = Path(__file__).parents[1]
MARK = "### A newcomer's first minutes"
LIMIT = 120.0


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The studio's process, and the link that it prints."""
    command = [sys.executable, "-m", "iclora", "studio", str(folder), "--port", "0"]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    process = subprocess.Popen(
        [*command, "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout
    for line in process.stdout:
        if found := re.match(r"open\s+(\S+)", line):
            return process, found[1]
    raise SystemExit("the studio did not start")


def spent(root: int) -> float:
    """Processor seconds of the studio and of all that it started."""
    tree, parts = {root}, 0.0
    found: dict[int, tuple[int, float]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended meanwhile.
        ticks = sum(int(each) for each in fields[11:15])
        found[int(stat.parent.name)] = (int(fields[1]), ticks / os.sysconf("SC_CLK_TCK"))
    while more := {pid for pid, (parent, _) in found.items() if parent in tree} - tree:
        tree |= more
    for pid in tree:
        parts += found.get(pid, (0, 0.0))[1]
    return parts


def walk(page: Any, lap: Callable[[str], None], link: str) -> None:
    """Press what a newcomer would; `lap` is told what is done."""

    def button(name: str) -> Any:
        return page.get_by_role("button", name=name, exact=True)

    page.goto(link)
    button("Take the example").click()
    lap("page is there, words are filled in")
    button("Make the set").click()
    made = page.get_by_role("img", name="Scene 1, made")
    made.wait_for()
    lap("a first set is made")
    page.locator("#slot-1").focus()
    button("Use panel 1 as given").click()
    button("Complete the set").click()
    page.get_by_role("img", name="Scene 2, made").wait_for()
    lap("a set is completed from its first panel")
    page.get_by_role("link", name="Sets", exact=True).click()
    button("Draw 40 storyboards").click()
    page.get_by_role("link", name="Train on it").click()
    page.get_by_text("40 sets of").wait_for()
    lap("40 sets are drawn to train on")
    button("Start training").click()
    page.get_by_role("button", name="Stop after this step").wait_for()
    lap("the run has begun")
    button("Open in Make").wait_for()
    lap("the run is finished")
    button("Open in Make").click()
    # The panel that was given before is still there, and the button would complete its set.
    button("Take the picture of panel 1 away").click()
    page.locator("select:has(option[value^='runs~']:checked)").wait_for()
    button("Make the set").click()
    made.wait_for()
    lap("a set is made with the adapter")


def measure() -> list[tuple[str, float, float]]:
    """Seconds since the command at each thing that was done, and those of processors."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    laps: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
        page.set_default_timeout(600_000)
        began = time.perf_counter()
        process, link = start(Path(place))
        try:

            def lap(what: str) -> None:
                laps.append((what, time.perf_counter() - began, spent(process.pid)))
                print(
                    f"{laps[-1][1]:6.1f} s, {laps[-1][2]:6.1f} s of processors: {what}", flush=True
                )

            walk(page, lap, link)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            browser.close()
    return laps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    told = parser.parse_args()
    laps = measure()
    rows = [f"| {what} | {seconds:.0f} s | {busy:.0f} s |" for what, seconds, busy in laps]
    head = ["| done | after | of processors, without the browser |", "|---|---|---|"]
    table = "\n".join([*head, *rows])
    busy = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{table}\nload average {busy}")
    if told.write:
        put(
            MARK,
            f"`python benchmarks/studio_newcomer.py --write`, {time.strftime('%Y-%m-%d')}"
            f", once; load average {busy}; the aim is {LIMIT:.0f} s:\nthe command in an empty"
            f" folder, then presses of what the page offers.\n\n{table}",
        )


if __name__ == "__main__":
    main()
