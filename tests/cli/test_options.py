"""Options are the settings models' fields, no more and no less."""

from __future__ import annotations

import argparse

import pytest

from iclora.cli.main import VERBS
from iclora.cli.options import options_of, verb_parser
from iclora.cli.output import as_options, option_of
from iclora.errors import SettingsError
from iclora.settings import (
    CheckSettings,
    CompleteSettings,
    GenerateSettings,
    RunSettings,
    TrainSettings,
    Verb,
    about,
    read_settings,
    settings_of,
)

TRAIN = """--base --data --out --recipe --steps --batch --micro-batch --micro-tokens --lr
    --weight-decay --grad-clip --ema --rank --alpha --targets --resolutions --upscale --no-upscale
    --caption-dropout --guidance --sigma-mean --sigma-std --conditional --isolate-given
    --no-isolate-given --shift --seed --device --dtype --precision --compile --no-compile
    --gradient-checkpointing --no-gradient-checkpointing --recompute --shard --no-shard --vram
    --save-dtype --held-out --validation --save-every --keep --preview-every --preview-prompts
    --preview-resolution --trackers --cache"""
SAMPLE = """--base --adapter --strength --recipe --size --seed --steps --guidance --resample
    --resample-from --out --device --dtype --precision"""
GENERATE = f"""{SAMPLE} --prompt --prompts --idea --captioner --api --count --best-of --score
    --model-device --panel-seed"""
CAPTION = "--captioner --api --model-device --schema --no-schema --base"

OF_VERSION_0_2 = {
    "recipes": "",
    "compose": "--recipe --out --resolution",
    "caption": f"{CAPTION} --recipe --send --longest-side --together --overwrite",
    "review": "--recipe --base --out",
    "prompt": f"{CAPTION} --recipe",
    "check": "--recipe --base --resolutions",
    "plan": f"{TRAIN} --write",
    "train": f"{TRAIN} --resume",
    "generate": GENERATE,
    "complete": f"{GENERATE} --known --mode --boost",
    "reroll": "--panel --seed --base --adapter --out --device --dtype --precision",
    "extend": f"{SAMPLE} --anchor --fresh --known --mode --boost",
    "evaluate": f"{SAMPLE} --prompt --prompts --data --known --seeds --metric --model-device --api "
    "--together --mode --boost",
    "demo": "--out --task --quick",
    "info": "",
}


def flags(verb: str) -> set[str]:
    parser = verb_parser(verb, VERBS.load(verb))
    return {flag for action in parser._actions for flag in action.option_strings}


def given(model, *words) -> dict:
    parser = argparse.ArgumentParser()
    options_of(parser, model)
    return vars(parser.parse_args(words))


@pytest.mark.parametrize("verb", OF_VERSION_0_2)
def test_no_option_of_version_0_2_is_lost(verb):
    assert set(OF_VERSION_0_2[verb].split()) <= flags(verb)


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_of_a_verb_has_a_help_and_an_option(verb):
    model = VERBS.load(verb).settings
    assert VERBS.load(verb).summary.endswith(".")
    assert model.model_fields
    parser = verb_parser(verb, VERBS.load(verb))
    helps = {action.dest: action.help for action in parser._actions}
    assert set(helps) == {"help", *model.model_fields}
    for name, field in model.model_fields.items():
        assert field.description, name
        text = " ".join(field.description.split())
        assert as_options(text, model) in helps[name].replace("%%", "%")


def test_a_new_setting_is_one_field(tmp_path):
    class More(RunSettings):
        sparkle: int = 3
        """stars per panel"""

    text = verb_parser("train", Verb(More, lambda settings, console: 0)).format_help()
    assert "--sparkle N" in text
    assert "stars per panel (default 3)" in text
    file = tmp_path / "run.toml"
    file.write_text('[train]\nbase = "tiny"\ndata = "d"\nout = "o"\nsparkle = 5\n')
    assert read_settings(More, file, {}).sparkle == 5
    assert read_settings(More, file, given(More, "--sparkle", "7")).sparkle == 7
    schema = More.model_json_schema()["properties"]["sparkle"]
    assert (schema["default"], schema["description"]) == (3, "stars per panel")


