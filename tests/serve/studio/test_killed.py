"""Server, worker and browser are killed in the middle of what somebody does on the page."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iclora.cli.main import main
from iclora.serve.store import Store
from iclora.serve.studio.toys import draw_toy_sets, write_toy_sets
from tests.serve.studio.conftest import WIDE, watch
from tests.serve.studio.test_flows import button

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.machine

WRITTEN = "sets/data~words/0001"


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
        draw_toy_sets(self.folder / "data" / "words", (0,))
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
        self.elsewhere = watch(self.context)
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

    def steps(self):
        """What the run's log says of each step."""
        log = self.folder / "runs" / "fox" / "log.jsonl"
        return log.read_text().splitlines() if log.exists() else []

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


def test_a_queue_a_run_and_a_caption_that_are_killed_at_one_moment_lose_nothing(
    desk, playwright, monkeypatch
):
    page = desk.open(playwright, "make")
    button(page, "Take the example").click()
    page.get_by_label("Steps").fill("1")
    queue(desk, page, 4)
    start_a_run(page)
    page.evaluate("location.hash = '#/make'")
    queue(desk, page, 16)
    words, times = write_until(page, lambda: len(desk.steps()) > 4)
    before, made = desk.steps(), desk.made()
    desk.kill_all()
    assert len(before) < 16
    assert made == 4

    desk.start()
    assert desk.elsewhere == []
    page = desk.open(playwright, WRITTEN)
    field = page.get_by_label("[SCENE-2]", exact=True)
    expect(field).not_to_have_value("")
    # Who writes without a pause is at most as far ahead of the disk as two savings take.
    safe = max(count for at, count in times if at < times[-1][0] - 2)
    assert words.startswith(field.input_value())
    assert len(field.input_value()) >= safe > 50
    # Nobody need do anything: the server finds the run dead and trains on, then makes the others.
    page.evaluate("location.hash = '#/train/runs~fox'")
    expect(page.get_by_text("finished, step 16 of 16")).to_be_visible()
    assert [json.loads(line)["step"] for line in desk.steps()] == list(range(1, 17))
    assert desk.steps()[:4] == before[:4], "steps before the last checkpoint were taken again"
    until(lambda: set(desk.jobs()) == {("succeeded",)})
    assert len(desk.jobs()) == 21
    assert [len(list(each.glob("0*"))) for each in desk.folder.glob("out/*")] == [1] * 20
    page.evaluate("location.hash = '#/gallery'")
    expect(page.locator(".card")).to_have_count(20)
    assert desk.elsewhere == []
    page.locator(".card").first.get_by_role("link").click()
    words = copied_command(desk, page)
    monkeypatch.chdir(desk.folder)
    assert main(words) == 0
    assert contents(desk.folder / "out" / "0001") == contents(Path(words[1]).parent)


def copied_command(desk, page):
    """The words behind `iclora` of the command that makes the set on the page again."""
    desk.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button(page, "Copy as command").click()
    expect(page.get_by_text("The command is copied")).to_be_visible()
    program, *words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert program == "iclora"
    return words


def contents(folder):
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def queue(desk, page, count):
    expect(button(page, re.compile("^Make (the|another) set"))).to_be_visible()
    page.wait_for_timeout(300)  # The keys are those of the screen before for a moment.
    wanted = len(desk.jobs()) + count
    for _ in range(count):
        page.keyboard.press("Control+Enter")
    until(lambda: len(desk.jobs()) == wanted)


def start_a_run(page):
    page.evaluate("location.hash = '#/train'")
    page.get_by_label("Dataset").select_option("toyland-storyboards")
    page.get_by_label("Steps", exact=True).fill("16")
    page.get_by_label("Name").fill("fox")
    page.get_by_text("More settings").click()
    page.get_by_label("Save every").fill("2")
    page.get_by_label("Preview every").fill("0")
    page.get_by_label("Held out").fill("0")
    button(page, "Start training").click()
    expect(page).to_have_url(re.compile("#/train/runs~fox"))


def write_until(page, holds):
    """Write a panel's words without a pause, four seconds at least.

    Returns: the words, and how many letters there were at which time.
    """
    page.evaluate(f"location.hash = '#/{WRITTEN}'")
    page.get_by_label("[SCENE-2]", exact=True).fill("")
    words, times = "", []
    end = time.monotonic() + 4
    while time.monotonic() < end or not holds():
        word = f"{' ' * bool(words)}w{len(times)}"
        page.keyboard.type(word, delay=10)
        words += word
        times.append((time.monotonic(), len(words)))
    return words, times
