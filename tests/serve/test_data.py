"""Datasets, captions, recipes, adapters, runs and plans over HTTP."""

import fcntl
import json
import os
import shutil
import threading
import tomllib
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

import iclora.sets
from iclora.serve import planning
from iclora.serve.engine import Fit
from iclora.serve.records import Files, place_of
from iclora.sets.recipe import load_recipe
from iclora.train.asked import asked_of
from tests.serve.conftest import PLANNED, Opened, picture

CAPTION = "[MOVIE-SHOTS] A day, [SCENE-1] one [SCENE-2] two [SCENE-3] three."


@pytest.fixture
def dataset(folder):
    place = folder / "data" / "shots"
    for name in ("0001", "0002"):
        (place / name).mkdir(parents=True)
        for number in (1, 2, 3):
            Image.new("RGB", (64, 32), "red").save(place / name / f"{number}.png")
        (place / name / "caption.txt").write_text(CAPTION)
    (place / "iclora.toml").write_text('recipe = "film-storyboard"\n')
    return place


@pytest.fixture
def run(folder):
    place = folder / "RUN"
    (place / "previews").mkdir(parents=True)
    (place / "config.toml").write_text('[train]\nsteps = 3\nrank = 8\nbase = "/secret/base"\n')
    rows = [{"step": n, "loss": 1 / n, "sets": ["0001"]} for n in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "log.jsonl").write_text(text + '{"step": 4, "lo')
    Image.new("RGB", (8, 8)).save(place / "previews" / "0001.png")
    return place


