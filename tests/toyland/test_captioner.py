"""The captioner that ships with toyland, by the ways users reach it."""

from functools import partial

import pytest

from iclora.errors import VisionModelError
from iclora.progress import Progress
from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.toyland.shipped import captioner_folder
from iclora.toyland.tasks import TASKS, write_sets
from iclora.toyland.wording import traits_said
from iclora.vlm import load_vision_model
from iclora.vlm.caption import caption_dataset, write_prompt
from iclora.vlm.openai import OpenAIModel
from tests import processes
from tests.vlm.test_local import serving, serving_here

SHIPPED = captioner_folder()


@pytest.mark.machine
def test_sets_go_through_a_server_that_dies_half_way_and_then_on_this_machine(tmp_path):
    task, port = TASKS["film-storyboard"], processes.port_aside()
    for name in ("remote", "local"):
        write_sets(task, tmp_path / name, 9, captions=False)
    data = open_dataset(tmp_path / "remote")
    remote = partial(
        OpenAIModel, str(SHIPPED), f"http://localhost:{port}/v1", together=2, schema=False
    )
    with serving(SHIPPED, port, tmp_path) as (process, _):

        def kill(event):
            if event.done == 3:
                process.kill()
                process.join()

        with pytest.raises(VisionModelError, match=r"no connection.*of 9 captions are written"):
            caption_dataset(data, remote(retries=0), progress=Progress(kill))
    first = {f.parent.name: f.read_text() for f in (tmp_path / "remote").rglob("caption.txt")}
    assert 3 <= len(first) <= 5
    with serving_here(SHIPPED) as url:
        again = OpenAIModel(str(SHIPPED), url, together=2, schema=False)
        summary = caption_dataset(open_dataset(data.path), again)
    assert set(summary.kept) == set(first)
    assert len(summary.written) == 9 - len(first)
    assert not [p for r in check_dataset(open_dataset(data.path)) for p in r.problems if p.caption]
    # The same sets by the same model without a server.
    local = load_vision_model(f"local:{SHIPPED}", device="cpu", together=5)
    assert len(caption_dataset(open_dataset(tmp_path / "local"), local).written) == 9
    for file in data.path.rglob("caption.txt"):
        assert file.read_text() == (tmp_path / "local" / file.parent.name / file.name).read_text()


def test_an_idea_becomes_a_prompt_that_says_what_the_idea_says():
    captioner = load_vision_model("toyland", device="cpu")
    recipe = TASKS["film-storyboard"].small_recipe
    text = write_prompt(recipe, "a green rabbit with a crown", captioner, limit=128)
    overview = recipe.parse(text).overview
    assert (
        traits_said(overview, "character").items() >= {"kind": "rabbit", "colour": "green"}.items()
    )
