"""ai-toolkit's configurations become runs: every field has a fate, and none is dropped."""

from __future__ import annotations

import copy
import json
import math
from contextlib import suppress
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclora.errors import IcloraError, SettingsError
from iclora.settings import RunSettings, TrainSettings, read_settings
from iclora.train.aitoolkit import import_run
from iclora.train.aitoolkit.config import EVEN
from iclora.train.aitoolkit.fields import FIELDS, Becomes, Inside
from tests.conftest import CAPTION, OFFICIAL

YML = OFFICIAL.with_suffix(".yml")
PLAIN = {
    "job": "extension",
    "config": {
        "name": "mine",
        "process": [
            {
                "type": "sd_trainer",
                "training_folder": "output",
                "network": {"type": "lora"},
                "datasets": [{"folder_path": "no/such/folder"}],
                "train": {"dtype": "bf16"},
                "model": {"name_or_path": "black-forest-labs/FLUX.1-dev", "is_flux": True},
                "sample": {"prompts": [CAPTION]},
            }
        ],
    },
}
"""The least that ai-toolkit needs, and a prompt that tells the recipe."""


def changed(place, value):
    """PLAIN with one field of its process set, such as "train.lr"."""
    document = copy.deepcopy(PLAIN)
    inside = document["config"]["process"][0]
    *tables, key = place.split(".")
    for table in tables:
        inside = inside[0] if isinstance(inside := inside.setdefault(table, {}), list) else inside
    inside[key] = value
    return document


@pytest.fixture
def brought(tmp_path):
    """Import a configuration, given as a table. Returns: what `import_run` returns."""

    def bring(document, **how):
        path = tmp_path / "run.json"
        path.write_text(json.dumps(document))
        return import_run(path, **how)

    return bring


@pytest.fixture(scope="module")
def official_run(official):
    if not YML.exists():
        pytest.skip("the official configuration is not on this machine")
    return import_run(YML, data=str(official))


def test_the_official_configuration_is_the_papers_run(official_run):
    run = official_run.settings
    assert (run.base, run.precision, run.dtype) == ("black-forest-labs/FLUX.1-dev", "int8", "bf16")
    assert (run.rank, run.alpha, run.targets) == (16, 16, "all")
    assert (run.steps, run.batch, run.lr, run.weight_decay) == (5000, 4, 1e-4, 0.01)
    assert (run.ema, run.caption_dropout, run.guidance, run.shift) == (0.99, 0.05, 1.0, "none")
    assert run.resolutions == (512, 768, 1024, 1280, 1536)
    assert (run.save_dtype, run.save_every, run.keep) == ("fp16", 250, 4)
    assert (run.preview_every, run.preview_resolution) == (250, 1254)  # sqrt(1024 * 1536)
    assert len(run.preview_prompts) == 2
    assert (run.out, run.recipe) == ("output/movie-shots", "film-storyboard")
    assert run.gradient_checkpointing


def test_every_line_of_the_official_configuration_is_accounted_for(official_run):
    lines = [line.split("#")[0].strip().lstrip("- ") for line in YML.read_text().splitlines()]
    keys = [line.split(":")[0] for line in lines if ":" in line and not line.startswith('"')]
    tables = {"config", "process", "network", "save", "datasets", "train", "ema_config", "model"}
    tables |= {"sample", "version"}  # meta is one row
    told = [row.field.split(".")[-1] for row in official_run.rows if row.field]
    # "name" stands twice: config.name, and in meta.
    assert sorted([*told, "name"]) == sorted(key for key in keys if key not in tables)
    said = str(official_run)
    for row in official_run.rows:
        assert row.field in said
        assert row.setting or row.note


def test_the_run_file_of_it_is_read_back_and_its_sets_pass_the_check(
    official_run, official, tiny, long_texts, tmp_path
):
    from iclora.train.data import find_data

    path = tmp_path / "run.toml"
    path.write_text(official_run.run_file())
    read = read_settings(RunSettings, path, {}).training()
    assert read == official_run.settings
    warned = []
    sets = find_data(read, tiny, warned.append).sets
    assert len(sets) == 10
    assert all(len(each.layouts) >= 1 for each in sets)


