"""Adapters written for other tools: read by those tools as the same adapter."""

from __future__ import annotations

import json

import diffusers
import peft
import pytest
import safetensors.torch
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

from iclora.adapter.export import export, pack, shared_name, write_export
from iclora.adapter.file import AdapterInfo
from iclora.adapter.formats import fit, read_file
from iclora.errors import AdapterError, SettingsError
from iclora.models.flux.names import flux_names
from iclora.models.names import Names, linears_of
from iclora.sets.recipe import load_recipe
from tests.adapter.test_formats import close, pipeline_of
from tests.adapter.worlds import (
    BLOCKS,
    FUSED,
    SPLIT,
    H,
    S,
    cut,
    expected,
    flat,
    split_lora,
    updates_of,
    velocity,
)

STORY = load_recipe("film-storyboard")
ATTENTION = [m for m in BLOCKS if ".attn." in m]
INFO = AdapterInfo(
    base="/home/ana/models/FLUX.1-dev",
    family="flux",
    rank=4,
    alpha=4,
    targets="all",
    steps=1,
    recipe=STORY,
    layout=STORY.canvas.to_json(),
)
FORMATS = ("diffusers", "comfyui", "kohya", "peft")


@pytest.fixture(scope="module")
def names(tiny):
    return flux_names(linears_of(tiny.denoiser))


def mixed():
    """All modules, ranks of 2, 3 and 4 among them."""
    found = split_lora(SPLIT)
    found |= split_lora([m for m in BLOCKS if m.endswith("to_k")], rank=2, seed=1)
    return found | split_lora([m for m in BLOCKS if m.endswith("proj_out")], rank=3, seed=2)


TRUTHS = {"mixed ranks": mixed(), "attention alone": split_lora(ATTENTION)}


def weights_of(found):
    halves = (("A", 0), ("B", 1))
    return {f"{m}.lora_{x}.weight": pair[i] for m, pair in found.items() for x, i in halves}


def written(path, truth, format, names, dtype=torch.float32):
    write_export(path, export(weights_of(truth), format, names, INFO, dtype))
    return path / "adapter_model.safetensors" if format == "peft" else path


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("format", FORMATS)
def test_an_export_is_read_back_as_the_same_update(names, tmp_path, format, truth):
    file = read_file(written(tmp_path / "x.safetensors", TRUTHS[truth], format, names))
    again = fit(file.weights, names, "tiny")
    ours = weights_of(TRUTHS[truth])
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], ours[key]) for key in ours)
    info = AdapterInfo.model_validate_json(file.metadata["iclora"])
    assert info.recipe == STORY
    assert info.base == "FLUX.1-dev"
    assert "/home" not in str(file.metadata)


@pytest.mark.parametrize("truth", TRUTHS)
def test_diffusers_loads_its_export_without_a_word_to_the_same_velocity(
    clean, names, tmp_path, truth, caplog
):
    path = written(tmp_path / "pytorch_lora_weights.safetensors", TRUTHS[truth], "diffusers", names)
    wanted = expected(clean, updates_of(TRUTHS[truth]))
    with caplog.at_level("WARNING"):
        pipeline_of(clean).load_lora_weights(tmp_path)
    assert caplog.text == ""
    close(velocity(clean), wanted)
    assert len(read_file(path).weights) == 2 * len(TRUTHS[truth])


@pytest.mark.parametrize("truth", TRUTHS)
def test_peft_loads_its_folder_to_the_same_velocity(clean, names, tmp_path, truth):
    written(tmp_path / "folder", TRUTHS[truth], "peft", names)
    wanted = expected(clean, updates_of(TRUTHS[truth]))
    model = peft.PeftModel.from_pretrained(clean.denoiser, tmp_path / "folder")
    close(velocity(clean), wanted)
    model.unload()


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_kohya_export_holds_alpha_over_rank_times_up_down_on_the_fused_rows(
    clean, names, tmp_path, truth
):
    path = written(tmp_path / "x.safetensors", TRUTHS[truth], "kohya", names)
    raw = safetensors.torch.load_file(path)
    updates = {}
    for fused, (wide, parts) in FUSED.items():
        name = f"lora_unet_{flat(fused)}"
        if f"{name}.alpha" not in raw:
            continue
        down, up = (raw.pop(f"{name}.lora_{x}.weight").double() for x in ("down", "up"))
        scale = float(raw.pop(f"{name}.alpha")) / len(down)
        assert (len(up), down.shape[1]) == (sum(rows for _, rows in parts), wide)
        updates[fused] = scale * up @ down
    assert raw == {}
    wanted = updates_of(TRUTHS[truth])
    for module, update in cut(updates).items():
        torch.testing.assert_close(update, wanted.get(module, torch.zeros_like(update)))
    assert wanted.keys() <= cut(updates).keys()


