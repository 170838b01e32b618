"""What a designer does on the page, in a real browser."""

import base64
import io
import json
import re
import shlex
import zipfile
from urllib.parse import urlparse

import pytest
from PIL import Image

from iclora.cli.main import VERBS
from iclora.cli.options import verb_parser
from iclora.errors import SettingsError
from iclora.files import digest
from iclora.sets.images import write_png
from iclora.sets.recipe import load_recipe
from tests.serve.studio.conftest import PHONE, hand, interrupt, until
from tests.serve.studio.toywork import write_adapter

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.machine

# A picture of 64 x 64 px that is dropped on a slot, or pasted while it has the focus.
HANDED = """async ([panel, how]) => {
  const canvas = new OffscreenCanvas(64, 64);
  canvas.getContext("2d").fillRect(0, 0, 64, 64);
  const data = new DataTransfer();
  data.items.add(new File([await canvas.convertToBlob()], "a.png", {type: "image/png"}));
  const slot = document.getElementById(`slot-${panel}`);
  slot.focus();
  slot.dispatchEvent(how === "drop"
    ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
    : new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
}"""


def button(page, name, **more):
    return page.get_by_role("button", name=name, **more)


def sent(view):
    """What a tab has asked for over the network."""
    return [url for url in view.asked if not url.startswith("blob:")]


def serious(page, screen):
    """What axe finds serious or critical on a screen, in light and in dark."""
    from axe_playwright_python.sync_playwright import Axe

    found = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        report = Axe().run(page, options={"resultTypes": ["violations"]})
        found[screen, scheme] = [
            (each["id"], each["nodes"][0]["html"][:120], each["nodes"][0]["failureSummary"])
            for each in report.response["violations"]
            if each["impact"] in ("serious", "critical")
        ]
    return found


def make_one(page, words="A quiet morning;"):
    """Make a set of the example with an overview of one's own. Returns: its id."""
    if button(page, "Take the example").is_visible():
        button(page, "Take the example").click()
    page.get_by_label("All panels").fill(words)
    button(page, re.compile("^Make (the|another) set")).click()
    link = page.get_by_role("link", name="this set in the gallery")
    expect(link).to_be_visible()
    return link.get_attribute("href").rpartition("/")[2]


def test_no_screen_has_a_serious_finding_of_axe_in_light_or_dark(tab, studio):
    page = tab().open()
    found = {}
    made = make_one(page, "A heron;")
    button(page, "Keep panel 2").click()
    one = "sets/data~toyland-storyboards"
    made = f"gallery/{made}"
    for screen in ("make", made, "gallery?q=heron", "queue", "sets", one, f"{one}/0003"):
        page.evaluate(f"location.hash = '#/{screen}'")
        page.wait_for_timeout(250)
        found |= serious(page, screen)
    page.keyboard.press("?")
    found |= serious(page, "keys")
    assert not any(found.values()), found


def test_a_set_is_made_from_the_example_through_a_reload_and_a_restart(tab, studio):
    page = tab().open()
    studio.engine.hold()
    button(page, "Take the example").click()
    page.get_by_label("All panels").fill("One long evening;")
    page.get_by_label("Steps").fill("7")
    button(page, "Make the set").click()
    expect(page.get_by_text("sampling, 0 of 4")).to_be_visible()
    page.reload()
    expect(page.get_by_text("sampling, 0 of 4")).to_be_visible()
    expect(page.get_by_label("All panels")).to_have_value("One long evening;")
    studio.stop()
    expect(page.get_by_text("The server does not answer.", exact=False).first).to_be_visible()
    page.get_by_label("All panels").fill("One long night;")
    studio.start()
    expect(page.locator(".banner")).to_be_hidden()
    studio.engine.go.set()
    expect(page.get_by_role("img", name="Scene 2, made")).to_be_visible()
    expect(page.get_by_label("All panels")).to_have_value("One long night;")
    order = studio.engine.orders[-1]
    assert order.input["steps"] == 7
    assert order.input["prompt"][0].startswith("[MOVIE-SHOTS] One long evening; [SCENE-1] ")