def test_where_a_file_is_silent_ai_toolkits_own_defaults_count(brought):
    # As in its toolkit/config_modules.py.
    document = copy.deepcopy(PLAIN)
    del document["config"]["process"][0]["train"]
    run = brought(document).settings
    assert (run.rank, run.alpha, run.steps, run.batch, run.lr) == (4, 4, 1000, 1, 1e-6)
    assert (run.ema, run.caption_dropout, run.resolutions) == (0, 0, (512,))
    assert (run.dtype, run.precision, run.grad_clip) == ("fp32", "full", 1.0)
    assert (run.save_dtype, run.save_every, run.keep) == ("fp16", 1000, 5)
    assert (run.preview_every, run.preview_resolution) == (100, 512)
    assert run.gradient_checkpointing


@pytest.mark.parametrize(
    ("place", "value", "setting", "expected"),
    [
        ("network.linear", 32, "rank", 32),
        ("network.rank", 8, "alpha", 8),
        ("network.linear_alpha", 1, "alpha", 4),
        ("train.lr", "2e-4", "lr", 2e-4),
        ("train.gradient_accumulation", 3, "batch", 3),
        ("train.ema_config", {"use_ema": True}, "ema", 0.999),
        ("train.ema_config", {"use_ema": False, "ema_decay": 0.5}, "ema", 0),
        ("train.optimizer_params", {"weight_decay": 0.1}, "weight_decay", 0.1),
        ("train.optimizer_params", None, "weight_decay", 0.01),
        ("train.timestep_type", "flux_shift", "shift", "resolution"),
        ("train.timestep_type", "flux_shift", "sigma_std", EVEN),
        ("train.timestep_type", "sigmoid", "sigma_std", 1.0),
        ("train.disable_sampling", True, "preview_every", 0),
        ("train.cfg_scale", 2, "guidance", 2),
        ("train.dtype", "float32", "dtype", "fp32"),
        ("train.gradient_checkpointing", False, "gradient_checkpointing", False),
        ("save.dtype", "bfloat16", "save_dtype", "bf16"),
        ("datasets.resolution", 768, "resolutions", (768,)),
        ("datasets.resolution", [768, 512, 768], "resolutions", (768, 512)),
        ("datasets.network_weight", 1.0, "batch", 1),
        ("device", "cuda:1", "device", "cuda:1"),
        ("device", "cuda", "device", "auto"),
        ("training_seed", 7, "seed", 7),
        ("training_folder", "~nobody-here/x", "out", None),
        ("model.quantize", True, "precision", "int8"),
        ("model.arch", "flux:dev", "base", "black-forest-labs/FLUX.1-dev"),
        ("model.block_compile", True, "compile", True),
        ("logging.use_wandb", True, "trackers", ("tensorboard", "wandb")),
        ("sample.samples", [{"prompt": CAPTION, "width": 64}], "preview_prompts", (CAPTION,)),
        ("network.conv", 16, "rank", 4),
        ("network.network_kwargs", {"ignore_if_contains": []}, "targets", "all"),
    ],
)
def test_a_field_decides_its_setting(brought, place, value, setting, expected):
    if expected is None:
        with pytest.raises(SettingsError, match="no home folder"):
            brought(changed(place, value))
        return
    assert getattr(brought(changed(place, value)).settings, setting) == expected


def test_levels_that_are_shifted_evenly_are_even_here_within_a_hundredth():
    even = np.linspace(0.001, 0.999, 999)
    normal = NormalDist()
    drawn = [normal.cdf(math.log(u / (1 - u)) / EVEN) for u in even]
    assert np.abs(drawn - even).max() < 0.01


def test_what_is_near_and_not_the_same_is_told_apart_from_what_needs_nothing(brought):
    said = str(brought(changed("train.optimizer", "adamw8bit")))
    near, needless = said.index("not quite the same"), said.index("nothing to set")
    assert near < said.index("its state in 32 bits instead of 8") < needless
    assert "not quite the same" not in str(brought(changed("train.optimizer", "adamw")))
    said = str(brought(changed("train.timestep_type", "flux_shift")))
    assert 'timestep_type = "flux_shift"  ->  sigma_std = 1.702  (ai-toolkit draws levels' in said


