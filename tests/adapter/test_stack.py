"""Several adapters are added up, each at its strength, as PEFT and diffusers add them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from iclora.adapter import Adapter, load_stack, remove, stack
from iclora.adapter.layers import stack as added_up
from iclora.errors import AdapterError, SettingsError
from iclora.evaluate.setup import arms_of
from iclora.making.asks import load_adapter_of
from iclora.making.made import GeneratedSet
from iclora.making.request import Request
from iclora.making.session import Ask, Session, generate
from iclora.making.story import reroll
from iclora.sets.recipe import load_recipe
from iclora.settings import GenerateSettings, settings_of, split_strength
from tests.adapter.test_file import info
from tests.adapter.worlds import BLOCKS, cut, expected, fused_lora, split_lora, updates_of, velocity
from tests.conftest import CAPTION

WAYS = {"size": (96, 192), "steps": 1, "seed": 3}


def adapter_file(path: Path, found, rank: int, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Adapter(named(found), info(rank=rank, **more)).save(path, torch.float32)
    return path


def named(found):
    halves = ("lora_A", "lora_B")
    return {
        f"{module}.{half}.weight": each
        for module, pair in found.items()
        for half, each in zip(halves, pair, strict=True)
    }


FIRST = split_lora(BLOCKS[:20], rank=3, seed=1)
SECOND = split_lora(BLOCKS[10:], rank=5, seed=2)
"""Of different ranks, and they share some modules only."""


@pytest.fixture
def two(clean, tmp_path):
    return (
        adapter_file(tmp_path / "style.safetensors", FIRST, 3),
        adapter_file(tmp_path / "sets" / "adapter.safetensors", SECOND, 5),
    )


def diffusers_velocity(model):
    """What `velocity` asks for, by diffusers' own forward, with PEFT's layers in it."""
    z = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(1))
    text = model.encode_text("one")
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    ids = torch.stack([torch.zeros(24), rows.flatten(), columns.flatten()], 1).float()
    prompt = text["prompt"][None]
    with torch.no_grad():
        return model.denoiser(
            hidden_states=z,
            encoder_hidden_states=prompt,
            pooled_projections=text["pooled"][None],
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=ids,
            txt_ids=torch.zeros(prompt.shape[1], 3),
            return_dict=False,
        )[0]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_adapters_at_two_strengths_equal_diffusers_own_sum(clean, two):
    first, second = two
    load_stack([f"{first}=0.7", f"{second}=-0.4"]).apply(clean)
    ours = velocity(clean)
    remove(clean)
    plain = velocity(clean)
    assert (plain - diffusers_velocity(clean)).abs().max() <= 1e-5
    denoiser = clean.denoiser
    for name, path in (("a", first), ("b", second)):
        denoiser.load_lora_adapter(load_file(path), prefix="transformer", adapter_name=name)
    denoiser.set_adapters(["a", "b"], [0.7, -0.4])
    try:
        theirs = diffusers_velocity(clean)
    finally:
        denoiser.unload_lora()
    assert (theirs - plain).abs().max() > 1e-2
    assert (ours - theirs).abs().max() <= 1e-5


def test_files_of_several_tools_add_up_to_w_plus_both_updates(clean):
    fused = fused_lora(rank=2, seed=5)
    whole = stack([replace(Adapter(named(fused)), strength=0.5), Adapter(named(SECOND))])
    sums = dict(cut(updates_of(fused, 0.5)))
    for module, update in updates_of(SECOND).items():
        sums[module] = sums.get(module, 0) + update
    wanted = expected(clean, sums)
    whole.apply(clean)
    assert (velocity(clean) - wanted).abs().max() <= 1e-5
    with pytest.raises(AdapterError, match="not written as one"):
        whole.save(Path("never.safetensors"))
    whole.apply(clean, 0.0)
    remaining = velocity(clean)
    remove(clean)
    assert torch.equal(remaining, velocity(clean))


def test_ranks_add_up_where_both_adapt_a_module():
    found = added_up([(named(FIRST), 1.0), (named(SECOND), 2.0)])
    both, one = BLOCKS[15], BLOCKS[0]
    assert found[f"{both}.lora_A.weight"].shape[0] == 8
    assert found[f"{one}.lora_B.weight"].shape[1] == 3
    assert torch.equal(found[f"{both}.lora_B.weight"][:, 3:], SECOND[both][1] * 2)


def test_an_adapter_is_not_loaded_again_unless_one_of_them_or_a_strength_changes(clean, two):
    whole = load_stack([str(path) for path in two])
    whole.apply(clean)
    kept = clean.denoiser.get_submodule(BLOCKS[0])
    whole.apply(clean)
    assert clean.denoiser.get_submodule(BLOCKS[0]) is kept
    before = velocity(clean)
    whole.parts[0].apply(clean)
    assert not torch.equal(velocity(clean), before)
    whole.apply(clean, 0.5)
    assert not torch.equal(velocity(clean), before)


# -- sets ---------------------------------------------------------------------------------------


def test_a_set_made_with_two_is_made_again_from_its_request_wherever_they_lie(clean, two, tmp_path):
    first, second = two
    made = generate(clean, CAPTION, adapter=load_stack([f"{first}=0.7", str(second)]), **WAYS)
    made.save(tmp_path / "made")
    request = Request.load(tmp_path / "made" / "request.json")[0]
    assert [each.strength for each in request.adapters] == [0.7, 1.0]
    moved = second.rename(tmp_path / "moved.safetensors")
    with pytest.raises(AdapterError):
        load_adapter_of(request)
    adapter = load_adapter_of(request, [str(moved), str(first)])
    again = next(s for _, s in Session(clean).make([Ask(request, adapter=adapter)]))
    assert again.composite.tobytes() == made.composite.tobytes()
    alone = generate(clean, CAPTION, adapter=Adapter.load(first), strength=0.7, **WAYS)
    assert alone.composite.tobytes() != made.composite.tobytes()
    # One panel again: the strengths stay, and the places are new.
    other = reroll(clean, GeneratedSet.load(tmp_path / "made"), [2], seed=9, adapter=adapter)
    assert [each.strength for each in other.request.adapters] == [0.7, 1.0]
    assert other.request.beside[0].file == str(moved)
    assert other.request.shared().beside[0].file == "moved.safetensors"


def test_a_request_names_all_its_adapters_and_decides_their_strengths(clean, two):
    first, second = two
    whole = load_stack([str(first), str(second)])
    request = generate(clean, CAPTION, adapter=whole, strength=0.5, **WAYS).request
    assert [each.strength for each in request.adapters] == [0.5, 0.5]
    with pytest.raises(SettingsError, match="the request decides"):
        load_adapter_of(request, [f"{first}=0.7", str(second)])
    with pytest.raises(AdapterError, match="2 adapters, and 1"):
        load_adapter_of(request, [str(first)])
    with pytest.raises(AdapterError, match="another adapter"):
        Session(clean).make([Ask(request, adapter=Adapter.load(first))])


def test_a_strength_beside_one_file_is_the_strength_of_the_set(clean, two):
    first = two[0]
    made = generate(clean, CAPTION, adapter=load_stack([f"{first}=0.7"]), **WAYS)
    plain = generate(clean, CAPTION, adapter=Adapter.load(first), strength=0.7, **WAYS)
    assert made.request == plain.request
    assert made.composite.tobytes() == plain.composite.tobytes()


def test_both_adapters_stand_in_what_other_tools_read(clean, two, tmp_path):
    made = generate(clean, CAPTION, adapter=load_stack([str(path) for path in two]), **WAYS)
    with Image.open(made.save(tmp_path / "made") / "composite.png") as picture:
        said = picture.text["parameters"]
    assert f"style: {made.request.adapter_sha256[:12]}, adapter: " in said


def test_the_first_that_says_decides_recipe_and_canvas_and_others_are_named(two, tmp_path):
    first, second = two
    slides = load_recipe("ppt-template")
    own = {"recipe": slides, "layout": slides.canvas}
    third = adapter_file(tmp_path / "slides.safetensors", FIRST, 3, **own)
    whole = load_stack([str(first), str(third)])
    assert whole.info.recipe.name == "film-storyboard"
    (note,) = whole.notes
    assert "slides.safetensors was trained for ppt-template" in note
    assert "those of style.safetensors" in note
    other = adapter_file(tmp_path / "apart.safetensors", FIRST, 3, text="isolated")
    (note,) = load_stack([str(first), str(other)]).notes
    assert "apart.safetensors was trained with `text` isolated; what panels read is joint" in note
    assert load_stack([str(first), str(second)]).notes == ()
    bare = replace(Adapter.load(second), info=None)
    assert stack([bare, Adapter.load(third)]).info.recipe.name == "ppt-template"
    assert load_stack([]) is None


# -- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.safetensors", ("a.safetensors", None)),
        ("a.safetensors=0.7", ("a.safetensors", 0.7)),
        ("a=b=-1", ("a=b", -1.0)),
        ("owner/name:file=1e-1", ("owner/name:file", 0.1)),
        ("a=b", ("a=b", None)),
        ("a=1.2.3", ("a=1.2.3", None)),
        ("a=\u0663", ("a=\u0663", None)),
    ],
)
def test_a_number_behind_a_file_is_its_strength(text, parts):
    assert split_strength(text) == parts


def test_a_file_that_is_called_so_is_itself(tmp_path):
    path = tmp_path / "a=2"
    path.write_text("")
    assert split_strength(str(path)) == (str(path), None)


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf", "1e300", "101"])
def test_a_strength_that_is_none_is_refused(strength):
    with pytest.raises(SettingsError, match="between -100 and 100"):
        settings_of(GenerateSettings, {"prompt": ["x"], "adapter": [f"a={strength}"]})


def test_one_adapter_may_stand_alone_as_before():
    assert settings_of(GenerateSettings, {"adapter": "a.safetensors"}).adapter == ("a.safetensors",)
    assert settings_of(GenerateSettings, {}).adapter == ()


def test_an_arm_of_an_evaluation_may_be_several_adapters(two):
    first, second = two
    mixed = [f"mix={first}=0.7+{second}", f"{first}+{second}=0.5"]
    arms = arms_of([*mixed, f"{first}=2", str(second)])
    assert [arm.name for arm in arms] == ["base", "mix", "style+sets", "style", "sets"]
    strengths = [[part.strength for part in arm.adapter.parts] for arm in arms[1:]]
    assert strengths == [[0.7, 1.0], [1.0, 0.5], [2.0], [1.0]]