def test_a_kept_panel_stays_while_the_others_are_made_again(tab, studio):
    page = tab().open()
    make_one(page)
    button(page, "Keep panel 2").click()
    button(page, "Make the other 2 panels again").click()
    expect(button(page, re.compile("Show set"))).to_have_count(2)
    assert studio.engine.orders[-1].input["panel"] == [1, 3]
    interrupt(page, studio)
    expect(button(page, "Keep panel 2")).to_have_attribute("aria-pressed", "true")
    button(page, "Make panel 2 again").click()
    expect(button(page, re.compile("Show set"))).to_have_count(3)
    assert studio.engine.orders[-1].input["panel"] == [2]
    button(page, "Undo").click()
    expect(button(page, re.compile("Show set")).nth(1)).to_have_attribute("aria-pressed", "true")


def test_a_given_picture_says_what_becomes_of_it_and_completes_the_set(tab, studio, tmp_path):
    for name, side in (("exact", 64), ("other", 90)):
        Image.new("RGB", (side, side), "teal").save(tmp_path / f"{name}.png")
    (tmp_path / "<b>words.png").write_text("no picture")
    page = tab().open()
    choose = page.get_by_label("Choose a picture for panel 1")
    choose.set_input_files(tmp_path / "<b>words.png")
    expect(page.locator("#slot-1").get_by_role("alert")).to_contain_text("<b>words.png")
    choose.set_input_files(tmp_path / "exact.png")
    expect(page.locator("#slot-1")).to_contain_text("pixel for pixel")
    choose.set_input_files(tmp_path / "other.png")
    expect(page.locator("#slot-1")).to_contain_text("90 × 90 px, in the composite 64 × 64")
    page.keyboard.press("Control+z")
    expect(page.locator("#slot-1")).to_contain_text("pixel for pixel")
    for panel, how in ((2, "drop"), (3, "paste")):
        page.evaluate(HANDED, [panel, how])
        expect(page.locator(f"#slot-{panel}")).to_contain_text("pixel for pixel")
    expect(page.locator(".start").get_by_role("alert")).to_contain_text("all panels are given")
    page.keyboard.press("Control+z")
    expect(page.get_by_label("Take the picture of panel 3 away")).to_have_count(0)
    button(page, "Take the picture of panel 2 away").click()
    button(page, "Take the example").click()
    interrupt(page, studio)
    expect(page.locator("#slot-1")).to_contain_text("pixel for pixel")
    button(page, "Complete the set").click()
    expect(page.get_by_role("img", name="Scene 3, made")).to_be_visible()
    expect(page.get_by_role("img", name="Scene 1, given")).to_be_visible()
    assert studio.engine.orders[-1].kind == "complete"
    button(page, "Use panel 3 as given").click()
    expect(page.get_by_role("img", name="Scene 3, given")).to_be_visible()


def test_what_is_wrong_stands_at_its_field(tab, studio):
    page = tab().open()
    button(page, "Make the set").click()
    expect(page.locator(".words").get_by_role("alert")).to_contain_text("there are no words yet")
    button(page, "As one text").click()
    page.get_by_label("Joint prompt").fill("[MOVIE-SHOTS] a [SCENE-1] b [SCENE-3] c")
    expect(page.locator(".words").get_by_role("alert")).to_contain_text("[SCENE-2]")
    page.get_by_label("Joint prompt").fill("[SCENE-1] b [SCENE-2] c [SCENE-3] d")
    steps = page.get_by_label("Steps")
    steps.fill("0")
    page.keyboard.press("Control+Enter")
    expect(steps).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#wrong-steps")).to_have_text("must be at least 1, not 0. ")
    steps.fill("")
    studio.engine.failure = SettingsError("too many words", "Say less.", setting="prompt")
    button(page, "Make the set").click()
    expect(page.locator(".words").get_by_role("alert")).to_contain_text("too many words. Say less.")


