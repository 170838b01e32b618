"""The table of attacks: each row is refused, and each is a test."""

import hashlib
import os
import stat

import pytest

from iclora.errors import SettingsError
from iclora.serve.access import Access
from iclora.settings import ServeSettings
from tests.conftest import write_dataset
from tests.serve.conftest import PLANNED, Opened, picture
from tests.serve.fake import make_set

BODY = {"kind": "generate", "input": {"prompt": ["a fox"]}}


def post(opened, **headers):
    return opened.client.post("/api/v1/jobs", json=BODY, headers=headers)


def none_was_queued(opened):
    return opened.client.get("/api/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.2", ""])
def test_a_foreign_host_is_refused(opened, host):
    """DNS rebinding: the page's own name leads to 127.0.0.1, and Host and Origin agree."""
    answer = post(opened, Host=host, Origin=f"http://{host}")
    assert answer.status_code == 421
    assert none_was_queued(opened)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://localhost"]
)
def test_a_foreign_origin_is_refused_even_with_the_token(opened, origin):
    assert post(opened, Origin=origin).status_code == 403
    assert none_was_queued(opened)


def test_the_servers_own_origin_passes(opened):
    assert post(opened, Origin="http://localhost:7860").status_code == 202


def test_an_allowed_origin_passes_and_is_told_so(folder):
    with Opened(folder, allow_origin=("https://studio.example",)) as opened:
        own = {"Origin": "https://studio.example"}
        asked = {**own, "Access-Control-Request-Method": "POST"}
        before = opened.client.options("/api/v1/jobs", headers=asked)
        assert before.status_code == 204
        answer = opened.client.post("/api/v1/jobs", json=BODY, headers=own)
        assert answer.status_code == 202
        assert answer.headers["access-control-allow-origin"] == "https://studio.example"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "text/plain; application/json"]
)
def test_what_a_form_of_any_page_can_send_is_refused(opened, kind):
    answer = opened.client.post(
        "/api/v1/jobs", content=b'{"kind": "generate"}', headers={"Content-Type": kind}
    )
    assert answer.status_code == 415
    assert none_was_queued(opened)


@pytest.mark.parametrize("token", [None, "Bearer", "Bearer wrong", "Basic abc", "Bearer \xe9"])
def test_no_token_or_a_wrong_one_is_refused_on_every_path(opened, token):
    headers = {} if token is None else {"Authorization": token.encode("latin-1")}
    del opened.client.headers["Authorization"]
    for path in ("/api/v1/jobs", "/metrics", "/openapi.json", "/api/v1/events", "/v1/models"):
        answer = opened.client.get(path, headers=headers)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert opened.client.post("/api/v1/jobs", json=BODY, headers=headers).status_code == 401


def test_a_token_in_the_address_is_no_token(opened):
    del opened.client.headers["Authorization"]
    assert opened.client.get(f"/api/v1/jobs?token={opened.token}").status_code == 401


def test_health_needs_no_token_and_tells_nothing(opened):
    del opened.client.headers["Authorization"]
    assert opened.client.get("/healthz").json() == {"state": "alive"}
    assert opened.client.get("/readyz").json() == {"state": "ready"}


def test_the_printed_link_works_once_and_its_cookie_only_looks(opened):
    del opened.client.headers["Authorization"]
    code = opened.server.access.new_code()
    first = opened.client.get("/login", params={"code": code})
    assert first.status_code == 303
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert opened.token not in cookie
    assert opened.client.get("/api/v1/jobs").status_code == 200
    assert opened.client.post("/api/v1/jobs", json=BODY).status_code == 401
    assert opened.client.get("/login", params={"code": code}).status_code == 401


def test_a_get_changes_nothing(opened, folder, monkeypatch):
    """Every GET, of things that are there; streams never end and /login uses up its own code."""
    monkeypatch.setattr("iclora.serve.planning._counted", lambda told: PLANNED)
    write_dataset(folder / "data" / "shots", sets=1)
    assert opened.ended(opened.post().json()["id"])["status"] == "succeeded"
    opened.client.post("/api/v1/queue", json={"paused": True})
    waiting = opened.post().json()["id"]
    named = {
        "/jobs/{job}": waiting,
        "/sets/{name}": opened.client.get("/api/v1/sets").json()["sets"][0]["id"],
        "/datasets/{name}": "data~shots",
        "/recipes/{name}": "film-storyboard",
        "/models/{model}": "toyland",
    }
    before = _state(opened, folder)
    found = []
    for path, methods in opened.client.get("/openapi.json").json()["paths"].items():
        if "get" not in methods or path == "/login" or path.endswith("/events"):
            continue
        for place, own in named.items():
            path = path.replace(place, place[: place.index("{")] + own)
        path = path.replace("{image_set}", "0001").replace("{number}", "1")
        found.append(opened.client.get(path).status_code)
    assert found.count(200) > 25
    assert _state(opened, folder) == before


