"""What holds on every screen, in a real browser."""

import re
import shutil
from urllib.parse import urlparse

import pytest

from iclora.serve import planning
from iclora.sets.recipe import load_recipe
from tests.serve.conftest import PLANNED
from tests.serve.studio.conftest import PHONE, interrupt, until
from tests.serve.studio.test_flows import button, make_one, sent, serious
from tests.serve.studio.toys import Studio
from tests.serve.studio.toywork import write_adapter

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.machine

EVIL = "<img src=x onerror=alert(1)>"
WORDS = f"[MOVIE-SHOTS] {EVIL} [SCENE-1] {EVIL} one [SCENE-2] {EVIL} two [SCENE-3] {EVIL} three"
SETS = "data~toyland-storyboards"


@pytest.fixture(autouse=True)
def _folder(studio, monkeypatch):
    """A set and a picture whose names and words are markup, and an adapter; plans without torch."""
    monkeypatch.setattr(planning, "_counted", lambda told: PLANNED)
    drawn, evil = (studio.folder / "data" / name for name in ("toyland-storyboards", "evil"))
    if not evil.exists():
        shutil.copytree(drawn, evil)
        shutil.move(evil / "0001", evil / EVIL)
        shutil.move(evil / EVIL / "1.png", evil / EVIL / f"1 {EVIL}.png")
        (evil / EVIL / "caption.txt").write_text(WORDS)
        (evil / "0002" / f"4 {EVIL}.png").write_bytes((evil / "0002" / "1.png").read_bytes())
        (studio.folder / "adapters").mkdir()
        recipe = load_recipe(studio.folder / "recipes" / "toyland-storyboard.toml")
        write_adapter(studio.folder / "adapters" / "older.safetensors", recipe)


def leave(page):
    """Tab goes on until nothing is written in."""
    for _ in range(9):
        if not page.evaluate("document.activeElement.matches('input, textarea, select')"):
            return
        page.keyboard.press("Tab")


def tab_to(page, target):
    """The Tab key alone reaches what a locator finds."""
    expect(target).to_be_visible()
    for _ in range(150):
        if target.evaluate("e => e === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {target}")


def test_below_a_sub_path_every_screen_works_and_shows_markup_as_text(tab, studio):
    view = tab()
    page = view.open(f"sets/{SETS.replace('toyland-storyboards', 'evil')}", below="a/b/")

    def shows(*places):
        for place in places or (page.get_by_text(EVIL),):
            expect(place.first).to_be_visible()
        assert page.locator("#app [onerror], main script").count() == 0
        assert page.evaluate(BROKEN) == []

    def go(screen):
        page.evaluate(f"location.hash = '#/{screen}'")

    shows(page.locator(".card").get_by_text(EVIL))
    page.get_by_role("link", name=f"Set {EVIL}").click()
    first = page.get_by_label("[SCENE-1]", exact=True)
    expect(first).to_have_value(f"{EVIL} one")
    shows(page.get_by_role("heading", name=EVIL))
    first.fill(f"{EVIL} first")
    caption = studio.folder / "data" / "evil" / EVIL / "caption.txt"
    until(page, lambda: f"[SCENE-1] {EVIL} first" in caption.read_text())
    # Files of which one has a name of markup, side by side.
    go("sets/data~evil/0002")
    shows(page.get_by_text(re.compile("4 images|has 4")))
    go("sets")
    expect(page.locator(".dataset")).to_have_count(2)
    go("make")
    made = make_one(page, f"{EVIL};")
    shows(page.get_by_role("img", name="Scene 2, made"))
    go(f"gallery/{made}")
    shows(page.locator(".prompt").get_by_text(EVIL))
    go("gallery")
    shows(page.locator(".card").get_by_text(EVIL))
    go("story")
    button(page, "Take a story of five").click()
    page.get_by_label("Words of image 2").fill(EVIL)
    button(page, "Make the story").click()
    expect(page.get_by_role("img", name=f"Image 2: {EVIL}")).to_be_visible()
    expect(page.locator(".line img")).to_have_count(5)
    shows(page.get_by_role("img", name=f"Image 2: {EVIL}"))
    go("train?data=data~evil")
    expect(page.get_by_text("Fits: 1.0 GB")).to_be_visible()
    page.get_by_label("Steps").fill("2")
    page.get_by_label("Name").fill("under")
    button(page, "Start training").click()
    expect(page.get_by_text("finished, step 2 of 2")).to_be_visible()
    shows(page.get_by_role("img", name="Preview 1: adapter, step 2"), page.get_by_text("<b>float"))
    go("compare")
    page.get_by_label("Joint prompts").fill(WORDS)
    page.get_by_label("Seeds").fill("1")
    button(page, "Compare", exact=True).click()
    expect(page.get_by_role("table")).to_contain_text("same character")
    shows(page.locator(".prompt").get_by_text(EVIL))
    go("queue")
    shows(page.locator(".row").get_by_text(EVIL))
    interrupt(page, studio)
    shows(page.locator(".row").get_by_text(EVIL))
    assert {urlparse(url).path[:5] for url in sent(view)} == {"/a/b/"}
    caption.write_text(WORDS)


