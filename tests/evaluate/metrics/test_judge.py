"""A model as the judge: what it is asked, what its answers mean, what is counted as none."""

from importlib.resources import files

import pytest
import torch
import transformers

from iclora.errors import VisionModelError
from iclora.evaluate.metrics.judge import Judge, read_score
from iclora.evaluate.metrics.registry import load_metric
from iclora.vlm.base import Answer, VisionModel
from tests.conftest import picture
from tests.evaluate.metrics.test_base import figures_of, made_of


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("4", 4),
        (" 5.\n", 5),
        ("4/5", 4),
        ("3 out of 5", 3),
        ("**Score: 2**", 2),
        ('{"score": 4}', 4),
        ('```json\n{"score": 1}\n```', 1),
        ("<think>Panel 1 and 2 ... 3 cats</think>\n5", 5),
        ('{"score": 4.0}', 4),
        ("The score is 4, since 4 it must be", 4),
        ("Panels 1 to 3 agree.\n</think>\n4", 4),
        ('Sure! ```json\n{"score": 2}\n``` as 3 panels differ', 2),
        ('<|begin_of_box|>{"score": "5"}<|end_of_box|>', 5),
        ("1. Hair: the same.\n2. Coat: another.\n**Score:** 3", 3),
        ("\\boxed{4}", 4),
        ("4<|im_end|></s>", 4),
        ('{"score": "4/5"}', 4),
    ],
)
def test_a_mark_is_read_in_every_usual_form(text, mark):
    assert read_score(text) == mark


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        "between 2 and 3",
        "0",
        "6",
        "7/10",
        "-1",
        "3.5",
        '{"score": true}',
        '{"score": "good"}',
        "{",
        '{"mark": 3}',
        "[4]]{ 3 5",
        "<think>4",
        "4</think>",
        '{"score": NaN}',
        '{"score": 1e999}',
        '{"score": [4]}',
        '{"score":' * 20_000,
    ],
)
def test_what_is_no_mark_is_not_taken_for_one(text):
    assert read_score(text) is None


class Scripted(VisionModel):
    """Answers from a list for each set, in turn."""

    def __init__(self, answers):
        super().__init__("scripted")
        self.answers, self.asked = answers, []

    def answer(self, asks):
        # Last first: answers come in whatever order.
        for number, ask in reversed(list(enumerate(asks))):
            self.asked.append(ask)
            reply = self.answers[int(ask.pictures[0].getpixel((0, 0))[0])].pop(0)
            yield number, reply if isinstance(reply, Exception) else Answer(reply)


def flat(number):
    panel = picture(32, 32, number)
    panel.putpixel((0, 0), (number, 0, 0))
    return made_of([panel, *(picture(32, 32, 9),) * 2])


def test_marks_belong_to_their_sets_and_failures_are_counted_not_hidden():
    silent = VisionModelError("no answer", "Try again.")
    judge = Judge(Scripted([["4"], ["no idea", "5"], [silent, silent], ["none", "nothing"]]))
    found = figures_of(judge, *map(flat, range(4)))
    assert found == [
        {"same identity": 4, "unanswered": 0},
        {"same identity": 5, "unanswered": 0},
        {"unanswered": 1},
        {"unanswered": 1},
    ]


def test_it_is_shown_the_panels_and_told_what_the_set_should_be():
    captioner = Scripted([["no idea", "2"]])
    figures_of(Judge(captioner), flat(0))
    first, again = captioner.asked
    assert len(first.pictures) == 3
    assert made_of([picture(32, 32)] * 3).recipe.summary in first.as_text
    assert first.as_text.endswith("Answer with one number from 1 to 5 and nothing else.")
    assert first.schema["properties"]["score"]["enum"] == [1, 2, 3, 4, 5]
    assert again.earlier[0].answer == "no idea"
    assert again.as_json == first.as_json


def test_the_captioner_that_ships_runs_as_a_judge_and_has_nothing_to_say():
    from iclora.vlm import load_vision_model

    captioner = load_vision_model("toyland", device="cpu")
    judge = Judge(captioner)
    captioner.longest = 8
    assert figures_of(judge, flat(0)) == [{"unanswered": 1}]


def test_a_judge_takes_few_sets_at_a_time_and_gives_the_memory_back():
    class Counting(Scripted):
        freed, most = 0, 0

        def answer(self, asks):
            self.most = max(self.most, len(asks))
            yield from super().answer(asks)

        def free(self):
            self.freed += 1

    captioner = Counting([["4"] * 40])
    found = Judge(captioner).of_sets(flat(0) for _ in range(40))
    assert len(list(found)) == 40
    assert (captioner.most, captioner.freed) == (16, 1)


def test_a_local_judge_takes_the_device_only_while_it_judges(monkeypatch):
    """Weights on the device before sets are made would take the base's room."""
    moves = []
    move = torch.nn.Module.to

    def watched(self, *args, **settings):
        if isinstance(self, transformers.PreTrainedModel):
            moves.append(args[0])
        return move(self, *args, **settings)

    monkeypatch.setattr(torch.nn.Module, "to", watched)
    folder = files("iclora") / "toyland" / "weights" / "toyland-captioner"
    judge = load_metric(f"local:{folder}", device="cpu")
    assert "cpu" not in moves
    assert figures_of(judge, flat(0))
    assert moves == ["cpu", "cpu", "cpu"], "there for both questions, and away again"
