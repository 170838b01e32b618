"""Datasets that are sent: whole or absent, bounded, and never outside their folder."""

import io
import os
import shutil
import zipfile

from tests.serve.conftest import picture

CAPTION = "[MOVIE-SHOTS] A day, [SCENE-1] one [SCENE-2] two [SCENE-3] three."
UPLOADS = "/api/v1/uploads"


def begin(opened):
    return opened.client.post(UPLOADS).json()["id"]


def send(opened, upload, files, **query):
    parts = [("files", (name, data)) for name, data in files.items()]
    return opened.client.post(f"{UPLOADS}/{upload}/files", files=parts, params=query)


def finish(opened, upload, name="shots", recipe="film-storyboard"):
    told = {"name": name, "recipe": recipe}
    return opened.client.post(f"{UPLOADS}/{upload}/finish", json=told)


def a_set(prefix=""):
    panels = {f"{prefix}0001/{n}.png": picture(size=(64, 32)) for n in (1, 2, 3)}
    return {**panels, f"{prefix}0001/caption.txt": CAPTION.encode()}


def zipped(files):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return held.getvalue()


def test_a_folder_is_sent_in_parts_and_is_there_only_when_it_is_whole(opened, folder):
    upload = begin(opened)
    files = list(a_set("my shots/").items())
    assert send(opened, upload, dict(files[:2])).json()["files"] == 2
    assert opened.client.get("/api/v1/datasets").json()["datasets"] == []
    send(opened, upload, dict(files[2:]))
    assert finish(opened, upload).json() == {"id": "data~shots"}
    found = opened.client.get("/api/v1/datasets/data~shots/sets").json()
    assert [(each["name"], each["caption"]) for each in found["sets"]] == [("0001", CAPTION)]
    assert found["problems"] == []
    assert finish(opened, upload).status_code == 404
    assert finish(opened, begin(opened)).status_code == 409


def test_a_zip_comes_in_pieces_and_goes_on_where_it_was_broken_off(opened):
    upload, data = begin(opened), zipped({**a_set(), **a_set("b-")})
    half = len(data) // 2
    send(opened, upload, {"a.zip": data[:half]}, offset=0)
    assert send(opened, upload, {"a.zip": data[half:]}, offset=half + 9).status_code == 409
    send(opened, upload, {"a.zip": data[:half]}, offset=0)
    assert send(opened, upload, {"a.zip": data[half:]}, offset=half).json()["size"] == len(data)
    assert finish(opened, upload).status_code == 201
    found = opened.client.get("/api/v1/datasets/data~shots/sets").json()
    assert [each["name"] for each in found["sets"]] == ["0001", "b-0001"]


def test_what_is_no_dataset_is_refused_and_can_be_finished_another_way(opened, folder):
    upload = begin(opened)
    send(opened, upload, a_set())
    answer = finish(opened, upload, recipe=None)
    assert (answer.status_code, answer.json()["setting"]) == (422, "recipe")
    assert str(folder) not in answer.text
    assert not (folder / "data").exists()
    assert finish(opened, upload).status_code == 201


UNSAFE = ("../x.png", "/etc/x.png", "a/../../x.png", "a\\..\\x.png", ".ssh/x.png", "c:x.png")
RESERVED = ("NUL", "con", "Com1.x", "aux.", "shots.", "lpt9.tar.gz")
OF_NO_USE = (
    "nul/1.png",
    "a/CON.png",
    "a./1.png",
    "a\x7f.png",
    "x.exe",
    "a" * 200,
    "a//b.png",
    "a\u202egnp.png",
    "a/b/c/d/e/f/g/h/i.png",
    "",
)


def test_names_that_lead_out_or_are_of_no_use_are_refused(opened, folder):
    upload = begin(opened)
    for name in (*UNSAFE, *OF_NO_USE):
        assert send(opened, upload, {name: picture()}).status_code in (400, 422), name
    assert not [p for p in folder.rglob("*") if p.suffix in (".png", ".exe")]


def test_no_dataset_or_run_gets_a_name_that_another_system_cannot_have(opened, folder):
    """And none with a control character, or that leads elsewhere."""
    upload = begin(opened)
    send(opened, upload, a_set())
    shutil.copytree(folder / ".iclora" / "uploads" / upload, folder / "data" / "there")
    for name in (*RESERVED, "a\0b", "a\nb", "a\n", "a\x1bb", "..", ".iclora", "a/b", "a~b", ""):
        told = {"compose": {"source": "data~there"}, "train": {"data": "data~there"}}
        answers = [opened.post(kind, input={**ids, "name": name}) for kind, ids in told.items()]
        for answer in (finish(opened, upload, name=name), *answers):
            assert (answer.status_code, "name" in answer.text) == (422, True), name
    assert [path.name for path in (folder / "data").iterdir()] == ["there"]
    assert opened.client.get("/api/v1/jobs").json()["jobs"] == []


def test_a_zip_with_names_that_lead_out_leaves_nothing_behind(opened, folder):
    before = set(folder.parent.rglob("x.png"))
    for name in UNSAFE:
        upload = begin(opened)
        send(opened, upload, {"a.zip": zipped({**a_set(), name: picture()})}, offset=0)
        finish(opened, upload, name="shots" + upload)
    homes = (folder / ".iclora" / "uploads", folder / "data")
    for path in set(folder.parent.rglob("x.png")) - before:
        assert any(path.is_relative_to(home) for home in homes), path


def test_a_zip_of_which_something_would_be_lost_is_refused(opened, folder):
    packed = io.BytesIO(zipped(a_set()))
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo("0002/1.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    upload = begin(opened)
    send(opened, upload, {"a.zip": packed.getvalue()}, offset=0)
    answer = finish(opened, upload)
    assert answer.status_code == 422
    assert "0002/1.png: it is a link" in answer.json()["problem"]


def test_a_zip_that_unpacks_to_too_much_is_refused(opened, folder, monkeypatch):
    monkeypatch.setattr("iclora.serve.uploads._MOST_BYTES", 100_000)
    upload = begin(opened)
    data = zipped({**a_set(), "0002/1.png": b"\0" * 200_000})
    assert len(data) < 20_000
    send(opened, upload, {"a.zip": data}, offset=0)
    assert finish(opened, upload).status_code == 413
    assert not (folder / "data").exists()
    assert send(opened, upload, {"1.png": b"\0" * 200_000}).status_code == 413


def test_a_file_that_is_no_zip_is_refused_without_telling_where_it_lay(opened):
    upload = begin(opened)
    send(opened, upload, {"a.zip": b"PK"}, offset=0)
    answer = finish(opened, upload)
    assert answer.status_code == 422
    assert answer.json()["problem"].startswith("this file is a damaged zip archive")
    assert "uploads" not in answer.text


def test_an_upload_is_forgotten_when_asked_or_after_a_day(opened, folder):
    upload, old = begin(opened), begin(opened)
    assert opened.client.delete(f"{UPLOADS}/{upload}").status_code == 204
    assert send(opened, upload, {"1.png": picture()}).status_code == 404
    os.utime(folder / ".iclora" / "uploads" / old, (0, 0))
    begin(opened)
    assert send(opened, old, {"1.png": picture()}).status_code == 404
