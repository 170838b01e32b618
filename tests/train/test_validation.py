"""Held-out sets: never trained on, measured alike at every checkpoint, and what they decide."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iclora.errors import DatasetError, SettingsError
from iclora.models import flow
from iclora.sets.layout import token_mask
from iclora.train.run import train
from iclora.train.validation import LEVELS, Validation, best_step, hold_out, measure
from tests.conftest import encoded, stop_after


@pytest.fixture
def sets(clean, config, tmp_path):
    settings = config(resolutions=(64,))
    return encoded(clean, settings, tmp_path / "cache").sets


def rows(folder):
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


def test_the_measure_is_the_mean_velocity_error_by_level_and_panel(clean, sets):
    found = measure(clean, sets[:2], 7, 1.0)
    expected = np.zeros((2, len(LEVELS), 4))
    for s, entry in enumerate(sets[:2]):
        layout, x0 = entry.layouts[0], entry.latents(0).double()
        for i, level in enumerate(LEVELS):
            rng = flow.generator("validation", 7, entry.name, str(level))
            eps = torch.randn(x0.shape, generator=rng).double()
            z = ((1 - level) * x0 + level * eps).float()[None]
            v = (
                clean.velocity(
                    z, torch.tensor([level]), entry.texts(), (layout.width, layout.height), 1.0
                )[0]
                .detach()
                .double()
            )
            error = (v - eps + x0).square().numpy()
            expected[s, i, 0] = error.mean()
            for panel in range(3):
                inside = token_mask(layout, [panel], clean.grid).flatten()
                expected[s, i, panel + 1] = error[inside].mean()
    assert found.loss == pytest.approx(expected[:, :, 0].mean(), rel=1e-4)
    assert found.by_level == pytest.approx(expected[:, :, 0].mean(0), rel=1e-4)
    assert found.by_panel == pytest.approx(expected[:, :, 1:].mean((0, 1)), rel=1e-4)
    assert measure(clean, sets[:2], 7, 1.0) == found
    assert measure(clean, sets[:2], 8, 1.0) != found


def test_a_set_stays_held_out_when_others_join(sets):
    class Named:
        scene = ""

        def __init__(self, name):
            self.name = name

    names = [Named(f"{i:04d}") for i in range(40)]
    kept, few = hold_out(names[:20], 0.2, 0)
    _, more = hold_out(names, 0.1, 0)
    assert len(few) == len(more) == 4
    assert set(more) & set(names[:20]) <= set(few)
    assert sorted([*kept, *few], key=lambda s: s.name) == names[:20]
    assert hold_out(names, 0.0, 0) == (names, [])
    assert hold_out(names, 0.2, 1) != hold_out(names, 0.2, 0)


@pytest.mark.parametrize("seed", range(5))
def test_no_scene_is_trained_on_and_held_out(seed):
    sets = [SimpleNamespace(name=f"{i:04d}", scene=f"film, scene {i // 3}") for i in range(30)]
    kept, held = hold_out(sets, 0.2, seed)
    assert not {each.scene for each in kept} & {each.scene for each in held}
    assert 6 <= len(held) <= 8


def test_trained_sets_to_compare_with_are_not_simply_the_first_ones(config, tmp_path):
    class Named:
        scene = ""

        def __init__(self, name):
            self.name = name

    sets = [Named(f"{i:04d}") for i in range(40)]
    settings = config(held_out=0.2)
    trained, held = hold_out(sets, 0.2, 0)
    chosen = Validation.of(settings, held, trained, tmp_path / "v").trained
    assert len(chosen) == len(held) == len(set(chosen))
    assert set(chosen) <= set(trained)
    assert set(chosen) != set(trained[: len(held)])
    # A set's name decides, as for those held out: others that join move few.
    more = Validation.of(settings, held, [*trained, Named("9999")], tmp_path / "v").trained
    assert len(set(more) & set(chosen)) >= len(chosen) - 1
    assert Validation.of(settings, [], sets, tmp_path / "v") is None


def test_held_out_sets_are_measured_at_every_checkpoint_and_never_trained_on(clean, config, plots):
    result = train(config(held_out=0.34, steps=4), clean)
    found = rows(result.folder)
    assert [row["step"] for row in found] == [0, 2, 4]
    _, held = hold_out([SimpleNamespace(name=f"{i:04d}", scene="") for i in (1, 2, 3)], 0.34, 0)
    log = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert held[0].name not in {name for row in log for name in row["sets"]}
    assert (result.folder / "validation.png").read_bytes()[:4] == b"\x89PNG"
    assert result.best == best_step(found)


def test_the_best_checkpoint_outlives_newer_ones_and_becomes_a_file(clean, config, monkeypatch):
    # The measure is made to rise from step 2 on, as when a run overfits.
    import iclora.train.validation as module

    real, seen = module.measure, []

    def rising(*args):
        seen.append(1)
        found = real(*args)
        return type(found)(found.loss + len(seen) // 4, found.by_level, found.by_panel)

    monkeypatch.setattr(module, "measure", rising)
    result = train(config(held_out=0.34, keep=1, steps=4), clean)
    kept = {p.name for p in (result.folder / "checkpoints").iterdir()}
    assert result.best == 2
    assert kept == {"step-000002", "step-000004"}
    best = (result.folder / "checkpoints" / "step-000002" / "adapter.safetensors").read_bytes()
    assert (result.folder / "adapter-best.safetensors").read_bytes() == best
    assert result.adapter.read_bytes() != best


def test_measuring_does_not_change_a_run_and_goes_on_after_a_stop(clean, config):
    whole = train(config(held_out=0.34, steps=4), clean)
    settings = config("other", held_out=0.34, steps=4)
    assert not train(settings, clean, progress=stop_after(3)).finished
    again = train(settings, clean, resume=True)
    assert again.adapter.read_bytes() == whole.adapter.read_bytes()
    # The stop left a checkpoint of its own; the rest is measured at the same steps, alike.
    others = {row["step"]: row for row in rows(again.folder)}
    assert {row["step"]: row for row in rows(whole.folder)}.items() <= others.items()


def test_further_sets_can_be_measured_instead(clean, config, make_dataset):
    more = make_dataset(2, name="more")
    result = train(config(validation=str(more), steps=2), clean)
    assert [row["step"] for row in rows(result.folder)] == [0, 2]
    log = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert len({name for row in log for name in row["sets"]}) == 3


def test_a_share_beside_a_folder_and_holding_out_everything_are_refused(clean, config):
    with pytest.raises(SettingsError, match="leave it out beside `validation`"):
        config(held_out=0.1, validation="x")
    with pytest.raises(DatasetError, match="all of them would be held out"):
        train(config(held_out=0.9), clean)
