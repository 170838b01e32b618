"""Settings of a base that nobody could have are refused before anything is built of them."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from iclora.errors import IcloraError, ModelError
from iclora.models import load_model
from iclora.models.sizes import check_sizes
from tests.conftest import FLUX_DEV

SHIPPED = Path(check_sizes.__code__.co_filename).parent


def test_every_base_that_can_be_planned_for_passes():
    found = sorted(SHIPPED.glob("*/outlines/*/*/*config.json"))
    assert len(found) > 10
    for path in found:
        check_sizes(json.loads(path.read_text()), str(path))


@pytest.mark.parametrize("base", ["klein", "zimage", "krea"])
def test_all_settings_of_a_whole_base_pass(request, base):
    found = sorted(request.getfixturevalue(base).folder.glob("*/*config.json"))
    assert {path.parent.name for path in found} >= {"transformer", "vae", "text_encoder"}
    for path in found:
        check_sizes(json.loads(path.read_text()), str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", 10**6),
        ("num_layers", "19"),
        ("num_layers", 19.5),
        ("num_layers", [19]),
        ("num_layers", True),
        ("num_single_layers", 0),
        ("attention_head_dim", -128),
        ("in_channels", None),
        ("joint_attention_dim", 10**12),
        ("axes_dims_rope", {"a": 1}),
        ("axes_dims_rope", [16, "56", 56]),
        ("block_out_channels", []),
        ("block_out_channels", [128] * 60),
        ("patch_size", [2, 2, 2]),
        ("patch_size", [2, "2"]),
        ("patch_size", []),
        ("scaling_factor", "NaN"),
        ("scaling_factor", float("nan")),
        ("model_max_length", "512"),
        ("rope_theta", 0),
        ("shift", 0),
        ("num_train_timesteps", 10**12),
    ],
)
def test_what_no_part_can_have_is_named_by_its_key(key, value):
    with pytest.raises(ModelError, match=f"x has .* for {key}, where .* must stand"):
        check_sizes({"_class_name": "X", key: value}, "x")


@pytest.mark.parametrize(
    "config",
    [
        {"axes_dims_rope": [16, 56, 56], "attention_head_dim": 120},
        {"axes_dims": [32, 48, 48], "dim": 3840, "n_heads": 31},
        {"base_image_seq_len": 4096, "max_image_seq_len": 4096},
    ],
)
def test_numbers_that_do_not_go_together_are_refused(config):
    with pytest.raises(ModelError, match=r"^x has"):
        check_sizes(config, "x")


@pytest.mark.parametrize(
    ("part", "file", "change"),
    [
        ("transformer", "config.json", {"num_layers": 10**6}),
        ("transformer", "config.json", {"num_attention_heads": "24"}),
        ("vae", "config.json", {"block_out_channels": 4}),
        ("tokenizer_2", "tokenizer_config.json", {"model_max_length": "long"}),
        ("", "model_index.json", {"_class_name": ["FluxPipeline"]}),
        ("", "model_index.json", {"_class_name": None}),
    ],
)
def test_a_base_of_absurd_settings_is_refused_at_once(tmp_path, part, file, change):
    shutil.copytree(FLUX_DEV, tmp_path / "base")
    path = tmp_path / "base" / part / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    began = time.process_time()
    with pytest.raises(IcloraError):
        _ = load_model(str(tmp_path / "base"), "cpu", weights=False).names
    assert time.process_time() - began < 5
