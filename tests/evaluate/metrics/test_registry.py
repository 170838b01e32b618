"""Metrics by name."""

import pytest

from iclora.errors import ModelError, SettingsError, VisionModelError
from iclora.evaluate.metrics.registry import METRICS, load_metric
from iclora.toyland.metric import Toyland
from tests.conftest import picture
from tests.evaluate.metrics.test_base import made_of


@pytest.mark.parametrize("name", ["dreams:x", "dino", "clip:", ""])
def test_an_unknown_metric_is_refused_with_those_that_exist(name):
    with pytest.raises(SettingsError, match=r"dino:MODEL, clip:MODEL, openai:MODEL, local:MODEL"):
        load_metric(name)


def test_a_model_is_opened_by_its_kind(dino_folder, clip_folder):
    panels = [picture(32, 32, n) for n in range(3)]
    for name, folder in (("dino", dino_folder), ("clip", clip_folder)):
        metric = load_metric(f"{name}:{folder}", device="cpu")
        assert (metric.name, metric.source) == (name, str(folder))
        (figures,) = metric.of_sets([made_of(panels)])
        assert metric.main in figures
        assert set(figures) <= set(metric.figures)


def test_other_packages_add_their_own_by_an_entry_point():
    assert "toyland" in METRICS
    assert isinstance(load_metric("toyland"), Toyland)


def test_a_metric_whose_model_cannot_be_opened_says_so(tmp_path):
    for name in ("dino", "clip"):
        with pytest.raises(ModelError, match="cannot be opened"):
            load_metric(f"{name}:{tmp_path}", device="cpu")
    with pytest.raises(VisionModelError, match="cannot be opened"):
        load_metric(f"local:{tmp_path}", device="cpu")


def test_a_judge_asks_through_the_captioner_of_that_name(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    judge = load_metric("openai:some-model", url="http://localhost:1/v1")
    assert judge.name == "judge"
    assert judge.source == "openai:some-model"
    assert any("localhost:1" in note for note in judge.notes)
