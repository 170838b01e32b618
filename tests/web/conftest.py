"""One browser and one studio for all tests of the page; a fresh profile for each."""

from __future__ import annotations

import shutil

import pytest

from tests.web.toys import Studio

WIDE = {"width": 1280, "height": 860}
PHONE = {"width": 375, "height": 780}


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    found = Studio(tmp_path_factory.mktemp("studio"))
    yield found
    found.stop()


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium is installed here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        # Tests may run as root, for whom Chromium has no sandbox; only our own page is opened.
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


class Watched:
    """A tab, and what it asked for."""

    def __init__(self, browser, studio, size=WIDE, **more):
        self.studio = studio
        self.context = browser.new_context(viewport=size, **more)
        self.context.set_default_timeout(8000)
        self.page = self.context.new_page()
        self.asked, self.errors = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, screen="make", below=""):
        """The page at a screen, let in by its token."""
        self.page.goto(self.studio.link.replace("/#", f"/{below}#"))
        self.page.wait_for_selector("footer")
        self.page.evaluate(f"location.hash = '#/{screen}'")
        self.page.wait_for_selector(f".{screen.split('/')[0].split('?')[0]}, .one, .nothing")
        return self.page


@pytest.fixture
def tab(browser, studio):
    """Opens tabs on a studio without drafts, jobs that wait, or a held engine."""
    opened = []
    drafts = studio.server.catalog.home / "drafts"
    shutil.rmtree(drafts, ignore_errors=True)

    def new(size=WIDE, **more):
        opened.append(Watched(browser, studio, size, **more))
        return opened[-1]

    yield new
    for each in opened:
        each.context.close()
        assert each.errors == []
    studio.engine.failure = None
    studio.engine.go.set()
    studio.server.queue.pause(False)
