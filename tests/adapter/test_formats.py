"""Other tools' LoRA files: the same picture as in the tool that wrote them, or refused by name."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress

import diffusers
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from iclora.adapter.file import Adapter
from iclora.adapter.formats import fit, read_file, read_tensors
from iclora.errors import AdapterError
from iclora.models.flux.names import flux_names
from iclora.models.names import linears_of
from tests.adapter.worlds import (
    BLOCKS,
    FUSED,
    SPLIT,
    H,
    S,
    T,
    cut,
    expected,
    flat,
    fused_lora,
    lora,
    split_lora,
    updates_of,
    velocity,
)

AB, DOWN_UP = ("lora_A", "lora_B"), ("lora_down", "lora_up")
ALL_SPLIT = split_lora(SPLIT)
CLIP = {"text_model.encoder.layers.0.mlp.fc1": (torch.ones(4, 8), torch.ones(8, 4))}


@pytest.fixture(scope="module")
def names(tiny):
    return flux_names(linears_of(tiny.denoiser))


def keys(found, prefix="", halves=AB, alpha=None, name=str):
    """A file's tensors by one tool's rule."""
    raw = {}
    for module, (a, b) in found.items():
        raw[f"{prefix}{name(module)}.{halves[0]}.weight"] = a
        raw[f"{prefix}{name(module)}.{halves[1]}.weight"] = b
        if alpha is not None:
            raw[f"{prefix}{name(module)}.alpha"] = torch.tensor(float(alpha))
    return raw


def write(path, raw, metadata=None):
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file({k: v.contiguous().clone() for k, v in raw.items()}, path, metadata)
    return path


def loaded(model, path):
    """The velocity with a file of another tool."""
    Adapter.load(path).apply(model)
    return velocity(model), read_file(path)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


# -- names and alphas ---------------------------------------------------------------------------

SPLIT_FILES = {
    "iclora, ai-toolkit": (keys(ALL_SPLIT, "transformer."), 1),
    "ai-toolkit's new prefix": (keys(ALL_SPLIT, "diffusion_model."), 1),
    "no prefix": (keys(ALL_SPLIT), 1),
    "per-module alpha": (keys(ALL_SPLIT, "transformer.", alpha=2), 0.5),
    "SimpleTuner comfyui": (keys(ALL_SPLIT, "diffusion_model.", alpha=8), 2),
    "older diffusers": (keys(ALL_SPLIT, "transformer.", ("lora.down", "lora.up")), 1),
    "OneTrainer legacy": (keys(ALL_SPLIT, "lora_transformer_", DOWN_UP, 2, flat), 0.5),
    "LyCORIS": (keys(ALL_SPLIT, "lycoris_", DOWN_UP, 1, flat), 0.25),
    "PEFT's state dict": (
        keys(ALL_SPLIT, "base_model.model.", ("lora_A.default", "lora_B.default")),
        1,
    ),
    "alpha 0 means the rank": (keys(ALL_SPLIT, "lora_transformer_", DOWN_UP, 0, flat), 1),
}


@pytest.mark.parametrize("tool", SPLIT_FILES)
def test_files_in_split_names_give_the_velocity_of_w_plus_update(clean, names, tmp_path, tool):
    raw, scale = SPLIT_FILES[tool]
    wanted = expected(clean, updates_of(ALL_SPLIT, scale))
    found, file = loaded(clean, write(tmp_path / "x.safetensors", raw))
    close(found, wanted)
    assert file.scales == (scale,)


ALL_FUSED = fused_lora()
FUSED_FILES = {
    "kohya": (keys(ALL_FUSED, "lora_unet_", DOWN_UP, 2, flat), 0.5),
    "OneTrainer comfy": (keys(ALL_FUSED, "diffusion_model.", AB, 2), 0.5),
    "OneTrainer original": (keys(ALL_FUSED, "", AB, 1), 0.25),
    "BFL without alpha": (keys(ALL_FUSED, ""), 1),
    "fal": (keys(ALL_FUSED, "base_model.model."), 1),
    "LyCORIS on a fused model": (keys(ALL_FUSED, "lycoris_", DOWN_UP, 4, flat), 1),
}


@pytest.mark.parametrize("tool", FUSED_FILES)
def test_files_in_fused_names_are_cut_without_loss(clean, names, tmp_path, tool):
    raw, scale = FUSED_FILES[tool]
    wanted = expected(clean, cut(updates_of(ALL_FUSED, scale)))
    close(loaded(clean, write(tmp_path / "x.safetensors", raw))[0], wanted)


def test_xlabs_adapters_leave_the_mlp_of_single_blocks_alone(clean, names, tmp_path):
    qkv = {"double_blocks.0.processor.qkv_lora1": "double_blocks.0.img_attn.qkv"}
    qkv |= {"double_blocks.0.processor.qkv_lora2": "double_blocks.0.txt_attn.qkv"}
    qkv |= {"double_blocks.0.processor.proj_lora1": "double_blocks.0.img_attn.proj"}
    qkv |= {"double_blocks.0.processor.proj_lora2": "double_blocks.0.txt_attn.proj"}
    qkv |= {"single_blocks.1.processor.proj_lora": "single_blocks.1.linear2"}
    sides = {
        alias: (FUSED[fused][0], sum(rows for _, rows in FUSED[fused][1]))
        for alias, fused in qkv.items()
    }
    single = "single_blocks.1.processor.qkv_lora"
    truth = lora(sides | {single: (H, 3 * H)})
    raw = keys(truth, "", ("down", "up"))
    updates = updates_of(truth)
    first = updates.pop(single)
    split = cut({qkv[alias]: update for alias, update in updates.items()})
    split |= {f"{S}.1.attn.to_{x}": first[i * H : (i + 1) * H] for i, x in enumerate("qkv")}
    wanted = expected(clean, split)
    path = write(tmp_path / "x.safetensors", raw)
    close(loaded(clean, path)[0], wanted)
    assert not any("proj_mlp" in key for key in fit(read_file(path).weights, names, "tiny"))


def test_double_blocks_of_kohya_and_xlabs_equal_diffusers_own_loading(clean, names, tmp_path):
    # Single blocks are left out: diffusers holds FLUX.1's widths for them as numbers.
    doubles = [m for m in FUSED if m.startswith("double_blocks")]
    kohya = keys(fused_lora(doubles), "lora_unet_", DOWN_UP, 2, flat)
    xlabs = {
        "double_blocks.0.processor.qkv_lora1": (H, 3 * H),
        "double_blocks.0.processor.proj_lora2": (H, H),
    }
    for number, raw in enumerate([kohya, keys(lora(xlabs), "", ("down", "up"))]):
        path = write(tmp_path / str(number) / "pytorch_lora_weights.safetensors", raw)
        ours, _ = loaded(clean, path)
        clean.denoiser.unload_lora()
        clean.applied = None
        pipeline = pipeline_of(clean)
        pipeline.load_lora_weights(path.parent)
        close(ours, velocity(clean))
        clean.denoiser.unload_lora()


def pipeline_of(model):
    parts = dict.fromkeys(
        ("scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    )
    return diffusers.FluxPipeline(transformer=model.denoiser, **parts)


def test_a_stacked_file_gives_every_part_its_own_rank_back(names, tmp_path):
    parts = split_lora([part for part, _ in FUSED["single_blocks.0.linear1"][1]], rank=3)
    down = torch.cat([a for a, _ in parts.values()])
    up = torch.block_diag(*(b for _, b in parts.values()))
    raw = keys({"single_blocks.0.linear1": (down, up)}, "lora_unet_", DOWN_UP, 12, flat)
    found = fit(read_file(write(tmp_path / "x.safetensors", raw)).weights, names, "tiny")
    assert found.keys() == {f"{m}.lora_{x}.weight" for m in parts for x in "AB"}
    for module, (a, b) in parts.items():
        assert torch.equal(found[f"{module}.lora_A.weight"], a)
        assert torch.equal(found[f"{module}.lora_B.weight"], b)


def test_parts_with_zero_rows_are_not_adapted_unless_all_are(names, tmp_path):
    a, b = fused_lora(["single_blocks.0.linear1"])["single_blocks.0.linear1"]
    b[3 * H :] = 0
    raw = keys({"single_blocks.0.linear1": (a, b)}, "", AB)
    found = fit(read_file(write(tmp_path / "a.safetensors", raw)).weights, names, "tiny")
    assert {key.split(".lora")[0] for key in found} == {f"{S}.0.attn.to_{x}" for x in "qkv"}
    raw = keys({"single_blocks.0.linear1": (a, b * 0)}, "", AB)
    found = fit(read_file(write(tmp_path / "b.safetensors", raw)).weights, names, "tiny")
    assert len(found) == 8
    assert all(value.shape[0] == 1 for key, value in found.items() if "lora_A" in key)


def test_split_qkv_of_sd_scripts_counts_alpha_for_each_part(clean, names, tmp_path):
    parts = split_lora([part for part, _ in FUSED["single_blocks.0.linear1"][1]])
    other = fused_lora(["single_blocks.0.linear2"])
    down = torch.cat([a for a, _ in parts.values()])
    up = torch.block_diag(*(b for _, b in parts.values()))
    raw = keys(
        {"single_blocks.0.linear1": (down, up)} | other, "lora_unet_", DOWN_UP, 2, flat
    )  # alpha 2 of rank 4, though linear1 now has rank 16
    arguments = {"ss_network_args": json.dumps({"split_qkv": "True"})}
    path = write(tmp_path / "x.safetensors", raw, arguments)
    wanted = expected(clean, updates_of(parts, 0.5) | cut(updates_of(other, 0.5)))
    found, file = loaded(clean, path)
    close(found, wanted)
    assert "split_qkv" in file.notes[0]


def test_text_encoder_keys_are_ignored_with_a_word(clean, names, tmp_path):
    wanted = expected(clean, updates_of(ALL_SPLIT))
    for prefix, halves in (
        ("text_encoder.", ("lora.down", "lora.up")),
        ("text_encoder_2.", AB),
        ("lora_te1_", DOWN_UP),
        ("lora_te3_", DOWN_UP),
        ("text_encoders.clip_l.transformer.", AB),
    ):
        raw = keys(ALL_SPLIT, "transformer.") | keys(CLIP, prefix, halves)
        path = write(tmp_path / "x.safetensors", raw | {"bundle_emb.x.t5": torch.ones(2, 4)})
        found, file = loaded(clean, path)
        close(found, wanted)
        assert file.notes[0].startswith("3 tensors of text encoders")
    only = write(tmp_path / "y.safetensors", keys(CLIP, "lora_te1_", DOWN_UP))
    with pytest.raises(AdapterError, match="but those of text encoders"):
        read_file(only)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_width_of_number_is_read(clean, names, tmp_path, dtype):
    raw = {k: v.to(dtype) for k, v in keys(ALL_SPLIT, "transformer.", alpha=2).items()}
    read = {m: tuple(t.to(dtype).float() for t in pair) for m, pair in ALL_SPLIT.items()}
    wanted = expected(clean, updates_of(read, 0.5))
    close(loaded(clean, write(tmp_path / "x.safetensors", raw))[0], wanted)


def test_a_base_names_its_modules_without_its_weights(tiny, names):
    assert tiny.names.linears == names.linears
    assert tiny.names.places == names.places


def test_no_two_modules_share_a_flat_name(names):
    flats = Counter(flat(name) for name in [*names.linears, *names.fused])
    assert max(flats.values()) == 1
    assert set(names.fused) == set(FUSED)
    assert {m: (wide, tall) for m, (tall, wide) in names.linears.items()} == SPLIT


# -- scales that PEFT and diffusers write -------------------------------------------------------

CONFIGS = {
    "alpha below the rank": {"r": 8, "lora_alpha": 4},
    "alpha above the rank": {"r": 4, "lora_alpha": 16},
    "patterns": {
        "r": 4,
        "lora_alpha": 2,
        "alpha_pattern": {
            "to_q": 1,
            "proj": 9,  # of ff.net.0, not of add_q_proj
            r"transformer_blocks\.\d+\.ff\.net\.2": 8,
            "^single_transformer_blocks.1.proj_mlp": 3,
        },
        "rank_pattern": {"to_k": 2, "proj_out": 6},
    },
    "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True},
}


def filled(net):
    """PEFT's weights of a net, made random."""
    rng = torch.Generator().manual_seed(3)
    for name, parameter in net.named_parameters():
        if ".lora_" in name or ".hada_" in name or ".lokr_" in name:
            parameter.data = torch.randn(parameter.shape, generator=rng) * 0.3