def test_the_gallery_filters_opens_makes_again_and_forgives_the_trash(tab, studio):
    page = tab().open()
    first = make_one(page, "A walrus at noon;")
    make_one(page, "A lynx at dusk;")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("g")
    page.keyboard.press("l")
    page.get_by_role("searchbox").fill("walrus noon")
    card = page.locator(".card")
    expect(card).to_have_count(1)
    assert "q=walrus" in page.url
    interrupt(page, studio)
    expect(card).to_have_count(1)
    button(card, "Star").click()
    expect(button(card, "Star")).to_have_attribute("aria-pressed", "true")
    card.get_by_role("link").click()
    expect(page).to_have_url(re.compile(first))
    button(page, "Make again").click()
    expect(page.get_by_text("It is equal, pixel for pixel.")).to_be_visible()
    button(page, "Copy as command").click()
    path = studio.server.sets.get(first).path.relative_to(studio.folder).as_posix()
    expect(page.get_by_text("The command is copied")).to_be_visible()
    said = page.evaluate("navigator.clipboard.readText()")
    assert said == f"iclora generate '{path}/request.json'"
    program, verb, *words = shlex.split(said)
    read = verb_parser(verb, VERBS.load(verb)).parse_args(words)
    assert program == "iclora"
    assert (studio.folder / read.request).samefile(studio.folder / path / "request.json")
    button(page, "Move to the trash").click()
    expect(page).to_have_url(re.compile("#/gallery.q=walrus"))
    expect(page.locator(f'[data-set="{first}"]')).to_have_count(0)
    assert studio.server.sets.get(first).trashed
    button(page, "Undo").click()
    expect(page.locator(f'[data-set="{first}"]')).to_be_visible()
    assert not studio.server.sets.get(first).trashed
    page.goto(page.url.partition("#")[0] + f"#/gallery/{first}")
    button(page, "Change and make").click()
    expect(page.get_by_label("All panels")).to_have_value("A walrus at noon;")
    expect(page.get_by_role("img", name="Scene 1, made")).to_be_visible()


def test_on_a_phone_the_queue_is_paused_reordered_cancelled_and_nothing_scrolls_sideways(
    tab, studio
):
    view = tab(PHONE, has_touch=True, is_mobile=True)
    page = view.open("queue")
    button(page, "Pause").click()
    expect(button(page, "Go on")).to_be_visible()
    words = "[MOVIE-SHOTS] {} [SCENE-1] a, [SCENE-2] b, [SCENE-3] c."
    for name in ("first", "second", "third"):
        told = {"prompt": [words.format(name)], "recipe": "toyland-storyboard"}
        studio.post("generate", told)
    rows = page.locator("ol.rows .row")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("the queue is paused")
    interrupt(page, studio)
    expect(rows).to_have_count(3)
    button(rows.last, "Earlier").tap()
    expect(rows.nth(1)).to_contain_text("third")
    button(rows.last, "Cancel").tap()
    expect(rows).to_have_count(2)
    assert [job.status for job in studio.server.queue.page(limit=3)].count("cancelled") == 1
    button(page.locator("ul.rows .row").first, "Try again").tap()
    expect(rows).to_have_count(3)
    studio.engine.hold()
    button(page, "Go on").tap()
    expect(page.get_by_text("sampling, 0 of 4")).to_be_visible()
    page.reload()
    # The server tells how far that job is; only its own row will tell it later on, too.
    expect(rows.first).to_contain_text("a job to generate runs")
    expect(rows.first).not_to_contain_text(" of ")
    studio.engine.go.set()
    expect(rows).to_have_count(0)
    expect(page.locator("ul.rows .row").first.get_by_role("link")).to_be_visible()
    for screen in (
        "queue",
        "make",
        "gallery",
        "sets",
        "sets/data~toyland-storyboards",
        "sets/data~toyland-storyboards/0003",
        page.locator(".thumb").first.get_attribute("href")[2:],
    ):
        page.evaluate(f"location.hash = '#/{screen.lstrip('/')}'")
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], screen


