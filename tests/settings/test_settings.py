"""Settings: the paper's defaults, one definition, nonsense refused."""

from __future__ import annotations

import re

import pytest

from iclora.errors import SettingsError
from iclora.settings import (
    EvaluateSettings,
    ExtendSettings,
    GenerateSettings,
    RerollSettings,
    TrainSettings,
    read_settings,
    settings_of,
)

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


def test_a_second_table_in_a_run_file_is_to_be_left_out(tmp_path):
    (tmp_path / "r.toml").write_text("[train]\nsteps = 1\n[generate]\n")
    with pytest.raises(SettingsError, match="has generate outside") as refused:
        read_settings(TrainSettings, tmp_path / "r.toml", NEEDED)
    assert refused.value.advice.startswith("Leave the rest out")


def test_a_missing_run_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.toml"):
        read_settings(TrainSettings, tmp_path / "none.toml", NEEDED)


@pytest.mark.parametrize("digits", ["nan", "inf", "-inf", "1e300", "\u0663", "\u00b2", "9" * 5000])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (m, n)
        for m in (TrainSettings, GenerateSettings, RerollSettings, EvaluateSettings)
        for n, field in m.model_fields.items()
        if re.search(r"\b(int|float)\b", repr(field.annotation))
    ],
)
def test_no_number_may_be_endless_or_spelt_in_other_digits(model, name, digits):
    for value in (digits, [digits], f"{digits}x64", {"1": digits}):
        with pytest.raises(SettingsError, match=f"`{name}`"):
            settings_of(model, {name: value})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": "64x100000"}, "`size`"),
        ({"size": "16384x16384"}, "megapixels"),
        ({"count": 1_000_000}, "`count`: must be at most 10000"),
        ({"count": 5000, "best_of": 5000, "score": "toyland"}, "10,000 are the most"),
        ({"seed": 2**64}, "`seed`"),
        ({"seed": 2**63 - 1, "count": 2}, "64 bits"),
        ({"strength": "1e300"}, "`strength`: must be at most 100"),
        ({"steps": True}, "takes a value, not true"),
        ({"prompt": ["a\ud800"]}, "half characters"),
        ({"out": "s\udcff"}, "rename the file or folder to letters of UTF-8"),
        ({"out": "s\udcc3\udca9"}, r"it is 's\\xe9': set PYTHONUTF8=1"),
        ({"prompt": [" \u200b\n"]}, "blank"),
        ({"prompt": ["a boat --ar 16:9"]}, '"--ar 16:9" is an option of another tool'),
        ({"prompt": ["a boat <lora:x:0.8>"]}, "<lora:x:0.8>"),
    ],
)
def test_what_would_hang_or_paint_nothing_is_refused(values, says):
    with pytest.raises(SettingsError, match=says):
        settings_of(GenerateSettings, values)


def test_dashes_between_words_are_no_options():
    text = "a calm -- almost still --harbour, at 7-11 -- and a dog"
    assert settings_of(GenerateSettings, {"prompt": [text]}).prompt == (text,)


@pytest.mark.parametrize("values", [{"rank": 10**9}, {"vram": "inf"}, {"micro_tokens": 10**19}])
def test_a_run_has_bounds(values):
    with pytest.raises(SettingsError, match=next(iter(values))):
        settings_of(TrainSettings, {**NEEDED, **values})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("learning_rate", "lr"),
        ("network_dim", "rank"),
        ("Steps", "steps"),
        ("micro-batch", "micro_batch"),
        ("stepz", "steps"),
        ("lerning_rate", "lr"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_one_that_is_meant(theirs, ours):
    with pytest.raises(SettingsError, match=f'did you mean "{ours}"'):
        settings_of(TrainSettings, {**NEEDED, theirs: 1})


@pytest.mark.parametrize("value", [512, "512,768"])
def test_a_list_is_asked_for_in_plain_words(value):
    with pytest.raises(SettingsError, match="must be a list"):
        settings_of(TrainSettings, {**NEEDED, "resolutions": value})


@pytest.mark.parametrize("text", ["a.safetensors:0.7", "a.safetensors=0,7"])
def test_a_strength_in_another_tool_s_form_is_told_in_ours(text):
    with pytest.raises(SettingsError, match=r"write a\.safetensors=0\.7"):
        settings_of(GenerateSettings, {"adapter": [text]})


def test_a_missing_setting_is_asked_for_with_an_example():
    with pytest.raises(SettingsError, match="`panel`, for instance to 2"):
        settings_of(RerollSettings, {"set": "out/0001"})


PATHS = {"out", "data", "base", "recipe", "validation", "cache"}


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("~nobody-of-that-name/x", "no home folder"),
        ("a\0b", "null character"),
        ("n" * 256, "longer than"),
        ("n/" * 3000, "longer than"),
        ("loop/x", "leads back"),
        ("a\udcff", "not UTF-8"),
        ("$HOME/x", "HOME is not filled in"),
        ("%USERPROFILE%/x", "%USERPROFILE% is not filled in"),
        ("file:///x", "an address"),
        ('"/some/x"', "quotes"),
        ("some/x ", "white space"),
        ("C:\\Users\\me\\x", "path of Windows"),
        ("\\\\nas\\x", "path of Windows"),
        ("D:\new\table", "forward slashes, or single quotes"),
    ],
)
def test_a_path_that_no_file_can_have_is_refused(tmp_path, monkeypatch, name, path, says):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=says):
        settings_of(TrainSettings, {**NEEDED, name: path})


