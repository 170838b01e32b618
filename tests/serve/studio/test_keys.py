"""Actions by their keys, errors that stay, and what the bar below says."""

import os

import pytest

from tests.serve.studio.conftest import until
from tests.serve.studio.test_flows import button, make_one

pytestmark = pytest.mark.machine

expect = pytest.importorskip("playwright.sync_api").expect


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_panels_are_made_again_compared_and_sent_by_keys_and_the_lineage_is_listed(tab, studio):
    page = tab().open()
    first = make_one(page, "A plan by keys;")
    press(page, "2", "r")
    second = page.get_by_role("link", name="this set in the gallery")
    until(page, lambda: first not in (second.get_attribute("href") or first))
    press(page, "2", "c")
    expect(page.get_by_text("2 versions, the oldest first")).to_be_visible()
    expect(page.get_by_role("img", name="Panel 2: version 2, the one in Make")).to_be_visible()
    press(page, " ")
    expect(page.get_by_role("button", name="Show the other: now version 2")).to_be_visible()
    page.evaluate(f"location.hash = '#/gallery/{first}'")
    lineage = page.get_by_role("region", name="Lineage")
    expect(lineage.get_by_text("panel 2 again")).to_be_visible()
    press(page, "r")
    expect(page.get_by_text("It is equal, pixel for pixel.")).to_be_visible()
    expect(lineage.get_by_text("made again")).to_be_visible()
    page.reload()
    expect(page.get_by_text("It is equal, pixel for pixel.")).to_be_visible()


def test_jobs_are_moved_cancelled_and_tried_again_by_keys(tab, studio):
    page = tab().open()
    make_one(page, "A queue by keys;")
    studio.engine.go.clear()
    for _ in range(3):
        press(page, "Control+Enter")
        page.wait_for_timeout(150)
    until(page, lambda: len(studio.server.queue.page(status="queued")) == 2)
    late, early = [job.id for job in studio.server.queue.page(status="queued")]
    # The second key is pressed before the screen is there which it is meant for.
    press(page, "g", "q", "j", "j", "j")
    expect(page.locator(f'[data-job="{late}"]')).to_be_focused()
    press(page, "Alt+ArrowUp")
    until(page, lambda: studio.server.queue.positions()[late] == 0)
    expect(page.locator(f'[data-job="{late}"]')).to_be_focused()
    press(page, "Delete")
    until(page, lambda: studio.server.queue.get(late).status == "cancelled")
    assert studio.server.queue.get(early).status == "queued"
    expect(button(page.locator(f'[data-job="{late}"]'), "Try again")).to_be_visible()
    expect(page.locator(f'[data-job="{late}"]')).to_be_focused()
    press(page, "r")
    until(page, lambda: studio.server.queue.get(late).status == "queued")
    studio.engine.go.set()


def test_images_of_a_story_are_pinned_and_removed_by_keys(tab):
    page = tab().open("story")
    expect(page.locator(".line")).to_have_count(3)
    press(page, "a")
    expect(page.locator(".line")).to_have_count(4)
    # Its field takes the keys a moment after it is there.
    expect(page.locator(".line").last.locator("textarea, input[type=text]").first).to_be_focused()
    press(page, "Escape", "j", "p")
    expect(button(page, "Pin image 1")).to_have_attribute("aria-pressed", "true")
    press(page, "Delete")
    expect(page.locator(".line")).to_have_count(3)
    press(page, "Control+z", "Control+z")
    expect(page.locator(".line")).to_have_count(4)


def test_an_error_stays_until_it_is_put_away_and_the_bar_tells_of_the_machine(tab):
    page = tab().open("queue")
    chosen = {"name": "other.png", "mimeType": "image/png", "buffer": b"hi"}
    page.get_by_label("Open a picture that iclora made").set_input_files(chosen)
    wrong = page.get_by_text("Only a picture that iclora has made")
    expect(wrong).to_be_visible()
    press(page, "g", "m")
    page.wait_for_selector(".make")
    press(page, "e")  # A note about what was done hides neither.
    expect(page.get_by_text("The example is filled in")).to_be_visible()
    expect(wrong).to_be_visible()
    for said in ("CPU", "free"):
        expect(page.locator("footer").get_by_text(said)).to_be_visible()
    button(page, "Put this message away").click()
    expect(wrong).to_have_count(0)


SMI = """#!/bin/sh
echo "$@" | grep -q -- --query-gpu && cat {figures}
"""


def test_the_bar_shows_what_each_gpu_does_and_holds(tab, studio, tmp_path, monkeypatch):
    smi, figures = tmp_path / "nvidia-smi", tmp_path / "figures"
    smi.write_text(SMI.format(figures=figures))
    smi.chmod(0o755)
    figures.write_text("0, NVIDIA H200, 20480, 143771, 37\n1, NVIDIA H200 MIG, 71, 16384, [N/A]\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    page = tab().open("queue")
    monkeypatch.setattr(studio.engine, "workers", ["cuda:0", "cuda:1"])
    page.reload()
    first, second = (page.locator("footer .device").nth(n) for n in (0, 1))
    expect(first).to_have_text("GPU 0 37% 21 of 151 GB")
    expect(second).to_have_text("GPU 1 0.1 of 17 GB")  # Its driver tells of no load.
    memory = page.get_by_role("meter", name="memory of GPU 0")
    assert memory.evaluate("e => [e.value, e.max]") == [20480 * 2**20, 143771 * 2**20]
    assert "NVIDIA H200: 37% busy" in first.get_attribute("title")
    figures.write_text("0, NVIDIA H200, 100000, 143771, 99\n")
    page.wait_for_timeout(3100)  # It is asked once in a while, for however many pages.
    page.reload()
    expect(page.locator("footer .device")).to_have_text("GPU 99% 105 of 151 GB")