def test_passes_that_are_accumulated_are_sets_of_one_step_not_steps(brought):
    document = changed("train.gradient_accumulation_steps", 4)
    process = document["config"]["process"][0]
    process["train"] |= {"steps": 4000, "batch_size": 2}
    process["save"] = {"save_every": 400}
    process["sample"]["sample_every"] = 200
    run = brought(document).settings
    assert (run.steps, run.batch, run.save_every, run.preview_every) == (1000, 8, 100, 50)


@pytest.mark.parametrize(
    ("place", "value", "way_out"),
    [
        ("type", "slider_trainer", "trains a LoRA"),
        ("network.type", "lokr", "LoRAs"),
        ("network.dropout", 0.1, "Remove"),
        ("network.network_kwargs", {"only_if_contains": ["to_q"]}, "`targets`"),
        ("network.transformer_only", False, "true"),
        ("train.optimizer", "prodigy", "AdamW"),
        ("train.optimizer_params", {"betas": [0.9, 0.99]}, "0.999"),
        ("train.lr_scheduler", "cosine", "constant"),
        ("train.train_text_encoder", True, "false"),
        ("train.bypass_guidance_embedding", True, "false"),
        ("train.unload_text_encoder", True, "cache_text_embeddings"),
        ("train.timestep_type", "weighted", "sigmoid"),
        ("train.noise_scheduler", "ddpm", "flowmatch"),
        ("train.dtype", "fp16", "bf16"),
        ("train.loss_type", "mae", "mean squared"),
        ("train.gradient_accumulation_steps", -1, "1 or more"),
        ("train.batch_size", True, "1 or more"),
        ("save.dtype", "float8", "fp16"),
        ("datasets.flip_x", True, "never cropped or turned"),
        ("datasets.mask_path", "masks", "whole"),
        ("datasets.control_path", "edges", "`conditional`"),
        ("datasets.network_weight", 0, "Remove"),
        ("datasets.buckets", False, "true"),
        ("datasets.shuffle_tokens", True, "markers"),
        ("model.is_flux", False, "FLUX.1-dev"),
        ("model.arch", "wan21", "FLUX.1-dev"),
        ("model.assistant_lora_path", "ostris/x", "FLUX.1-dev"),
        ("embedding", {"trigger": "x"}, "Remove"),
        ("network", "lora", "no table"),
        ("datasets", {"folder_path": "x"}, "no list"),
        ("datasets", [{"folder_path": "a"}, {"folder_path": "b"}], "one folder"),
        ("datasets", [{"folder_path": ["a"]}], "must be text"),
        ("train.stesp", 3, "did you mean steps?"),
        ("train.learning_rate", 3, "did you mean lr?"),
        ("train.linear_alpha", 3, "network.linear_alpha"),
        ("zzz", 3, "no such field"),
    ],
)
def test_what_iclora_has_nothing_for_is_refused_by_name_with_the_way_out(
    brought, place, value, way_out
):
    with pytest.raises(SettingsError) as refused:
        brought(changed(place, value))
    assert place.rpartition(".")[2] in refused.value.problem
    assert way_out in str(refused.value)


def test_all_that_is_refused_is_named_at_once(brought):
    document = changed("train.optimizer", "lion")
    document["config"]["process"][0]["network"]["dropout"] = 0.5
    document["config"]["tags"] = []
    with pytest.raises(SettingsError) as refused:
        brought(document)
    for name in ("train.optimizer", "network.dropout", "config.tags"):
        assert name in refused.value.problem


def test_4_bits_are_refused_only_where_they_would_be_used(brought):
    document = changed("model.qtype", "uint4|some/adapter")
    assert brought(document).settings.precision == "full"
    document["config"]["process"][0]["model"]["quantize"] = True
    with pytest.raises(SettingsError, match="nf4"):
        brought(document)