# Pictures in view that did not come.
BROKEN = """() => [...document.images].filter((each) => each.src && each.complete
  && !each.naturalWidth && each.getBoundingClientRect().top < innerHeight)
  .map((each) => each.src)"""


def test_the_keyboard_alone_works_on_sets_story_train_and_compare(tab, studio):
    page = tab().open(fresh=True)
    place = studio.folder / "data" / "toyland-storyboards" / "0001"
    before, caption = (place / "1.png").read_bytes(), (place / "caption.txt").read_text()
    second = re.search(r"\[SCENE-2\] (.*?) \[", caption, re.S)[1]
    for key in "gs":
        page.keyboard.press(key)
    tab_to(page, page.get_by_role("link", name=re.compile("toyland-storyboards")))
    page.keyboard.press("Enter")
    expect(page.locator(".cards .card")).to_have_count(3)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    tab_to(page, page.locator("#panel-1"))
    page.keyboard.press("Shift+ArrowRight")
    until(page, lambda: (place / "2.png").read_bytes() == before)
    page.keyboard.press("Control+z")
    until(page, lambda: (place / "1.png").read_bytes() == before)
    field = page.get_by_label("[SCENE-2]", exact=True)
    expect(page.get_by_text("Undone:")).to_be_visible()
    expect(field).to_have_value(second)
    page.keyboard.press("2")
    expect(field).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.type(" again")
    until(page, lambda: "again" in (place / "caption.txt").read_text())
    leave(page)
    for key in "gy":
        page.keyboard.press(key)
    tab_to(page, button(page, "Take a story of five"))
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".line img")).to_have_count(5)
    words = page.get_by_label("Words of image 1", exact=True).input_value()
    tab_to(page, page.locator(".line").first)
    page.keyboard.press("Alt+ArrowDown")
    expect(page.get_by_label("Words of image 2", exact=True)).to_have_value(words)
    for key in "gt":
        page.keyboard.press(key)
    tab_to(page, page.get_by_label("Steps"))
    page.keyboard.type("2")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("finished, step 2 of 2")).to_be_visible()
    tab_to(page, button(page, "Open in Make"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Adapter")).to_have_value(re.compile("runs~"))
    for key in "gc":
        page.keyboard.press(key)
    tab_to(page, button(page, "Take the example"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("Joint prompts"))
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("table")).to_contain_text("same character")
    page.keyboard.press("j")
    expect(button(page, "Show prompt 1, seed 1")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Space")
    expect(page.get_by_text("Space shows the other")).to_be_visible()
    for key in "gq":
        page.keyboard.press(key)
    page.keyboard.press(".")
    expect(button(page, "Go on")).to_be_visible()
    page.keyboard.press(".")


REACHABLE = """() => {
  window.reached = new Set();
  const sought = "a[href], button:enabled, input:enabled, select, textarea, summary, [tabindex]";
  const all = [...document.querySelectorAll(sought)].filter(
    (each) => each.tabIndex >= 0 && each.checkVisibility());
  all.forEach((each, n) => (each.dataset.nth = n));
  document.addEventListener("focusin", (event) => reached.add(Number(event.target.dataset.nth)));
  document.activeElement?.blur();
  return all.length;
}"""
MISSED = """() => [...document.querySelectorAll("[data-nth]")]
  .filter((each) => each.isConnected && !reached.has(Number(each.dataset.nth)))
  .map((each) => each.outerHTML.slice(0, 120))"""


def test_tab_reaches_everything_that_can_be_pressed_or_written_in(tab, studio):
    page = tab().open()
    made = make_one(page, "A reachable set;")
    screens = (
        ("make", "#slot-1"),
        (f"sets/{SETS}/0002", "#panel-1"),
        (f"sets/{SETS}", ".card"),
        ("story", ".line"),
        ("train", ".fields"),
        ("compare", ".fields"),
        ("gallery", ".card"),
        (f"gallery/{made}", ".facts"),
        ("queue", ".row"),
    )
    for screen, there in screens:
        page.evaluate(f"location.hash = '#/{screen}'")
        page.locator(there).first.wait_for()
        page.wait_for_timeout(200)
        count = page.evaluate(REACHABLE)
        assert count > 12, screen
        for _ in range(count + 5):
            page.keyboard.press("Tab")
        assert page.evaluate(MISSED) == [], screen


def test_empty_screens_offer_the_next_step(browser, tab, tmp_path):
    empty = Studio(tmp_path)
    empty.stop()
    shutil.rmtree(tmp_path / "data")
    empty.start()
    view = tab(PHONE, has_touch=True, is_mobile=True)
    view.studio = empty
    page = view.open("sets")
    found = {}
    steps = (
        ("sets", button(page, "Draw 40 storyboards"), None),
        ("train", page.get_by_role("link", name="To the sets"), ".sets"),
        ("gallery", page.get_by_role("link", name="Make the first"), ".make"),
        ("queue", page.get_by_role("link", name="Make a set"), ".make"),
        ("compare", page.get_by_role("link", name="train one"), ".train"),
        ("story", button(page, "Take a story of five"), ".line"),
        ("make", button(page, "Take the example"), ".slot"),
    )
    for screen, offer, leads in steps:
        page.evaluate(f"location.hash = '#/{screen}'")
        expect(offer).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], screen
        found |= serious(page, screen)
        if leads:
            offer.click()
            page.locator(leads).first.wait_for()
    page.evaluate("location.hash = '#/sets'")
    button(page, "Draw 40 storyboards").click()
    expect(page.locator(".cards .card")).to_have_count(40)
    # Somebody without the token is asked for it.
    page.context.clear_cookies()
    page.evaluate("localStorage.clear()")
    page.goto(f"http://127.0.0.1:{empty.port}/")
    expect(page.get_by_label("Link or token")).to_be_visible()
    found |= serious(page, "enter")
    page.get_by_label("Link or token").fill(empty.link)
    button(page, "Enter").click()
    expect(page.locator("footer")).to_be_visible()
    empty.stop()
    assert not any(found.values()), found


def test_the_layout_is_drawn_to_scale(tab, studio):
    page = tab().open()
    for name in ("toyland-storyboard", "toyland-identity"):
        page.get_by_label("Recipe").select_option(name)
        canvas = load_recipe(studio.folder / "recipes" / f"{name}.toml").canvas
        slots = page.locator(".canvas .slot")
        expect(slots).to_have_count(len(canvas.boxes))
        interrupt(page, studio)
        expect(page.get_by_label("Recipe")).to_have_value(name)
        expect(slots).to_have_count(len(canvas.boxes))
        page.wait_for_timeout(500)  # The server has said what the canvas will be.
        whole = page.locator(".canvas").bounding_box()
        scale = whole["width"] / canvas.width
        assert whole["height"] == pytest.approx(canvas.height * scale, abs=2)
        for number, (left, top, width, height) in enumerate(canvas.boxes):
            box = slots.nth(number).bounding_box()
            assert box["x"] - whole["x"] == pytest.approx(left * scale, abs=2)
            assert box["y"] - whole["y"] == pytest.approx(top * scale, abs=2)
            assert box["width"] == pytest.approx(width * scale, abs=2)
            assert box["height"] == pytest.approx(height * scale, abs=2)