def write_adapter(path, **about):
    recipe = load_recipe("film-storyboard")
    known = {
        "base": "toyland",
        "recipe": recipe.model_dump(mode="json"),
        "layout": recipe.canvas.to_json(),
        "steps": 7,
        **about,
    }
    head = json.dumps({"__metadata__": {"iclora": json.dumps(known)}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head)


def test_datasets_of_the_folder_are_listed_and_nothing_else(opened, folder, dataset, run):
    shutil.make_archive(str(folder / "packed"), "zip", dataset)
    (folder / "notes").mkdir()
    found = opened.client.get("/api/v1/datasets").json()["datasets"]
    assert found == [{"id": "packed.zip", "kind": "zip"}, {"id": "data~shots", "kind": "folder"}]


def test_a_datasets_sets_come_in_pages_with_their_captions(opened, dataset):
    first = opened.client.get("/api/v1/datasets/data~shots/sets?limit=1").json()
    assert (first["recipe"], first["cursor"]) == ("film-storyboard", 1)
    assert [each["name"] for each in first["sets"]] == ["0001"]
    assert first["sets"][0]["caption"] == CAPTION
    rest = opened.client.get("/api/v1/datasets/data~shots/sets?limit=1&cursor=1").json()
    assert ([each["name"] for each in rest["sets"]], rest["cursor"]) == (["0002"], None)


def test_errors_of_a_dataset_do_not_tell_where_it_lies(opened, folder):
    (folder / "data" / "empty").mkdir(parents=True)
    answer = opened.client.get("/api/v1/datasets/data~empty/sets?recipe=film-storyboard")
    assert answer.status_code == 422
    assert answer.json()["problem"].startswith("data/empty ")
    assert str(folder) not in answer.text


def test_a_caption_is_written_only_over_the_one_that_was_seen(opened, dataset):
    path = "/api/v1/datasets/data~shots/sets/0001/caption"
    seen = opened.client.get("/api/v1/datasets/data~shots/sets").json()["sets"][0]["etag"]
    new = {"caption": CAPTION.replace("two", "2")}
    assert opened.client.put(path, json=new).status_code == 428
    wrong = {"caption": "[MOVIE-SHOTS] no markers but [SCENE-2]"}
    assert opened.client.put(path, json=wrong, headers={"If-Match": seen}).status_code == 422
    done = opened.client.put(path, json=new, headers={"If-Match": seen})
    assert done.status_code == 200
    assert (dataset / "0001" / "caption.txt").read_text() == new["caption"] + "\n"
    assert opened.client.put(path, json=new, headers={"If-Match": seen}).status_code == 412
    assert done.headers["etag"] != seen


def test_a_caption_that_is_a_link_to_elsewhere_is_not_written(opened, dataset, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "caption.txt"
    outside.write_text(CAPTION)
    (dataset / "0001" / "caption.txt").unlink()
    (dataset / "0001" / "caption.txt").symlink_to(outside)
    path = "/api/v1/datasets/data~shots/sets/0001/caption"
    seen = opened.client.get("/api/v1/datasets/data~shots/sets").json()["sets"][0]["etag"]
    new = {"caption": CAPTION.replace("two", "2")}
    assert opened.client.put(path, json=new, headers={"If-Match": seen}).status_code in (404, 412)
    assert outside.read_text() == CAPTION


def test_recipes_that_ship_and_those_of_the_folder_are_listed(opened, folder):
    own = folder / "recipes" / "mine.toml"
    own.parent.mkdir()
    shutil.copy(Path(iclora.sets.__file__).parent / "recipes" / "film-storyboard.toml", own)
    names = [each["name"] for each in opened.client.get("/api/v1/recipes").json()["recipes"]]
    assert {"mine", "film-storyboard"} <= set(names)
    found = opened.client.get("/api/v1/recipes/mine").json()
    assert (found["markers"], len(found["boxes"])) == (["[SCENE-1]", "[SCENE-2]", "[SCENE-3]"], 3)
    opened.ended(opened.post(input={"prompt": [found["example"]], "recipe": "mine"}).json()["id"])
    assert opened.engine.orders[0].input["recipe"] == str(own)
    own.write_text("canvas = 3")
    lost = opened.client.get("/api/v1/recipes/mine")
    assert (lost.status_code, "mine.toml" in lost.text) == (404, True)
    assert opened.client.get("/api/v1/recipes/theirs").status_code == 404


def test_adapters_are_told_apart_by_their_headers_without_reading_weights(opened, folder, run):
    write_adapter(run / "adapter.safetensors")
    (folder / "adapters").mkdir()
    (folder / "adapters" / "other.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (folder / "adapters" / "bad.safetensors").write_bytes(b"\xff" * 40)
    found = {e["id"]: e for e in opened.client.get("/api/v1/adapters").json()["adapters"]}
    assert set(found) == {"RUN", "other", "bad"}
    assert (found["RUN"]["base"], found["RUN"]["panels"]) == ("toyland", 3)
    assert found["other"]["recipe"] is None
    write_adapter(run / "adapter-best.safetensors")
    for step in (5, 250):
        write_adapter(run / "checkpoints" / f"step-{step:06d}" / "adapter.safetensors")
    found = opened.client.get("/api/v1/adapters").json()["adapters"]
    assert {each["id"] for each in found} == {"RUN", "RUN@best", "other", "bad"}
    (run / "adapter.safetensors").unlink()
    found = opened.client.get("/api/v1/adapters").json()["adapters"]
    assert {each["id"] for each in found} == {"RUN@best", "RUN@250", "other", "bad"}


def test_an_adapter_is_named_by_its_id_with_a_strength(opened, run):
    write_adapter(run / "adapter.safetensors")
    example = load_recipe("film-storyboard").example
    told = {"prompt": [example], "adapter": ["RUN=0.7"]}
    job = opened.post(input=told).json()
    opened.ended(job["id"])
    assert opened.engine.orders[0].input["adapter"] == [f"{run / 'adapter.safetensors'}=0.7"]


def test_a_prompt_that_does_not_fit_the_adapters_recipe_is_refused_at_once(opened, run):
    write_adapter(run / "adapter.safetensors")
    told = {"prompt": ["[MOVIE-SHOTS] [SCENE-2] a [SCENE-9] b"], "adapter": ["RUN"]}
    assert opened.post(input=told).status_code == 422
    far = {"prompt": ["a"], "adapter": ["RUN"], "panel_seeds": {"4": 1}}
    assert "no panel 4" in opened.post(input=far).json()["problem"]


def test_an_adapter_that_does_not_fit_the_base_is_refused_before_the_job_is_acknowledged(
    opened, folder
):
    """A worker is asked once for each version of a file."""
    for name in ("good", "bad", "new"):
        write_adapter(folder / "adapters" / f"{name}.safetensors")
    bad = folder / "adapters" / "bad.safetensors"
    said = {"code": "AdapterError", "problem": f"{bad} has no place", "advice": "Use another."}
    opened.engine.fits = {
        "bad.safetensors": Fit(known=True, problem={**said, "setting": None}),
        "new.safetensors": Fit(known=False),
    }
    example = load_recipe("film-storyboard").example

    def post(kind="generate", **more):
        return opened.post(kind, input={"prompt": [example]} | more)

    shot = opened.upload(picture()).json()["sha256"]
    refused = [
        post(adapter=["good", "bad=0.5"]),
        post("complete", adapter=["bad"], given={"1": shot}),
        post("evaluate", adapter=["one=good", "two=good=0.3+bad=0.2"], metric=[]),
        opened.post("extend", input={"story": "a fox\nit runs\n", "adapter": ["bad"]}),
        opened.client.post("/v1/images/generations", json={"model": "bad", "prompt": example}),
    ]
    for answer in refused:
        kind = answer.headers["content-type"]
        assert (answer.status_code, kind) == (422, "application/problem+json")
        told = answer.json()
        assert (told["problem"], told["advice"]) == ("bad has no place", "Use another.")
        assert (told["code"], told["setting"]) == ("AdapterError", "adapter")
    assert opened.client.get("/api/v1/jobs").json()["jobs"] == []
    assert opened.engine.asked == [("toyland", "good.safetensors"), ("toyland", "bad.safetensors")]
    # What no worker can tell just now is left to the job, and asked again next time.
    for _ in range(2):
        assert post(adapter=["new"]).status_code == 202
    assert opened.engine.asked[2:] == [("toyland", "new.safetensors")] * 2
    opened.engine.fits = {}
    write_adapter(bad, steps=8)
    assert post(adapter=["bad"]).status_code == 202


def test_arms_of_an_evaluation_name_adapters_by_id(opened, run):
    write_adapter(run / "adapter.safetensors")
    file = run / "adapter.safetensors"
    told = {"prompt": ["a"], "adapter": ["RUN", "half=RUN=0.5", "RUN=0.3+RUN=0.2"], "metric": []}
    answer = opened.post("evaluate", input=told)
    opened.ended(answer.json()["id"])
    assert opened.engine.orders[0].input["adapter"] == [
        f"RUN={file}",
        f"half={file}=0.5",
        f"RUN+RUN={file}=0.3+{file}=0.2",
    ]


def test_a_runs_state_is_read_from_its_folder(opened, run):
    def state():
        return opened.client.get("/api/v1/runs/RUN").json()

    assert (state()["state"], state()["step"], state()["loss"]) == ("stopped", 3, 1 / 3)
    assert state()["settings"] == {"steps": 3, "rank": 8}
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert state()["state"] == "running"
        assert opened.client.post("/api/v1/runs/RUN/resume").status_code == 409
        answer = opened.client.post("/api/v1/runs/RUN/stop")
        assert (answer.status_code, "elsewhere" in answer.json()["problem"]) == (409, True)
        assert opened.client.post("/api/v1/runs/RUN/ask/save").json()["asked"] == ["save"]
        assert asked_of(run) == {"save"}
        assert opened.client.post("/api/v1/runs/RUN/ask/nothing").status_code == 422
        (run / "config.toml").write_text("[train]\npreview_every = 0\n")
        answer = opened.client.post("/api/v1/runs/RUN/ask/preview")
        assert (answer.status_code, "no previews" in answer.json()["problem"]) == (422, True)
    (run / "config.toml").write_text("[train]\nsteps = 3\n")
    assert opened.client.post("/api/v1/runs/RUN/ask/save").status_code == 409
    write_adapter(run / "adapter.safetensors")
    assert state()["state"] == "finished"
    assert [each["id"] for each in opened.client.get("/api/v1/runs").json()["runs"]] == ["RUN"]


LONG = b'{"step": 1, "loss": 1' + b"0" * 400 + b"}"
STRANGE = {
    "config.toml": (b"train = 3", b"[train]\nsteps = 'many'\ndata = 1", b"\xff", None),
    "log.jsonl": (b'{"step": 1, "loss": 1e999}', LONG, None),
    "validation.jsonl": (b'{"step": 1e999, "held out": {"loss": 1}, "trained": {"loss": 1}}', None),
    ".lock": (None,),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_nobody_of_ours_wrote_in_a_run_is_left_alone(opened, run, name):
    """None is a pipe, from which reading would never end."""
    for content in STRANGE[name]:
        (run / name).unlink(missing_ok=True)
        if content is None:
            os.mkfifo(run / name)
        else:
            (run / name).write_bytes(content)
        for place in ("", "/RUN", "/RUN/log"):
            found = opened.client.get(f"/api/v1/runs{place}")
            assert found.status_code in (200, 404), (content, place)


@pytest.mark.parametrize(
    "request_json", ["[]", "3", '{"prompt": "a", "recipe": "b", "seeds": [1], "beside": ["x"]}']
)
def test_a_request_that_is_none_makes_no_set(opened, folder, request_json):
    place = folder / "out" / "0001"
    place.mkdir(parents=True)
    (place / "composite.png").write_bytes(picture())
    (place / "request.json").write_text(request_json)
    assert opened.client.get("/api/v1/sets").json()["sets"] == []


def test_a_log_is_read_from_a_step_on_and_a_cut_line_left_out(opened, run):
    rows = opened.client.get("/api/v1/runs/RUN/log?after=1").json()["rows"]
    assert [row["step"] for row in rows] == [2, 3]
    assert opened.client.get("/api/v1/runs/RUN/previews/0001.png").status_code == 200
    assert opened.client.get("/api/v1/runs/RUN/previews/0002.png").status_code == 404


def test_measures_and_notes_of_a_run_leave_out_what_is_no_number_and_where_things_lie(
    opened, folder, run
):
    rows = [{"step": n, "held out": {"loss": n / 2}, "trained": {"loss": 1}} for n in (0, 1)]
    broken = '{"step": 2, "held out": {"loss": NaN}, "trained": {"loss": 1}}\n{"step": 3, "h'
    (run / "validation.jsonl").write_text("\n".join([*map(json.dumps, rows), broken]))
    notes = Files(place_of(folder / ".iclora" / "logs", str(run))).notes
    notes.parent.mkdir(exist_ok=True)
    said = {"type": "note", "text": f"{folder}/data is odd"}
    notes.write_text(json.dumps(said) + '\n{"type": "preview"}\n{"ty')
    found = opened.client.get("/api/v1/runs/RUN/measures").json()["rows"]
    assert [(row["step"], row["held_out"]) for row in found] == [(0, 0.0), (1, 0.5)]
    assert opened.client.get("/api/v1/runs/RUN/notes").json()["notes"] == ["data is odd"]


def test_a_run_is_started_stopped_and_gone_on_with(opened, folder, dataset, run):
    opened.engine.hold()
    job = opened.post("train", input={"data": "data~shots", "name": "new", "steps": 9}).json()
    told = opened.engine.given(job["id"]).input
    assert told["out"] == str(folder / "runs" / "new")
    assert (told["data"], told["steps"]) == (str(dataset), 9)
    again = opened.post("train", input={"data": "data~shots", "name": "new"})
    assert again.status_code == 409
    (folder / "runs" / "new").mkdir(parents=True)
    shutil.copy(run / "config.toml", folder / "runs" / "new")
    assert opened.client.get("/api/v1/runs/runs~new").json()["job"] == job["id"]
    stopped = opened.client.post("/api/v1/runs/runs~new/stop").json()
    assert (stopped["id"], stopped["status"]) == (job["id"], "cancelling")
    assert opened.ended(job["id"])["status"] == "cancelled"
    assert opened.engine.ended_now == []
    opened.engine.go.set()
    more = opened.client.post("/api/v1/runs/runs~new/resume").json()
    opened.ended(more["id"])
    assert opened.engine.orders[-1].input == {"resume": str(folder / "runs" / "new")}
    resume = "/api/v1/runs/runs~new/resume"
    changed = opened.client.post(resume, json={"steps": 12, "lr": 1e-5}).json()
    opened.ended(changed["id"])
    assert opened.engine.orders[-1].input["lr"] == 1e-5
    assert changed["input"] == {"resume": "runs~new", "steps": 12, "lr": 1e-5}
    assert opened.client.post(resume, json={"rank": 4}).status_code == 422


def test_a_run_can_be_ended_without_waiting_for_its_checkpoint(opened, folder, dataset, run):
    opened.engine.hold()
    job = opened.post("train", input={"data": "data~shots", "name": "new"}).json()
    opened.engine.given(job["id"])
    waiting = opened.post().json()
    assert "a job to train runs" in waiting["waits_for"]
    (folder / "runs" / "new").mkdir(parents=True)
    shutil.copy(run / "config.toml", folder / "runs" / "new")
    opened.client.post("/api/v1/runs/runs~new/stop", json={"now": True})
    opened.ended(job["id"])
    assert opened.engine.ended_now == [job["id"]]
    opened.engine.go.set()


def test_a_name_in_use_is_not_taken_again(opened, dataset, run):
    told = {"source": "data~shots", "name": "shots"}
    answer = opened.post("compose", input=told)
    assert (answer.status_code, answer.json()["code"]) == (409, "Busy")


def test_a_story_is_told_as_text_and_kept_for_the_worker(opened, folder):
    job = opened.post("extend", input={"story": "all of it\nfirst\nsecond\n"}).json()
    opened.ended(job["id"])
    path = folder / ".iclora" / "stories" / f"{job['id']}.txt"
    assert opened.engine.orders[0].input["story"] == str(path)
    assert path.read_text() == "all of it\nfirst\nsecond\n"


def test_a_plan_is_counted_once_for_the_same_settings(opened, dataset, monkeypatch):
    asked, found = [], {**PLANNED, "text": f"plan of {dataset}"}

    def run(command, **_):
        asked.append(tomllib.loads(Path(command[-1]).read_text())["train"])
        return CompletedProcess(command, 0, json.dumps(found), "")

    monkeypatch.setattr("iclora.serve.planning.subprocess.run", run)
    monkeypatch.setattr("iclora.serve.planning._known", {})
    address = "/api/v1/plan?vram=12&rank=32&resolutions=512&resolutions=768&data=data~shots"
    for _ in range(2):
        told = opened.client.get(f"{address}&recipe=film-storyboard").json()
        assert (told["peak"], told["text"]) == (found["peak"], "plan of data/shots")
    assert len(asked) == 1
    assert (asked[0]["rank"], asked[0]["vram"], asked[0]["data"]) == (32, 12.0, str(dataset))
    assert opened.client.get("/api/v1/plan?rank=0").status_code == 422
    found = {"problem": "nothing fits", "advice": "Less.", "setting": "vram"}
    refused = opened.client.get("/api/v1/plan?vram=1")
    assert (refused.status_code, refused.json()["setting"]) == (422, "vram")


def test_a_plan_that_takes_long_is_found_by_who_asks_again(opened, monkeypatch):
    go, asked = threading.Event(), []
    monkeypatch.setattr(planning, "_counted", lambda told: asked.append(go.wait(60)) or PLANNED)
    monkeypatch.setattr(planning, "_known", {})
    monkeypatch.setattr(planning, "_PATIENCE", 0.01)
    first = opened.client.get("/api/v1/plan?vram=8")
    assert (first.status_code, first.headers["retry-after"]) == (429, "5")
    assert opened.client.get("/api/v1/plan?vram=9").status_code == 429
    go.set()
    monkeypatch.setattr(planning, "_PATIENCE", 60.0)
    assert opened.client.get("/api/v1/plan?vram=8").json()["peak"] == PLANNED["peak"]
    assert len(asked) == 1


def test_a_named_file_is_offered_beside_those_of_the_folder(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("elsewhere") / "style.safetensors"
    write_adapter(outside)
    with Opened(folder, adapter=(str(outside),)) as opened:
        found = opened.client.get("/api/v1/adapters").json()["adapters"]
        assert [each["id"] for each in found] == ["style"]


def test_the_files_a_job_has_made_are_listed_and_no_others(opened, folder):
    job = opened.ended(opened.post().json()["id"])
    (folder / "out" / job["id"] / ".hidden.png").touch()
    (folder / "out" / job["id"] / "0001" / "latents.safetensors").touch()
    found = opened.client.get(f"/api/v1/jobs/{job['id']}/files").json()["files"]
    assert found == [
        f"0001/{n}" for n in ("composite.png", "panel-1.png", "panel-2.png", "request.json")
    ]
    for name in found:
        assert opened.client.get(f"/api/v1/jobs/{job['id']}/files/{name}").status_code == 200


def test_an_idea_is_written_out_by_a_captioner_that_the_server_offers(folder):
    with Opened(folder, captioner=("openai:x",)) as opened:
        told = {"idea": "a fox", "recipe": "film-storyboard", "captioner": "openai:x"}
        opened.ended(opened.post("prompt", input=told).json()["id"])
        assert opened.engine.orders[0].input["captioner"] == "openai:x"
        refused = opened.post("prompt", input={**told, "captioner": "local:/etc"})
        assert (refused.status_code, refused.json()["setting"]) == (422, "captioner")
