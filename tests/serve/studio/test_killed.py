"""Server, worker and browser are killed in the middle of what somebody does on the page."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iclora.serve.store import Store
from iclora.serve.studio.toys import write_toy_sets
from tests.serve.studio.conftest import WIDE
from tests.serve.studio.test_flows import button

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.machine

WRITTEN = "sets/data~toyland-storyboards/0001"


def until(holds, seconds=300):
    """What `holds` says once it says something."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)
    return found


def processes(words):
    """Numbers of the processes whose command line has all of some words."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            said = (each / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in said for word in words):
            found.append(int(each.name))
    return found


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Desk:
    """`iclora studio` with a real worker, and a browser with a profile, each to be killed."""

    def __init__(self, place, chromium):
        self.folder, self.profile, self.chromium = place / "folder", place / "profile", chromium
        self.folder.mkdir()
        write_toy_sets(self.folder)
        self.context = self.process = None

    def start(self):
        command = [sys.executable, "-m", "iclora", "studio", str(self.folder), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--device", "cpu", "--no-browser"], stdout=subprocess.PIPE, text=True
        )
        lines = iter(self.process.stdout.readline, "")
        self.link = next(line.split()[1] for line in lines if line.startswith("open "))

    def open(self, playwright, screen):
        """A browser with the profile of the one before, at a screen."""
        if self.profile.exists():  # A browser that was killed leaves its lock.
            for lock in self.profile.glob("Singleton*"):
                lock.unlink()
        self.context = playwright.chromium.launch_persistent_context(
            self.profile, executable_path=self.chromium, viewport=WIDE,
            args=["--no-sandbox", "--disable-gpu"],
        )  # fmt: skip
        self.context.set_default_timeout(300_000)
        page = self.context.pages[0]
        page.goto(self.link)
        page.wait_for_selector("footer")
        page.evaluate(f"location.hash = '#/{screen}'")
        return page

    def workers(self):
        """Processes that compute for this server: those that make, and those that train."""
        own = [p for p in processes(["iclora.serve.worker"]) if parent(p) == self.process.pid]
        return own + processes(["iclora.serve.trainee", str(self.folder)])

    def kill_all(self):
        """Server, workers and browser at one moment."""
        kill([self.process.pid, *self.workers(), *processes([str(self.profile)])])
        self.process.communicate()

    def made(self):
        """How many sets there are."""
        return len(list(self.folder.glob("out/*/0001")))

    def jobs(self):
        store = Store(self.folder / ".iclora" / "serve.sqlite")
        try:
            return [tuple(row) for row in store.rows("SELECT status FROM jobs")]
        finally:
            store.close()


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.fixture
def desk(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium is installed here: apt-get install chromium")
    found = Desk(tmp_path, chromium)
    found.start()
    yield found
    if found.process.poll() is None:
        found.kill_all()


@pytest.fixture
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        # Workers load torch meanwhile, which a busy machine takes its time for.
        expect.set_options(timeout=300_000)
        yield found


def test_a_queue_a_caption_and_a_run_that_are_killed_go_on_and_lose_nothing(desk, playwright):
    """Each phase ends with server, workers and browser killed at one moment."""
    queue_of_twenty(desk, playwright)
    words, times = caption_that_is_written(desk)
    until(lambda: desk.made() >= 6)
    assert desk.made() < 20
    desk.kill_all()
    desk.start()
    page = desk.open(playwright, "queue")
    until(lambda: desk.jobs() == [("succeeded",)] * 20)
    expect(page.locator("footer")).to_contain_text("Nothing waits")
    expect(page.locator("ul.rows .row")).to_have_count(20)
    assert [len(list(each.glob("0*"))) for each in desk.folder.glob("out/*")] == [1] * 20
    page.evaluate("location.hash = '#/gallery'")
    expect(page.locator(".card")).to_have_count(20)
    page.evaluate(f"location.hash = '#/{WRITTEN}'")
    # Who writes without a pause is at most as far ahead of the disk as two savings take.
    safe = max(count for at, count in times if at < times[-1][0] - 2)
    field = page.get_by_label("[SCENE-2]", exact=True)
    expect(field).not_to_have_value("")
    there = field.input_value()
    assert words.startswith(there)
    assert len(there) >= safe > 50
    field.fill("it waits,")  # So many words are more than the base reads.
    path = desk.folder / "data" / "toyland-storyboards" / "0001" / "caption.txt"
    until(lambda: "[SCENE-2] it waits, [SCENE-3]" in path.read_text())
    a_run_goes_on_from_its_checkpoint(desk, playwright, page)


def queue_of_twenty(desk, playwright):
    """Queue sets on Make; their worker is killed once some are made."""
    page = desk.open(playwright, "make")
    button(page, "Take the example").click()
    page.get_by_label("Steps").fill("1")
    for _ in range(20):
        page.keyboard.press("Control+Enter")
    until(lambda: len(desk.jobs()) == 20)
    until(lambda: desk.made() >= 3)
    kill(desk.workers())


def caption_that_is_written(desk):
    """Write the words of a panel without a pause. Returns: the words, and how many when."""
    page = desk.context.pages[0]
    page.evaluate(f"location.hash = '#/{WRITTEN}'")
    page.get_by_label("[SCENE-2]", exact=True).fill("")
    words, times = "", []
    end = time.monotonic() + 4
    while time.monotonic() < end:
        word = f"{' ' * bool(words)}w{len(times)}"
        page.keyboard.type(word)
        words += word
        times.append((time.monotonic(), len(words)))
    return words, times


def a_run_goes_on_from_its_checkpoint(desk, playwright, page):
    page.evaluate("location.hash = '#/train'")
    page.get_by_label("Steps", exact=True).fill("24")
    page.get_by_label("Name").fill("fox")
    page.get_by_text("More settings").click()
    page.get_by_label("Save every").fill("4")
    page.get_by_label("Preview every").fill("0")
    page.get_by_label("Held out").fill("0")
    button(page, "Start training").click()
    run = desk.folder / "runs" / "fox"

    def steps():
        log = run / "log.jsonl"
        return log.read_text().splitlines() if log.exists() else []

    until(lambda: len(steps()) > 9)
    desk.kill_all()
    before = steps()
    assert len(before) < 24
    desk.start()
    page = desk.open(playwright, "train/runs~fox")
    # Nobody need do anything: the server finds the run dead, and trains on.
    expect(page.get_by_text("finished, step 24 of 24")).to_be_visible()
    assert [json.loads(line)["step"] for line in steps()] == list(range(1, 25))
    # Nothing before the last checkpoint was trained again.
    assert steps()[:8] == before[:8]
    expect(button(page, "Open in Make")).to_be_visible()
