"""From a name to a base, and the clear words when there is none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import errors as hub

from iclora.errors import ModelError, SettingsError
from iclora.models import registry as room
from iclora.models.flux.model import FluxModel
from iclora.models.registry import BASES, load_model, pick_device, pick_dtype
from iclora.models.tiny import tiny_folder, write_tiny


def test_tiny_is_a_flux_of_about_a_million_parameters_on_flux_s_token_grid(tiny):
    assert isinstance(tiny, FluxModel)
    assert (tiny.grid, tiny.channels, tiny.max_text_tokens) == (16, 64, 512)
    parts = (tiny.denoiser, tiny._vae, tiny._t5, tiny._clip)
    assert 500_000 < sum(p.numel() for m in parts for p in m.parameters()) < 1_500_000


def test_tiny_has_the_same_bytes_every_time(tmp_path):
    for name in ("one", "two"):
        write_tiny(tmp_path / name)
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
        for n in ("one", "two")
    )
    assert {p.suffix for p in one} >= {".safetensors", ".json"}
    assert one == two


def test_the_second_process_of_a_group_writes_no_half_of_a_tiny_base(monkeypatch, tmp_path):
    """transformers leaves weights out there; the folder would be broken for everybody."""
    monkeypatch.setenv("ICLORA_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 1)
    folder = tiny_folder()
    weights = {path.parent.name for path in folder.rglob("*.safetensors")}
    assert weights == {"text_encoder", "text_encoder_2", "transformer", "vae"}


def test_a_folder_loads_by_its_path(tiny):
    assert load_model(str(tiny.folder), device="cpu").fingerprint("vae") == tiny.fingerprint("vae")


@pytest.mark.parametrize("refs", [None, "aaa"])
def test_a_folder_of_the_hub_s_cache_stands_for_its_snapshot(tiny, tmp_path, refs):
    cache = tmp_path / "models--black-forest-labs--FLUX.1-dev"
    for age, name in enumerate(("bbb", "aaa", "half")):
        place = cache / "snapshots" / name
        if name == "half":
            place.mkdir()
        else:
            shutil.copytree(tiny.folder, place)
            os.utime(place, (age, age))
    if refs:
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(refs)
    assert load_model(str(cache), device="cpu", weights=False).folder == cache / "snapshots" / "aaa"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "no folder"),
        ("/nowhere/at/all", "no folder"),
        ("just-a-word", "no folder"),
        ("../a/b", "no folder"),
    ],
)
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(name, says):
    with pytest.raises(ModelError, match=says):
        load_model(name)


BFL = "black-forest-labs/FLUX."


def denoiser_file(folder, tensors, file):
    prefix = "model.diffusion_model." if "." in file else ""
    about = {"dtype": "BF16", "data_offsets": [0, 0]}
    header = {f"{prefix}{n}.weight": {**about, "shape": [0, w]} for n, w in tensors.items()}
    text = json.dumps({"__metadata__": {"a": "b"}, **header}).encode()
    path = folder / f"{file}.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


def test_a_single_checkpoint_file_is_refused_with_advice(tmp_path):
    (tmp_path / "flux1-dev.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file"):
        load_model(str(tmp_path / "flux1-dev.safetensors"))
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_model(str(tmp_path))


REFINER = "noise_refiner.0.attention.qkv"


@pytest.mark.parametrize(
    ("tensors", "file", "base"),
    [
        (
            {"double_stream_modulation_img.lin": 3072},
            "flux-2-klein-base-4b",
            f"{BFL}2-klein-base-4B",
        ),
        ({"double_stream_modulation_img.lin": 6144}, "flux2_dev", f"{BFL}2-dev"),
        ({"double_stream_modulation_img.lin": 4096}, "flux-2-klein-9b", f"{BFL}2-klein-9B"),
        ({"double_blocks.0.img_mod.lin": 3072}, "flux1", f"{BFL}1-schnell"),
        (
            {"double_blocks.0.img_mod.lin": 3072, "guidance_in.in_layer": 256},
            "model.diffusion_model",
            f"{BFL}1-dev",
        ),
        ({REFINER: 3840}, "z_image_turbo_bf16", "Tongyi-MAI/Z-Image-Turbo"),
        ({REFINER: 3840}, "z_image", "Tongyi-MAI/Z-Image"),
        ({"txtfusion.projector": 12}, "krea2_turbo_fp8_scaled", "krea/Krea-2-Turbo"),
        ({"txtfusion.projector": 12}, "raw", "krea/Krea-2-Raw"),
        # Lumina, which iclora does not know.
        ({REFINER: 2304}, "z_image", "OWNER/NAME"),
    ],
)
def test_a_single_file_is_told_which_whole_model_it_is_a_part_of(tmp_path, tensors, file, base):
    path = denoiser_file(tmp_path, tensors, file)
    for place in (path, tmp_path):
        with pytest.raises(ModelError, match=f"`hf download {re.escape(base)}`"):
            load_model(str(place))


@pytest.mark.parametrize(
    ("pipeline", "says"), [("Flux2KleinKVPipeline", "keys are kept"), ("FluxFillPipeline", "mask")]
)
def test_relatives_that_do_not_do_are_refused_with_a_reason(tmp_path, pipeline, says):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(ModelError, match=says):
        load_model(str(tmp_path))


def test_another_family_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3"}))
    with pytest.raises(ModelError, match="StableDiffusion3"):
        load_model(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        load_model(str(tmp_path))


def test_offline_and_not_downloaded_says_so():
    with pytest.raises(ModelError, match=r"cannot be reached[^\n]*\nGo online once"):
        load_model("black-forest-labs/FLUX.1-dev")


@pytest.mark.parametrize(
    ("error", "says"),
    [(hub.GatedRepoError, "licence must be accepted"), (hub.RepositoryNotFoundError, "spelling")],
)
def test_gated_and_unknown_models_get_their_own_advice(monkeypatch, error, says):
    def refuse(*args, **kwargs):
        raise error("no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(room.huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=says):
        load_model("black-forest-labs/FLUX.1-dev")


def test_only_safetensors_and_settings_are_downloaded(monkeypatch, tiny):
    asked = {}
    monkeypatch.setattr(
        room.huggingface_hub,
        "snapshot_download",
        lambda name, **kwargs: asked.update(kwargs) or tiny.folder,
    )
    load_model("some/model", device="cpu")
    assert not any(p.endswith((".bin", ".pt", ".py", "*")) for p in asked["allow_patterns"])
    assert "*/*.safetensors" in asked["allow_patterns"]


def test_a_cpu_gets_float32_and_an_accelerator_bf16():
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(SettingsError, match="fp16"):
        pick_dtype("fp16", torch.device("cuda"))


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device().type == "cpu"
    for name in ("cuda", "mps", "toaster", "meta", "xpu"):
        with pytest.raises(SettingsError):
            pick_device(name)


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_of_several_processes_gets_a_gpu_of_its_own(four_gpus, monkeypatch, name):
    assert pick_device(name) == torch.device("cuda")
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert pick_device(name) == torch.device("cuda", rank)


def test_fp8_is_tried_on_a_processs_own_gpu_alone(four_gpus, monkeypatch, tiny):
    """A product on the first GPU would take memory there in every process."""
    tried = []
    monkeypatch.setattr(room, "check_precision", lambda kind, device: tried.append(device))
    monkeypatch.setenv("LOCAL_RANK", "2")
    load_model("tiny", precision="fp8")
    assert tried == [torch.device("cuda", 2)]


def test_a_base_of_another_package_is_found_by_its_name(monkeypatch, tiny):
    point = SimpleNamespace(name="theirs", load=lambda: lambda: tiny.folder)
    monkeypatch.setattr(
        "iclora.settings.registry.entry_points",
        lambda group: [point] if group == "iclora.bases" else [],
    )
    monkeypatch.setattr(BASES, "_found", None)
    assert load_model("theirs", device="cpu").folder == tiny.folder
    assert load_model("theirs", device="cpu").name == "theirs"
    assert {"tiny", "theirs"} <= set(BASES)


def test_opening_the_registry_imports_no_family():
    code = (
        "import sys, iclora.models.registry\n"
        "assert not any(name.startswith('iclora.models.flux') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gpu_number_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0").index == 0
    with pytest.raises(SettingsError, match="no cuda:7"):
        pick_device("cuda:7")


def test_a_relative_folder_is_remembered_by_its_full_path(tiny, tmp_path, monkeypatch):
    (tmp_path / "mods").mkdir()
    (tmp_path / "mods" / "flux").symlink_to(tiny.folder)
    monkeypatch.chdir(tmp_path)
    assert load_model("mods/flux", device="cpu").name == str(tiny.folder)


def test_counting_tokens_downloads_no_weights(monkeypatch, tiny):
    asked = {}
    monkeypatch.setattr(
        room.huggingface_hub,
        "snapshot_download",
        lambda name, **kwargs: asked.update(kwargs) or tiny.folder,
    )
    load_model("some/model", device="cpu", weights=False)
    assert not any("safetensors" in p for p in asked["allow_patterns"])


def test_cuda_is_preferred_to_mps_and_mps_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device().type == "cuda"


def test_threads_that_open_a_base_at_once_all_get_its_weights(tiny):
    wanted = {"_t5": "shared.weight", "denoiser": "proj_out.weight"}

    def opened(turn):
        model = load_model(str(tiny.folder), device="cpu")
        found = {part: getattr(model, part) for part in sorted(wanted, reverse=turn % 2 == 1)}
        return [dict(found[part].named_parameters())[name] for part, name in wanted.items()]

    true = [dict(getattr(tiny, part).named_parameters())[name] for part, name in wanted.items()]
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(opened, range(8)):
            assert all(torch.equal(one, other) for one, other in zip(found, true, strict=True))
