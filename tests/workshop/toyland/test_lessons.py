"""The captioner's lessons: what it is taught is what it is asked."""

import random

import pytest
import torch
import transformers
from PIL import Image

from iclora.sets.recipe import load_recipe
from iclora.toyland.shipped import captioner_folder
from iclora.toyland.tasks import TASKS, draw_set
from iclora.vlm import Ask, load_vision_model
from iclora.vlm.asking import read_answer
from iclora.vlm.local import conversation
from workshop.toyland.pretrain import captioner, lessons


@pytest.fixture(scope="module")
def shipped():
    return transformers.AutoProcessor.from_pretrained(captioner_folder())


def test_a_lesson_is_the_conversation_the_captioner_will_have(shipped):
    drawn = lessons.draw_sets(0, 12)
    batch = lessons.answer_batch(random.Random(3), shipped, drawn, 6)
    tokenizer = shipped.tokenizer
    rng = random.Random(3)
    pictures = 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        task, canvas = drawn.sets[rng.randrange(len(drawn.sets))]
        if rng.random() < lessons.IDEAS:
            ask, answer = lessons.ask_for_idea(rng, task)
            panels = []
        else:
            panels = [panel.render() for panel in canvas.panels]
            ask = lessons.ask_to_look(rng, task, len(panels))
            answer = lessons.answer_of(rng, task, canvas)
        asked = type(ask)(ask.words, tuple(panels), ask.markers)
        wanted = shipped.apply_chat_template(
            [conversation(asked)],
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


def test_what_it_is_taught_to_answer_is_a_caption_of_its_recipe(shipped):
    rng = random.Random(0)
    for task in TASKS.values():
        recipe = load_recipe(task.recipe)
        for _ in range(10):
            canvas, caption = draw_set(task, rng)
            text = lessons.answer_of(rng, task, canvas)
            assert read_answer(text, recipe, lambda t: len(t.split()), 128).render() == text
            assert len(shipped.tokenizer(caption.text).input_ids) < 100


def test_a_new_captioner_answers_in_the_standard_layout(processor, tmp_path):
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
