"""The gallery in a real browser: many sets, what is found among them, and what is taken along."""

import json
import os
import re
import subprocess
import zipfile

import pytest

from iclora.sets.recipe import load_recipe
from tests.serve.studio.conftest import interrupt, until
from tests.serve.studio.test_flows import button, make_one
from tests.serve.studio.toywork import write_adapter

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.machine

MANY = 2000


def made_sets(studio):
    return list((studio.folder / "out").glob("*/0001/request.json"))


def test_sets_are_found_by_recipe_star_words_and_adapter_through_a_reload(tab, studio):
    adapter = studio.folder / "adapters" / "foxes.safetensors"
    adapter.parent.mkdir()
    write_adapter(adapter, load_recipe(studio.folder / "recipes" / "toyland-storyboard.toml"))
    page = tab().open()
    plain = make_one(page, "A heron at noon;")
    page.get_by_label("Adapter").select_option("foxes")
    button(page, "Make another set").click()
    until(page, lambda: len(made_sets(studio)) == 2)
    rooms = load_recipe(studio.folder / "recipes" / "toyland-rooms.toml")
    studio.post("generate", {"prompt": [rooms.example], "recipe": "toyland-rooms"})
    until(page, lambda: len(made_sets(studio)) == 3)
    page.evaluate("location.hash = '#/gallery'")
    card = page.locator(".card")
    expect(card).to_have_count(3)
    button(page.locator(f'[data-set="{plain}"]'), "Star").click()
    button(page, "Starred").click()
    expect(card).to_have_count(1)
    expect(card).to_have_attribute("data-set", plain)
    interrupt(page, studio)
    expect(card).to_have_count(1)
    button(page, "Starred").click()
    expect(card).to_have_count(3)
    choose = page.get_by_label("Recipe")
    choose.select_option("toyland-rooms")
    expect(card).to_have_count(1)
    expect(card).to_contain_text("toyland-rooms")
    choose.select_option("")
    page.get_by_label("Adapter").select_option("foxes")
    expect(card).to_have_count(1)
    assert "adapter=foxes" in page.url
    page.get_by_role("searchbox").fill("no such words")
    expect(page.get_by_text("No set is like that")).to_be_visible()
    button(page, "Show all sets").click()
    expect(card).to_have_count(3)
    page.get_by_role("searchbox").fill("heron noon")
    expect(card).to_have_count(2)


def test_a_set_is_taken_along_as_a_zip_and_as_a_call_that_makes_it_again(tab, studio, tmp_path):
    page = tab().open()
    made = make_one(page, "A crane's nest;")
    page.get_by_role("link", name="this set in the gallery").click()
    place = studio.server.sets.get(made).path
    with page.expect_download() as coming:
        page.get_by_role("link", name="Zip").click()
    coming.value.save_as(tmp_path / "set.zip")
    with zipfile.ZipFile(tmp_path / "set.zip") as packed:
        files = {name.rpartition("/")[2]: packed.read(name) for name in packed.namelist()}
    assert {"composite.png", "request.json", "panel-1.png"} <= set(files)
    assert files["composite.png"] == (place / "composite.png").read_bytes()
    button(page, "Copy as curl").click()
    expect(page.get_by_text("The call is copied")).to_be_visible()
    line = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        ["bash", "-c", line], cwd=studio.folder, capture_output=True, text=True, check=True
    )
    job = json.loads(done.stdout)["id"]
    assert studio.server.queue.get(job).input["request"] == made
    until(page, lambda: studio.server.queue.get(job).status == "succeeded")
    again = studio.server.sets.get(studio.server.queue.get(job).result["sets"][0]).path
    assert (again / "composite.png").read_bytes() == files["composite.png"]
    assert (again / "request.json").read_bytes() == (place / "request.json").read_bytes()


def test_make_again_says_that_it_is_equal_though_page_and_server_went_meanwhile(tab, studio):
    page = tab().open()
    made = make_one(page, "A stork on a roof;")
    page.evaluate(f"location.hash = '#/gallery/{made}'")
    studio.engine.hold()
    button(page, "Make again").click()
    expect(page.get_by_label("progress of the job")).to_be_visible()
    interrupt(page, studio)
    expect(button(page, "Make again")).to_be_disabled()
    studio.engine.go.set()
    expect(page.get_by_text("It is equal, pixel for pixel.")).to_be_visible()


