"""An evaluation on the tiny base: stopped and gone on, its figures, its page, its file."""

import gc
import json
import re
import time
import weakref

import pytest

from iclora.errors import SettingsError
from iclora.evaluate.making import make_sets, read_costs
from iclora.evaluate.metrics.base import Metric
from iclora.evaluate.run import evaluate
from iclora.evaluate.setup import arms_of, cases_of_prompts, set_up
from iclora.making.made import GeneratedSet
from iclora.making.request import Request
from iclora.making.session import generate
from iclora.progress import Cancelled, Progress
from iclora.sets.recipe import load_recipe
from iclora.settings import SampleSettings
from tests.conftest import CAPTION, picture

STORY = load_recipe("film-storyboard")
SIZE = (96, 192)


def setup_of(model, out, files=(), modes=(None,), given=None, seeds=(0, 1), **how):
    cases = cases_of_prompts([CAPTION, CAPTION.replace("Ana", "Bo")], seeds, given)
    arms = arms_of([str(file) for file in files], modes)
    settings = SampleSettings(**{"size": SIZE, "steps": 1, **how})
    return set_up(model, STORY, arms, cases, out, settings)


class Redness(Metric):
    """How red a set's first panel is, which pictures alone decide."""

    name, main = "red", "share"
    figures = {"share": "redness <b>of</b> panel 1"}  # noqa: RUF012

    def __init__(self):
        super().__init__("a test")
        self.notes.append("what a reader should know")

    def of_sets(self, sets):
        for made in sets:
            yield {"share": made.panels[0].resize((1, 1)).getpixel((0, 0))[0] / 255}

    def across_seeds(self, sets):
        return {"seeds": float(len(sets))}


def test_sets_equal_those_of_generate_and_their_costs_are_kept(clean, tmp_path):
    setup = setup_of(clean, tmp_path)
    seen, began = [], time.monotonic()
    make_sets(clean, setup, progress=Progress(seen.append))
    whole = time.monotonic() - began
    assert [(e.note, e.done, e.total) for e in seen if e.what == "making"] == [
        ("base", n, 4) for n in (1, 2, 3, 4)
    ]
    made = GeneratedSet.load(tmp_path / "base" / "0002")
    single = generate(clean, CAPTION, recipe=STORY, size=SIZE, steps=1, seed=1)
    assert made.composite.tobytes() == single.composite.tobytes()
    assert made.request == single.request
    costs = read_costs(setup, setup.arms[0])
    assert set(costs) == {case.key for case in setup.cases}
    assert all(cost.seconds > 0 and cost.memory > 1e7 for cost in costs.values())
    assert sum(cost.seconds for cost in costs.values()) < whole


def test_a_stopped_evaluation_makes_only_what_is_missing(clean, tmp_path, monkeypatch):
    setup = setup_of(clean, tmp_path)

    progress = Progress(lambda e: e.what == "making" and e.done == 2 and progress.cancel())
    with pytest.raises(Cancelled):
        make_sets(clean, setup, progress=progress)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("base/*/composite.png")}
    assert len(before) == 2
    times = tmp_path / "base" / "times.jsonl"
    times.write_text(times.read_text() + '{"set": "00')  # a kill tears a line
    made = []
    velocity = clean.velocity
    monkeypatch.setattr(clean, "velocity", lambda *a: made.append(1) or velocity(*a))
    table = evaluate(clean, setup_of(clean, tmp_path), [Redness()])
    assert len(made) == 2
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    assert table.rows["red share"].estimate("base").count == 4
    # Figures come from what lies there, not from what was made now.
    again = evaluate(clean, setup_of(clean, tmp_path), [Redness()])
    assert len(made) == 2
    assert again.rows["red share"].values == table.rows["red share"].values