def test_yaml_and_json_of_one_configuration_are_one_run(brought, tmp_path):
    import yaml

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(PLAIN))
    assert import_run(path).settings == brought(PLAIN).settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nsteps = 3\n", "not valid YAML"),
        ("model_family: flux\nlora_rank: 16\n", "no configuration of ai-toolkit"),
        ("job: extension\nconfig: {name: x, process: []}\n", "0 processes"),
        ("job: extension\nconfig: {name: x, process: [1]}\n", "no list config.process"),
        ("job: x\nconfig: {name: '${HF_TOKEN}', process: [{}]}\n", "variable of the environment"),
        ("a: &a [*a]\n", "contains itself"),
    ],
)
def test_a_file_that_is_none_of_ai_toolkits_is_refused_in_plain_words(tmp_path, text, says):
    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(SettingsError, match=says):
        import_run(tmp_path / "x.yml")


@pytest.mark.parametrize("field", ["job", "type"])
def test_another_kind_of_job_is_refused_by_that_alone(brought, field):
    document = changed("output_folder", "x")
    (document if field == "job" else document["config"]["process"][0])[field] = "generate"
    with pytest.raises(SettingsError) as refused:
        brought(document)
    assert f'{field} = "generate"' in refused.value.problem
    assert "no such field" not in refused.value.problem


def test_a_run_file_of_ours_is_not_taken_for_one_of_ai_toolkits(tmp_path):
    (tmp_path / "run.toml").write_text("[train]\nsteps = 3\n")
    with pytest.raises(SettingsError, match="is TOML") as refused:
        import_run(tmp_path / "run.toml")
    assert "iclora train" in refused.value.advice


def test_the_name_stands_for_itself_in_every_text(brought):
    document = changed("datasets.folder_path", "sets/[name]")
    assert brought(document).settings.data == "sets/mine"


# -- recipes and captions -----------------------------------------------------------------------


def test_prompts_that_fit_several_recipes_leave_the_choice_to_the_user(brought):
    document = changed("sample.prompts", ["Two sides, [LEFT] a logo, [RIGHT] a bag."])
    with pytest.raises(SettingsError, match="portrait-illustration") as refused:
        brought(document)
    assert refused.value.setting == "recipe"
    assert brought(document, recipe="visual-identity").settings.recipe == "visual-identity"


def test_a_dataset_that_names_its_recipe_decides(brought, make_dataset):
    found = brought(changed("sample.prompts", []), data=str(make_dataset()))
    assert found.settings.recipe is None
    assert found.settings.preview_every == 0  # ai-toolkit draws none without prompts


def test_a_trigger_word_is_looked_for_where_the_recipe_does_not_put_it(brought, make_dataset):
    data = make_dataset()
    brought(changed("trigger_word", "[MOVIE-SHOTS]"))
    with pytest.raises(SettingsError, match="not here"):
        brought(changed("trigger_word", "p3r5on"))
    with pytest.raises(SettingsError, match="3 of 3 captions"):
        brought(changed("trigger_word", "p3r5on"), data=str(data))
    word = changed("datasets.trigger_word", "A day at sea")
    word["config"]["process"][0]["sample"]["prompts"] = [
        CAPTION.replace("A day at sea", "[trigger]")
    ]
    found = brought(word, data=str(data))
    assert found.settings.preview_prompts == (CAPTION,)
    assert any("A day at sea" in note for note in found.notes)


# -- the tables ---------------------------------------------------------------------------------


def test_every_field_that_becomes_a_setting_names_one_that_there_is():
    for fields in FIELDS.values():
        for fate in fields.values():
            if isinstance(fate, Becomes):
                assert fate.setting in TrainSettings.model_fields
            if isinstance(fate, Inside):
                assert fate.table in FIELDS


_PLACES = sorted(
    f"{table}.{key}".removeprefix("process.").replace("optimizer_params", "train.optimizer_params")
    for table in FIELDS
    if table not in ("", "config", "samples", "network_kwargs", "ema_config")
    for key in FIELDS[table]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(_PLACES), _VALUES)
def test_whatever_stands_in_a_field_it_is_a_run_or_an_error_of_ours(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(changed(place, value)))
    with suppress(IcloraError):
        assert import_run(path).run_file()
