import ast
import json
import time
from pathlib import Path

import pytest

import iclora.serve
from iclora.errors import RunError, StorageError
from iclora.serve.engine import Outcome
from tests.serve.conftest import Opened, picture
from tests.serve.fake import FakeEngine, make_set

ROOM = Path(iclora.serve.__file__).parent


def test_every_async_route_waits_for_something():
    """One that does not belongs into a thread, or it holds up every other request."""
    silent = []
    for path in ROOM.rglob("routes/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef) and node.decorator_list:
                waits = any(isinstance(inner, ast.Await) for inner in ast.walk(node))
                if not waits and node.name != "healthz":
                    silent.append(node.name)
    assert silent == []


def test_a_posted_job_makes_sets_in_a_folder_of_its_own(opened, folder):
    answer = opened.post(input={"prompt": ["a fox"], "count": 2, "seed": 5})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"jobs/{answer.json()['id']}"
    done = opened.ended(answer.json()["id"])
    assert done["status"] == "succeeded"
    assert len(done["result"]["sets"]) == 2
    made = folder / "out" / done["id"]
    assert sorted(p.name for p in made.iterdir()) == ["0001", "0002"]


def test_the_order_holds_the_verbs_settings_with_real_paths_and_seeds(opened, folder):
    sha = opened.upload(picture()).json()["sha256"]
    job = opened.post("complete", input={"prompt": ["a fox"], "given": {"1": sha}}).json()
    opened.ended(job["id"])
    order = opened.engine.orders[0]
    assert order.input["given"] == {"1": str(folder / ".iclora" / "assets" / f"{sha}.png")}
    assert order.input["seed"] == job["input"]["seed"]
    assert order.input["out"] == order.folder == str(folder / "out" / job["id"])
    assert order.input["base"] == "toyland"


def test_a_result_names_files_in_the_jobs_folder_and_what_was_noted(opened, folder):
    job = opened.ended(opened.post("evaluate", input={"prompt": ["a"]}).json()["id"])
    assert job["result"] == {"report": "report.html", "notes": ["a note"], "sets": []}
    path = f"/api/v1/jobs/{job['id']}/files"
    told = {"base": f"{folder}/base", "out": f"{folder}/out"}
    (folder / "out" / job["id"] / "evaluation.json").write_text(json.dumps(told))
    assert opened.client.get(f"{path}/evaluation.json").json() == {"base": "base", "out": "out"}
    answer = opened.client.get(f"{path}/report.html")
    assert answer.text == "<b>report</b>"
    assert "sandbox" in answer.headers["content-security-policy"]
    (folder / "out" / job["id"] / ".hidden.json").write_text("{}")
    (folder / "out" / job["id"] / "link.json").symlink_to(folder / ".iclora" / "token")
    for name in (".hidden.json", "link.json", "../../.iclora/token", "none.png", "", "/etc/passwd"):
        assert opened.client.get(f"{path}/{name}").status_code == 404, name


def test_two_jobs_without_a_seed_get_different_ones(opened):
    seeds = {opened.post().json()["input"]["seed"] for _ in range(4)}
    assert len(seeds) == 4


def test_waiting_for_a_job_answers_with_its_end(opened):
    answer = opened.post(headers={"Prefer": "wait=60"})
    assert answer.json()["status"] == "succeeded"


def test_waiting_ends_when_the_time_is_over(opened):
    opened.engine.hold()
    answer = opened.post(headers={"Prefer": "wait=0"})
    assert answer.json()["status"] in ("queued", "running")
    opened.engine.go.set()


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_body(opened):
    key = {"Idempotency-Key": "k1"}
    first, again = opened.post(headers=key), opened.post(headers=key)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    other = opened.post(headers=key, input={"prompt": ["a bear"]})
    assert other.status_code == 422


def test_a_running_job_is_cancelled_and_the_next_one_runs(opened):
    opened.engine.hold()
    first, second = opened.post().json()["id"], opened.post().json()["id"]
    opened.until(first, {"running"})
    assert opened.client.post(f"/api/v1/jobs/{first}/cancel").json()["status"] == "cancelling"
    assert opened.ended(first)["status"] == "cancelled"
    opened.engine.go.set()
    assert opened.ended(second)["status"] == "succeeded"


def test_a_waiting_job_says_why_it_waits(opened):
    opened.client.post("/api/v1/queue", json={"paused": True})
    job = opened.post().json()
    assert (job["position"], job["waits_for"]) == (0, "the queue is paused")
    opened.engine.hold()
    opened.client.post("/api/v1/queue", json={"paused": False})
    path = f"/api/v1/jobs/{job['id']}"
    while not opened.client.get(path).json()["progress"]:
        time.sleep(0.002)
    behind = opened.post().json()
    assert behind["waits_for"] == "a free worker; a job to generate runs"
    assert behind["ahead"] == {"stage": "sampling", "done": 0, "total": 2, "eta_s": 1.0}
    assert opened.client.get("/api/v1/jobs").json()["jobs"][0] == behind
    opened.engine.go.set()
    done = opened.ended(job["id"])
    assert done["waits_for"] is done["ahead"] is None


def test_a_job_waits_for_a_base_that_is_not_loaded_yet(folder):
    engine = FakeEngine()
    engine.why = f"worker cpu was ended; its log is {folder}/.iclora/logs/worker-cpu.log"
    with Opened(folder, engine) as opened:
        job = opened.post().json()
        said = "worker cpu was ended; its log is .iclora/logs/worker-cpu.log"
        assert job["waits_for"] == said, "where the folder lies is not told"
        waits = opened.client.get("/readyz")
        assert (waits.status_code, waits.json()["problem"]) == (503, said)
        assert opened.client.get("/healthz").status_code == 200
        engine.why = None
        assert opened.ended(job["id"])["status"] == "succeeded"
        assert opened.client.get("/readyz").status_code == 200


def test_no_job_is_given_to_a_worker_that_is_gone(folder):
    engine = FakeEngine(("there", "gone"))
    engine.gone.add("gone")
    with Opened(folder, engine) as opened:
        jobs = [opened.post().json()["id"] for _ in range(4)]
        assert {opened.ended(job)["status"] for job in jobs} == {"succeeded"}
    assert engine.loaded("gone") is None


def test_a_job_survives_its_workers_death_and_makes_no_set_twice(opened, folder):
    opened.engine.deaths = 2
    job = opened.post(input={"prompt": ["a fox"], "seed": 3}).json()
    done = opened.ended(job["id"])
    assert (done["status"], done["attempt"]) == ("succeeded", 3)
    assert {order.input["seed"] for order in opened.engine.orders} == {3}
    assert [p.name for p in (folder / "out" / job["id"]).iterdir()] == ["0001"]


def test_jobs_that_wait_are_handed_to_a_worker_together_if_it_takes_several(folder):
    engine = FakeEngine()
    engine.together = 4
    with Opened(folder, engine) as opened:
        opened.client.post("/api/v1/queue", json={"paused": True})
        jobs = [
            opened.post(input={"prompt": [f"a fox {n}"], "seed": n}).json()["id"] for n in range(6)
        ]
        opened.client.post("/api/v1/queue", json={"paused": False})
        assert {opened.ended(job)["status"] for job in jobs} == {"succeeded"}
        assert [order.job for order in engine.orders] == jobs
        text = opened.client.get("/metrics").text
    assert "iclora_batch_size_count 2.0" in text
    assert "iclora_batch_size_sum 6.0" in text


def test_a_job_whose_worker_dies_each_time_fails_with_the_signal(opened):
    opened.engine.deaths = 5
    done = opened.ended(opened.post().json()["id"])
    assert done["status"] == "failed"
    assert "SIGKILL" in done["error"]["problem"]
    again = opened.client.post(f"/api/v1/jobs/{done['id']}/retry")
    assert again.status_code == 200
    assert opened.ended(done["id"])["status"] == "succeeded"
    assert opened.client.post(f"/api/v1/jobs/{done['id']}/retry").status_code == 409


def test_a_cancel_that_comes_after_the_end_does_not_cancel_the_next_try(opened):
    opened.engine.failure = RunError("it is too warm", "Open a window.")
    first, _ = (opened.ended(opened.post().json()["id"])["id"] for _ in range(2))
    opened.server.dispatcher.cancel(first)
    opened.engine.failure = None
    opened.client.post(f"/api/v1/jobs/{first}/retry")
    assert opened.ended(first)["status"] == "succeeded"
    assert first not in opened.engine.cancelled


def test_an_error_of_the_engine_fails_the_job_with_problem_and_advice(opened):
    opened.engine.failure = RunError("it is too warm", "Open a window.")
    error = opened.ended(opened.post().json()["id"])["error"]
    assert error["problem"] == "it is too warm"
    assert error["advice"] == "Open a window."


def test_nothing_that_a_worker_says_tells_where_things_lie(opened, folder, monkeypatch):
    data, run = folder / "data" / "d", folder / "runs" / "r"
    data.mkdir(parents=True)
    opened.engine.failure = RunError(f"{data} holds no sets; see {data}/x.png", "Look there.")
    told = {"data": "data~d", "name": "r"}
    error = opened.ended(opened.post("train", input=told).json()["id"])["error"]
    assert error["problem"] == "data/d holds no sets; see data/d/x.png"
    opened.engine.failure = None
    monkeypatch.setattr(
        opened.engine, "run", lambda *_: Outcome("succeeded", {"run": str(run), "sets": []})
    )
    done = opened.ended(opened.post("train", input=told).json()["id"])
    assert done["result"]["run"] == "runs~r"


def test_a_job_without_its_files_has_not_succeeded(opened, monkeypatch):
    monkeypatch.setattr("tests.serve.fake.make_set", lambda *_: None)
    assert opened.ended(opened.post().json()["id"])["status"] == "failed"


def test_jobs_go_on_after_a_restart_of_the_server(folder):
    engine = FakeEngine()
    engine.hold()
    with Opened(folder, engine) as opened:
        ids = [opened.post().json()["id"] for _ in range(3)]
        opened.until(ids[0], {"running"})
    with Opened(folder) as opened:
        done = [opened.ended(job) for job in ids]
    assert [(each["status"], each["attempt"]) for each in done] == [("succeeded", 1)] * 3


def test_a_run_is_gone_on_with_at_once_by_the_next_server_and_can_be_stopped(folder):
    (folder / "data" / "d").mkdir(parents=True)
    engine = FakeEngine()
    engine.hold()
    with Opened(folder, engine) as opened:
        run = opened.post("train", input={"data": "data~d", "name": "r"}).json()["id"]
        opened.until(run, {"running"})
    engine = FakeEngine()
    engine.hold()
    engine.why = "the base is being loaded"
    with Opened(folder, engine) as opened:
        opened.client.post("/api/v1/queue", json={"paused": True})
        assert opened.client.get(f"/api/v1/jobs/{run}").json()["status"] == "running"
        opened.client.post(f"/api/v1/jobs/{run}/cancel")
        done = opened.ended(run)
    assert (done["status"], done["attempt"]) == ("cancelled", 1)
    assert [order.job for order in engine.orders] == [run]


def test_a_second_server_on_the_folder_is_refused(opened, folder):
    with pytest.raises(RunError, match="another server has"):
        Opened(folder)


def test_a_server_that_cannot_be_opened_gives_the_folder_back(folder):
    (folder / ".iclora").mkdir()
    (folder / ".iclora" / "serve.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError):
        Opened(folder)
    (folder / ".iclora" / "serve.sqlite").unlink()
    with Opened(folder) as opened:
        assert opened.client.get("/readyz").status_code == 200


def test_the_queue_is_listed_in_pages_and_reordered(opened):
    opened.client.post("/api/v1/queue", json={"paused": True})
    ids = [opened.post().json()["id"] for _ in range(5)]
    first = opened.client.get("/api/v1/jobs?limit=3").json()
    rest = opened.client.get(f"/api/v1/jobs?limit=3&cursor={first['cursor']}").json()
    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == ids[::-1]
    assert rest["cursor"] is None
    opened.client.patch(f"/api/v1/jobs/{ids[4]}", json={"before": ids[0]})
    moved = opened.client.get(f"/api/v1/jobs/{ids[4]}").json()
    assert moved["position"] == 0
    cleared = opened.client.post("/api/v1/queue", json={"cancel_waiting": True}).json()
    assert cleared == {"paused": True, "waiting": 0, "running": 0, "cancelled": 5}


def test_unknown_fields_are_refused_by_name(opened):
    for body in (
        {"kind": "generate", "input": {"prompt": ["a"], "stepps": 3}},
        {"kind": "generate", "input": {"prompt": ["a"]}, "stepps": 3},
    ):
        answer = opened.client.post("/api/v1/jobs", json=body)
        assert answer.status_code == 422
        assert answer.json()["setting"] == "stepps"
        assert "`stepps`" in answer.json()["problem"]
    answer = opened.client.get("/api/v1/jobs?stepps=3")
    assert (answer.status_code, answer.json()["setting"]) == (422, "stepps")


def test_what_the_verb_would_refuse_is_refused_before_it_is_acknowledged(opened):
    told = {
        "prompt": {"prompt": []},
        "steps": {"prompt": ["a"], "steps": 0},
        "best_of": {"prompt": ["a"], "best_of": 2},
        "recipe": {"prompt": ["a"], "recipe": "no-such"},
        "adapter": {"prompt": ["a"], "adapter": ["no-such"]},
        "count": {"prompt": ["a"], "count": 9},
        "captioner": {"idea": ["a"], "captioner": "openai:gpt-4o"},
    }
    for setting, given in told.items():
        answer = opened.post(input=given)
        assert answer.status_code == 422, setting
        assert f"{setting}" in f"{answer.json()['setting']} {answer.json()['problem']}"
        assert answer.json()["advice"]
    assert opened.client.get("/api/v1/jobs").json()["jobs"] == []


def test_wrong_markers_are_refused_at_once(opened):
    told = {"prompt": ["[MOVIE-SHOTS] a, [SCENE-1] b [SCENE-3] c"], "recipe": "film-storyboard"}
    answer = opened.post(input=told)
    assert (answer.status_code, answer.json()["code"]) == (422, "CaptionError")


def test_an_answer_that_is_none_is_a_problem_with_the_requests_id(opened):
    answer = opened.client.get("/api/v1/jobs/none", headers={"X-Request-Id": "abcdefgh-1"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "abcdefgh-1"
    assert opened.client.get("/nothing").json()["status"] == 404
    assert opened.client.put("/api/v1/jobs", json={}).json()["status"] == 405


def test_a_full_disk_takes_no_job(opened, monkeypatch):
    import shutil

    usage = type("Usage", (), {"free": 10, "total": 100, "used": 90})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert opened.post().status_code == 507


def test_a_full_queue_says_when_to_ask_again(opened, monkeypatch):
    opened.client.post("/api/v1/queue", json={"paused": True})
    monkeypatch.setattr(opened.server.queue, "_most", 1)
    opened.post()
    answer = opened.post()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1


def test_a_server_that_goes_down_takes_no_request(opened):
    opened.server.closing = True
    answer = opened.post()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")


def test_metrics_count_jobs_by_kind_and_never_name_one(opened):
    job = opened.post(tag="a secret tag").json()["id"]
    opened.ended(job)
    opened.engine.hold()
    held = opened.post().json()["id"]
    opened.until(held, {"running"})  # By the thread that counted the first one.
    opened.client.post(f"/api/v1/jobs/{held}/cancel")
    opened.ended(held)
    opened.engine.go.set()
    text = opened.client.get("/metrics").text
    assert 'iclora_jobs_total{kind="generate",status="succeeded"} 1.0' in text
    assert 'route="/api/v1/jobs"' in text
    for secret in (job, "fox", "secret", opened.token):
        assert secret not in text


def test_places_are_told_so_that_they_hold_behind_a_proxys_path(opened, folder):
    from urllib.parse import urljoin

    made = make_set(folder / "out" / "0001", {})
    found = opened.client.get("/api/v1/sets").json()["sets"][0]["id"]
    asked = {
        "api/v1/jobs": opened.post(),
        f"api/v1/sets/{found}/reproduce": opened.client.post(f"/api/v1/sets/{found}/reproduce"),
        "api/v1/assets": opened.upload((made / "composite.png").read_bytes()),
    }
    for path, answer in asked.items():
        place = urljoin(f"http://proxy/a/b/{path}", answer.headers["location"])
        assert place.startswith("http://proxy/a/b/api/v1/")
        inside = place.removeprefix("http://proxy/a/b")
        assert opened.client.get(inside).status_code == 200


def test_the_log_names_routes_and_ids_but_no_prompt_and_no_token(opened, caplog):
    with caplog.at_level("INFO"):
        opened.ended(opened.post(input={"prompt": ["a very secret fox"]}).json()["id"])
        opened.client.get("/api/v1/jobs?kind=secretkind")
    said = " ".join(r.getMessage() for r in caplog.records if r.name.startswith("iclora"))
    assert '"route": "/api/v1/jobs"' in said
    assert "secret" not in said
    assert opened.token not in said


def test_the_schema_names_every_kind_with_its_settings(opened):
    schema = opened.client.get("/openapi.json").json()
    generate = schema["components"]["schemas"]["GenerateInput"]["properties"]
    assert "steps" in generate
    assert "Euler steps" in generate["steps"]["description"]
    assert set(opened.client.get("/api/v1/about").json()["kinds"]) >= {"generate", "train"}