def test_compare_opens_from_make_and_from_a_set_with_slider_and_blink(tab, studio):
    page = tab().open()
    first = make_one(page, "A gull;")
    button(page, "compare", exact=True).click()
    expect(page.get_by_text("One set is marked")).to_be_visible()
    page.get_by_role("link", name="To the gallery").click()
    page.evaluate("location.hash = '#/make'")
    make_one(page, "Two gulls;")
    expect(button(page, re.compile("Show set"))).to_have_count(2)
    link = page.get_by_role("link", name="this set in the gallery")
    second = link.get_attribute("href").rpartition("/")[2]
    page.evaluate(f"location.hash = '#/gallery/{second}'")
    button(page, "Compare", exact=True).click()
    expect(page.get_by_role("img", name=re.compile("Made set"))).to_have_count(2)
    assert first in page.url
    assert second in page.url
    interrupt(page, studio)
    expect(page.get_by_role("img", name=re.compile("Made set"))).to_have_count(2)
    button(page, "Slider").click()
    page.get_by_role("slider").press("ArrowRight")
    expect(page.get_by_role("slider")).to_have_value("51")
    clipped = page.locator(".over .top").evaluate("e => getComputedStyle(e).clipPath")
    assert "51%" in clipped
    button(page, "Blink", exact=True).click()
    expect(button(page, re.compile("now set 2"))).to_be_visible()
    button(page, re.compile("now set 2")).click()
    expect(button(page, re.compile("now set 1"))).to_be_visible()
    page.keyboard.press("Space")
    expect(button(page, re.compile("now set 2"))).to_be_visible()
    button(page, "Unmark all").click()


def test_thousands_of_sets_are_scrolled_and_only_pictures_that_are_seen_are_made(tab, studio):
    out, told = studio.folder / "out", studio.folder / "told.json"
    first = next(each.parent for each in sorted(out.glob("*/0001/composite.png")))
    request = json.loads((first / "request.json").read_text())
    told.write_text(json.dumps(request | {"prompt": "[SCENE-1] number [SCENE-2] b [SCENE-3] c"}))
    for number in range(MANY):
        place = out / f"many-{number:04d}"
        place.mkdir()
        os.link(first / "composite.png", place / "composite.png")
        os.link(told, place / "request.json")
    view = tab()
    page = view.open("gallery?q=number")
    until(page, lambda: page.evaluate(SCROLL) >= MANY, 200)
    card = page.locator(".card")
    expect(card).to_have_count(MANY)
    assert len(set(page.evaluate(NAMES))) == MANY
    expect(page.locator(".end")).to_have_count(0)
    for each in (card.last, card.first):
        each.scroll_into_view_if_needed()
        until(page, lambda each=each: each.locator("img").evaluate("e => e.naturalWidth > 0"))
    # Those that were scrolled past are not made; where the machine is slow, more of them are seen.
    thumbs = studio.server.catalog.home / "thumbs"
    assert len(list(thumbs.iterdir())) < MANY / 2
    # A list of so many comes again in few requests.
    view.asked.clear()
    button(card.first, "Star").click()
    expect(button(card.first, "Star")).to_have_attribute("aria-pressed", "true")
    until(page, lambda: sum("cursor=" in url for url in view.asked) >= MANY // 200 - 1)
    page.wait_for_timeout(300)
    assert card.count() == MANY
    page.reload()
    expect(card.first).to_be_visible()


SCROLL = """() => {
  document.querySelector(".end")?.scrollIntoView();
  return document.querySelectorAll(".card").length;
}"""
NAMES = "() => [...document.querySelectorAll('.card')].map((each) => each.dataset.set)"


def test_light_and_dark_are_chosen_by_a_button_and_stay(tab, studio):
    page = tab().open("gallery")
    ground = "() => getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    button(page, "Dark colours").click()
    dark = page.evaluate(ground)
    assert dark != light
    interrupt(page, studio)
    expect(button(page, "Light colours")).to_be_visible()
    assert page.evaluate(ground) == dark
    button(page, "Light colours").click()
    assert page.evaluate(ground) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) == light