@pytest.mark.parametrize("verb", VERBS)
def test_the_word_for_a_value_says_what_to_give(verb):
    said = {
        "save_every": "N",
        "preview_every": "N",
        "held_out": "SHARE",
        "strengths": "STRENGTH",
        "resolutions": "PX",
        "resample_from": "SIGMA",
        "lr": "NUMBER",
        "vram": "GB",
    }
    for action in verb_parser(verb, VERBS.load(verb))._actions:
        word = action.metavar or "{"
        if not action.option_strings or action.nargs == 0 or word.startswith(("{", "[")):
            continue
        assert not word.endswith("S"), f"{word} is more than one value"
        assert word not in {"OUT", "EVERY", "FROM", "SIDE", "END", "MEAN"}, action.dest
        assert word == said.get(action.dest, word)


def test_only_what_was_given_reaches_the_model():
    assert given(GenerateSettings, "--seed", "3") == {"seed": "3"}
    settings = settings_of(GenerateSettings, given(GenerateSettings, "r.json", "--seed", "-3"))
    assert settings.model_fields_set == {"request", "seed"}
    assert settings.seed == -3


def test_a_panel_is_given_by_either_of_its_names():
    words = given(CompleteSettings, "--known", "1=a.png", "--given", "3=b=c.png")
    assert settings_of(CompleteSettings, words).given == {1: "a.png", 3: "b=c.png"}


def test_some_options_are_repeated_and_others_take_a_list():
    assert given(GenerateSettings, "--prompt", "a", "--prompt", "b") == {"prompt": ["a", "b"]}
    words = given(CheckSettings, "data", "--resolutions", "512", "768")
    assert settings_of(CheckSettings, words).resolutions == (512, 768)


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_is_repeated_exactly_if_its_help_says_so(verb):
    model = VERBS.load(verb).settings
    for action in verb_parser(verb, VERBS.load(verb))._actions:
        if action.dest == "help":
            continue
        repeated = isinstance(action, argparse._AppendAction)
        text = " ".join(model.model_fields[action.dest].description.split())
        assert repeated == ("repeat for more" in text)
        assert (action.nargs == "+") == (about(model, action.dest).get("many") == "list")


def test_the_old_word_for_full_precision_is_still_read():
    words = given(GenerateSettings, "--precision", "base")
    assert settings_of(GenerateSettings, words).precision == "full"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "12"], '`size`: "12" is not WIDTHxHEIGHT'),
        (["--count", "0"], "`count`: must be at least 1, not 0"),
        (["--panel-seed", "1"], "`panel_seeds`: .*not of the form PANEL="),
        (["--panel-seed", "1=2", "--panel-seed", "1=3"], "`panel_seeds`: panel 1 is named twice"),
        (["--mode", "magic"], "`mode`: must be 'sdedit'"),
        (["--count", "0", "--steps", "x"], "invalid settings: `(count|steps)`: .*; `"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_setting(words, says):
    with pytest.raises(SettingsError, match=says) as refused:
        settings_of(GenerateSettings, given(GenerateSettings, *words))
    assert refused.value.setting in GenerateSettings.model_fields


def test_the_alternatives_of_one_setting_are_one_problem():
    with pytest.raises(SettingsError) as refused:
        settings_of(TrainSettings, {"base": "b", "data": "d", "out": "o", "vram": "much"})
    assert refused.value.problem.count("`vram`") == 1
    assert "'auto'" in refused.value.problem


def test_settings_in_backticks_are_said_as_options_and_other_words_stay():
    said = as_options("set `best_of` or `given`, see `iclora plan` and `nothing`", CompleteSettings)
    assert said == "set --best-of or --given, see `iclora plan` and `nothing`"
    assert as_options("`panel_seeds`", GenerateSettings) == "--panel-seed"
    assert (
        as_options("trained with `conditional`", GenerateSettings) == "trained with --conditional"
    )
    assert option_of(CheckSettings, "data") == "data"


@pytest.mark.parametrize(
    "words",
    [["--prompts", "a", "--prompts", "b"], ["--given", "1=a", "--seed", "1", "--seed", "2"]],
)
def test_a_single_value_that_is_given_twice_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        verb_parser("complete", VERBS.load("complete")).parse_args(words)
    assert f"{words[-2]} is given twice" in capsys.readouterr().err