@pytest.mark.parametrize("config", CONFIGS)
def test_what_diffusers_saves_paints_as_it_did_before(clean, names, tmp_path, config):
    clean.denoiser.add_adapter(peft.LoraConfig(target_modules=BLOCKS, **CONFIGS[config]))
    filled(clean.denoiser)
    wanted = velocity(clean)
    diffusers.FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=peft.get_peft_model_state_dict(clean.denoiser),
        **diffusers.training_utils._collate_lora_metadata({"transformer": clean.denoiser}),
    )
    clean.denoiser.save_lora_adapter(tmp_path / "bare")
    clean.denoiser.unload_lora()
    for folder in (tmp_path, tmp_path / "bare"):
        close(loaded(clean, folder / "pytorch_lora_weights.safetensors")[0], wanted)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_folder_of_peft_paints_as_it_did_before(clean, names, tmp_path, config):
    model = peft.get_peft_model(
        clean.denoiser, peft.LoraConfig(target_modules=BLOCKS, **CONFIGS[config])
    )
    filled(model)
    wanted = velocity(clean)
    model.save_pretrained(tmp_path)
    model.unload()
    close(loaded(clean, tmp_path / "adapter_model.safetensors")[0], wanted)


def test_one_source_of_scale_counts_for_a_module_and_tensors_come_first(clean, names, tmp_path):
    raw = keys(split_lora(BLOCKS[:2]), "transformer.", alpha=2)
    raw |= keys(split_lora(BLOCKS[2:]), "transformer.")
    header = {
        "lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 1})
    }
    path = write(tmp_path / "adapter_model.safetensors", raw, header)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 100, "r": 4}')
    assert read_file(path).scales == (0.25, 0.5)
    path = write(path, raw)
    assert read_file(path).scales == (0.5, 25)
    mixed = {"transformer.lora_alpha": 2, "text_encoder.lora_alpha": 99}
    only = {"text_encoder.lora_alpha": 99}
    for header, scale in ((mixed, 0.5), (only, 1), ({"r": 4}, 2)):  # PEFT's own default is 8
        text = {"lora_adapter_metadata": json.dumps(header)}
        file = write(tmp_path / "x.safetensors", keys(ALL_SPLIT, "transformer."), text)
        assert read_file(file).scales == (scale,)


