"""One browser and one studio for all tests of the page; a fresh profile for each."""

from __future__ import annotations

import shutil
import threading
from urllib.parse import urlparse

import pytest

from tests.serve.studio.toys import Studio

WIDE = {"width": 1280, "height": 860}
PHONE = {"width": 375, "height": 780}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    found = Studio(tmp_path_factory.mktemp("studio"))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium is installed here: apt-get install chromium")
    from playwright import sync_api

    # Playwright keeps an event loop running in this thread: not beyond the tests that need it.
    with sync_api.sync_playwright() as playwright:
        # Tests may run as root, for whom Chromium has no sandbox; only our own page is opened.
        flags = ["--no-sandbox", "--disable-gpu", "--renderer-process-limit=1"]
        found = playwright.chromium.launch(executable_path=chromium, args=flags)
        # Machines that run tests are busy.
        sync_api.expect.set_options(timeout=60_000)
        yield found
        found.close()


_EMPTY = """async () => {
  const page = await import(document.querySelector("script[src$='main.js']").src);
  const {draft_js: {draft, wrong}, making_js: {preview}, parts_js: {trouble}} = page;
  draft.value = {...draft.value, way: "panels", overview: "", panels: [], text: "", given: {},
    values: {}, seeds: {}, shown: "", keep: [], follow: "", made: []};
  wrong.value = {};
  preview.value = trouble.value = null;
  document.activeElement?.blur();
}"""


def until(page, holds, seconds=60):
    """Waits, while the page goes on, for what is not on the page."""
    for _ in range(20 * seconds):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to that")


def hand(page, target, *paths):
    """Files or folders of this machine are dropped, as a hand does it, on what a locator finds."""
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})
    session.detach()


def interrupt(page, studio):
    """The server is stopped and started again, and the page loaded anew."""
    studio.stop()
    studio.start()
    page.reload()
    page.wait_for_selector("footer")


def watch(context):
    """What the pages of a browser's context ask for elsewhere, or do against their policy."""
    found = []

    def heard(request):
        address = urlparse(request.url)
        if address.hostname != "127.0.0.1" and address.scheme != "blob":
            found.append(request.url)

    def said(message):
        if "Content Security Policy" in message.text or "TrustedHTML" in message.text:
            found.append(message.text)

    context.on("request", heard)
    context.on("console", said)
    context.on("dialog", lambda dialog: (found.append(dialog.message), dialog.dismiss()))
    return found


class Watched:
    """A tab, and what it asked for."""

    def __init__(self, context, studio, once=True):
        self.studio, self.context, self.once = studio, context, once
        context.set_default_timeout(60_000)
        self.elsewhere = watch(context)
        self.page = context.new_page()
        self.asked, self.errors = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, screen="make", below="", fresh=False):
        """The page at a screen, let in by its token, with an empty draft."""
        root = f"http://127.0.0.1:{self.studio.port}/"
        if self.page.url.startswith(f"{root}#") and not (below or fresh):
            self.page.evaluate(_EMPTY)  # A load costs half a second of CPU.
        else:
            if self.page.url != "about:blank":  # What the page before would still send is gone.
                self.page.goto(f"{root}healthz")
                self.page.evaluate("localStorage.clear()")
                shutil.rmtree(self.studio.folder / ".iclora" / "drafts", ignore_errors=True)
                self.asked.clear()
            self.page.goto(self.studio.link.replace("/#", f"/{below}#"))
        self.page.wait_for_selector("footer")
        self.page.evaluate(f"location.hash = '#/{screen}'")
        self.page.wait_for_selector(f".{screen.split('/')[0].split('?')[0]}, .one, .run, .nothing")
        return self.page


@pytest.fixture(scope="module")
def usual(browser, studio):
    """The tab that most tests share: a new one takes half a second of CPU."""
    context = browser.new_context(viewport=WIDE)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    return Watched(context, studio, once=False)


@pytest.fixture
def tab(browser, studio, request):
    """Opens tabs on a studio without drafts, jobs that wait, or a held engine."""
    opened = []
    shutil.rmtree(studio.server.catalog.home / "drafts", ignore_errors=True)

    def new(size=WIDE, **more):
        if size is WIDE and not more:
            found = request.getfixturevalue("usual")
            found.asked.clear()
        else:
            found = Watched(browser.new_context(viewport=size, **more), studio)
        opened.append(found)
        return found

    yield new
    for each in opened:
        if each.once:
            each.context.close()
        else:
            each.page.emulate_media(color_scheme="light")
            each.page.keyboard.press("Escape")
        assert each.errors == []
        assert each.elsewhere == []
    studio.engine.failure = None
    studio.engine.steps = threading.Semaphore(10**6)
    studio.engine.go.set()
    studio.server.queue.pause(False)
