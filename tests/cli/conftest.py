"""How tests type a command, and a server that captions."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from iclora.cli.main import main
from iclora.jobs.opening import Opener


@pytest.fixture(scope="session")
def _bases():
    return {}


@pytest.fixture(autouse=True)
def _opened_once(monkeypatch, _bases):
    """Commands on a base that ships find it open, as jobs of a server do; each would load it."""
    real = Opener.base

    def base(self, name, machine):
        key = (name, machine.device, machine.dtype, machine.precision)
        if name not in ("tiny", "toyland"):
            return real(self, name, machine)
        if key not in _bases:
            _bases[key] = real(self, name, machine)
            _bases[key].rests = True
            if name == "tiny":
                # The examples of recipes fit; the rest of 512 would be padding.
                _bases[key].max_text_tokens = 192
        return _bases[key]

    monkeypatch.setattr(Opener, "base", base)


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a verb in this process. Returns: exit status, stdout, stderr."""

    def typed(*words):
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return typed


@pytest.fixture
def writer():
    """A server that captions every storyboard alike, and hopelessly where it sees "nonsense"."""
    from tests.vlm.test_openai import Server, completion

    answer = {
        "overview": "A day by the sea.",
        "panels": ["<Ana> rows out.", "A gull lands.", "Night falls over the bay."],
    }
    server = Server(lambda body: (200, completion(json.dumps(answer))))
    yield server
    server.shutdown()
    server.server_close()