# -- LoHa and LoKr ------------------------------------------------------------------------------


def factors(prefix, parts, shapes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        f"{module}.{prefix}_{name}": torch.randn(*shape(*SPLIT[module]), generator=rng) * 0.5
        for module in parts
        for name, shape in shapes.items()
    }


ATTENTION = [m for m in BLOCKS if ".attn." in m]
LOHA = {
    "w1_a": lambda i, o: (o, 2),
    "w1_b": lambda i, o: (2, i),
    "w2_a": lambda i, o: (o, 2),
    "w2_b": lambda i, o: (2, i),
}
LOKR = {
    "w1": lambda i, o: (4, 4),
    "w2_a": lambda i, o: (o // 4, 2),
    "w2_b": lambda i, o: (2, i // 4),
}
LOKR_BOTH = {
    "w1_a": lambda i, o: (4, 2),
    "w1_b": lambda i, o: (2, 4),
    "w2_a": lambda i, o: (o // 4, 2),
    "w2_b": lambda i, o: (2, i // 4),
}


def dense(w, kind, module):
    """The update of LyCORIS' own definition, in float64."""

    def get(name):
        found = w.get(f"{module}.{kind}_{name}")
        if found is not None:
            return found.double()
        return get(f"{name}_a") @ get(f"{name}_b")

    one, two = get("w1"), get("w2")
    return one * two if kind == "hada" else torch.kron(one, two)


@pytest.mark.parametrize(
    ("kind", "shapes", "rank"), [("hada", LOHA, 4), ("lokr", LOKR, 8), ("lokr", LOKR_BOTH, 8)]
)
def test_loha_and_factored_lokr_are_read_as_the_lora_they_equal(
    clean, names, tmp_path, kind, shapes, rank
):
    w = factors(kind, ATTENTION, shapes)
    wanted = expected(clean, {m: 0.5 * dense(w, kind, m) for m in ATTENTION})
    raw = {}
    for key, value in w.items():
        module, role = key.rsplit(".", 1)
        raw[f"lycoris_{flat(module)}.{role}"] = value
        raw[f"lycoris_{flat(module)}.alpha"] = torch.tensor(1.0)
    found, file = loaded(clean, write(tmp_path / "x.safetensors", raw))
    close(found, wanted)
    assert file.kind == ("LoHa" if kind == "hada" else "LoKr")
    assert {v.shape[0] for k, v in file.weights.items() if "lora_A" in k} == {rank}


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=2, alpha=3, target_modules=ATTENTION, alpha_pattern={"to_q": 1}),
        peft.LoKrConfig(r=2, alpha=3, target_modules=ATTENTION, decompose_factor=4),
        peft.LoKrConfig(
            r=1, alpha=3, target_modules=ATTENTION, decompose_factor=4, decompose_both=True
        ),
    ],
    ids=["LoHa", "LoKr", "LoKr, both factored"],
)
def test_lohas_and_lokrs_of_peft_paint_as_they_did_before(clean, names, tmp_path, config):
    # PEFT wraps the layer, which our forward pass reads as a module of its own.
    model = peft.get_peft_model(clean.denoiser, config)
    filled(model)
    updates = {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().double()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    model.save_pretrained(tmp_path)
    model.unload()
    assert updates.keys() == set(ATTENTION)
    wanted = expected(clean, updates)
    close(loaded(clean, tmp_path / "adapter_model.safetensors")[0], wanted)


# -- refusals -----------------------------------------------------------------------------------

ONE = {"transformer_blocks.0.attn.to_q": (torch.ones(4, H), torch.ones(H, 4))}
GOOD = keys(ONE, "transformer.")
Q = "transformer.transformer_blocks.0.attn.to_q"
HALVES = (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight")


def with_b(value):
    return {HALVES[0]: torch.ones(4, H), HALVES[1]: value}


REFUSED = {
    "DoRA of PEFT": (GOOD | {f"{Q}.lora_magnitude_vector": torch.ones(H)}, "a DoRA"),
    "DoRA of kohya": (GOOD | {f"{Q}.dora_scale": torch.ones(H, 1)}, "a DoRA"),
    "DoRA of ai-toolkit": (GOOD | {f"{Q}.magnitude": torch.ones(H)}, "a DoRA"),
    "bias": (GOOD | {f"{Q}.lora_B.bias": torch.ones(H)}, "a LoRA with a bias"),
    "control": (
        GOOD | {"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(32)},
        "a control LoRA",
    ),
    "whole weights": (GOOD | {"diffusion_model.img_in.diff_b": torch.ones(H)}, "replaces whole"),
    "Tucker": (GOOD | {f"{Q}.lora_mid.weight": torch.ones(4, 4, 3, 3)}, "Tucker"),
    "OFT": ({"lora_unet_img_in.oft_blocks": torch.ones(4, 4, 4)}, "an OFT"),
    "dense LoKr": (
        {f"{Q}.lokr_w1": torch.ones(8, 8), f"{Q}.lokr_w2": torch.ones(8, 8)},
        "whole second factor",
    ),
    "half a LoKr": ({f"{Q}.lokr_w1": torch.ones(8, 8)}, "lacks one half of its LoKr"),
    "LoHa of full rank": (
        {
            f"{Q}.hada_w{n}_{x}": torch.ones((H, 9) if x == "a" else (9, H))
            for n in (1, 2)
            for x in "ab"
        },
        "rank 81",
    ),
    "NaN": (with_b(torch.full((H, 4), float("nan"))), "NaN or infinity"),
    "infinity": (with_b(torch.full((H, 4), float("inf"))), "NaN or infinity"),
    "rank 0": ({HALVES[0]: torch.ones(0, H), HALVES[1]: torch.ones(H, 0)}, "rank 0"),
    "a scalar": (with_b(torch.tensor(1.0)), "a single number"),
    "4-D": (with_b(torch.ones(H, 4, 1, 1)), "64x4x1x1"),
    "whole numbers": (with_b(torch.ones(H, 4, dtype=torch.int8)), "int8"),
    "ranks that differ": (with_b(torch.ones(H, 3)), "their ranks differ"),
    "one half": ({HALVES[0]: torch.ones(4, H)}, "lacks one half"),
    "ragged alpha": (GOOD | {f"{Q}.alpha": torch.ones(3)}, "3 numbers"),
    "alpha NaN": (GOOD | {f"{Q}.alpha": torch.tensor(float("nan"))}, "is nan"),
    "said twice": (GOOD | keys(ONE, "diffusion_model."), "twice"),
    "two adapters": (
        keys(ONE, "", ("lora_A.one", "lora_B.one"))
        | keys({f"{T}.attn.to_k": ONE[f"{T}.attn.to_q"]}, "", ("lora_A.two", "lora_B.two")),
        "several adapters: one, two",
    ),
    "a strange key": (GOOD | {"transformer.x\x1b[31m.weight": torch.ones(3)}, r"x\\x1b\[31m"),
    "nothing": ({"bundle_emb.x": torch.ones(2)}, "holds no LoRA weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_lora_is_refused_by_its_name(tmp_path, case):
    raw, says = REFUSED[case]
    with pytest.raises(AdapterError, match=says):
        read_file(write(tmp_path / "x.safetensors", raw))


def test_a_bias_of_zero_is_ignored_with_a_word(tmp_path):
    path = write(tmp_path / "x.safetensors", GOOD | {f"{Q}.lora_B.bias": torch.zeros(H)})
    assert "all zero" in read_file(path).notes[0]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"modules_to_save": ["proj_out"]}, "whole modules"),
        ({"r": 1000, "lora_alpha": 16}, "says rank 1000 for"),
        ({"r": 1000, "rank_pattern": {"to_q": 999}}, "says rank 999 for"),
        ({"lora_alpha": True}, "no number"),
        ({"lora_alpha": float("nan")}, "the number nan"),
        ({"lora_alpha": 10**350}, "not finite"),
        ({"alpha_pattern": [1]}, "no table"),
        ({"alpha_pattern": {"(": 1}}, "no regular expression"),
        ({"alpha_pattern": {"(.*)*x": 1}}, "repeats too much"),
        ({"alpha_pattern": {"a?" * 30 + "a" * 30: 1}}, "repeats too much"),
        ([], "no table"),
        ("[" * 100_000, "unknown"),
        ("1" * 5000, "unknown"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(tmp_path, config, says):
    text = config if isinstance(config, str) else json.dumps(config)
    with pytest.raises(AdapterError, match=says):
        read_file(write(tmp_path / "a.safetensors", GOOD, {"lora_adapter_metadata": text}))
    path = write(tmp_path / "adapter_model.safetensors", GOOD)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match=says):
        read_file(path)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"transformer_blocks.7.attn.to_q": (H, H)}, "attn.to_q does not exist"),
        ({"double_blocks.0.img_attn.qkv": (H, H)}, "192 wide, not 64"),
        ({"img_in": (128, H)}, "64 wide, not 128"),
        ({"double_blocks.0.img_attn.qkv": (H, 3 * H), f"{T}.attn.to_k": (H, H)}, "another module"),
    ],
)
def test_modules_without_a_place_in_the_base_are_named(names, tmp_path, found, says):
    file = read_file(write(tmp_path / "x.safetensors", keys(lora(found))))
    with pytest.raises(AdapterError, match=f"does not fit tiny: .*{says}"):
        fit(file.weights, names, "tiny")


