"""Previews: the base beside the adapter, on the canvas that training sees."""

import torch
from PIL import Image

from iclora.adapter import attach, remove
from iclora.making import sampling
from iclora.making.preview import make_preview
from iclora.making.session import generate
from iclora.progress import Event, Progress
from iclora.sets.layout import Layout
from iclora.sets.recipe import LayoutSpec
from tests.conftest import CAPTION
from tests.making.helpers import STORY


def test_a_preview_shows_the_base_beside_the_adapter(clean, tmp_path):
    heard: list[Event] = []
    draw = make_preview(
        clean,
        STORY,
        [CAPTION],
        resolution=96,
        seed=0,
        folder=tmp_path,
        progress=Progress(heard.append),
    )
    parameters = attach(clean, rank=2, alpha=2, targets="attention", seed=0)
    heard.clear()
    draw(1)
    # Once for the base, once for the adapter; nobody waits in silence for either.
    steps = {event.total for event in heard}
    assert {event.what for event in heard} == {"drawing previews"}
    assert [event.done for event in heard if event.done] == [*range(1, steps.pop() + 1)] * 2
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.2)
    draw(2)
    one, two = (Image.open(tmp_path / f"step-00000{i}.png").convert("RGB") for i in (1, 2))
    box = STORY.canvas.fit(STORY.canvas.sizes, 96**2, 16)
    base, adapted = (16, 40), (16 + box.width + 16, 40)

    def cut(sheet, at):
        return sheet.crop((*at, at[0] + box.width, at[1] + box.height)).tobytes()

    assert cut(one, base) == cut(two, base)
    assert cut(one, adapted) == cut(one, base)  # B is still zero
    assert cut(two, adapted) != cut(two, base)
    for name, where in (("base-1", base), ("step-000002-1", adapted)):
        with Image.open(tmp_path / f"{name}.png") as alone:
            assert alone.convert("RGB").tobytes() == cut(two, where)


def test_previews_stand_on_the_canvas_that_was_fitted_whatever_its_boxes(
    clean, tmp_path, monkeypatch
):
    """Boxes that were fitted once may miss the canvas when they are fitted again."""
    boxes = ((0, 0, 96, 96), (96, 0, 48, 48), (96, 48, 48, 48))
    layout = LayoutSpec(width=144, height=96, boxes=boxes)
    recipe = STORY.model_copy(update={"layout": layout})
    recipe.__dict__.pop("canvas", None)
    seen = []
    noise = sampling.panel_noise
    monkeypatch.setattr(
        sampling, "panel_noise", lambda where, *a: seen.append(where) or noise(where, *a)
    )
    monkeypatch.setattr(Layout, "resized", None)
    attach(clean, rank=1, alpha=1, targets="attention", seed=0)
    make_preview(clean, recipe, [CAPTION], resolution=100, seed=0, folder=tmp_path)(1, False)
    assert set(seen) == {recipe.canvas.fit(recipe.canvas.sizes, 100**2, 16)}


def test_a_denoiser_without_a_lora_is_drawn_alone(clean, tmp_path):
    """Where every weight is trained there is no base beside it any more; texts are the run's."""
    remove(clean)
    where = {"resolution": 96, "seed": 0, "folder": tmp_path}
    draw = make_preview(clean, STORY, [CAPTION], text="isolated", **where)
    sheet = draw(2, True)
    box = STORY.canvas.fit(STORY.canvas.sizes, 96**2, 16)
    assert sheet.width == box.width + 2 * 16
    with Image.open(tmp_path / "step-000002-1.png") as alone:
        made = generate(clean, CAPTION, recipe=STORY, size=box.size, text="isolated")
        assert alone.convert("RGB").tobytes() == made.composite.tobytes()
    assert not (tmp_path / "base-1.png").exists()
