"""Settings: the paper's defaults, one definition, nonsense refused."""

from __future__ import annotations

import pytest

from iclora.errors import SettingsError
from iclora.settings import TrainSettings, read_settings

NEEDED = {"base": "tiny", "data": "d", "out": "o"}


def test_the_defaults_are_those_of_the_papers_run():
    config = read_settings(TrainSettings, None, NEEDED)
    assert (config.rank, config.alpha, config.targets) == (16, 16, "all")
    assert (config.steps, config.batch, config.lr) == (5000, 4, 1e-4)
    assert (config.ema, config.caption_dropout, config.guidance) == (0.99, 0.05, 1.0)
    assert config.resolutions == (512, 768, 1024, 1280, 1536)
    assert (config.sigma_mean, config.sigma_std, config.shift) == (0, 1, "none")


def test_every_setting_says_what_it_means():
    assert all(field.description for field in TrainSettings.model_fields.values())


def test_a_run_file_is_read_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.toml"
    lines = ["[train]", 'base = "tiny"', 'data = "d"', 'out = "o"', "steps=7", "resolutions=[512]"]
    path.write_text("\n".join(lines))
    config = read_settings(TrainSettings, path, {"steps": "9", "lr": "2e-4"})
    assert (config.steps, config.lr, config.resolutions) == (9, 2e-4, (512,))


def test_settings_come_back_from_the_file_they_are_written_to(tmp_path):
    config = read_settings(
        TrainSettings, None, {**NEEDED, "resolutions": ["512"], "preview_prompts": ["a"]}
    )
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert read_settings(TrainSettings, tmp_path / "c.toml", {}) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": "0"}, "steps"),
        ({"lr": "-1"}, "lr"),
        ({"ema": "1"}, "ema"),
        ({"targets": "some"}, "targets"),
        ({"resolutions": []}, "resolutions"),
        ({"resolutions": ["32"]}, "resolutions"),
        ({"stepz": "5"}, "stepz"),
        ({"dtype": "fp16"}, "dtype"),
        ({"base": ""}, "base"),
    ],
)
def test_nonsense_is_refused_by_the_settings_name(change, says):
    with pytest.raises(SettingsError, match=says):
        read_settings(TrainSettings, None, {**NEEDED, **change})


@pytest.mark.parametrize("text", ["steps = 3\n", "[train\n", '[model]\nbase="x"\n', 'train = "x"'])
def test_a_run_file_without_its_table_is_refused(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"r\.toml"):
        read_settings(TrainSettings, tmp_path / "r.toml", NEEDED)


def test_a_missing_run_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.toml"):
        read_settings(TrainSettings, tmp_path / "none.toml", NEEDED)
