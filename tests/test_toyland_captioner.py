"""The captioner that ships with toyland: what it is taught is what it is asked."""

import random

import pytest
import torch
import transformers
from PIL import Image

from iclora.captioners.asking import read_answer
from iclora.captioners.local import _conversation
from iclora.recipe import load_recipe
from iclora.toyland.pretrain import captioner
from iclora.toyland.pretrain.stage import Settings
from iclora.toyland.tasks import TASKS, draw_set
from iclora.toyland.world import draw_canvas, draw_caption, idea_of, traits_said


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
        if rng.random() < 0.15:
            ask, answer = captioner._idea(rng, task)
            panels = []
        else:
            panels = [panel.render() for panel in canvas.panels]
            ask = captioner._look(rng, task, len(panels))
            answer = captioner._words_for(rng, task, canvas)
        asked = type(ask)(ask.words, tuple(panels), ask.markers)
        wanted = processor.apply_chat_template(
            [_conversation(asked)], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
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


def test_words_are_read_back_to_the_traits_they_state():
    rng = random.Random(0)
    for _ in range(300):
        canvas = draw_canvas(rng)
        caption = draw_caption(rng, canvas)
        topic = canvas.panels[0].topic
        for (start, end), said in zip(caption.spans, caption.said, strict=True):
            stated = {t: v for t, v in said.items() if t not in caption.shared}
            found = traits_said(caption.text[start:end], topic)
            assert {**found, **caption.shared} == {**stated, **caption.shared}


def test_an_idea_states_just_what_it_was_given():
    rng = random.Random(0)
    for _ in range(50):
        panel = draw_canvas(rng, "character").panels[0]
        said = {t: panel.traits[t] for t in ("kind", "colour")}
        assert traits_said(idea_of(rng, "character", said), "character") == said


def test_a_new_captioner_answers_in_the_standard_layout(processor, tmp_path):
    from iclora.captioners import Ask, load_captioner

    torch.manual_seed(0)
    model = captioner.new_captioner(processor)
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 9e6
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    local = load_captioner(f"local:{tmp_path}")
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
