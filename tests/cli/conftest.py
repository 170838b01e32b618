"""How tests type a command, and a server that captions."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from iclora.cli.main import main


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
