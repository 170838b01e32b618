"""The hub's own client against a server that speaks as the hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from iclora.adapter import Adapter
from iclora.adapter.locate import locate
from iclora.cli.main import main
from iclora.errors import AdapterError, RunError
from iclora.files.locks import LOCK, alone
from iclora.models.base import Sampling
from iclora.settings import TrainSettings, settings_of
from iclora.train.model_card import write_card
from iclora.train.push import collect

# The client's own use of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

DEV = "black-forest-labs/FLUX.1-dev"
KEY = "hf_SecretOfSomebody"
SENT = {"README.md", "adapter.safetensors", "previews/step-000001-1.png"}
SENT |= {"previews/step-000001.png"}


class Hub(ThreadingHTTPServer):
    """Keeps repositories in memory: large files by their hash, as the hub does."""

    daemon_threads = True

    def __init__(self):
        self.repositories, self.large, self.private = {}, {}, {}
        self.refusal = None
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def answer(self, body, status=200, **headers):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def do_GET(self):
        if "/resolve/" in self.path:
            return self.send_file()
        name, tree, _ = self.path.removeprefix("/api/models/").partition("/tree/")
        name = name.split("/revision")[0]
        if name not in self.server.private:
            return self.answer({"error": "?"}, 404, **{"X-Error-Code": "RepoNotFound"})
        files = [{"rfilename": file} for file in self.server.repositories.get(name, ())]
        if tree:
            held = self.server.repositories[name].items()
            kind = {"type": "file", "oid": "1" * 40}
            return self.answer([{**kind, "path": path, "size": len(data)} for path, data in held])
        private = self.server.private[name]
        return self.answer({"id": name, "private": private, "sha": "1" * 40, "siblings": files})

    def send_file(self):
        name, _, rest = self.path[1:].partition("/resolve/")
        commit, _, file = rest.partition("/")
        content = self.server.repositories.get(name, {}).get(file)
        if content is None or self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer({"error": "?"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self):
        self.send_file()

    def do_PUT(self):
        self.server.large[self.path.removeprefix("/put/")] = self.body()
        self.answer({})

    def do_POST(self):
        hub, raw = self.server, self.body()
        if self.headers["Authorization"] != f"Bearer {KEY}" or hub.refusal:
            text = hub.refusal or "Invalid username or password."
            return self.answer({"error": text}, 401)
        if self.path == "/api/repos/create":
            told = json.loads(raw)
            name = f"{told['organization']}/{told['name']}"
            if name in hub.private:
                return self.answer({"error": "it exists", "url": f"{hub.url}/{name}"}, 409)
            hub.private[name] = told.get("private", told.get("visibility") == "private")
            return self.answer({"url": f"{hub.url}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/put/{each['oid']}"}}}
                for each in json.loads(raw)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": each["path"],
                    "shouldIgnore": False,
                    "uploadMode": "regular" if each["path"].endswith(".md") else "lfs",
                }
                for each in json.loads(raw)["files"]
            ]
            return self.answer({"files": files})
        name = self.path.removeprefix("/api/models/").split("/commit")[0]
        rows = [json.loads(line) for line in raw.splitlines()]
        found = hub.repositories.setdefault(name, {})
        for row in rows:
            value = row["value"]
            if row["key"] == "file":
                found[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                content = hub.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                found[value["path"]] = content
        commit = {"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": "1" * 40}
        return self.answer({"success": True, **commit})

    def log_message(self, *_):
        """Requests are no news."""


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    # As HF_ENDPOINT sets them, had it been there when the client was imported.
    form = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", form)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its server is another one
    monkeypatch.setenv("HF_TOKEN", KEY)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ended(lora, tmp_path):
    """The folder of a run that ended, with more in it than others should get."""
    folder = lora.parent
    paths = {"base": str(tmp_path / "bases" / "dev"), "data": str(tmp_path), "out": str(folder)}
    (folder / "config.toml").write_text("[train]\n")
    (folder / "log.jsonl").write_text("{}\n")
    for name in ("previews/step-000001.png", "previews/step-000001-1.png", "cache/0001.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
    (folder / "checkpoints" / "step-000001" / "adapter.safetensors").write_bytes(b"x")
    adapter = Adapter.load(lora)
    info = adapter.info.model_copy(update={"base": paths["base"]})
    Adapter(adapter.weights, info).save(lora)
    told = settings_of(TrainSettings, paths)
    write_card(folder, info.model_copy(update={"base": DEV}), told, 20, Sampling())
    return folder


def change(folder, theirs, ours):
    card = folder / "README.md"
    assert theirs in card.read_text()
    card.write_text(card.read_text().replace(theirs, ours))


def test_the_hub_gets_adapter_card_and_previews_and_nothing_else(hub, ended, tmp_path, capsys):
    assert main(["push", str(ended), "ana/story"]) == 0
    assert hub.private == {"ana/story": True}
    files = hub.repositories["ana/story"]
    assert set(files) == SENT
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == DEV
    assert "USER/NAME" not in card.text
    assert 'load_lora_weights("ana/story"' in card.text
    (tmp_path / "got.safetensors").write_bytes(files["adapter.safetensors"])
    there, ours = (
        load_file(path) for path in (tmp_path / "got.safetensors", ended / "adapter.safetensors")
    )
    assert all((there[key] == ours[key]).all() for key in ours)
    assert len(there) == len(ours)
    with safe_open(tmp_path / "got.safetensors", "pt") as file:
        assert json.loads(file.metadata()["iclora"])["base"] == DEV
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert all(name in said.out for name in SENT)
    assert said.out.index("private if it is new") < said.out.index("sent;")


def test_what_was_pushed_is_read_again_by_its_id(hub, ended, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["push", str(ended), "ana/story"]) == 0
    files = hub.repositories["ana/story"]
    for source in ("ana/story", "ana/story:adapter.safetensors"):
        assert locate(source).read_bytes() == files["adapter.safetensors"]
    there = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*")}
    assert there == {"adapter.safetensors"}
    with pytest.raises(AdapterError, match=r"has no file other\.safetensors"):
        locate("ana/story:other.safetensors")
    with pytest.raises(AdapterError, match="shows no such repository"):
        locate("ana/none")
    files["other.safetensors"] = files["../../out.safetensors"] = b"x"
    with pytest.raises(AdapterError):
        locate("ana/story:../../out.safetensors")
    assert not list(tmp_path.rglob("out.safetensors"))


def test_a_list_alone_sends_nothing_and_needs_no_key(hub, ended, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(ended), "ana/story", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in SENT)
    assert not hub.private


def test_a_repository_that_everybody_sees_is_written_to_only_if_that_is_meant(hub, ended, capsys):
    hub.private["ana/story"] = False
    assert main(["push", str(ended), "ana/story"]) == 2
    assert "everybody sees ana/story" in capsys.readouterr().err
    assert not hub.repositories
    assert main(["push", str(ended), "ana/story", "--public"]) == 0
    assert set(hub.repositories["ana/story"]) == SENT
    assert main(["push", str(ended), "ana/other", "--public"]) == 0
    assert hub.private == {"ana/story": False, "ana/other": False}


def test_a_hub_that_refuses_is_quoted_without_the_key(hub, ended, capsys):
    hub.refusal = f"{KEY} is not allowed"
    assert main(["push", str(ended), "ana/story"]) == 2
    said = capsys.readouterr().err
    assert "*** is not allowed" in said
    assert "HF_TOKEN" in said
    assert KEY not in said


def test_a_hub_that_cannot_be_reached_is_an_error_without_a_traceback(hub, ended, capsys):
    hub.shutdown()
    hub.server_close()
    assert main(["push", str(ended), "ana/story"]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_without_a_key_nothing_is_read(ended, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["push", str(ended / "no"), "ana/story"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("story", "must be USER/NAME"),
        ("ana/story/more", "must be USER/NAME"),
        ("../story", "stand between letters or digits alone"),
        ("ana/story.", "stand between letters or digits alone"),
        ("https://x/y", "':' stands in no repository's name"),
        ("a/b c", "' ' stands in no repository's name"),
        ("ana/\u00fcber", "stands in no repository's name"),
    ],
)
def test_a_name_that_no_repository_has_is_refused_in_words(name, says, ended, capsys):
    assert main(["push", str(ended), name, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "^" not in said


@pytest.mark.parametrize("file", ["config.toml", "adapter.safetensors", "README.md"])
def test_a_run_that_lacks_a_part_is_refused_by_it(file, ended):
    (ended / file).unlink()
    with pytest.raises(RunError, match=r"no run|not ended|no model card"):
        collect(ended, "ana/story")


def test_a_run_that_goes_on_or_was_to_is_not_sent(ended):
    # A lock of one opened file, wherever the other one is opened.
    with alone(ended / LOCK, ended, RunError), pytest.raises(RunError, match="is training the run"):
        collect(ended, "ana/story")
    (ended / LOCK).touch()  # What a killed process leaves.
    assert set(collect(ended, "ana/story")) == SENT
    (ended / "config.toml").write_text("[train]\nsteps = 9\n")
    with pytest.raises(RunError, match="extended to 9 steps and has not ended"):
        collect(ended, "ana/story")


def test_a_run_that_made_a_base_is_not_told_to_go_on(ended):
    (ended / "adapter.safetensors").unlink()
    (ended / "base").mkdir()
    with pytest.raises(RunError, match="made a base instead of an adapter"):
        collect(ended, "ana/story")


@pytest.mark.parametrize("base", ["", "toyland", "/home/ana/flux", "[a/b, c/d]"])
def test_a_card_without_a_base_of_the_hub_is_refused(base, ended):
    change(ended, f"base_model: {DEV}\n", f"base_model: {base}\n")
    with pytest.raises(RunError, match="names no base of the hub"):
        collect(ended, "ana/story")


@pytest.mark.parametrize("head", ["base_model: [", "- a\n- b", "widget: 3"])
def test_a_card_whose_head_cannot_be_read_is_refused(head, ended):
    (ended / "README.md").write_text(f"---\n{head}\n---\nwords")
    with pytest.raises(RunError, match=r"is not what the hub reads|names no base"):
        collect(ended, "ana/story")


@pytest.mark.parametrize(
    "name", ["cache/0001.png", "../x.png", "/etc/hosts", "previews/gone.png", "previews/link.png"]
)
def test_a_card_that_shows_other_files_is_refused(name, ended):
    (ended / "previews" / "link.png").symlink_to(ended / "cache" / "0001.png")
    change(ended, "previews/step-000001-1.png", name)
    with pytest.raises(RunError, match=r"previews|leads out|cannot be read"):
        collect(ended, "ana/story")
