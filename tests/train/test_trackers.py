"""Trackers: what TensorBoard's own reader finds in the files of a run."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from iclora.settings import TrainSettings, settings_of
from iclora.train.trackers import tracking
from tests.conftest import picture


@pytest.fixture
def told(tmp_path):
    """Settings of a run; every path in them lies in a folder of this machine."""
    paths = {name: str(tmp_path / name) for name in ("base", "data", "out", "recipe", "cache")}
    return settings_of(TrainSettings, {**paths, "rank": 8, "resolutions": (64, 96)})


def read(folder):
    """TensorBoard's reader; it finds one run alone."""
    (events,) = folder.rglob("events.out.tfevents*")
    found = EventAccumulator(str(events.parent), {"images": 0})
    found.Reload()
    return found


def test_tensorboard_finds_numbers_settings_and_pictures_in_one_run(told, tmp_path):
    grid = picture(40, 30)
    with tracking(told, tmp_path, step=0, main=True) as track:
        track.settings(told.shown(), 0)
        track.numbers({"loss": 0.5, "learning rate": 1e-4}, 1)
        track.picture("previews", grid, 1)
    found = read(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("learning rate")] == [(1, pytest.approx(1e-4))]
    (shown,) = found.Images("previews")
    assert shown.step == 1
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), grid)
    (text,) = found.Tensors("settings/text_summary")
    assert b"| rank | 8 |" in text.tensor_proto.string_val[0]
    columns = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told_to = HParamsPluginData.FromString(columns).session_start_info.hparams
    assert told_to["rank"].number_value == 8
    assert told_to["resolutions"].string_value == "[64, 96]"


def test_trackers_are_told_no_folder_of_this_machine(told, tmp_path):
    assert not [value for value in told.shown().values() if str(tmp_path) in str(value)]
    assert {"steps", "lr", "seed", "precision"} <= set(told.shown())


def test_a_process_that_does_not_report_opens_none(told, tmp_path):
    with tracking(told, tmp_path, step=0, main=False) as track:
        track.numbers({"loss": 0.5}, 1)
    assert not list(tmp_path.iterdir())
