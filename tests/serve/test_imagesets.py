"""The sets of datasets over HTTP: seen, judged, changed by hand, taken back."""

import io

import pytest
from PIL import Image

from tests.serve.conftest import picture

CAPTION = "[MOVIE-SHOTS] A day, [SCENE-1] one [SCENE-2] two [SCENE-3] three."
PLACE = "/api/v1/datasets/data~shots"


@pytest.fixture
def dataset(folder):
    place = folder / "data" / "shots"
    for name, colours in (("0001", ("red", "green", "blue")), ("0002", ("red", "green", "blue"))):
        (place / name).mkdir(parents=True)
        for number, colour in enumerate(colours, 1):
            Image.new("RGB", (64, 32), colour).save(place / name / f"{number}.png")
    (place / "0001" / "caption.txt").write_text(CAPTION)
    whole = Image.new("RGB", (64, 96), "red")
    whole.paste("blue", (0, 40, 64, 96))
    whole.save(place / "0003.png")
    (place / "iclora.toml").write_text('recipe = "film-storyboard"\n')
    return place


def one(opened, name):
    return opened.client.get(f"{PLACE}/sets/{name}").json()


def match(stamp):
    return {"If-Match": f'"{stamp}"'}


def test_check_comes_in_pages_and_names_what_needs_a_look(opened, dataset, monkeypatch):
    # On a busy machine a page would end before.
    monkeypatch.setattr("iclora.serve.routes.imagesets._AT_ONCE", 60.0)
    first = opened.client.get(f"{PLACE}/check?limit=2").json()
    assert first["cursor"] == 2
    rest = opened.client.get(f"{PLACE}/check?cursor=2").json()
    said = {e["name"]: [p["text"] for p in e["problems"]] for e in first["sets"] + rest["sets"]}
    assert any("has no caption" in text for text in said["0002"])
    assert 'the same images as set "0001"' in said["0002"]
    assert "1 of the borders between its panels do not show" in " ".join(said["0003"])