def header(tensors, body=b""):
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + body


F = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 64,
        b"\xff" * 64,
        b"PK\x03\x04" + b"x" * 60,
        header({"a": F}),
        header({"a": F}, b"12345678"),
        header({"a": 3}),
        header([1, 2]),
        header({"a": {**F, "data_offsets": "xy"}}, b"1234"),
        header({"a": {**F, "data_offsets": []}}, b"1234"),
        header({"a": {**F, "dtype": "F7"}}, b"1234"),
        header({"a": {**F, "shape": [2, 2]}}, b"1234"),
        header({"__metadata__": [], "a": F}, b"1234"),
        header(b"[" * 200_000),
        header(b"{" + b'"a":' + b"9" * 5000 + b"}"),
        header(b"\xff\xfe{}"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_else_is_raised(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=r"x\.safetensors cannot be read"):
        read_file(path)


def test_a_file_that_is_larger_than_its_header_says_is_not_read_into_memory(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(header({"a": F}, b"1234"))
        file.truncate(2**36)  # a hole, which takes no place on the disk
    with pytest.raises(AdapterError, match="68719476736 bytes, not those"):
        read_file(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match="no regular file"):
        read_file(tmp_path / "x.safetensors")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_nothing_but_an_error_of_ours(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    whole = bytearray(save(GOOD, {"lora_adapter_metadata": '{"lora_alpha": 4}'}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 400))
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with suppress(AdapterError):
        read_file(path)


ROLES = [
    "lora_A.weight", "lora_B.weight", "lora_A.x.weight", "lora_down.weight", "lora.up.weight",
    "alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w1_a",
    "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "dora_scale", "lora_B.bias", "weight", "",
]  # fmt: skip
PREFIXES = ["transformer.", "lora_unet_", "", "base_model.model.", "text_encoder."]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from(PREFIXES), st.sampled_from(["a.b", "img_in"]), st.sampled_from(ROLES)
        ),
        st.tuples(
            st.lists(st.integers(0, 6), max_size=3),
            st.sampled_from([torch.float32, torch.float16, torch.float8_e4m3fn, torch.int64]),
        ),
        max_size=8,
    )
)
def test_any_mixture_of_keys_and_shapes_is_read_or_refused(names, found):
    raw = {
        f"{prefix}{module}.{role}": torch.ones(shape).to(dtype)
        for (prefix, module, role), (shape, dtype) in found.items()
    }
    with suppress(AdapterError):
        fit(read_tensors(raw, {}, None, "x").weights, names, "tiny")
