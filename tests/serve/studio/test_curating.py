"""Sets in a real browser: what is dropped, chosen, captioned and changed by hand."""

import re
import shutil
from importlib.resources import files

import pytest
from PIL import Image
from tokenizers import Tokenizer

from iclora.sets.dataset import open_dataset
from tests.serve.studio.conftest import hand, interrupt, until
from tests.serve.studio.test_flows import button

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.machine

TOKENS = files("iclora") / "toyland" / "weights" / "toyland-base" / "tokenizer_2" / "tokenizer.json"


@pytest.fixture
def boards(studio, tmp_path):
    """A folder of two sets of three panels without words, beside a file that is none."""
    drawn = studio.folder / "data" / "toyland-storyboards"
    for name in ("0001", "0002"):
        place = tmp_path / "My boards" / name
        place.mkdir(parents=True)
        for panel in (1, 2, 3):
            shutil.copy(drawn / name / f"{panel}.png", place / f"{panel}.png")
    (tmp_path / "My boards" / "notes.doc").write_text("nothing")
    return tmp_path / "My boards"


def test_a_folder_is_dropped_and_captioned_whole_through_a_reload_and_a_restart(
    tab, studio, boards
):
    page = tab().open("sets")
    hand(page, page.locator("main"), boards)
    arrives = page.locator(".arrives")
    expect(arrives).to_contain_text("6 pictures, 1 other files are left out")
    expect(page.get_by_label("Name")).to_have_value("My-boards")
    page.get_by_label("Recipe").select_option("toyland-storyboard")
    # What was dropped waits in the page while the server goes and comes.
    studio.stop()
    studio.start()
    button(page, "Add it").click()
    expect(page).to_have_url(re.compile("My-boards"))
    dataset = open_dataset(studio.folder / "data" / "My-boards")
    assert [image_set.name for image_set in dataset.sets] == ["0001", "0002"]
    for name in ("0001/1.png", "0002/3.png"):
        assert (dataset.path / name).read_bytes() == (boards / name).read_bytes()
    page.get_by_role("button", name=re.compile("No words 2")).click()
    expect(page.locator(".cards .card")).to_have_count(2)
    studio.engine.hold()
    button(page, "Caption all").click()
    expect(page.get_by_label("progress of the job")).to_be_visible()
    interrupt(page, studio)
    expect(page.get_by_label("progress of the job")).to_be_visible()
    assert not (dataset.path / "0001" / "caption.txt").exists()
    studio.engine.go.set()
    expect(page.get_by_text("Nothing needs a look")).to_be_visible()
    assert all((dataset.path / name / "caption.txt").exists() for name in ("0001", "0002"))
    expect(page.get_by_role("link", name="Train on it")).to_be_visible()


def test_a_folder_and_a_zip_are_chosen_by_their_buttons(tab, studio, boards, tmp_path):
    page = tab().open("sets")
    page.get_by_label("Choose a folder of sets").set_input_files(boards)
    page.get_by_label("Name").fill("chosen")
    expect(page.locator(".arrives")).to_contain_text("6 pictures")
    page.get_by_label("Recipe").select_option("toyland-storyboard")
    button(page, "Add it").click()
    expect(page).to_have_url(re.compile("chosen"))
    expect(page.locator(".cards .card")).to_have_count(2)
    packed = shutil.make_archive(tmp_path / "packed", "zip", studio.folder / "data" / "chosen")
    page.evaluate("location.hash = '#/sets'")
    page.get_by_label("Choose a zip of sets").set_input_files(packed)
    button(page, "Add it").click()
    expect(page).to_have_url(re.compile("packed"))
    interrupt(page, studio)
    expect(page.locator(".cards .card")).to_have_count(2)


def test_an_upload_that_a_reload_cuts_off_is_said_until_it_is_sent_again(tab, studio, boards):
    page = tab().open("sets")
    page.get_by_label("Choose a folder of sets").set_input_files(boards)
    page.get_by_label("Name").fill("cut")
    page.get_by_label("Recipe").select_option("toyland-storyboard")
    begun = []
    page.route("**/uploads/*/files*", lambda route: begun.append(route))  # Its files do not arrive.
    button(page, "Add it").click()
    until(page, lambda: begun)
    interrupt(page, studio)
    page.unroute("**/uploads/*/files*")
    said = page.get_by_role("alert").filter(has_text="cut was cut off by a reload")
    expect(said).to_be_visible()
    assert not (studio.folder / "data" / "cut").exists()
    page.reload()
    expect(said).to_be_visible()
    page.get_by_label("Choose a folder of sets").set_input_files(boards)
    expect(said).to_have_count(0)
    page.get_by_label("Name").fill("cut")
    page.get_by_label("Recipe").select_option("toyland-storyboard")
    # The server has everything when the page goes: that need not be sent again.
    page.route("**/uploads/*/finish", lambda route: begun.append(route))
    button(page, "Add it").click()
    until(page, lambda: len(begun) == 2)
    interrupt(page, studio)
    page.unroute("**/uploads/*/finish")
    button(page, "Add it").click()
    expect(page).to_have_url(re.compile("cut"))
    expect(page.locator(".cards .card")).to_have_count(2)
    dataset = open_dataset(studio.folder / "data" / "cut")
    assert (dataset.path / "0002/3.png").read_bytes() == (boards / "0002/3.png").read_bytes()


