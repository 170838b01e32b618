"""Train, Story and Compare in a real browser."""

import re
import threading

import pytest

from iclora.serve import planning
from iclora.serve.problems import Refused
from iclora.sets.dataset import open_dataset
from iclora.toyland.tasks import TASKS, write_sets
from tests.serve.conftest import PLANNED
from tests.serve.studio.conftest import PHONE, interrupt, until
from tests.serve.studio.test_flows import button, make_one, serious
from tests.serve.studio.toywork import write_adapter

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.machine

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def _folder(studio, monkeypatch):
    """A dataset and an adapter in the folder; plans without torch."""
    monkeypatch.setattr(planning, "_counted", counted)
    data = studio.folder / "data" / "boards"
    if not data.exists():
        write_sets(TASKS["film-storyboard"], data, 4)
        (studio.folder / "adapters").mkdir()
        write_adapter(studio.folder / "adapters" / "older.safetensors", open_dataset(data).recipe)


def counted(told):
    """A plan as a card of 10 GB has it, on which a rank of 512 is too much."""
    if told.get("rank") == 512:
        raise Refused(422, "nothing fits into 9.3 GiB", "Take a lower `rank`.", "rank")
    return PLANNED


def hold(studio):
    """Let no step be taken until `release` is called."""
    studio.engine.steps = threading.Semaphore(0)


def release(studio, count=100):
    studio.engine.steps.release(count)