def test_a_home_is_expanded_in_every_path(monkeypatch, tmp_path):
    home = str(tmp_path)
    monkeypatch.setenv("HOME", home)
    found = settings_of(TrainSettings, {n: f"~/{n}" for n in PATHS})
    assert {getattr(found, n) for n in PATHS} == {f"{home}/{n}" for n in PATHS}
    words = {"set": "~/s", "panel": [1], "adapter": "~/a"}
    assert settings_of(RerollSettings, words).adapter == (f"{home}/a",)
    told = {"metric": ["clip:~/m"], "adapter": ["a=~/b", "~/c"], "given": ["1=~/d", "2"]}
    told = settings_of(EvaluateSettings, told)
    assert told.metric == (f"clip:{home}/m",)
    assert told.adapter == (f"a={home}/b", f"{home}/c")
    summed = ["~/a+~/b=-1", "mix=~/a=0.5+b+~/c=2", "~/a=0.7", "a+b.safetensors=1"]
    assert settings_of(EvaluateSettings, {"adapter": summed}).adapter == (
        f"{home}/a+{home}/b=-1",
        f"mix={home}/a=0.5+b+{home}/c=2",
        f"{home}/a=0.7",
        "a+b.safetensors=1",
    )
    (tmp_path / "a+~").touch()
    named = ("~/a+~", "x=~/a+~=0.7")
    found = settings_of(EvaluateSettings, {"adapter": named}).adapter
    assert found == (f"{home}/a+~", f"x={home}/a+~=0.7")
    assert told.given == (f"1={home}/d", "2")
    (tmp_path / "run.toml").write_text("[train]\nbase='tiny'\ndata='d'\nout='~/r'\n")
    assert read_settings(TrainSettings, tmp_path / "run.toml", {}).out == f"{home}/r"
    monkeypatch.setenv("HOME", f"{home}/none")
    with pytest.raises(SettingsError, match="is not there"):
        settings_of(RerollSettings, words)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (EvaluateSettings, {"background": "red", "data": "d"}),
        (EvaluateSettings, {"background": "auto", "knowledge": ["f"]}),
        (EvaluateSettings, {"api": "http://x", "data": "d"}),
        (EvaluateSettings, {"model_device": "cpu", "data": "d"}),
        (ExtendSettings, {"background": "red", "story": "s"}),
        (GenerateSettings, {"captioner": "toyland", "prompt": ["a"]}),
        (GenerateSettings, {"api": "http://x", "prompt": ["a"]}),
        (GenerateSettings, {"model_device": "cpu", "prompt": ["a"]}),
    ],
)
def test_a_setting_that_nothing_would_use_is_refused(model, values):
    with pytest.raises(SettingsError, match=f"`{next(iter(values))}`: leave it out without"):
        settings_of(model, values)
    default = {next(iter(values)): model.model_fields[next(iter(values))].default}
    settings_of(model, {**values, **default})


@pytest.mark.parametrize("given", ["0", "\u00b2", "100", "1=", "x"])
def test_a_given_panel_has_a_number_that_there_can_be(given):
    with pytest.raises(SettingsError, match="not of the form PANEL"):
        settings_of(EvaluateSettings, {"given": [given]})