def _state(opened, folder):
    files = (p for p in folder.rglob("*") if p.is_file() and ".iclora" not in p.parts)
    rows = opened.server.store.rows("SELECT * FROM jobs ORDER BY id")
    return (
        {str(p): p.read_bytes() for p in files},
        [tuple(row) for row in rows],
        opened.client.get("/api/v1/queue").json(),
    )


@pytest.mark.parametrize(
    "name",
    ["..", "../x", "a/b", "/etc", "%2e%2e", "..%2f..%2fetc", "a\0b", "~", ".iclora", "data~.."],
)
def test_a_path_in_place_of_an_id_is_refused(opened, folder, name):
    (folder.parent / "x").mkdir(exist_ok=True)
    told = {
        "check": {"data": name},
        "compose": {"source": name, "name": "new"},
        "generate": {"prompt": ["a"], "adapter": [name]},
        "train": {"data": name, "name": "new"},
    }
    for kind, given in told.items():
        answer = opened.post(kind, input=given)
        assert answer.status_code == 422, kind
    answer = opened.post("compose", input={"source": "a", "name": name})
    assert answer.status_code == 422
    assert none_was_queued(opened)


@pytest.mark.parametrize("path", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "....//", "x" * 64])
def test_no_path_of_the_api_reads_another_file(opened, path):
    for place in ("assets", "sets", "jobs", "datasets", "runs", "adapters", "recipes"):
        assert opened.client.get(f"/api/v1/{place}/{path}").status_code in (404, 422), place


def test_a_link_that_leads_out_of_the_folder_is_not_there(opened, folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    make_set(outside / "0001", {})
    (folder / "leak").symlink_to(outside)
    (folder / "out").mkdir()
    (folder / "out" / "leak").symlink_to(outside)
    assert opened.post("check", input={"data": "leak"}).status_code == 422
    assert opened.client.get("/api/v1/sets").json()["sets"] == []
    names = [each["id"] for each in opened.client.get("/api/v1/datasets").json()["datasets"]]
    assert "leak" not in names


def test_a_link_that_replaces_a_set_later_is_not_followed(opened, folder, tmp_path_factory):
    made = make_set(folder / "out" / "0001", {})
    known = opened.client.get("/api/v1/sets").json()["sets"][0]["id"]
    outside = tmp_path_factory.mktemp("outside")
    made.rename(outside / "0001")
    made.symlink_to(outside / "0001")
    assert opened.client.get(f"/api/v1/sets/{known}/composite.png").status_code == 404


def test_a_decompression_bomb_is_refused_by_its_header(opened):
    from tests.serve.bombs import bomb

    answer = opened.upload(bomb(12_000, 12_000))
    assert answer.status_code == 422
    assert "megapixels" in answer.json()["problem"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95pickle",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"PK\x03\x04",
        b"",
        b"GIF89a",
    ],
    ids=["pickle", "svg", "zip", "empty", "gif"],
)
def test_what_is_no_picture_is_refused(opened, data):
    assert opened.upload(data, "a.png").status_code == 422


def test_a_picture_of_more_than_20_mb_is_refused(opened):
    assert opened.upload(b"\x89PNG" + b"0" * (20 * 10**6)).status_code == 413


@pytest.mark.parametrize("said", [True, False])
def test_a_request_of_more_than_64_mb_is_refused(opened, monkeypatch, said):
    monkeypatch.setattr("iclora.serve.gate.MOST_BYTES", 1000)
    body = b'{"kind": "' + b"x" * 2000
    content = body if said else iter([body[:700], body[700:]])  # The second says no length.
    kind = {"Content-Type": "application/json"}
    answer = opened.client.post("/api/v1/jobs", content=content, headers=kind)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "field", ["base", "api", "device", "out", "prompts", "cache", "model_device"]
)
def test_a_client_names_no_file_server_or_device(opened, field):
    answer = opened.post(input={"prompt": ["a"], field: "http://169.254.169.254/"})
    assert (answer.status_code, answer.json()["setting"]) == (422, field)


@pytest.mark.parametrize(
    "name", ["local:/etc", "openai:gpt-4o", "dino:http://evil/x", "toyland/.."]
)
def test_a_client_names_only_models_that_the_server_offers(opened, name):
    told = {"prompt": ["a"], "best_of": 2, "score": name}
    assert opened.post(input=told).status_code == 422
    assert opened.post("evaluate", input={"prompt": ["a"], "metric": [name]}).status_code == 422