def test_a_run_is_trained_through_a_reload_and_a_restart_and_opens_in_make(tab, studio):
    page = tab().open("train")
    hold(studio)
    expect(page.get_by_text("4 sets of film-storyboard; 20 to 100 teach more")).to_be_visible()
    expect(page.get_by_text("Fits: 1.0 GB")).to_be_visible()
    plan = page.get_by_label("Plan")
    page.get_by_label("Rank").fill("512")
    expect(plan).to_contain_text("nothing fits into 9.3 GiB. Take a lower “rank”.")
    expect(page.get_by_label("Rank")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Rank").fill("")
    expect(plan).to_contain_text("Fits: 1.0 GB")
    steps = page.get_by_label("Steps")
    steps.fill("many")
    button(page, "Start training").click()
    expect(page.locator("#wrong-steps")).to_contain_text("a whole number belongs here")
    steps.fill("5")
    page.reload()
    expect(steps).to_have_value("5")
    page.get_by_label("Name").fill("fox run")
    button(page, "Start training").click()
    expect(page.get_by_label("Name")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Name").fill("fox")
    button(page, "Start training").click()
    expect(page).to_have_url(re.compile("#/train/runs~fox"))
    release(studio, 2)
    expect(page.get_by_text("step 2 of 5")).to_be_visible()
    order = studio.engine.orders[-1].input
    assert (order["resolutions"], order["vram"], order["steps"]) == ([111], "auto", 5)
    button(page, "Save now").click()
    expect(button(page, "Saves after this step")).to_be_disabled()
    button(page, "Preview now").click()
    page.reload()
    expect(button(page, "Draws after this step")).to_be_disabled()
    studio.stop()
    studio.start()
    expect(page.locator(".banner")).to_be_hidden()
    release(studio, 1)
    expect(page.get_by_text("step 3 of 5")).to_be_visible()
    expect(page.get_by_role("img", name="Preview 1: adapter, step 3")).to_be_visible()
    expect(page.locator(".facts")).to_contain_text("Saved3")
    chart = page.get_by_role("img", name="Loss by step, now 0.943; on held-out sets 0.367")
    expect(chart.locator("path.held, path.mean, path.trained, path.dots")).to_have_count(4)
    page.get_by_text("The last steps").click()
    expect(page.get_by_role("row", name="3 0.3333 0001")).to_be_visible()
    expect(page.get_by_label("Log")).to_contain_text("base toyland on cpu in <b>float32</b>")
    # No step ends any more: only to stop now ends it.
    button(page, "Stop after this step").click()
    expect(page.get_by_text("Stops after this step. Now: what was trained")).to_be_visible()
    interrupt(page, studio)
    expect(page.get_by_text("trains, step 3 of 5")).to_be_visible()
    button(page, "Stop now").click()
    expect(page.get_by_text("stopped, step 3 of 5")).to_be_visible()
    interrupt(page, studio)
    button(page, "Go on", exact=True).first.click()
    expect(button(page, "Save now")).to_be_visible()
    button(page, "Stop after this step").click()
    expect(page.get_by_text("Stops after this step. Now: what was trained")).to_be_visible()
    release(studio, 1)
    expect(page.get_by_text("stopped, step 4 of 5")).to_be_visible()
    button(page, "Go on", exact=True).first.click()
    expect(button(page, "Save now")).to_be_visible()
    release(studio)
    expect(page.get_by_text("finished, step 5 of 5")).to_be_visible()
    expect(page.get_by_role("img", name="Preview 1: adapter, step 5")).to_be_visible()
    page.get_by_label("Step of the previews").fill("0")
    expect(page.get_by_role("img", name="Preview 1: adapter, step 3")).to_be_visible()
    button(page, "Slider", exact=True).click()
    page.get_by_label("How much of base is shown").fill("20")
    clipped = page.locator(".over .top").evaluate("e => getComputedStyle(e).clipPath")
    assert "20%" in clipped
    button(page, "Blink", exact=True).click()
    expect(button(page, "Show the other: now adapter, step 3")).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    expect(button(page, "Show the other: now base")).to_be_visible()
    button(page, "Open in Make").click()
    expect(page.get_by_label("Adapter")).to_have_value("runs~fox")
    expect(page.get_by_label("Recipe")).to_have_value("toyland-storyboard")


def test_a_run_that_ends_while_the_page_asks_for_it_is_shown_as_ended(tab, studio):
    hold(studio)
    studio.post("train", {"data": "data~boards", "name": "quick", "steps": 3})
    page = tab().open("train/runs~quick")
    release(studio, 1)
    expect(page.get_by_text("step 1 of 3")).to_be_visible()
    late = []

    def held(route):
        if late:
            route.continue_()
        else:
            late.append((route, route.fetch()))

    # Not `times=1`: that ends all interception while the answer's kin are on their way, and
    # one of them is then lost now and again.
    page.route("**/runs/runs~quick", held)
    release(studio, 1)
    until(page, lambda: late)
    release(studio)
    expect(page.get_by_text("Nothing waits")).to_be_visible()
    # Between its last step and its adapter a run looks as if it had been stopped.
    late[0][0].fulfill(response=late[0][1], json={**late[0][1].json(), "state": "stopped"})
    expect(page.get_by_text("finished, step 3 of 3")).to_be_visible()
    page.unroute("**/runs/runs~quick")


def test_a_story_goes_on_after_a_stop_and_one_image_is_made_again(tab, studio):
    page = tab().open("story")
    hold(studio)
    button(page, "Take a story of five").click()
    page.get_by_label("All images").fill(f"One long evening {EVIL}")
    expect(page.get_by_text("on a canvas with 1, 3")).to_have_count(2)
    page.get_by_label("Words of image 4").fill("")
    button(page, "Make the story").click()
    expect(page.get_by_text("image 4 has no words yet")).to_be_visible()
    page.get_by_label("Words of image 4").fill("in the rain")
    button(page, "Make the story").click()
    release(studio, 1)
    made = page.locator(".line img")
    expect(made).to_have_count(3)
    button(page, "Stop").click()
    expect(button(page, "Go on")).to_be_visible()
    interrupt(page, studio)
    expect(made).to_have_count(3)
    button(page, "Go on").click()
    release(studio)
    expect(made).to_have_count(5)
    expect(button(page, "All images are there")).to_be_disabled()
    second = made.nth(1)
    before = second.get_attribute("src")
    button(page, "Make image 2 again").click()
    expect(second).not_to_have_attribute("src", before)
    expect(made).to_have_count(5)
    order = studio.engine.orders[-1].input
    assert sorted(order["given"]) == ["1", "3", "4", "5"]
    line = page.get_by_role("listitem").filter(has=page.get_by_label("Words of image 5"))
    words = page.get_by_label("Words of image 5").input_value()
    line.focus()
    page.keyboard.press("Alt+ArrowUp")
    expect(page.get_by_label("Words of image 4")).to_have_value(words)
    words = page.get_by_label("Words of image 3").input_value()
    page.evaluate("scrollTo(0, 0)")
    page.locator(".line .image").nth(2).drag_to(page.locator(".line .image").first)
    expect(page.get_by_label("Words of image 1", exact=True)).to_have_value(words)
    interrupt(page, studio)
    expect(page.get_by_label("Words of image 1", exact=True)).to_have_value(words)
    button(page, "Pin image 2").click()
    button(page, "Add an image").click()
    page.keyboard.type("and home")
    button(page, "Make the missing image").click()
    expect(made).to_have_count(6)
    assert studio.engine.orders[-1].input["anchor"] == [2]
    page.evaluate("location.hash = '#/queue'")
    expect(page.get_by_text("Story").last).to_be_visible()
    assert page.locator("main img[onerror]").count() == 0


def test_arms_are_compared_with_figures_and_picture_by_picture(tab, studio):
    page = tab().open("compare")
    expect(page.get_by_label("older")).to_be_visible()
    if not page.get_by_label("older").is_checked():
        page.get_by_label("older").check()
    button(page, "Compare", exact=True).click()
    expect(page.get_by_text("there are no prompts yet")).to_be_visible()
    button(page, "Take the example").click()
    page.get_by_label("Seeds").fill("2")
    hold(studio)
    button(page, "Compare", exact=True).click()
    release(studio, 1)
    expect(button(page, "Show prompt 1, seed 0")).to_be_visible()
    interrupt(page, studio)
    expect(button(page, "Show prompt 1, seed 0")).to_be_visible()
    expect(page.get_by_role("table")).to_have_count(0)
    release(studio)
    table = page.get_by_role("table")
    expect(table).to_contain_text("same character")
    expect(table.locator(".telling").first).to_contain_text("+0.200 (0.100 to 0.300)")
    assert any("older" in arm for arm in studio.engine.orders[-1].input["adapter"])
    button(page, "Show prompt 1, seed 1").click()
    interrupt(page, studio)
    expect(button(page, "Show prompt 1, seed 1")).to_have_attribute("aria-pressed", "true")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    expect(page.get_by_text("Space shows the other")).to_be_visible()
    button(page, "Slider").click()
    expect(page.get_by_role("slider")).to_be_visible()


def test_an_idea_is_written_out_and_a_made_set_goes_to_compare_and_story(tab, studio):
    page = tab().open()
    button(page, "Write the words").click()
    expect(page.locator("#idea-wrong")).to_contain_text("there is no idea yet")
    page.get_by_label("From an idea").fill(f"a fox {EVIL}")
    hold(studio)
    button(page, "Write the words").click()
    expect(button(page, "Write the words")).to_be_disabled()
    interrupt(page, studio)
    expect(page.get_by_label("From an idea")).to_have_value(f"a fox {EVIL}")
    expect(button(page, "Write the words")).to_be_disabled()
    release(studio)
    expect(page.get_by_label("Scene 2", exact=True)).to_have_value(f"a fox {EVIL}")
    assert studio.engine.orders[-1].input["captioner"] == "toyland"
    for count in (1, 2):
        make_one(page)
        expect(button(page, re.compile("Show set"))).to_have_count(count)
    page.evaluate("location.hash = '#/gallery'")
    for each in (0, 1):
        page.locator(".card > a").nth(each).focus()
        page.keyboard.press("x")
    interrupt(page, studio)
    page.get_by_role("link", name="Compare 2 marked").click()
    expect(page.get_by_role("img", name=re.compile("Made set"))).to_have_count(2)
    button(page, "Unmark all").click()
    page.evaluate("location.hash = '#/make'")
    button(page, "Send panel 2 to the story").click()
    expect(page.get_by_text("Panel 2 is in the story")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("y")
    expect(page.locator(".line img").last).to_be_visible()


def test_these_screens_have_no_serious_finding_of_axe_and_fit_a_phone(tab, studio):
    hold(studio)
    studio.post("train", {"data": "data~boards", "name": "small", "steps": 3})
    told = {"prompt": ["[SCENE-1] a [SCENE-2] b [SCENE-3] c"], "recipe": "toyland-storyboard"}
    job = studio.post("evaluate", {**told, "seeds": 2, "adapter": ["older"]})
    release(studio)
    page = tab(PHONE, has_touch=True, is_mobile=True).open("train/runs~small")
    expect(page.get_by_text("finished, step 3 of 3")).to_be_visible()
    found = {}
    for screen in ("train/runs~small", "train", "story", "compare", f"compare/{job.id}"):
        page.evaluate(f"location.hash = '#/{screen}'")
        page.wait_for_selector(f".{screen.split('/')[0]}, .run")
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], screen
        found |= serious(page, screen)
    assert not any(found.values()), found
