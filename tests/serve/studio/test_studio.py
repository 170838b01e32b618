import tomllib

import pytest
from starlette.testclient import TestClient

from iclora.serve.server import Server
from iclora.serve.studio import page
from iclora.serve.studio.app import link, make_studio
from iclora.serve.studio.toys import with_its_own, write_toy_recipes, write_toy_sets
from iclora.sets.check import check_dataset, usual_resolutions
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import load_recipe
from iclora.settings import ServeSettings, StudioSettings
from iclora.toyland.tasks import TASKS, write_sets
from tests.serve.conftest import picture
from tests.serve.studio.toys import ToyEngine


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_toy_recipes(folder)
    server = Server(ServeSettings(folder=str(folder)), "toyland", ToyEngine())
    with TestClient(make_studio(server), "http://localhost:7860") as client:
        client.token = {"Authorization": f"Bearer {server.access.token}"}
        client.server = server
        yield client


def ask(client, method, path, **more):
    return client.request(method, f"/api/v1/{path}", headers=client.token, **more)


def test_the_page_loads_without_a_token_and_tells_nothing_of_the_folder(served):
    for path in page.PATHS:
        answer = served.get(path)
        assert answer.status_code == 200, path
        assert served.server.access.token not in answer.text
    assert served.get("/api/v1/sets").status_code == 401
    assert served.get("/page/../../pyproject.toml").status_code in (401, 404)


def test_the_only_inline_script_is_the_import_map_and_its_nonce_is_of_one_answer(served):
    first, second = served.get("/"), served.get("/")
    nonces = [answer.text.split('nonce="')[1].split('"')[0] for answer in (first, second)]
    assert nonces[0] != nonces[1]
    for answer, nonce in zip((first, second), nonces, strict=True):
        policy = answer.headers["content-security-policy"]
        assert f"script-src 'self' 'nonce-{nonce}'" in policy
        assert "default-src 'none'" in policy
        assert answer.text.count("<script") == 2
    assert 'type="importmap"' in first.text