def keys(folder, *names):
    path = folder / "keys"
    rows = [f"{name} {hashlib.sha256(f'key of {name}'.encode()).hexdigest()}" for name in names]
    path.write_text("# clients\n" + "\n".join(rows) + "\n")
    return str(path)


def as_client(name):
    return {"Authorization": f"Bearer key of {name}"}


def test_ids_of_another_client_are_not_there(folder):
    with Opened(folder, keys=keys(folder, "ana", "bob")) as opened:
        job = opened.post(headers=as_client("ana")).json()["id"]
        made = opened.ended(job)["result"]["sets"][0]
        bob = as_client("bob")
        for path in (
            f"jobs/{job}",
            f"jobs/{job}/events",
            f"sets/{made}",
            f"sets/{made}/composite.png",
        ):
            assert opened.client.get(f"/api/v1/{path}", headers=bob).status_code == 404, path
        for path in (f"jobs/{job}/cancel", f"jobs/{job}/retry", f"sets/{made}/reproduce"):
            assert opened.client.post(f"/api/v1/{path}", headers=bob).status_code == 404, path
        assert opened.client.delete(f"/api/v1/sets/{made}", headers=bob).status_code == 404
        told = {"set": made, "panel": [1]}
        assert opened.post("reroll", input=told, headers=bob).status_code == 404
        assert opened.client.get("/api/v1/jobs", headers=bob).json()["jobs"] == []
        assert opened.client.get("/api/v1/sets", headers=bob).json()["sets"] == []
        assert (
            opened.client.get(f"/api/v1/sets/{made}", headers=as_client("ana")).status_code == 200
        )


def test_two_clients_may_use_the_same_idempotency_key(folder):
    with Opened(folder, keys=keys(folder, "ana", "bob")) as opened:
        ids = {
            opened.post(headers={**as_client(name), "Idempotency-Key": "1"}).json()["id"]
            for name in ("ana", "bob")
        }
        assert len(ids) == 2


def test_a_client_with_a_key_cannot_pause_everybody(folder):
    with Opened(folder, keys=keys(folder, "ana")) as opened:
        told = {"paused": True}
        answer = opened.client.post("/api/v1/queue", json=told, headers=as_client("ana"))
        assert answer.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::"])
def test_a_bind_that_others_reach_needs_a_key_or_a_proxy(folder, host):
    with pytest.raises(SettingsError, match="other machines"):
        Access(ServeSettings(host=host), folder)
    Access(ServeSettings(host=host, tls_proxy=True), folder)
    Access(ServeSettings(host=host, keys=keys(folder, "ana")), folder)


def test_the_token_is_readable_by_its_owner_alone_and_stays(folder):
    Access(ServeSettings(), folder)
    token = (folder / "token").read_text()
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert len(token.strip()) >= 43
    (folder / "token").chmod(0o644)
    Access(ServeSettings(), folder)
    assert (folder / "token").read_text() == token
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, "é".encode() * 50, b"\0" * 50, None])
def test_a_token_that_is_none_is_refused_and_a_pipe_is_not_waited_for(folder, content):
    if content is None:
        os.mkfifo(folder / "token")
    else:
        (folder / "token").write_bytes(content)
    with pytest.raises(SettingsError, match="token"):
        Access(ServeSettings(), folder)


@pytest.mark.parametrize("text", ["", "ana", "ana short", "ana " + "0" * 64 + "\nana " + "1" * 64])
def test_a_file_of_keys_that_is_none_is_refused(folder, text):
    (folder / "keys").write_text(text)
    with pytest.raises(SettingsError, match=r"key|line"):
        Access(ServeSettings(keys=str(folder / "keys")), folder)


def test_answers_cannot_be_framed_sniffed_or_cached(opened):
    headers = opened.client.get("/api/v1/jobs").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_a_picture_comes_back_as_it_was_sent(opened):
    data = picture("blue", (20, 30), "JPEG")
    first, again = opened.upload(data), opened.upload(data)
    assert (first.status_code, again.status_code) == (201, 200)
    sha = hashlib.sha256(data).hexdigest()
    assert first.json() == {"sha256": sha, "width": 20, "height": 30}
    answer = opened.client.get(f"/api/v1/assets/{sha}")
    assert answer.content == data
    assert answer.headers["content-type"] == "image/jpeg"
    assert opened.client.head(f"/api/v1/assets/{sha}").status_code == 200
    assert opened.client.head(f"/api/v1/assets/{'0' * 64}").status_code == 404
