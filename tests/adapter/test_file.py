"""LoRA weights: into diffusers and back, from other tools, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from iclora.adapter import Adapter, AdapterInfo, attach, fold, lora_parameters, remove
from iclora.errors import AdapterError
from iclora.files import digest
from iclora.making.sampling import panel_noise
from iclora.making.session import generate
from iclora.sets.recipe import load_recipe
from tests.conftest import CAPTION

STORY = load_recipe("film-storyboard")
SIZE = (96, 192)
RANK, ALPHA = 4, 6.0


def info(**more):
    return AdapterInfo(
        **{
            "base": "tiny",
            "family": "flux",
            "rank": RANK,
            "alpha": ALPHA,
            "targets": "all",
            "steps": 3,
            "recipe": STORY,
            "layout": STORY.canvas.resized(*SIZE, 16).to_json(),
            **more,
        }
    )


@pytest.fixture
def trained(clean, tmp_path):
    """An adapter file as training writes it, B not zero; the base carries none."""
    parameters = attach(clean, rank=RANK, alpha=ALPHA, targets="all", seed=0)
    rng = torch.Generator().manual_seed(0)
    weights = {k: torch.randn(v.shape, generator=rng) * 0.2 for k, v in parameters.items()}
    remove(clean)
    path = tmp_path / "adapter.safetensors"
    Adapter(fold(weights, ALPHA / RANK), info()).save(path, torch.float32)
    return path, weights


def test_the_file_loads_in_stock_diffusers_with_no_unmatched_key_and_the_same_image(
    clean, trained, caplog
):
    path, _ = trained
    made = generate(clean, CAPTION, adapter=Adapter.load(path), seed=1, steps=4)
    remove(clean)
    pipeline = diffusers.FluxPipeline.from_pretrained(clean.folder, dtype=torch.float32)
    with caplog.at_level("WARNING"):
        pipeline.load_lora_weights(path)
    assert caplog.text == ""
    theirs = {n for n, _ in pipeline.transformer.named_parameters() if "lora" in n}
    assert len(theirs) == len(load_file(path))
    noise = panel_noise(made.request.layout, made.request.seeds, 16, 64)
    image = pipeline(
        made.request.prompt,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=4,
        guidance_scale=3.5,
        max_sequence_length=clean.max_text_tokens,
        latents=noise,
        output_type="np",
    ).images[0]
    assert np.abs(np.asarray(made.composite) / 255 - image).max() <= 0.5 / 255 + 1e-4
    plain = generate(clean, CAPTION, recipe=STORY, size=SIZE, seed=1, steps=4)
    assert made.composite.tobytes() != plain.composite.tobytes()


def test_the_loaded_adapter_adds_alpha_over_rank_times_b_a_to_each_weight(clean, trained):
    path, weights = trained
    name = "single_transformer_blocks.0.proj_mlp"
    linear = clean.denoiser.get_submodule(name)
    x = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(2))
    a, b = (weights[f"{name}.lora_{h}.weight"].double() for h in "AB")
    expected = linear(x).double() + ALPHA / RANK * x.double() @ a.T @ b.T
    Adapter.load(path).apply(clean)
    got = clean.denoiser.get_submodule(name)(x)
    torch.testing.assert_close(got.double(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_metadata_comes_back_whole(trained):
    adapter = Adapter.load(trained[0])
    assert adapter.info == info()
    assert adapter.info.recipe == STORY
    assert len(adapter.sha256) == 64


def renamed(path, to, change, extra=None):
    weights = {change(k): v for k, v in load_file(path).items()}
    save_file({**weights, **(extra or {})}, to)
    return to


def ai_toolkit(key):
    return key


def ai_toolkit_new(key):
    return key.replace("transformer.", "diffusion_model.", 1)


def peft(key):
    return key.replace("transformer.", "base_model.model.", 1)


def down_up(key):
    return key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")


@pytest.mark.parametrize("style", [ai_toolkit, ai_toolkit_new, peft, down_up])
def test_other_tools_files_load_with_every_key_used(trained, tmp_path, style):
    other = renamed(trained[0], tmp_path / "other.safetensors", style)
    ours, theirs = Adapter.load(trained[0]), Adapter.load(other)
    assert theirs.info is None
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[k], theirs.weights[k]) for k in ours.weights)


def test_an_alpha_in_the_file_scales_the_update(trained, tmp_path):
    alphas = {
        k.replace(".lora_A.weight", ".alpha"): torch.tensor(RANK / 2)
        for k in load_file(trained[0])
        if "lora_A" in k
    }
    other = renamed(trained[0], tmp_path / "other.safetensors", down_up, alphas)
    ours, theirs = Adapter.load(trained[0]), Adapter.load(other)
    key = next(k for k in ours.weights if "lora_B" in k)
    torch.testing.assert_close(theirs.weights[key], ours.weights[key] / 2)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"transformer.ghost.lora_A.weight": torch.zeros(4, 8)}, "lacks one half"),
        ({"transformer.x.bias": torch.zeros(4)}, "1 of 53 keys"),
        ({"lora_unet_img_in.lora_down.weight": torch.zeros(4, 8)}, "img_in of .* lacks one half"),
    ],
)
def test_any_key_without_a_place_is_an_error(trained, tmp_path, extra, says):
    other = renamed(trained[0], tmp_path / "other.safetensors", str, extra)
    with pytest.raises(AdapterError, match=says):
        Adapter.load(other)


def test_an_adapter_of_another_base_is_refused_and_changes_nothing(clean, trained, tmp_path):
    path = tmp_path / "wide.safetensors"
    save_file(
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 3072),
            "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(3072, 4),
        },
        path,
    )
    with pytest.raises(AdapterError, match="64 wide, not 3072"):
        Adapter.load(path).apply(clean)
    ghost = "transformer.transformer_blocks.7.attn.to_q"
    halves = {"A": torch.zeros(4, 64), "B": torch.zeros(64, 4)}
    more = {f"{ghost}.lora_{half}.weight": value for half, value in halves.items()}
    path = renamed(trained[0], tmp_path / "more.safetensors", str, more)
    with pytest.raises(AdapterError, match="does not exist"):
        Adapter.load(path).apply(clean)
    assert lora_parameters(clean) == {}


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_damaged_or_missing_file_is_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AdapterError, match=r"a\.safetensors"):
        Adapter.load(path)


def test_a_file_cut_short_is_named(trained):
    path = trained[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="cannot be read"):
        Adapter.load(path)


def test_hash_and_weights_are_of_the_same_bytes_if_the_file_is_replaced_meanwhile(
    trained, tmp_path, monkeypatch
):
    path, before = trained[0], trained[0].read_bytes()
    other = renamed(path, tmp_path / "other.safetensors", down_up).read_bytes()
    real = Path.read_bytes

    def then_replaced(self):
        data = real(self)
        self.write_bytes(other)
        return data

    monkeypatch.setattr(Path, "read_bytes", then_replaced)
    adapter = Adapter.load(path)
    assert adapter.sha256 == digest(before)
    assert adapter.info == info()


def test_pickle_files_are_refused_unopened(tmp_path):
    for suffix in (".pt", ".bin", ".ckpt"):
        with pytest.raises(AdapterError, match="pickle"):
            Adapter.load(tmp_path / f"a{suffix}")


def test_the_same_adapter_is_written_as_the_same_bytes(trained, tmp_path):
    adapter = Adapter.load(trained[0])
    for i in range(3):
        adapter.save(tmp_path / f"{i}.safetensors", torch.float32)
        assert (tmp_path / f"{i}.safetensors").read_bytes() == trained[0].read_bytes()


def test_a_fresh_lora_changes_nothing_and_its_start_depends_on_the_seed_alone(clean):
    z = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(1))
    args = (torch.tensor([0.5]), [clean.encode_text("one")], (96, 64), 1.0)
    with torch.no_grad():
        before = clean.velocity(z, *args)
        state = torch.get_rng_state()
        one = {
            k: v.clone() for k, v in attach(clean, rank=4, alpha=4, targets="all", seed=1).items()
        }
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(clean.velocity(z, *args), before)
    torch.randn(7)
    two = attach(clean, rank=4, alpha=4, targets="all", seed=1)
    assert all(torch.equal(one[k], two[k]) for k in one)
    three = attach(clean, rank=4, alpha=4, targets="all", seed=2)
    assert not all(torch.equal(one[k], three[k]) for k in one)
    assert {v.dtype for v in three.values()} == {torch.float32}


def test_strength_scales_the_update_and_applying_twice_does_not_double_it(clean, trained):
    adapter = Adapter.load(trained[0])
    name = "single_transformer_blocks.0.proj_mlp"
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    base = clean.denoiser.get_submodule(name)(x)
    updates = []
    for strength in (1.0, 1.0, 0.5):
        adapter.apply(clean, strength)
        updates.append(clean.denoiser.get_submodule(name)(x) - base)
    torch.testing.assert_close(updates[0], updates[1])
    torch.testing.assert_close(updates[0] / 2, updates[2], rtol=1e-4, atol=1e-5)