def test_diffusers_converts_a_kohya_export_of_flux_1s_own_widths_back():
    with torch.device("meta"):
        net = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    names = flux_names(linears_of(net))
    assert names.header["modelspec.architecture"] == "flux-1-schnell/lora"
    blocks = [m for m in names.linears if "transformer_blocks" in m]
    rng = torch.Generator().manual_seed(0)
    truth = {}
    for module in blocks:
        tall, wide = names.linears[module]
        truth[f"{module}.lora_A.weight"] = torch.randn(2, wide, generator=rng)
        truth[f"{module}.lora_B.weight"] = torch.randn(tall, 2, generator=rng)
    (data,) = export(truth, "kohya", names, dtype=torch.float32).values()
    theirs = _convert_kohya_flux_lora_to_diffusers(safetensors.torch.load(data))
    assert theirs.keys() == {f"transformer.{key}" for key in truth}
    assert all(torch.equal(theirs[f"transformer.{key}"], truth[key]) for key in truth)


def test_parts_that_share_a_are_written_with_one_a(names):
    a = torch.ones(2, H)
    shared = {f"{S}.0.attn.to_{x}": (a, torch.full((H, 2), i + 1.0)) for i, x in enumerate("qkv")}
    (data,) = export(weights_of(shared), "kohya", names, dtype=torch.float32).values()
    raw = safetensors.torch.load(data)
    assert raw["lora_unet_single_blocks_0_linear1.lora_down.weight"].shape == (2, H)
    assert float(raw["lora_unet_single_blocks_0_linear1.alpha"]) == 2


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_has_the_same_bytes_each_time_and_a_header_others_read(names, format):
    weights = weights_of(TRUTHS["attention alone"])
    files = export(weights, format, names, INFO)
    assert all(files == export(weights, format, names, INFO) for _ in range(3))
    content = next(data for name, data in files.items() if name.endswith(".safetensors"))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert size % 8 == 0
    entries = header["__metadata__"]
    assert list(entries) == sorted(entries)
    assert len(entries) > 5
    assert entries["modelspec.architecture"] == "flux-1-dev/lora"
    assert entries["modelspec.trigger_phrase"] == STORY.prefix
    assert ("ss_network_module" in entries) == (format == "kohya")


def test_one_entry_is_packed_as_the_safetensors_library_packs_it():
    tensors = {"b": torch.ones(2, 3), "a": torch.ones(3).half(), "c": torch.ones(1)}
    assert pack(tensors, {"iclora": "é"}) == safetensors.torch.save(tensors, {"iclora": "é"})
    assert pack(tensors, {}) == safetensors.torch.save(tensors)


def test_what_a_format_cannot_hold_is_refused(names):
    weights = weights_of(split_lora(BLOCKS[:1]))
    with pytest.raises(SettingsError, match='no adapter format "onnx"'):
        export(weights, "onnx", names)
    with pytest.raises(AdapterError, match="does not exist"):
        export(
            {"x.lora_A.weight": torch.ones(1, 1), "x.lora_B.weight": torch.ones(1, 1)},
            "peft",
            names,
        )
    with pytest.raises(AdapterError, match="too large for float16"):
        export({key: value * 1e6 for key, value in weights.items()}, "diffusers", names)
    with pytest.raises(AdapterError, match="no name for 1 modules"):
        export(weights, "kohya", Names(names.linears))


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("toyland", "toyland"),
        ("/home/ana/FLUX.1-dev", "FLUX.1-dev"),
        ("C:\\models\\FLUX.1-dev", "FLUX.1-dev"),
        ("../models/flux", "flux"),
        ("~/flux", "flux"),
    ],
)
def test_a_base_is_named_to_others_without_the_trainers_folders(base, name):
    assert shared_name(base) == name
