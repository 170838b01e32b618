import io
import json
import os
import time
import zipfile

import pytest
from PIL import Image

from iclora.files import digest
from tests.serve.conftest import Opened
from tests.serve.fake import make_set


def listed(opened, **query):
    return opened.client.get("/api/v1/sets", params=query).json()["sets"]


def make_ago(seconds, place, settings):
    """A set that was made so long ago; systems tell times apart that are 10 ms apart at least."""
    made = make_set(place, settings)
    at = time.time() - seconds
    os.utime(made / "request.json", (at, at))


@pytest.fixture
def three(opened, folder):
    for number, words in enumerate(["a red fox", "a brown bear", "a red bird"], 1):
        told = {"prompt": [words], "seed": number}
        make_ago(10 - number, folder / "out" / f"{number:04d}", told)
    return [each["id"] for each in listed(opened)][::-1]


def test_sets_of_jobs_and_of_the_command_line_are_listed_newest_first(opened, folder):
    make_ago(9, folder / "out" / "0001", {"prompt": ["by hand"], "seed": 2**60})
    job = opened.post(input={"prompt": ["by a job"]}, headers={"Prefer": "wait=60"}).json()
    found = listed(opened)
    assert [each["prompt"] for each in found] == ["by a job", "by hand"]
    assert found[0]["id"] == job["result"]["sets"][0]
    assert found[1]["seed"] == str(2**60)


def test_a_set_made_or_removed_by_hand_is_seen_at_once(opened, folder, three):
    import shutil

    assert len(three) == 3
    shutil.rmtree(folder / "out" / "0002")
    make_set(folder / "out" / "story" / "0001", {"prompt": ["new"]})
    assert [each["prompt"] for each in listed(opened)] == ["new", "a red bird", "a red fox"]
    shutil.rmtree(folder / "out" / "story")
    assert [each["prompt"] for each in listed(opened)] == ["a red bird", "a red fox"]


def test_no_set_is_lost_while_its_folder_cannot_be_read(opened, folder, three, monkeypatch):
    make_set(folder / "out" / "story" / "0001", {})

    def fail(place):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr("os.scandir", fail)
        assert len(listed(opened)) == 3
    assert len(listed(opened)) == 4


def test_a_set_made_in_the_same_tick_of_the_clock_as_a_look_is_seen(opened, folder):
    at = time.time_ns() + 10**9  # Now, on a machine that stands still for a second.
    for number in (1, 2):
        make_set(folder / "out" / f"{number:04d}", {"seed": number})
        os.utime(folder / "out", ns=(at, at))
        assert len(listed(opened)) == number


def test_a_folder_of_many_sets_does_not_hold_up_who_asks(opened, folder, monkeypatch):
    monkeypatch.setattr("iclora.serve.index._MANY", 5)
    monkeypatch.setattr("iclora.serve.index._AT_ONCE", 3)
    for number in range(8):
        make_set(folder / "out" / f"job{number}" / "0001", {"seed": number})
    told = []
    opened.server.bus.tell = lambda kind, data, *more: told.append(kind)
    assert len(listed(opened)) <= 8
    end = time.monotonic() + 200
    while len(listed(opened)) < 8 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(listed(opened)) == 8
    while not told and time.monotonic() < end:
        time.sleep(0.01)
    assert told[:1] == ["set"]
    make_set(folder / "out" / "job8" / "0001", {})
    while len(listed(opened)) < 9 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(listed(opened)) == 9


def test_words_find_sets_and_pages_leave_none_out(opened, three):
    assert [each["prompt"] for each in listed(opened, q="red")] == ["a red bird", "a red fox"]
    assert [each["prompt"] for each in listed(opened, q="RED fox")] == ["a red fox"]
    assert listed(opened, q="%") == listed(opened, q="_") == listed(opened, q="^") == []
    first = opened.client.get("/api/v1/sets?limit=2").json()
    rest = opened.client.get("/api/v1/sets", params={"limit": 2, "cursor": first["cursor"]}).json()
    assert [each["id"] for each in first["sets"] + rest["sets"]] == three[::-1]