@pytest.mark.parametrize("name", ["composite.png", "panel-2.png", "latents.safetensors"])
def test_a_damaged_set_of_a_stopped_evaluation_is_made_again_and_said(clean, tmp_path, name):
    whole = evaluate(clean, setup_of(clean, tmp_path), [Redness()])
    path = tmp_path / "base" / "0002" / name
    expected = path.read_bytes()
    path.write_bytes(expected[: len(expected) // 2])
    said = []
    table = evaluate(clean, setup_of(clean, tmp_path), [Redness()], warn=said.append)
    assert path.read_bytes() == expected
    assert (tmp_path / "base" / "damaged-0002").is_dir()
    (text,) = said
    assert "0002 is damaged" in text
    assert table.rows["red share"].values == whole.rows["red share"].values


def test_a_request_cut_short_does_not_end_an_evaluation(clean, tmp_path):
    make_sets(clean, setup_of(clean, tmp_path, seeds=(0,)))
    path = tmp_path / "base" / "0001" / "request.json"
    expected = path.read_bytes()
    path.write_bytes(expected[:50])
    said = []
    make_sets(clean, setup_of(clean, tmp_path, seeds=(0,)), warn=said.append)
    assert path.read_bytes() == expected
    assert len(said) == 1


def test_a_second_process_that_evaluates_into_the_same_folder_is_refused(clean, tmp_path):
    refused = []

    def meanwhile(event):
        if event.what == "making":
            with pytest.raises(SettingsError, match="another process is writing"):
                evaluate(clean, setup_of(clean, tmp_path, seeds=(0,)))
            refused.append(event.done)

    evaluate(clean, setup_of(clean, tmp_path, seeds=(0,)), progress=Progress(meanwhile))
    assert refused == [1, 2]
    assert not (tmp_path / ".lock").exists()


def test_sets_of_another_evaluation_are_not_taken_for_this_ones(clean, tmp_path):
    make_sets(clean, setup_of(clean, tmp_path, seeds=(0,)))
    with pytest.raises(SettingsError, match="0001 holds a set of another evaluation"):
        setup_of(clean, tmp_path, seeds=(0,), steps=2)


def test_another_version_and_a_moved_adapter_make_it_no_other_evaluation(clean, lora, tmp_path):
    make_sets(clean, setup_of(clean, tmp_path / "out", [lora], seeds=(0,)))
    path = tmp_path / "out" / "run" / "0001" / "request.json"
    request = json.loads(path.read_text())
    path.write_text(json.dumps({**request, "versions": {"torch": "1.0"}}))
    moved = tmp_path / "elsewhere" / "run" / "adapter.safetensors"
    moved.parent.mkdir(parents=True)
    lora.rename(moved)
    again = setup_of(clean, tmp_path / "out", [moved], seeds=(0,))
    assert all(again.is_made(arm, n) for arm in again.arms for n in range(2))


def test_few_sets_are_in_memory_at_once(clean, tmp_path):
    setup = setup_of(clean, tmp_path, seeds=(0, 1, 2))
    alive = []

    class Watching(Redness):
        def of_sets(self, sets):
            for made in sets:
                alive.append(weakref.ref(made))
                gc.collect()
                assert sum(ref() is not None for ref in alive) <= 4, "the seeds of a prompt"
                yield {"share": 0.0}

        def across_seeds(self, sets):
            assert len(sets) == 3
            return {"seeds": 3.0}

    table = evaluate(clean, setup, [Watching()])
    assert len(alive) == 6
    assert table.rows["red seeds"].values["base"] == {"prompt 1": 3.0, "prompt 2": 3.0}


def test_a_batch_makes_the_same_sets_as_one_by_one(clean, tmp_path):
    make_sets(clean, setup_of(clean, tmp_path / "one"))
    make_sets(clean, setup_of(clean, tmp_path / "many"), together=3)
    for number in ("0001", "0002", "0003", "0004"):
        one, many = (GeneratedSet.load(tmp_path / n / "base" / number) for n in ("one", "many"))
        assert one.request.same_pixels(many.request)
        differences = [
            abs(a - b)
            for a, b in zip(one.composite.tobytes(), many.composite.tobytes(), strict=True)
        ]
        assert max(differences) <= 1


def test_the_report_shows_every_arm_and_differences_to_the_first(clean, lora, tmp_path):
    setup = setup_of(clean, tmp_path, [lora], ["sdedit", "boost"], {2: picture(96, 64)})
    table = evaluate(clean, setup, [Redness(), Redness()])
    data = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    names = ["base, sdedit", "base, boost", "run, sdedit", "run, boost"]
    assert list(data["arms"]) == names
    assert data["arms"]["run, boost"]["mode"] == "boost"
    assert set(data["figures"]) == {
        "pixels given error",
        "pixels seam",
        "red share",
        "red seeds",
        "red-2 share",
        "red-2 seeds",
        "seconds",
        "memory",
    }
    for arm in data["figures"]["pixels given error"]["arms"].values():
        assert arm["mean"] == 0
    share = data["figures"]["red share"]["arms"]
    first, other = share["base, sdedit"], share["run, boost"]
    assert first["difference"] is None
    keys = list(first["values"])
    assert len(keys) == 4
    mean = sum(other["values"][k] - first["values"][k] for k in keys) / 4
    assert other["difference"]["mean"] == pytest.approx(mean)
    assert table.rows["red seeds"].values["run, boost"] == {"prompt 1": 2.0, "prompt 2": 2.0}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 16
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "redness &lt;b&gt;of&lt;/b&gt; panel 1" in page
    assert "&lt;Ana&gt;" in page
    assert "what a reader should know" in page
    assert "given: panel 2" in page
    assert "<script" not in page


def test_the_request_of_a_set_makes_it_again(clean, tmp_path):
    make_sets(clean, setup_of(clean, tmp_path, given={1: picture(96, 64)}, seeds=(5,)))
    request, known = Request.load(tmp_path / "base" / "0001" / "request.json")
    assert set(known) == {1}
    assert request.given.keys() == {1}


def test_one_seed_is_said_to_show_no_diversity(clean, tmp_path):
    few = evaluate(clean, setup_of(clean, tmp_path / "a", seeds=(0,)), [Redness()])
    more = evaluate(clean, setup_of(clean, tmp_path / "b"), [Redness()])
    assert any("no diversity" in note for note in few.notes)
    assert "red seeds" not in few.rows
    assert not any("no diversity" in note for note in more.notes)
    assert any("over 2 prompts" in note for note in more.notes)