def test_the_keyboard_alone_makes_keeps_stars_and_trashes(tab, studio):
    view = tab()
    page = view.open(fresh=True)
    assert len(sent(view)) <= 25
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Take the example":
            break
    page.keyboard.press("Enter")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Scene 2", exact=True)).to_be_focused()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("img", name="Scene 2, made")).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("3")
    page.keyboard.press("p")
    expect(button(page, "Keep panel 3")).to_have_attribute("aria-pressed", "true")
    interrupt(page, studio)
    expect(button(page, "Keep panel 3")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("l")
    expect(page.locator(".card").first).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("s")
    expect(button(page.locator(".card").first, "Star")).to_have_attribute("aria-pressed", "true")
    gone = page.locator(".card").first.get_attribute("data-set")
    page.keyboard.press("Delete")
    expect(page.locator(f'[data-set="{gone}"]')).to_have_count(0)
    page.keyboard.press("Control+z")
    expect(page.locator(f'[data-set="{gone}"]')).to_be_visible()
    # The stream tells that a set is gone before the request is answered; undo means that set.
    page.evaluate(
        """() => { const real = fetch; window.fetch = async (...asked) => {
            const answer = await real(...asked);
            if (asked[1]?.method === "DELETE") await new Promise((go) => setTimeout(go, 400));
            return answer; }; }"""
    )
    page.locator(f'[data-set="{gone}"] a').focus()
    page.keyboard.press("Delete")
    expect(page.locator(f'[data-set="{gone}"]')).to_have_count(0)
    page.keyboard.press("Control+z")
    expect(page.locator(f'[data-set="{gone}"]')).to_be_visible()


def test_two_tabs_share_one_stream_and_the_second_takes_over(tab, studio):
    first = tab()
    first.open("queue")
    second = first.context.new_page()
    second.goto(studio.link)
    second.evaluate("location.hash = '#/queue'")
    expect(button(second, "Pause")).to_be_visible()
    # Those of pages that were left end a moment later.
    until(second, lambda: studio.server.bus.streams == 1)
    button(first.page, "Pause").click()
    expect(button(second, "Go on")).to_be_visible()
    first.page.goto(f"http://127.0.0.1:{studio.port}/healthz")
    words = "[SCENE-1] handed over [SCENE-2] b [SCENE-3] c"
    waits = studio.post("generate", {"prompt": [words], "recipe": "toyland-storyboard"})
    expect(second.locator("ol.rows .row").first).to_contain_text("handed over")
    studio.server.queue.cancel(waits.id)
    second.close()


def test_below_a_sub_path_markup_is_text_and_no_request_leaves_that_path(tab, studio):
    evil = '<img src="http://example.com/x.png" onerror="document.title=1"><script>1</script>'
    view = tab()
    page = view.open(below="a/b/")
    answer = page.request.get(studio.link.partition("#")[0])
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    make_one(page, evil)
    page.get_by_role("link", name="this set in the gallery").click()
    interrupt(page, studio)
    expect(page.locator(".prompt")).to_contain_text(evil)
    for screen in ("gallery", "queue"):
        page.evaluate(f"location.hash = '#/{screen}'")
        expect(page.get_by_text(evil).first).to_be_visible()
    assert page.locator("main script, main img[onerror]").count() == 0
    assert {urlparse(url).path[:5] for url in sent(view)} == {"/a/b/"}
    assert {urlparse(url).netloc for url in sent(view)} == {f"127.0.0.1:{studio.port}"}


def test_sets_are_captioned_edited_and_saved_through_a_reload_and_a_change_on_the_disk(tab, studio):
    page = tab().open("sets")
    page.get_by_role("link", name=re.compile("toyland-storyboards")).click()
    expect(page.locator(".cards .card")).to_have_count(3)
    page.locator(".cards .card a").first.click()
    path = studio.folder / "data" / "toyland-storyboards" / "0001" / "caption.txt"
    before = path.read_text()
    field = page.get_by_label("[SCENE-2]", exact=True)
    field.fill("")
    page.keyboard.type("<b>a bear</b> looks ")
    until(page, lambda: "<b>a bear</b> looks [SCENE-3]" in path.read_text())
    page.keyboard.type("up,")  # The space before it is still there, though it was not saved.
    until(page, lambda: "looks up," in path.read_text())
    expect(page.get_by_text("Saved", exact=True)).to_be_visible()
    assert "[SCENE-2] <b>a bear</b> looks up, [SCENE-3]" in path.read_text()
    interrupt(page, studio)
    expect(field).to_have_value("<b>a bear</b> looks up,")
    assert page.locator("main b:text-is('a bear')").count() == 0
    # Words that the server refuses stay in the browser, and the file as it is.
    field.fill("")
    expect(page.locator("#words-wrong")).to_contain_text("there are no words behind [SCENE-2]")
    page.reload()
    expect(field).to_have_value("")
    path.write_text(before)
    field.fill("mine")
    conflict = page.locator(".conflict")
    expect(conflict).to_contain_text("Nothing is lost")
    expect(conflict.get_by_label("Yours")).to_contain_text("mine")
    button(page, "Take the one on the disk").click()
    expect(conflict).to_have_count(0)
    assert path.read_text() == before
    button(page, "Undo").click()
    button(page, "Keep mine").click() if conflict.is_visible() else None
    expect(page.get_by_text("Saved", exact=True)).to_be_visible()
    assert "[SCENE-2] mine" in path.read_text()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("c")
    expect(page.get_by_label("All panels")).to_have_value(re.compile("0001"))
    assert studio.engine.orders[-1].input["only"] == ["0001"]
    button(page, "Undo").click()
    expect(field).to_have_value("mine")
    path.write_text(before)


def test_panels_are_swapped_and_left_out_by_keys_and_buttons_and_come_back(tab, studio):
    page = tab().open("sets/data~toyland-storyboards/0002")
    place = studio.folder / "data" / "toyland-storyboards" / "0002"
    first, second = ((place / f"{n}.png").read_bytes() for n in (1, 2))
    page.locator("#panel-1").focus()
    page.keyboard.press("Shift+ArrowRight")
    expect(page.get_by_text("Panels 1 and 2 have changed places")).to_be_visible()
    assert (place / "1.png").read_bytes() == second
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+z")
    expect(page.get_by_text("Undone:")).to_be_visible()
    assert (place / "1.png").read_bytes() == first
    interrupt(page, studio)
    button(page, "Leave panel 3 out").click()
    expect(page.get_by_text("It has no canvas yet")).to_be_visible()
    assert not (place / "3.png").exists()
    page.evaluate("location.hash = '#/sets/data~toyland-storyboards?only=look'")
    expect(page.locator(".cards .card")).to_have_count(1)
    expect(page.locator(".cards .card")).to_contain_text("has 2 images")
    button(page, "Undo").click()
    expect(page.get_by_text("Nothing needs a look")).to_be_visible()
    assert (place / "3.png").exists()


DROPPED = """async (files) => {
  const data = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
    data.items.add(new File([bytes], name));
  }
  const how = {dataTransfer: data, bubbles: true, cancelable: true};
  document.querySelector(".sets").dispatchEvent(new DragEvent("drop", how));
}"""


def test_a_zip_is_dropped_its_borders_are_moved_by_keys_and_kept(tab, studio):
    held, packed = io.BytesIO(), io.BytesIO()
    whole = Image.new("RGB", (64, 192), "red")
    whole.paste("blue", (0, 80, 64, 192))
    whole.save(held, "PNG")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", held.getvalue())
    page = tab().open("sets")
    page.evaluate(DROPPED, [["two.zip", base64.b64encode(packed.getvalue()).decode()]])
    button(page, "Add it").click()
    expect(page.locator(".arrives").get_by_role("alert")).to_contain_text("which recipe")
    page.get_by_label("Recipe").select_option("toyland-storyboard")
    button(page, "Add it").click()
    expect(page).to_have_url(re.compile("data~two|data%7Etwo"))
    page.locator(".cards .card a").click()
    expect(page.get_by_text("do not show")).to_be_visible()
    button(page, "Move borders").click()
    interrupt(page, studio)
    border = page.get_by_role("slider", name="border above panel 2")
    border.focus()
    now = int(border.get_attribute("aria-valuenow"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(border).not_to_have_attribute("aria-valuenow", str(now))
    button(page, "Cut here").click()
    button(page, "Move borders").click()
    expect(border).to_have_attribute("aria-valuenow", re.compile(r"\d+"))
    moved = int(border.get_attribute("aria-valuenow"))
    assert moved > now
    path = studio.folder / "data" / "two" / "a.png"
    with Image.open(path) as kept:
        assert f'"boxes": [[0, 0, 64, {moved}]' in kept.text["iclora:placed"]


def test_a_picture_of_ours_that_is_dropped_opens_its_request_with_its_seeds(tab, studio):
    page = tab().open()
    made = make_one(page, "A swan – at noon;")
    request = studio.server.sets.get(made).path / "request.json"
    # Files pass from machine to machine: what an adapter was called says nothing, its hash does.
    adapter = studio.folder / "adapters" / "swans.safetensors"
    adapter.parent.mkdir(exist_ok=True)
    write_adapter(adapter, load_recipe(studio.folder / "recipes" / "toyland-storyboard.toml"))
    used = {"adapter": "adapter.safetensors", "adapter_sha256": digest(adapter.read_bytes())}
    told = json.loads(request.read_text()) | used | {"strength": 0.7}
    text = {"iclora:request": json.dumps(told)}
    write_png(studio.folder / "ours.png", Image.new("RGB", (64, 192)), text)
    held = (studio.folder / "ours.png").read_bytes()
    page = tab().open("queue")
    page.evaluate(
        DROPPED.replace(".sets", "footer"), [["ours.png", base64.b64encode(held).decode()]]
    )
    expect(page.get_by_label("All panels")).to_have_value("A swan – at noon;")
    interrupt(page, studio)
    expect(page.get_by_label("Adapter")).to_have_value(re.compile("swans"))
    expect(page.get_by_text("Seeds are those of the picture")).to_be_visible()
    button(page, "Make the set").click()
    expect(page.get_by_role("img", name="Scene 1, made")).to_be_visible()
    seeds = json.loads(request.read_text())["seeds"]
    told = studio.engine.orders[-1].input["panel_seeds"]
    assert [told[str(n)] for n in (1, 2, 3)] == seeds
    assert studio.engine.orders[-1].input["adapter"] == [str(adapter)]
    assert studio.engine.orders[-1].input["strength"] == 0.7
    # On a slot it is given, and what it was made of is offered.
    page.get_by_label("All panels").fill("other words")
    hand(page, page.locator("#slot-1"), studio.folder / "ours.png")
    expect(page.get_by_role("img", name="Scene 1, given")).to_be_visible()
    expect(page.get_by_label("All panels")).to_have_value("other words")
    button(page, "Open what it was made of").click()
    expect(page.get_by_label("All panels")).to_have_value("A swan – at noon;")
    adapter.unlink()
    page.evaluate(
        DROPPED.replace(".sets", "footer"), [["ours.png", base64.b64encode(held).decode()]]
    )
    expect(page.get_by_text("adapter.safetensors is not in this folder")).to_be_visible()
    page.evaluate(DROPPED.replace(".sets", "footer"), [["other.png", "aGk="]])
    expect(page.get_by_text("Only a picture that iclora has made")).to_be_visible()


def test_a_star_and_the_trash_are_seen_by_another_browser(tab, studio):
    page = tab().open()
    made = make_one(page, "A shared set;")
    other = tab({"width": 900, "height": 700}).open("gallery")
    card = other.locator(f'[data-set="{made}"]')
    expect(card).to_be_visible()
    page.evaluate(f"location.hash = '#/gallery/{made}'")
    button(page, "Star").click()
    expect(button(card, "Star")).to_have_attribute("aria-pressed", "true")
    button(page, "Move to the trash").click()
    expect(card).to_have_count(0)