def test_tokens_are_counted_while_words_are_written_and_too_many_are_said(tab, studio):
    page = tab().open("sets/data~toyland-storyboards/0001")
    path = studio.folder / "data" / "toyland-storyboards" / "0001" / "caption.txt"
    before = path.read_text()
    meter = page.locator(".tokens")
    whole = Tokenizer.from_file(str(TOKENS))
    whole.no_truncation()
    whole.no_padding()
    field = page.get_by_label("[SCENE-3]", exact=True)
    for words in ("a fox on a hill", "a fox on a hill beside a red house"):
        field.fill(words)
        text = re.sub(r"(?<=\[SCENE-3\]).*", f" {words}", before.strip(), flags=re.S)
        expect(meter).to_have_text(f"{len(whole.encode(text).ids)} of 128 tokens")
    interrupt(page, studio)
    expect(meter).to_have_text(f"{len(whole.encode(text).ids)} of 128 tokens")
    field.fill("fox " * 300)
    expect(meter).to_have_class(re.compile("over"))
    expect(meter).to_contain_text("the rest would be cut off")
    field.fill("a fox")
    expect(page.get_by_text("Saved", exact=True)).to_be_visible()
    path.write_text(before)


def test_panels_are_swapped_by_drag_and_replaced_by_drop_and_button(tab, studio, tmp_path):
    page = tab().open("sets/data~toyland-storyboards/0003")
    place = studio.folder / "data" / "toyland-storyboards" / "0003"
    before = [(place / f"{n}.png").read_bytes() for n in (1, 2, 3)]
    words = (place / "caption.txt").read_text()
    page.locator("#panel-1").drag_to(page.locator("#panel-3"))
    expect(page.get_by_text("Panels 1 and 3 have changed places")).to_be_visible()
    interrupt(page, studio)
    expect(page.get_by_role("img", name="Set 0003, as it is trained")).to_be_visible()
    assert [(place / f"{n}.png").read_bytes() for n in (3, 2, 1)] == before
    parts = re.split(r"\[SCENE-\d\] ?", words.strip())
    expect(page.get_by_label("[SCENE-1]", exact=True)).to_have_value(parts[3].strip())
    page.locator("#panel-3").drag_to(page.locator("#panel-1"))
    until(page, lambda: (place / "1.png").read_bytes() == before[0])
    # The second of two quick changes waits for what the first has made of the files.
    answers = []
    page.on("response", lambda answer: "/panels" in answer.url and answers.append(answer.status))
    page.locator("#panel-1").focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    until(page, lambda: len(answers) == 2)
    assert answers == [200, 200]
    for number, colour in ((1, "teal"), (2, "olive")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
        if number == 1:
            hand(page, page.locator("#panel-1"), tmp_path / "teal.png")
        else:
            page.get_by_label("Choose another picture for panel 2").set_input_files(
                tmp_path / "olive.png"
            )
        expect(page.get_by_text(f"Panel {number} has another picture")).to_be_visible()
        with Image.open(place / f"{number}.png") as there:
            assert there.convert("RGB").getpixel((9, 9)) == Image.new(
                "RGB", (1, 1), colour
            ).getpixel((0, 0))
        button(page, "Undo").click()
        expect(page.get_by_text("Undone:")).to_be_visible()
        assert (place / f"{number}.png").read_bytes() == before[number - 1]


def test_a_border_is_moved_by_the_pointer_and_stays_over_a_reload_and_a_restart(tab, studio):
    place = studio.folder / "data" / "joined"
    place.mkdir()
    for each in (studio.folder / "data" / "toyland-storyboards").glob("*.toml"):
        shutil.copy(each, place)
    whole = Image.new("RGB", (64, 192), "red")
    whole.paste("blue", (0, 80, 64, 192))
    whole.save(place / "a.png")
    page = tab().open("sets/data~joined/a?view=borders")
    border = page.get_by_role("slider", name="border above panel 2")
    expect(border).to_have_attribute("aria-valuenow", re.compile(r"\d"))
    seen = int(border.get_attribute("aria-valuenow"))

    def grab(to):
        box = border.bounding_box()
        stage = page.locator(".canvas.borders").bounding_box()
        middle = box["x"] + box["width"] / 2
        page.mouse.move(middle, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(middle, stage["y"] + stage["height"] * to / 192, steps=3)
        page.mouse.up()

    grab(112)
    expect(border).to_have_attribute("aria-valuenow", "112")
    # It lies still once it is let go.
    page.mouse.move(300, 200)
    expect(border).to_have_attribute("aria-valuenow", "112")
    # What is not cut yet is kept, too.
    interrupt(page, studio)
    expect(border).to_have_attribute("aria-valuenow", "112")
    button(page, "As it was").click()
    expect(border).to_have_attribute("aria-valuenow", str(seen))
    interrupt(page, studio)
    expect(border).to_have_attribute("aria-valuenow", str(seen))
    grab(112)
    button(page, "Cut here").click()
    expect(button(page, "Move borders")).to_be_visible()
    with Image.open(place / "a.png") as kept:
        assert '"boxes": [[0, 0, 64, 112], [0, 112, ' in kept.text["iclora:placed"]
