"""Where an adapter is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from iclora.adapter.locate import locate
from iclora.errors import AdapterError


def folder(path, *names):
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (("adapter.safetensors", "adapter-best.safetensors"), "adapter.safetensors"),
        (("adapter_model.safetensors", "adapter_config.json"), "adapter_model.safetensors"),
        (("pytorch_lora_weights.safetensors", "x.safetensors"), "pytorch_lora_weights.safetensors"),
        (("my-style.safetensors", "README.md"), "my-style.safetensors"),
    ],
)
def test_a_folder_gives_the_adapter_in_it(tmp_path, files, found):
    where = folder(tmp_path / "run", *files)
    assert locate(where) == where / found
    assert locate(where / found) == where / found


@pytest.mark.parametrize(
    ("files", "says"),
    [(("a.safetensors", "b.safetensors"), "2 .*: a.safetensors, b"), (("a.bin",), "no adapter")],
)
def test_a_folder_with_no_adapter_or_several_is_refused(tmp_path, files, says):
    with pytest.raises(AdapterError, match=says):
        locate(folder(tmp_path / "run", *files))


def test_an_id_of_the_hub_is_downloaded_and_a_mistyped_file_is_not(tmp_path):
    asked = []

    def download(name, wanted):
        asked.append((name, wanted))
        return tmp_path / "hub"

    where = folder(tmp_path / "hub", "a.safetensors", "b.safetensors")
    assert locate("ana/styles:b.safetensors", download) == where / "b.safetensors"
    assert asked == [("ana/styles", ["b.safetensors", "adapter_config.json"])]
    with pytest.raises(AdapterError, match=r"ana/styles holds 2 \.safetensors files"):
        locate("ana/styles", download)
    for missing in ("c.safetensors", "../hub/a.safetensors"):
        with pytest.raises(AdapterError, match="has no file"):
            locate(f"ana/styles:{missing}", download)
    assert locate("run/adapter.safetensors", download) == Path("run/adapter.safetensors")
    assert len(asked) == 4


def test_an_unreachable_hub_is_said(tmp_path):
    with pytest.raises(AdapterError, match="nobody/nothing is not on this machine"):
        locate("nobody/nothing")


def test_a_file_of_the_working_folder_wins_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "ana" / "style", "adapter.safetensors")
    assert locate("ana/style") == Path("ana/style/adapter.safetensors")


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://huggingface.co/ana/style", "Write ana/style."),
        (
            "https://hf.co/ana/style/blob/main/x/a.safetensors?download=true",
            "style:x/a.safetensors.",
        ),
        ("hf://ana/style", "Download it"),
        ("https://civitai.com/models/1", "Download it"),
    ],
)
def test_an_address_is_refused_with_what_to_write(address, advice):
    for text in (address, Path(address)):
        with pytest.raises(AdapterError, match="is an address") as refused:
            locate(text)
        assert advice in refused.value.advice


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("ana/style@v2", "Write ana/style for that"),
        ("ana/style@v2:x.safetensors", "Write ana/style:x.safetensors for that"),
        ("ana/style:x.safetensors@refs/pr/1", "Write ana/style:x.safetensors for that"),
        ("<lora:my style:0.8>", "my style.safetensors=0.8"),
        ("<lora:style>", "style.safetensors"),
    ],
)
def test_what_other_tools_call_an_adapter_by_is_refused_with_what_to_write(source, advice):
    with pytest.raises(AdapterError) as refused:
        locate(source)
    assert advice in refused.value.advice