def test_a_file_of_the_page_is_sent_once_and_then_known(served):
    style = next(path for path in page.PATHS if path.endswith("/app.css"))
    assert f'href="{style[1:]}"' in served.get("/").text
    first = served.get(style)
    assert "immutable" in first.headers["cache-control"]
    plain = served.get(style, headers={"Accept-Encoding": "identity"})
    assert (first.headers["content-encoding"], first.text) == ("gzip", plain.text)
    again = served.get(style, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_browser_with_the_token_gets_a_cookie_that_opens_gets_alone(served):
    assert served.post("/api/v1/session").status_code == 401
    given = ask(served, "POST", "session")
    assert given.status_code == 204
    assert "HttpOnly" in given.headers["set-cookie"]
    assert served.get("/api/v1/machine").status_code == 200
    assert served.post("/api/v1/queue", json={"paused": True}).status_code == 401
    served.cookies.clear()


def test_the_link_hides_the_token_behind_the_sign_that_is_never_sent(served):
    address, _, rest = link(served.server, "http://127.0.0.1:1").partition("#")
    assert address == "http://127.0.0.1:1/"
    assert rest == f"token={served.server.access.token}"


def test_the_first_answer_says_what_single_calls_say_and_where_events_go_on(served):
    told = ask(served, "GET", "start").json()
    assert told["event"] == served.server.bus.last
    assert told["machine"].pop("devices")[0]["name"] == "CPU"
    told["machine"].pop("disk_free")
    for path, name in (
        ("jobs?limit=200", "jobs"),
        ("jobs?status=running", "running"),
        ("recipes", "recipes"),
        ("adapters", "adapters"),
        ("queue", None),
        ("machine", None),
        ("about", None),
    ):
        said = ask(served, "GET", path).json()
        said.pop("disk_free", None)
        said.pop("devices", None)
        wanted = said["jobs" if name == "running" else name] if name else said
        assert told[name or path] == wanted, path
    assert told["form"] == ask(served, "GET", "forms/complete").json()
    assert told["draft"] == ask(served, "GET", "drafts/make").json()
    assert served.get("/api/v1/start").status_code == 401


def test_a_draft_is_kept_and_one_that_is_too_long_is_refused(served):
    assert ask(served, "GET", "drafts/make").json() == {"version": 0, "values": {}}
    draft = {"version": 3, "values": {"overview": "<b>a fox</b>"}}
    ask(served, "PUT", "drafts/make", json=draft)
    assert ask(served, "GET", "drafts/make").json() == draft
    long = {"version": 4, "values": {"text": "x" * 400_000}}
    assert ask(served, "PUT", "drafts/make", json=long).status_code == 422
    assert ask(served, "PUT", "drafts/..%2F..%2Fx", json=draft).status_code in (404, 422)


def upload(client, size):
    files = {"file": ("a.png", picture(size=size))}
    return ask(client, "POST", "assets", files=files).json()["sha256"]


def test_a_preview_says_what_becomes_of_given_panels(served):
    exact, other = upload(served, (64, 64)), upload(served, (90, 90))
    wish = {"recipe": "toyland-storyboard", "given": {"1": exact, "3": other}}
    said = ask(served, "POST", "preview", json=wish).json()
    assert [(each["panel"], each["exact"]) for each in said["panels"]] == [(1, True), (3, False)]
    assert said["problem"] is None
    whole = {**wish, "given": {"1": exact, "2": exact, "3": exact}}
    said = ask(served, "POST", "preview", json=whole).json()
    assert "nothing is left" in said["problem"]["problem"]


def test_a_preview_says_what_is_wrong_with_the_words(served):
    wish = {"recipe": "toyland-storyboard", "prompt": "[SCENE-1] a [SCENE-3] c"}
    said = ask(served, "POST", "preview", json=wish).json()
    assert said["problem"]["setting"] == "prompt"
    assert "[SCENE-2]" in said["problem"]["problem"]
    plain = ask(served, "POST", "preview", json={**wish, "prompt": "a fox"}).json()
    assert plain["problem"] is None
    assert len(plain["notes"]) == 2


def test_a_set_knows_the_job_it_is_of_and_the_set_it_was_made_of(served):
    told = {"prompt": ["a fox"], "recipe": "toyland-storyboard"}
    wait = {"Prefer": "wait=60", **served.token}
    job = served.post("/api/v1/jobs", json={"kind": "generate", "input": told}, headers=wait).json()
    first = job["result"]["sets"][0]
    told = {"set": first, "panel": [2]}
    again = served.post("/api/v1/jobs", json={"kind": "reroll", "input": told}, headers=wait).json()
    said = ask(served, "GET", f"sets/{again['result']['sets'][0]}/origin").json()
    assert (said["kind"], said["made_of"], said["panels"]) == ("reroll", first, [2])
    said = ask(served, "GET", f"sets/{first}/origin").json()
    assert (said["job"], said["path"]) == (job["id"], f"out/{job['id']}/0001")


def test_a_form_tells_ranges_choices_and_help(served):
    fields = ask(served, "GET", "forms/complete").json()["properties"]
    assert {"minimum": 1, "maximum": 1000, "type": "integer"} in fields["steps"]["anyOf"]
    assert fields["steps"]["description"]
    assert ask(served, "GET", "forms/nothing").status_code == 404


def test_toy_recipes_are_written_once_and_never_over_ones_own(tmp_path):
    names = write_toy_recipes(tmp_path)
    own = tmp_path / "recipes" / f"{names[0]}.toml"
    own.write_text("# mine")
    assert write_toy_recipes(tmp_path) == []
    assert own.read_text() == "# mine"
    for name in names[1:]:
        path = tmp_path / "recipes" / f"{name}.toml"
        assert tomllib.loads(path.read_text())["name"] == name
        assert load_recipe(path).canvas.width <= 128


def test_three_example_sets_lie_ready_with_nothing_wrong_and_are_drawn_once(tmp_path):
    assert write_toy_sets(tmp_path)
    assert not write_toy_sets(tmp_path)
    dataset = open_dataset(tmp_path / "data" / "toyland-storyboards")
    found = list(check_dataset(dataset, resolutions=usual_resolutions(dataset.recipe)))
    assert (len(found), dataset.problems) == (3, ())
    assert [problem.text for report in found for problem in report.problems] == []
    assert found[0].set.layouts[-1].sizes == ((64, 64),) * 3


def test_more_examples_are_drawn_under_a_name_that_is_free(served):
    told = {"name": "more", "count": 2}
    assert ask(served, "POST", "examples", json=told).json() == {"id": "data~more"}
    assert ask(served, "GET", "datasets/data~more/sets").json()["recipe"] == "toyland-storyboard"
    assert ask(served, "POST", "examples", json=told).status_code == 409
    for name in ("../x", "NUL", "more."):
        assert ask(served, "POST", "examples", json={**told, "name": name}).status_code == 422


def test_a_run_on_toyland_begins_with_its_sets_own_canvas_and_elsewhere_as_the_paper(
    served, monkeypatch
):
    data = served.server.catalog.folder / "data" / "boards"
    write_sets(TASKS["film-storyboard"], data, 2)
    said = ask(served, "GET", "usual/train?data=data~boards").json()
    assert (said["recipe"], said["sets"]) == ("film-storyboard", 2)
    (side,) = said["values"]["resolutions"]
    assert (side - 1) ** 2 < 64 * 192 <= side**2
    assert ask(served, "GET", "usual/train?data=nothing").status_code == 422
    monkeypatch.setattr(served.server, "base", "another")
    said = ask(served, "GET", "usual/train?data=data~boards").json()
    assert said["values"] == {"vram": "auto"}
    write_sets(TASKS["film-storyboard"], served.server.catalog.folder / "data" / "many", 10)
    said = ask(served, "GET", "usual/train?data=data~many").json()
    assert said["values"] == {"vram": "auto", "held_out": 0.1}


def test_a_story_says_its_canvases_and_which_line_is_wrong(served):
    def said(**more):
        told = {"recipe": "toyland-storyboard", "overview": "all", "images": list("abcde"), **more}
        return ask(served, "POST", "preview/story", json=told).json()

    assert [each["images"] for each in said()["windows"]] == [[1, 2, 3], [1, 3, 4], [1, 4, 5]]
    given = said(given=[1, 2, 3, 5], anchor=[2])
    assert [each["made"] for each in given["windows"]] == [[], [4], []]
    assert given["windows"][1]["images"] == [2, 3, 4]
    assert given["text"] == "all\na\nb\nc\nd\ne\n"
    for lines, wrong in ((["a", " ", "c"], 2), (["a", "b", "# c"], 3)):
        found = said(images=lines)
        assert (found["line"], found["windows"]) == (wrong, [])
    assert said(overview="")["line"] == 0
    assert "2 images" in said(images=["a", "b"])["problem"]["problem"]


def test_a_studio_of_toyland_offers_its_captioner_and_its_judge_unless_told(tmp_path):
    plain = StudioSettings(folder=str(tmp_path))
    assert with_its_own(plain, "toyland").captioner == ("toyland",)
    told = StudioSettings(folder=str(tmp_path), metric=("clip:x",))
    assert with_its_own(told, "toyland").metric == ("clip:x",)
    assert with_its_own(plain, "another") == plain
