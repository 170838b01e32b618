import builtins
import json
import logging
import socket
import sys

import pytest

from iclora.cli import serving
from iclora.cli.main import main
from iclora.cli.output import Terminal
from iclora.errors import SettingsError
from iclora.serve import local
from iclora.settings import ServeSettings


def said(capsys):
    return capsys.readouterr().err


def test_a_port_in_use_is_said_before_anything_is_opened(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path), "--base", "toyland", "--port", port]) == 2
    assert "cannot listen" in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_second_server_of_one_folder_is_refused_by_its_name(tmp_path, capsys):
    told = ServeSettings(folder=str(tmp_path), port=0)
    with serving._opened(told, "toyland", Terminal(ServeSettings)) as (server, _):
        before = sorted(tmp_path.rglob("*"))
        for verb in ("serve", "studio"):
            assert main([verb, str(tmp_path), "--base", "toyland", "--port", "0"]) == 2
            assert f"another server has {tmp_path}" in said(capsys)
        assert sorted(tmp_path.rglob("*")) == before
        server.close()
    with serving._opened(told, "toyland", Terminal(ServeSettings)) as (server, _):
        server.close()


def test_answers_are_not_held_back_by_nagles_algorithm():
    """asyncio switches it off only for sockets that name their protocol."""
    with serving._listen(ServeSettings(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_a_server_without_a_base_or_an_adapter_says_what_to_set(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    assert "--base" in said(capsys)


def test_an_open_bind_without_keys_is_refused(tmp_path, capsys):
    told = ["--base", "toyland", "--host", "0.0.0.0", "--port", "0"]
    assert main(["serve", str(tmp_path), *told]) == 2
    assert "--keys" in said(capsys)


def test_a_missing_package_is_named_with_what_to_install(tmp_path, capsys, monkeypatch):
    there = builtins.__import__

    def without(name, *more):
        if name == "python_multipart":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return there(name, *more)

    monkeypatch.delitem(sys.modules, "python_multipart", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["serve", str(tmp_path), "--base", "toyland"]) == 2
    found = said(capsys)
    assert "python_multipart" in found
    assert "iclora[serve]" in found


def test_workers_open_the_base_as_the_server_was_told(tmp_path, monkeypatch):
    """With all of it: a base that does not fit a card whole must not be put there at the start."""
    seen = []
    monkeypatch.setattr(local, "LocalEngine", lambda devices, machine, **_: seen.append(machine))
    told = {"dtype": "bf16", "precision": "int8", "offload": "blocks", "graphs": True}
    own = {"folder": str(tmp_path), "base": "toyland", "device": "cpu"}
    serving._engine_of(ServeSettings(**told, **own), "toyland", Terminal(ServeSettings))
    assert seen[0].model_dump(exclude_unset=True) == told
    serving._engine_of(ServeSettings(**own), "toyland", Terminal(ServeSettings))
    assert seen[1].model_dump(exclude_unset=True) == {}


@pytest.mark.parametrize(
    ("told", "gpus", "devices"),
    [
        ({}, 0, ["cpu"]),
        ({}, 2, ["cuda:0"]),
        ({"gpus": 2}, 2, ["cuda:0", "cuda:1"]),
        ({"gpus": "all"}, 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ({"gpus": "all"}, 0, ["cpu"]),
        ({"device": "cpu"}, 2, ["cpu"]),
    ],
)
def test_every_gpu_has_a_worker_of_its_own(monkeypatch, told, gpus, devices):
    monkeypatch.setattr("iclora.serve.children.count_gpus", lambda: gpus)
    assert serving._devices(ServeSettings(**told)) == devices


@pytest.mark.parametrize("told", [{"gpus": 3}, {"gpus": 2, "device": "cpu"}])
def test_more_gpus_than_there_are_are_refused(monkeypatch, told):
    monkeypatch.setattr("iclora.serve.children.count_gpus", lambda: 2)
    with pytest.raises(SettingsError):
        serving._devices(ServeSettings(**told))


def test_every_line_of_the_log_is_json(caplog):
    lines = serving._Lines()
    try:
        raise ValueError("a cause")
    except ValueError:
        broken = logging.LogRecord("iclora.serve", 40, "", 1, "job %s", ("x",), sys.exc_info())
    found = json.loads(lines.format(broken))
    assert (found["level"], found["said"]) == ("error", "job x")
    assert "a cause" in found["trace"]
    request = logging.LogRecord("iclora.serve.access", 20, "", 1, '{"id": "1"}', (), None)
    assert lines.format(request) == '{"id": "1"}'


def test_the_studio_opens_on_toyland_and_prints_its_link_and_a_tunnel(
    tmp_path, capsys, monkeypatch
):
    served = []

    def run(app, server, listening):
        served.append((app, server.base, listening.getsockname()[1], server.access.token))
        server.close()

    monkeypatch.setattr("iclora.serve.running.run", run)
    assert main(["studio", str(tmp_path), "--port", "0", "--no-browser"]) == 0
    ((_, base, port, token),) = served
    assert base == "toyland"
    assert (tmp_path / "recipes" / "toyland-storyboard.toml").is_file()
    shown = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}/#token={token}" in shown
    assert f"ssh -L {port}:127.0.0.1:{port} " in shown


@pytest.mark.parametrize(
    ("environment", "shown"),
    [({"DISPLAY": ":0"}, True), ({}, False), ({"DISPLAY": ":0", "SSH_CONNECTION": "a"}, False)],
)
def test_a_browser_is_opened_only_where_it_can_be_seen(monkeypatch, environment, shown):
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr("sys.platform", "linux")
    assert serving._has_screen() is shown
