"""The captioner that ships with toyland: what it is taught is what it is asked."""

import random
from functools import partial

import pytest
import torch
import transformers
from PIL import Image

from iclora.errors import VisionModelError
from iclora.progress import Progress
from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import load_recipe
from iclora.toyland.captions import measure, measure_ideas
from iclora.toyland.shipped import captioner_folder
from iclora.toyland.tasks import TASKS, draw_set, write_sets
from iclora.toyland.wording import traits_said
from iclora.vlm import Answer, VisionModel, load_vision_model
from iclora.vlm.asking import read_answer
from iclora.vlm.caption import caption_dataset, write_prompt
from iclora.vlm.local import _conversation
from iclora.vlm.openai import OpenAIModel
from tests.vlm.test_local import free_port, serving
from workshop.toyland.pretrain import captioner
from workshop.toyland.pretrain.stage import Settings


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    captioner.make_processor(Settings()).save_pretrained(folder)
    return transformers.AutoProcessor.from_pretrained(folder)


def test_a_lesson_is_the_conversation_the_captioner_will_have(processor):
    drawn = captioner.draw_sets(0, 12)
    batch = captioner.answer_batch(random.Random(3), processor, drawn, 6)
    tokenizer = processor.tokenizer
    rng = random.Random(3)
    pictures = 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        task, canvas = drawn.sets[rng.randrange(len(drawn.sets))]
        if rng.random() < captioner._IDEAS:
            ask, answer = captioner._idea(rng, task)
            panels = []
        else:
            panels = [panel.render() for panel in canvas.panels]
            ask = captioner._look(rng, task, len(panels))
            answer = captioner._words_for(rng, task, canvas)
        asked = type(ask)(ask.words, tuple(panels), ask.markers)
        wanted = processor.apply_chat_template(
            [_conversation(asked)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        length = wanted["input_ids"].shape[1]
        assert torch.equal(ids[:length], wanted["input_ids"][0])
        assert (labels[:length] == -100).all()
        assert tokenizer.decode(labels[labels >= 0], skip_special_tokens=True) == answer
        if panels:
            ours = batch["pixel_values"][pictures : pictures + len(panels)]
            torch.testing.assert_close(ours, wanted["pixel_values"], atol=1e-5, rtol=0)
            pictures += len(panels)


def test_what_it_is_taught_to_answer_is_a_caption_of_its_recipe(processor):
    rng = random.Random(0)
    for task in TASKS.values():
        recipe = load_recipe(task.recipe)
        for _ in range(10):
            canvas, caption = draw_set(task, rng)
            text = captioner._words_for(rng, task, canvas)
            assert read_answer(text, recipe, lambda t: len(t.split()), 128).render() == text
            assert len(processor.tokenizer(caption.text).input_ids) < 100


def test_a_new_captioner_answers_in_the_standard_layout(processor, tmp_path):
    from iclora.vlm import Ask

    torch.manual_seed(0)
    model = captioner.new_captioner(processor)
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 9e6
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    local = load_vision_model(f"local:{tmp_path}")
    local.longest = 8
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (80, 40), "blue")
    asks = [
        Ask("One.", (red, blue), ("[LEFT]", "[RIGHT]")),
        Ask("A much longer question than the first one.", (blue, red, red), ("[A]", "[B]", "[C]")),
        Ask("No pictures.", (), ("[A]",)),
    ]
    together = dict(local.answer(asks))
    local.together = 1
    alone = dict(local.answer(asks))
    assert together == alone
    assert together[0].written <= 8


class Witness(VisionModel):
    """Answers with given texts."""

    def __init__(self, texts):
        super().__init__("witness")
        self.texts = texts

    def answer(self, asks):
        yield from enumerate(Answer(text) for text in self.texts)


def test_a_captioner_is_measured_by_what_is_true_of_what_it_says():
    task = TASKS["film-storyboard"]
    drawn = [
        draw_set(task, random.Random(f"captions {task.recipe} {n}"), unseen=True) for n in range(4)
    ]
    true = [caption.text for _, caption in drawn]
    whole = {"whole": 1, "true": 1, "traits a panel": 3, "one name": 1}
    assert measure(Witness(true), task, 4) == whole
    # One answer is no caption, and one describes another set.
    found = measure(Witness(["no", true[0], *true[2:]]), task, 4)
    assert found["whole"] == 0.75
    assert 0.6 < found["true"] < 0.95


# -- the one that ships ---------------------------------------------------------------------------


SHIPPED = captioner_folder()


@pytest.mark.parametrize("name", list(TASKS))
def test_what_it_says_of_held_out_sets_is_whole_and_true(name):
    found = measure(load_vision_model("toyland", device="cpu", together=6), TASKS[name], 6)
    # Two portraits of one scene and pose are rightly told in the same words, which is refused.
    assert found["whole"] == 1 or name == "portrait-photography"
    assert found["true"] >= 0.9
    assert found["traits a panel"] >= 1
    assert found.get("one name", 1) == 1


def test_twenty_sets_through_a_server_that_dies_half_way_and_then_on_this_machine(tmp_path):
    task, port = TASKS["film-storyboard"], free_port()
    for name in ("remote", "local"):
        write_sets(task, tmp_path / name, 20, captions=False)
    data = open_dataset(tmp_path / "remote")
    remote = partial(
        OpenAIModel, str(SHIPPED), f"http://localhost:{port}/v1", together=4, schema=False
    )
    with serving(SHIPPED, port) as (process, _):

        def kill(event):
            if event.done == 6:
                process.kill()
                process.wait()

        with pytest.raises(VisionModelError, match=r"no connection.*of 20 captions are written"):
            caption_dataset(data, remote(retries=0), progress=Progress(kill))
    first = {f.parent.name: f.read_text() for f in (tmp_path / "remote").rglob("caption.txt")}
    assert 6 <= len(first) <= 10
    with serving(SHIPPED, port):
        summary = caption_dataset(open_dataset(data.path), remote())
    assert set(summary.kept) == set(first)
    assert len(summary.written) == 20 - len(first)
    assert not [p for r in check_dataset(open_dataset(data.path)) for p in r.problems if p.caption]
    # The same sets by the same model without a server.
    local = load_vision_model(f"local:{SHIPPED}", device="cpu", together=5)
    assert len(caption_dataset(open_dataset(tmp_path / "local"), local).written) == 20
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


@pytest.mark.parametrize("name", list(TASKS))
def test_every_idea_becomes_a_whole_prompt_at_the_first_try(name):
    found = measure_ideas(load_vision_model("toyland", device="cpu", together=6), TASKS[name], 6)
    assert found["ideas whole"] == 1
    assert found["ideas kept"] >= 0.3
