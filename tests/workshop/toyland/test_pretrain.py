"""What pre-training computes, held against diffusers' own and against simple arithmetic."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iclora.models import load_model
from iclora.toyland.wording import draw_caption
from iclora.toyland.world import ARRANGEMENTS, TRAITS, draw_canvas
from workshop.toyland.pretrain import (
    autoencoder,
    canvases,
    export,
    painter,
    readers,
    stage,
    tokenizers,
)


@pytest.fixture(scope="module")
def both():
    """CLIP's and T5's tokenizer."""
    return tokenizers.make_tokenizers(stage.Settings())


def test_plain_attention_gives_what_diffusers_own_gives():
    torch.manual_seed(0)
    model = painter.new_transformer().eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.05)
    values = {
        "hidden_states": torch.randn(2, 24, 32),
        "encoder_hidden_states": torch.randn(2, 7, 192),
        "pooled_projections": torch.randn(2, 96),
        "timestep": torch.rand(2),
        "guidance": torch.ones(2),
        "img_ids": torch.arange(72.0).view(24, 3),
        "txt_ids": torch.zeros(7, 3),
        "return_dict": False,
    }
    with torch.no_grad():
        theirs = model(**values)[0]
        model.set_attn_processor(painter.PlainAttention(compiled=False))
        ours = model(**values)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_guidance_has_no_effect_once_stilled_and_1_means_what_it_meant():
    torch.manual_seed(0)
    model = painter.new_transformer().eval()

    def run(guidance):
        torch.manual_seed(1)
        with torch.no_grad():
            return model(
                hidden_states=torch.randn(1, 4, 32),
                encoder_hidden_states=torch.randn(1, 3, 192),
                pooled_projections=torch.randn(1, 96),
                timestep=torch.rand(1),
                guidance=torch.tensor([guidance]),
                img_ids=torch.zeros(4, 3),
                txt_ids=torch.zeros(3, 3),
                return_dict=False,
            )[0]

    before = run(1.0)
    export.still_guidance(model)
    torch.testing.assert_close(run(1.0), before)
    torch.testing.assert_close(run(3.5), before)


def test_only_the_noisiest_panels_of_a_canvas_count_in_the_loss():
    for name in ARRANGEMENTS:
        panel = canvases.panel_of_token(name)
        rng = torch.Generator().manual_seed(0)
        sigma, levels, weight = canvases.draw_levels(rng, 64, panel)
        torch.testing.assert_close(weight.sum(-1), torch.ones(64))
        counted = weight > 0
        assert torch.all((levels == sigma[:, None]) | ~counted)
        assert torch.all(levels <= sigma[:, None])
        mixed = (~counted).any(-1).float().mean()
        assert mixed == 0 if name == "single" else 0.3 < mixed < 0.7


def test_panels_are_joined_as_the_world_composes_them():
    rng = random.Random(0)
    for name, arrangement in ARRANGEMENTS.items():
        canvas = draw_canvas(rng, arrangement=name)
        panels = np.stack([np.asarray(p.render()) for p in canvas.panels])
        tensor = torch.from_numpy(panels).permute(0, 3, 1, 2)
        joined = autoencoder.join_panels(tensor, arrangement.per_row)[0].permute(1, 2, 0)
        assert np.array_equal(joined.numpy(), np.asarray(canvas.render()))


def test_an_orthogonal_update_has_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((8, 40), (40, 8)):
        values = torch.linalg.svdvals(stage.orthogonal(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_tokenizers_survive_any_text_and_captions_fit_the_budget(both):
    clip, t5 = both
    for text in ("", "Zyx wörd ☃ [X] 99", "日本語"):
        assert len(t5(text).input_ids) >= 1
        assert len(clip(text).input_ids) >= 2
    rng = random.Random(0)
    lengths = [len(t5(draw_caption(rng, draw_canvas(rng)).text).input_ids) for _ in range(300)]
    assert max(lengths) <= tokenizers.TEXT_TOKENS


def test_every_token_is_labelled_with_its_panel_and_what_is_said_of_it(both):
    clip, t5 = both
    ids, _, labels, _ = readers.text_batch(random.Random(0), 8, clip, t5)
    markers = {f"▁{m}" for a in ARRANGEMENTS.values() for m in a.markers}
    for row, label in zip(ids, labels, strict=True):
        tokens = t5.convert_ids_to_tokens(row.tolist())
        panel = 0
        for token, truth in zip(tokens, label[:, 0].tolist(), strict=True):
            if token in ("</s>", "<pad>"):
                break
            panel += token in markers
            # A single panel has no marker; all of its words are of panel 1.
            assert truth == panel or (panel == 0 and truth == 1)


def test_a_written_base_is_loaded_and_sampled_by_the_code_of_flux(both, tmp_path):
    torch.manual_seed(0)
    encoders = readers.Readers(readers.new_t5(both[1]), readers.new_clip(both[0]))
    export.write_base(tmp_path, painter.new_transformer(), autoencoder.new_vae(), encoders, both)
    model = load_model(str(tmp_path), "cpu")
    assert (model.grid, model.channels, model.max_text_tokens) == (8, 32, tokenizers.TEXT_TOKENS)
    pixels = np.zeros((64, 128, 3), np.uint8)
    tokens = model.encode_image(pixels)
    assert tokens.shape == (128, 32)
    assert model.decode(tokens, 128, 64).shape == pixels.shape


def test_the_teller_is_asked_about_noisy_tokens_and_traits_that_exist_alone():
    torch.manual_seed(0)
    teller = painter.Teller(8)
    teller.heard = torch.randn(2, 5, 8)
    truth = torch.full((2, 2, len(TRAITS)), -100)
    colour = list(TRAITS).index("colour")
    truth[..., colour] = torch.tensor([[1, 2], [3, 4]])
    weight = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    logits = teller.head(teller.norm(teller.heard[:, [4, 0]]))
    start = sum(len(values) for values in list(TRAITS.values())[:colour])
    odds = logits[..., start : start + len(TRAITS["colour"])].log_softmax(-1)
    expected = -(odds[0, 0, 1] + odds[1, 0, 3] + odds[1, 1, 4]) / 3
    torch.testing.assert_close(teller.loss(truth, torch.tensor([4, 0]), weight), expected)


def test_a_step_asks_about_the_traits_of_the_panel_a_token_lies_in(both):
    rng = random.Random(0)
    drawn = [draw_canvas(rng, "character", "storyboard") for _ in range(40)]
    data = canvases.Encoded(drawn, torch.arange(40.0).view(40, 1, 1).expand(40, 192, 32))
    batch = canvases.draw_batch(random.Random(1), both, data, "storyboard", 6)
    colours = list(TRAITS["colour"])
    for number, truth in zip(batch.x0[:, 0, 0].int().tolist(), batch.truth, strict=True):
        for token, traits in zip(batch.asked.tolist(), truth.tolist(), strict=True):
            panel = drawn[number].panels[token // 64]
            assert traits[list(TRAITS).index("colour")] == colours.index(panel.traits["colour"])
            assert traits[list(TRAITS).index("shape")] == -100
    again = canvases.draw_batch(random.Random(1), both, data, "storyboard", 6)
    assert torch.equal(batch.eps, again.eps)
    assert torch.equal(batch.t5_ids, again.t5_ids)


def test_training_that_was_stopped_and_taken_up_steps_as_if_it_never_stopped(tmp_path):
    def new():
        torch.manual_seed(0)
        layers = torch.nn.ModuleDict(
            {"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)]), "last": torch.nn.Linear(4, 2)}
        )
        return layers, stage.optimizers_of(layers, 1e-2)

    def go(layers, optimizers, first, last):
        for step in range(first, last):
            x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            layers["last"](layers["blocks"][0](x)).square().sum().backward()
            stage.take_step(optimizers, 1e-2)

    whole, optimizers = new()
    go(whole, optimizers, 0, 6)
    half, optimizers = new()
    go(half, optimizers, 0, 3)
    stage.save_state(tmp_path / "state.safetensors", 3, half, *optimizers)
    taken, optimizers = new()
    assert stage.load_state(tmp_path / "state.safetensors", taken, *optimizers)[0] == 3
    go(taken, optimizers, 3, 6)
    for ours, theirs in zip(taken.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_base_can_be_gone_on_from_without_its_work_folder(both, tmp_path):
    torch.manual_seed(0)
    settings = stage.Settings()
    encoders = readers.Readers(readers.new_t5(both[1]), readers.new_clip(both[0]))
    model = painter.new_transformer()
    export.write_base(tmp_path / "base", model, autoencoder.new_vae(), encoders, both)
    work = tmp_path / "work"
    work.mkdir()
    export.warm_start(tmp_path / "base", work)
    log = stage.Log(work / "log.jsonl")
    kept = tokenizers.load_tokenizers(settings, work)
    assert kept[1]("a red cat").input_ids == both[1]("a red cat").input_ids
    again = readers.train_text(settings, work, log, kept)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours, theirs = again.t5(ids)[0], encoders.t5.to(torch.bfloat16).float()(ids)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    weights = load_file(work / "warm.safetensors")
    export.still_guidance(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=1e-2)
