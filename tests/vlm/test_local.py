"""The local captioner, and the same model behind a real OpenAI-compatible server."""

import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from importlib.resources import files

import pytest
import torch
import transformers

from iclora.errors import VisionModelError
from iclora.sets.dataset import open_dataset
from iclora.vlm import Ask, load_vision_model
from iclora.vlm.caption import FAILURES, caption_dataset
from tests import processes
from tests.conftest import picture
from workshop.toyland.pretrain import captioner

SHIPPED = files("iclora") / "toyland" / "weights" / "toyland-captioner"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The words and eyes of the captioner that ships, with random weights: it writes nonsense."""
    where = tmp_path_factory.mktemp("captioner")
    torch.manual_seed(0)
    processor = transformers.AutoProcessor.from_pretrained(SHIPPED)
    config = captioner.new_captioner(processor).config
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    transformers.LlavaForConditionalGeneration(config).save_pretrained(where)
    processor.save_pretrained(where)
    return where


def transformers_serve(*words):
    """What the command of that name does."""
    from transformers.cli.transformers import main

    sys.argv = ["transformers", "serve", *words]
    main()


@contextmanager
def serving(folder, port, where):
    """`transformers serve` with a captioner. Yields its process and base URL."""
    words = [str(folder), "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = processes.start(transformers_serve, where, where / "server.txt", {}, *words)
    url = f"http://localhost:{port}/v1"
    try:
        for _ in range(2000):
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it is up: without a hub cache it cannot list models, and still answers
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert process.is_alive(), "the server ended at once"
                time.sleep(0.1)
        yield process, url
    finally:
        process.kill()
        process.join()


@contextmanager
def serving_here(folder):
    """The same server in this process, which has torch already. Yields its base URL."""
    from transformers.cli.serve import Serve

    port = processes.port_aside()
    server = Serve(
        str(folder), host="127.0.0.1", port=port, device="cpu", dtype="float32", non_blocking=True
    )
    late = time.monotonic() + 200
    try:
        while not server.server.started:
            assert time.monotonic() < late, "the server does not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill_server()


@pytest.fixture
def server(folder):
    with serving_here(folder) as url:
        yield url


def asks():
    panels = [picture(64, 64, seed) for seed in range(6)]
    return [
        Ask("What is it?", (panels[0], panels[1]), ("[LEFT]", "[RIGHT]")),
        Ask("And this?", tuple(panels[2:5]), ("[SCENE-1]", "[SCENE-2]", "[SCENE-3]")),
        Ask("No pictures.", (), ("[LEFT]", "[RIGHT]")),
    ]


def test_a_server_and_this_machine_write_the_same_with_the_same_model(folder, server):
    local = load_vision_model(f"local:{folder}", device="cpu")
    remote = load_vision_model(f"openai:{folder}", url=server, together=3, schema=False)
    local.longest = remote.longest = 12
    ours, theirs = dict(local.answer(asks())), dict(remote.answer(asks()))
    assert {n: reply.text for n, reply in ours.items()} == {
        n: reply.text for n, reply in theirs.items()
    }
    assert all(ours[n].read == theirs[n].read for n in ours)


def test_the_official_storyboards_fail_cleanly_with_a_model_that_writes_nonsense(
    official, folder, tmp_path
):
    import zipfile

    with zipfile.ZipFile(official) as archive:
        archive.extractall(tmp_path)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.txt")}
    dataset = open_dataset(tmp_path, "film-storyboard")
    local = load_vision_model(f"local:{folder}", device="cpu", together=10)
    local.longest = 8
    assert len(caption_dataset(dataset, local).kept) == 10
    summary = caption_dataset(dataset, local, overwrite=True)
    assert len(summary.failed) == 10
    assert not summary.written
    assert (tmp_path / FAILURES).is_file()
    assert {f: f.read_bytes() for f in tmp_path.rglob("*.txt")} == before


def test_a_folder_that_is_no_such_model_is_refused_by_name(tmp_path, folder):
    with pytest.raises(VisionModelError, match="cannot be opened"):
        load_vision_model(f"local:{tmp_path}")
    for name in folder.iterdir():
        if name.name != "chat_template.jinja":
            (tmp_path / name.name).write_bytes(name.read_bytes())
    with pytest.raises(VisionModelError, match="no chat template"):
        load_vision_model(f"local:{tmp_path}")


def test_weights_that_are_pickles_are_not_read(folder, tmp_path):
    for name in folder.iterdir():
        if name.suffix != ".safetensors":
            (tmp_path / name.name).write_bytes(name.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(VisionModelError, match="cannot be opened"):
        load_vision_model(f"local:{tmp_path}")