def test_sets_are_those_of_a_recipe_or_of_an_adapter_by_its_id(opened, folder):
    run = folder / "runs" / "fox"
    files = {
        "plain": None,
        "last": run / "adapter.safetensors",
        "best": run / "adapter-best.safetensors",
        "step": run / "checkpoints" / "step-000250" / "adapter.safetensors",
        "file": folder / "adapters" / "fox-two.safetensors",
    }
    for number, (words, file) in enumerate(files.items(), 1):
        told = {"prompt": [words], "seed": number, "adapter": [str(file)] if file else []}
        make_set(folder / "out" / f"{number:04d}", told)
    found = {
        name: [each["prompt"] for each in listed(opened, adapter=name)]
        for name in ("runs~fox", "runs~fox@best", "runs~fox@250", "fox-two", "fo")
    }
    assert list(found.values()) == [["last"], ["best"], ["step"], ["file"], []]
    assert len(listed(opened, recipe="none")) == len(files)
    assert listed(opened, recipe="film-storyboard") == []


def test_the_index_is_rebuilt_from_the_folders(folder):
    with Opened(folder) as opened:
        made = opened.post(headers={"Prefer": "wait=60"}).json()["result"]["sets"]
        opened.client.patch(f"/api/v1/sets/{made[0]}", json={"star": True, "note": "nice"})
        with opened.server.store.change() as db:
            db.execute("DELETE FROM sets")
    with Opened(folder) as opened:
        found = listed(opened, starred=True)
    assert [(each["id"], each["note"]) for each in found] == [(made[0], "nice")]


def test_pictures_are_sent_once_and_kept(opened, three):
    for name, size in (("composite.png", (32, 16)), ("panels/2.png", (16, 16))):
        answer = opened.client.get(f"/api/v1/sets/{three[0]}/{name}")
        assert Image.open(io.BytesIO(answer.content)).size == size
        assert "immutable" in answer.headers["cache-control"]
        known = {"If-None-Match": answer.headers["etag"]}
        again = opened.client.get(f"/api/v1/sets/{three[0]}/{name}", headers=known)
        assert (again.status_code, again.content) == (304, b"")
    assert opened.client.get(f"/api/v1/sets/{three[0]}/panels/9.png").status_code == 404


def test_a_thumbnail_is_small_and_made_once(opened, folder):
    made = make_set(folder / "out" / "0001", {})
    Image.new("RGB", (2048, 1024), "red").save(made / "composite.png")
    name = listed(opened)[0]["id"]
    answer = opened.client.get(f"/api/v1/sets/{name}/thumb.webp")
    assert Image.open(io.BytesIO(answer.content)).size == (512, 256)
    (made / "composite.png").write_bytes(b"gone")
    assert opened.client.get(f"/api/v1/sets/{name}/thumb.webp").content == answer.content


def test_a_request_is_shown_without_this_machines_folders(opened, folder):
    made = make_set(folder / "out" / "0001", {"adapter": ["/home/ana/secret/style.safetensors"]})
    request = json.loads((made / "request.json").read_text())
    name = listed(opened)[0]["id"]
    shown = opened.client.get(f"/api/v1/sets/{name}/request.json").json()
    assert shown == {**request, "adapter": "style.safetensors"}


def test_the_trash_is_undone_and_stars_survive_it(opened, folder, three):
    path = f"/api/v1/sets/{three[0]}"
    etag = opened.client.get(path).headers["etag"]
    opened.client.patch(path, json={"star": True})
    assert opened.client.delete(path, headers={"If-Match": etag}).status_code == 412
    assert opened.client.delete(path).json()["trashed"]
    assert not (folder / "out" / "0001").exists()
    assert len(listed(opened)) == 2
    assert [each["id"] for each in listed(opened, trashed=True)] == [three[0]]
    back = opened.client.post(f"{path}/restore").json()
    assert (back["trashed"], back["star"]) == (False, True)
    assert (folder / "out" / "0001" / "composite.png").is_file()
    assert len(listed(opened)) == 3


def test_a_set_is_not_restored_over_another(opened, folder, three):
    opened.client.delete(f"/api/v1/sets/{three[0]}")
    make_set(folder / "out" / "0001", {"seed": 99})
    assert opened.client.post(f"/api/v1/sets/{three[0]}/restore").status_code == 409


