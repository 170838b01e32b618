"""DINO and CLIP figures, against transformers' own models and processors, and in known cases."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from iclora.errors import ModelError
from iclora.evaluate.metrics.likeness import Clip, Dino
from tests.conftest import picture
from tests.evaluate.metrics.test_base import figures_of, made_of

CPU = torch.device("cpu")
WORDS = ("a red cat by the sea", "a blue dog in the snow", "a fox, asleep")
PANELS = [picture(48, 32, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def dino(dino_folder):
    return Dino(str(dino_folder), CPU)


@pytest.fixture(scope="module")
def clip(clip_folder):
    return Clip(str(clip_folder), CPU)


def cosine(rows):
    """In float64, by the formula."""
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.sqrt((rows**2).sum(1))
    return rows @ rows.T / np.outer(norms, norms)


def test_dino_consistency_equals_the_cosine_of_transformers_own_pooled_outputs(dino, dino_folder):
    model = transformers.Dinov2Model.from_pretrained(dino_folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(dino_folder)
    with torch.no_grad():
        theirs = cosine(model(**processor(images=PANELS, return_tensors="pt")).pooler_output)
    ours = figures_of(dino, made_of(PANELS))[0]["consistency"]
    assert ours == pytest.approx((theirs[0, 1] + theirs[0, 2] + theirs[1, 2]) / 3, abs=1e-5)
    assert theirs[0, 1] < 0.9999, "a model that sees no difference tells nothing"
    given = figures_of(dino, made_of(PANELS, given=(1, 2)))[0]["consistency"]
    assert given == pytest.approx((theirs[0, 2] + theirs[1, 2]) / 2, abs=1e-5)


def test_clip_figures_equal_logits_per_image_over_the_logit_scale(clip, clip_folder):
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip_folder)
    inputs = processor(text=list(WORDS), images=PANELS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
        told = (out.logits_per_image / model.logit_scale.exp()).numpy()
    seen = cosine(out.image_embeds)
    ours = figures_of(clip, made_of(PANELS, words=WORDS))[0]
    others = [told[n, m] for n in range(3) for m in range(3) if m != n]
    assert ours["adherence"] == pytest.approx(np.diag(told).mean(), abs=1e-5)
    assert ours["leakage"] == pytest.approx(np.mean(others), abs=1e-5)
    assert ours["own over others"] == pytest.approx(
        np.diag(told).mean() - np.mean(others), abs=1e-5
    )
    assert ours["consistency"] == pytest.approx(
        (seen[0, 1] + seen[0, 2] + seen[1, 2]) / 3, abs=1e-5
    )
    # A given panel's likeness to its words is nobody's doing.
    ours = figures_of(clip, made_of(PANELS, words=WORDS, given=(1,)))[0]
    assert ours["adherence"] == pytest.approx((told[1, 1] + told[2, 2]) / 2, abs=1e-5)


@pytest.mark.parametrize("name", ["dino", "clip"])
def test_one_picture_over_and_over_is_consistent_and_has_no_diversity(name, request):
    metric = request.getfixturevalue(name)
    collapsed = [made_of([PANELS[0]] * 3, words=WORDS) for _ in range(3)]
    found = figures_of(metric, *collapsed)
    assert [f["consistency"] for f in found] == pytest.approx([1, 1, 1], abs=1e-6)
    assert metric.across_seeds(collapsed)["diversity"] == pytest.approx(0, abs=1e-6)
    varied = [made_of([picture(48, 32, 10 * s + n) for n in range(3)]) for s in range(3)]
    assert metric.across_seeds(varied)["diversity"] > 1e-4


def test_panels_that_show_each_others_words_leak_more_than_they_adhere(clip):
    straight = figures_of(clip, made_of(PANELS, words=WORDS))[0]
    texts = clip.texts(WORDS)
    told = clip.pictures(PANELS) @ texts.T
    # Words turned by one: what was leakage to the next panel is adherence now.
    turned = figures_of(clip, made_of(PANELS, words=WORDS[1:] + WORDS[:1]))[0]
    assert turned["adherence"] == pytest.approx(
        (told[0, 1] + told[1, 2] + told[2, 0]) / 3, abs=1e-6
    )
    assert turned["adherence"] + 2 * turned["leakage"] == pytest.approx(
        straight["adherence"] + 2 * straight["leakage"], abs=1e-6
    )
    alike = figures_of(clip, made_of(PANELS, words=("the same",) * 3))[0]
    assert alike["own over others"] == pytest.approx(0, abs=1e-6)


def test_a_prompt_without_markers_has_no_adherence(clip):
    assert set(figures_of(clip, made_of(PANELS, words=()))[0]) == {"consistency"}


def test_long_words_are_cut_and_the_reader_is_told(clip_folder):
    clip = Clip(str(clip_folder), CPU)
    long = "a very long text of many more than forty letters, which goes on and on"
    cut = clip.texts([long])
    assert clip.notes == [
        "1 of 1 panel texts are longer than the 40 tokens clip reads: it knows their beginning "
        "alone"
    ]
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(clip_folder)(
        [long], truncation=True, max_length=40, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = model.get_text_features(**tokens).pooler_output
    theirs = torch.nn.functional.normalize(theirs, dim=-1)
    assert np.abs(cut - theirs.numpy()).max() < 1e-5
    clip.texts(["short"])
    assert clip.notes[0].startswith("1 of 2 ")


def test_panels_that_lose_their_sides_are_named_and_square_ones_are_not(dino_folder):
    dino = Dino(str(dino_folder), CPU)
    dino.pictures([picture(32, 32)])
    assert dino.notes == []
    dino.pictures([picture(96, 32), picture(96, 32, 1)])
    assert dino.notes == ["dino sees the middle square of panels of 96x32 px"]


def test_a_model_of_another_kind_is_refused_by_name(dino_folder, clip_folder, tmp_path):
    with pytest.raises(ModelError, match="takes no pictures alone"):
        Dino(str(clip_folder), CPU)
    with pytest.raises(ModelError, match="it is a dinov2, not a CLIP"):
        Clip(str(dino_folder), CPU)
    with pytest.raises(ModelError, match="cannot be opened"):
        Dino(str(tmp_path), CPU)


def test_a_pickled_model_is_refused(dino_folder, tmp_path):
    model = transformers.Dinov2Model.from_pretrained(dino_folder)
    for file in dino_folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be opened"):
        Dino(str(tmp_path), CPU)


def test_a_set_looked_at_again_beside_others_is_not_computed_again(dino, monkeypatch):
    fresh = [Image.new("RGB", (32, 32), (n, 9, 9)) for n in range(2)]
    rows = dino.pictures(fresh)
    monkeypatch.setattr(dino, "_rows", None)
    assert (dino.pictures([fresh[1], fresh[0]]) == rows[::-1]).all()
