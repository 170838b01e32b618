"""FLUX.2-dev: texts, sets, adapters and counts against diffusers' pipeline and published sizes."""

from __future__ import annotations

import diffusers
import pytest
import torch
import transformers

from iclora.errors import CaptionError
from iclora.making.sampling import panel_noise
from iclora.making.session import complete, generate
from iclora.models.flux2.dev import DevModel
from iclora.models.flux2.outline import KleinOutline
from iclora.models.outline import Batch, outline_of
from iclora.settings import TrainSettings
from iclora.train.costs import Costs
from tests.conftest import CAPTION, picture
from tests.making.helpers import prepared, told
from tests.models.flux2.test_runs import theirs
from tests.models.helpers import CPU, alike, short_runs, trained_elsewhere, without_adapter

WORDS = 160
"""Tokens of a text, the system message among them; fewer than the usual 512 to save time."""


@pytest.fixture
def dev(flux2, monkeypatch):
    monkeypatch.setattr(flux2, "max_text_tokens", WORDS)
    with without_adapter(flux2):
        yield flux2


@pytest.fixture(scope="module")
def pipeline(flux2):
    """Its processor for pictures needs torchvision; texts alone need its tokenizer."""
    folder = flux2.folder
    parts = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
        "vae": diffusers.AutoencoderKLFlux2,
        "text_encoder": transformers.Mistral3ForConditionalGeneration,
        "transformer": diffusers.Flux2Transformer2DModel,
    }
    loaded = {part: kind.from_pretrained(folder / part) for part, kind in parts.items()}
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    made = diffusers.Flux2Pipeline(**loaded, tokenizer=tokenizer)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("text", [CAPTION, "", "a [IMG] b"])
def test_text_embeddings_are_the_pipelines_to_the_bit(flux2, pipeline, text):
    with torch.no_grad():
        other, _ = pipeline.encode_prompt(text)
    ours = flux2.encode_text(text)["prompt"]
    assert ours.shape == (512, 96)
    assert torch.equal(ours, other[0])


def test_a_text_is_as_long_as_it_is_read_and_refused_above(dev, pipeline):
    read = pipeline.tokenizer.apply_chat_template(
        diffusers.pipelines.flux2.pipeline_flux2.format_input(["a b"]),
        add_generation_prompt=False,
        tokenize=True,
        return_dict=True,
    )
    assert dev.count_tokens("a b") == len(read["input_ids"][0])
    with pytest.raises(CaptionError, match=f"the base reads {WORDS}"):
        dev.encode_text("a " * WORDS)


@pytest.mark.parametrize("guidance", [4.0, 1.5])
def test_generate_is_the_pipeline_told_the_guidance_in_one_pass(dev, pipeline, guidance):
    made = generate(dev, CAPTION, seed=7, **told(steps=2, guidance=guidance))
    more = {"output_type": "np", "max_sequence_length": WORDS}
    assert alike(made, theirs(pipeline, made, made.request.prompt, guidance, 2, **more))
    other = generate(dev, CAPTION, seed=7, **told(steps=2, guidance=guidance + 2))
    assert made.composite.tobytes() != other.composite.tobytes()


def test_its_own_guidance_is_4_and_a_negative_prompt_has_no_use(dev):
    request, notes = prepared(dev, CAPTION, **told(negative="a blur"))
    assert request.guidance == 4.0
    assert any("negative" in note for note in map(str, notes))


def test_references_are_the_pipelines(dev, pipeline):
    panels = {1: picture(96, 64, 1)}
    made = complete(dev, CAPTION, panels, seed=3, **told(steps=2, mode="reference"))
    assert made.panels[0] == panels[1]
    noise = panel_noise(made.request.layout, made.request.seeds, 16, 128).view(12, 6, 128)[4:]
    other = pipeline(
        image=[panels[1]],
        prompt=made.request.words,
        width=96,
        height=128,
        num_inference_steps=2,
        guidance_scale=4.0,
        latents=noise.permute(2, 0, 1)[None],
        output_type="latent",
        max_sequence_length=WORDS,
    ).images
    # As tokens, still normalised.
    assert (torch.cat(made.latents[1:]).flatten(0, 1) - other[0]).abs().max() < 1e-4


def test_a_run_ends_with_an_adapter_that_stock_diffusers_loads(dev, pipeline, tmp_path, caplog):
    def painted(pipeline, made):
        more = {"output_type": "np", "max_sequence_length": WORDS}
        return theirs(pipeline, made, made.request.prompt, 4.0, 2, **more)

    make = short_runs("tiny-flux2", tmp_path, str(tmp_path / "cache"))
    own = make(conditional=0.5, steps=2, lr=0.05, ema=0)
    adapter, _ = trained_elsewhere(dev, own, pipeline, painted, caplog)
    assert (adapter.info.family, adapter.info.base) == ("flux2", "tiny-flux2")
    assert dev.names.header["modelspec.architecture"] == "flux-2-dev/lora"


def test_the_outline_has_the_published_sizes_and_is_counted():
    shipped = KleinOutline.shipped["black-forest-labs/FLUX.2-dev"]
    model = DevModel(shipped, "x", CPU, torch.bfloat16)
    found = outline_of(model, torch.bfloat16, "nf4")
    assert sum(p.numel() for p in found.whole().parameters()) / 1e9 == pytest.approx(32.2, abs=0.1)
    (mistral,) = found.text_encoders
    layer = 5120 * (32 * 128 * 2 + 8 * 128 * 2) + 3 * 5120 * 32768 + 2 * 5120
    assert sum(p.numel() for p in mistral.parameters()) == 30 * layer + 131072 * 5120
    settings = TrainSettings(base="b", data="d", out="o", preview_every=0)
    costs = Costs(found, settings, "cuda")
    assert costs.flops(Batch(1, 1024, 1024), 0) == pytest.approx(609e12, rel=0.02)
    assert costs.flops(Batch(1, 1024, 1024), 99) == pytest.approx(891e12, rel=0.02)