def test_a_set_tells_its_tokens_by_the_bases_tokenizer_and_the_canvas_it_trains_on(opened, dataset):
    found = one(opened, "0001")
    assert (found["exact"], found["limit"]) == (True, 128)
    assert found["sizes"] == [[64, 32]] * 3
    assert found["canvas"]["width"] * found["canvas"]["height"] <= 3 * 64 * 32
    answer = opened.client.get(f"{PLACE}/sets/0001/picture.webp?view=trained&side=768")
    with Image.open(io.BytesIO(answer.content)) as seen:
        assert seen.size == (found["canvas"]["width"], found["canvas"]["height"])
        box = found["canvas"]["boxes"][1]
        middle = (box[0] + box[2] // 2, box[1] + box[3] // 2)
        assert seen.convert("RGB").getpixel(middle) == (0, 128, 0)


def test_words_are_judged_while_they_are_written(opened, dataset):
    def said(text):
        return opened.client.post(f"{PLACE}/words", json={"caption": text}).json()

    assert said(CAPTION)["problem"] == ""
    assert said(CAPTION)["tokens"] == one(opened, "0001")["tokens"]
    assert "[SCENE-2]" in said("[MOVIE-SHOTS] a [SCENE-1] b [SCENE-3] c")["problem"]
    assert said("")["tokens"] == 0


def test_panels_are_swapped_replaced_and_left_out_and_each_is_taken_back(opened, dataset):
    def files():
        return {p.name: p.read_bytes() for p in sorted((dataset / "0001").iterdir())}

    sent = opened.upload(picture("white", (64, 32), "JPEG")).json()["sha256"]
    for change in (
        {"do": "swap", "panel": 1, "other": 3},
        {"do": "replace", "panel": 2, "picture": sent},
        {"do": "leave_out", "panel": 2},
    ):
        before, stamp = files(), one(opened, "0001")["stamp"]
        path = f"{PLACE}/sets/0001/panels"
        assert opened.client.post(path, json=change).status_code == 428
        assert opened.client.post(path, json=change, headers=match("old")).status_code == 412
        done = opened.client.post(path, json=change, headers=match(stamp)).json()
        assert files() != before, change
        undone = opened.client.post(f"{PLACE}/edits/{done['edit']}/undo")
        assert (undone.status_code, files()) == (200, before), change
    assert opened.client.post(f"{PLACE}/edits/{done['edit']}/undo").status_code == 404


def test_a_change_is_not_taken_back_over_what_was_changed_since(opened, dataset):
    stamp = one(opened, "0001")["stamp"]
    change = {"do": "leave_out", "panel": 3}
    path = f"{PLACE}/sets/0001/panels"
    edit = opened.client.post(path, json=change, headers=match(stamp)).json()["edit"]
    (dataset / "0001" / "3.png").write_bytes(picture("white"))
    assert opened.client.post(f"{PLACE}/edits/{edit}/undo").status_code == 412
    assert (dataset / "0001" / "3.png").read_bytes() == picture("white")


def test_a_set_is_left_out_and_comes_back_with_its_words(opened, dataset):
    stamp = one(opened, "0001")["stamp"]
    edit = opened.client.delete(f"{PLACE}/sets/0001", headers=match(stamp)).json()["edit"]
    assert not (dataset / "0001").exists()
    assert opened.client.get(f"{PLACE}/sets/0001").status_code == 404
    opened.client.post(f"{PLACE}/edits/{edit}/undo")
    assert one(opened, "0001")["caption"] == CAPTION


def test_borders_are_placed_by_hand_and_the_findings_follow(opened, dataset):
    seen = opened.client.get(f"{PLACE}/sets/0003/boxes").json()
    assert (seen["width"], seen["height"], seen["unseen"]) == (64, 96, 1)
    boxes = [[0, 0, 64, 40], [0, 40, 64, 24], [0, 64, 64, 32]]
    stamp = one(opened, "0003")["stamp"]
    path = f"{PLACE}/sets/0003/boxes"
    assert opened.client.put(path, json={"boxes": boxes}, headers=match(stamp)).status_code == 200
    assert opened.client.get(path).json()["boxes"] == boxes
    texts = [each["text"] for each in one(opened, "0003")["problems"]]
    assert not any("do not show" in text for text in texts)


def test_files_that_are_links_to_elsewhere_are_neither_read_nor_changed(
    opened, dataset, tmp_path_factory
):
    outside = tmp_path_factory.mktemp("outside") / "3.png"
    outside.write_bytes(picture("white", (64, 32)))
    (dataset / "0001" / "3.png").unlink()
    (dataset / "0001" / "3.png").symlink_to(outside)
    found = one(opened, "0001")
    assert len(found["images"]) == 2
    answer = opened.client.get(f"{PLACE}/sets/0001/picture.webp?view=file&n=3")
    assert answer.status_code == 404
    change = {"do": "replace", "panel": 3, "picture": opened.upload(picture()).json()["sha256"]}
    path = f"{PLACE}/sets/0001/panels"
    opened.client.post(path, json=change, headers=match(found["stamp"]))
    assert outside.read_bytes() == picture("white", (64, 32))


def test_a_folder_that_does_not_say_its_recipe_is_told_one(opened, dataset):
    (dataset / "iclora.toml").unlink()
    answer = opened.client.get(f"{PLACE}/sets").json()
    assert answer["setting"] == "recipe"
    told = opened.client.put(f"{PLACE}/recipe", json={"recipe": "film-storyboard"})
    assert told.status_code == 200
    assert opened.client.get(f"{PLACE}/sets").json()["form"]["prefix"] == "[MOVIE-SHOTS]"
    opened.client.post(f"{PLACE}/edits/{told.json()['edit']}/undo")
    assert not (dataset / "iclora.toml").exists()


def test_one_set_is_captioned_by_a_job_of_its_own(opened, dataset):
    told = {"data": "data~shots", "captioner": "toyland", "only": ["0002"], "overwrite": True}
    opened.ended(opened.post("caption", input=told).json()["id"])
    assert opened.engine.orders[0].input["only"] == ["0002"]