def test_making_a_set_again_tells_the_worker_its_request(opened, folder, three):
    job = opened.client.post(f"/api/v1/sets/{three[1]}/reproduce")
    assert job.status_code == 202
    opened.ended(job.json()["id"])
    told = opened.engine.orders[-1].input
    assert told["request"] == str(folder / "out" / "0002" / "request.json")
    assert not {"seed", "base", "prompt"} & set(told)


def test_rerolling_names_a_set_by_its_id(opened, folder, three):
    job = opened.post("reroll", input={"set": three[0], "panel": [2]}).json()
    opened.ended(job["id"])
    told = opened.engine.orders[-1].input
    assert told["set"] == str(folder / "out" / "0001")
    assert told["seed"] == job["input"]["seed"]


def test_a_set_is_made_again_by_its_own_adapters_or_refused_before_the_job_is_acknowledged(
    opened, folder
):
    style, other = (folder / "adapters" / f"{name}.safetensors" for name in ("style", "other"))
    style.parent.mkdir()
    for file in (style, other):
        file.write_bytes(b"\2\0\0\0\0\0\0\0{}" + file.stem.encode() + bytes(2**20))
    request = make_set(folder / "out" / "0001", {"adapter": [str(style)]}) / "request.json"
    sha256 = digest(style.read_bytes())
    request.write_text(json.dumps(json.loads(request.read_text()) | {"adapter_sha256": sha256}))
    (name,) = (each["id"] for each in listed(opened))

    def asked(**more):
        again = opened.post("generate", input={"request": name, **more})
        return again, opened.post("reroll", input={"set": name, "panel": [2], **more})

    for more in ({}, {"adapter": ["style"]}):
        for answer in asked(**more):
            assert opened.ended(answer.json()["id"])["status"] == "succeeded"
    refused = {
        "other is not the adapter this request was made with": asked(adapter=["other"]),
        "style=0.5 names a strength": asked(adapter=["style=0.5"]),
    }
    style.write_bytes(b"trained again")
    refused["adapters/style.safetensors is not the adapter"] = asked()
    style.unlink()
    refused["the adapter adapters/style.safetensors, which"] = asked()
    request.write_text('{"base": "tiny"}')
    refused["out/0001/request.json is not a request"] = asked()
    for problem, answers in refused.items():
        for answer in answers:
            assert answer.status_code == 422
            assert answer.json()["problem"].startswith(problem)
    assert len(opened.engine.orders) == 4


def test_sets_are_packed_into_one_zip_without_latents_or_this_machines_folders(opened, folder):
    made = make_set(folder / "out" / "a" / "0001", {"adapter": ["/secret/style.safetensors"]})
    (made / "latents.safetensors").write_bytes(b"x" * 10)
    (made / "outside.png").symlink_to("/etc/hostname")
    make_set(folder / "out" / "a" / "0002", {"seed": 3})
    ids = [each["id"] for each in opened.client.get("/api/v1/sets").json()["sets"]]
    answer = opened.client.get("/api/v1/sets.zip", params={"id": [*ids, ids[0]]})
    assert 'filename="2-sets.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        requests = [archive.read(name).decode() for name in names if name.endswith("request.json")]
        panel = next(name for name in names if name.endswith("panel-1.png"))
        assert archive.read(panel)[:4] == b"\x89PNG"
    assert sorted(name.partition("/")[2] for name in names) == sorted(
        2 * ["composite.png", "panel-1.png", "panel-2.png", "request.json"]
    )
    assert "/secret" not in "".join(requests)
    assert opened.client.get("/api/v1/sets.zip", params={"id": "nothing"}).status_code == 404
    assert opened.client.get("/api/v1/sets.zip").status_code == 422


def test_a_change_of_a_set_is_told_to_who_listens(opened, folder):
    told = []
    opened.server.bus.tell = lambda kind, data, *more: told.append((kind, data["id"], *more))
    make_set(folder / "out" / "a" / "0001", {})
    (one,) = [each["id"] for each in opened.client.get("/api/v1/sets").json()["sets"]]
    opened.client.patch(f"/api/v1/sets/{one}", json={"star": True})
    opened.client.delete(f"/api/v1/sets/{one}")
    opened.client.post(f"/api/v1/sets/{one}/restore")
    assert told == [("set", one, "")] * 3
