"""A base without numbers: what is made for counting, and what is left alone."""

from __future__ import annotations

import threading

import pytest
import torch

from iclora.errors import ModelError
from iclora.models.flux.model import FluxModel
from iclora.models.outline import META, Batch, built, loss, outline_of, shipped_outline
from tests.conftest import FLUX_DEV


def opened(folder):
    return FluxModel(folder, "x", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_on_the_meta_device_in_the_runs_number_format(small, dtype):
    outline = outline_of(opened(small), dtype, "full")
    for net in (outline.model.denoiser, outline.vae, *outline.text_encoders):
        assert {(p.device, p.dtype) for p in net.parameters()} == {(META, dtype)}


def test_a_pass_in_outline_has_the_shapes_of_a_real_one(small):
    outline = outline_of(opened(small), torch.float32, "full")
    for batch in (
        Batch(2, 64, 96),
        Batch(2, 64, 96, given=True, isolated=True),
        Batch(2, 64, 96, texts=3),
        Batch(2, 64, 96, given=True, texts=3),
        Batch(2, 64, 96, given=True, isolated=True, texts=3),
    ):
        inputs = outline.inputs(batch, lambda q, _k, _v: q.transpose(1, 2).flatten(2))
        streams, shared = outline.begin(inputs)
        for piece in outline.pieces:
            streams = piece.run(streams, shared, False)
        assert outline.end(streams, shared).shape == (2, 24, 64)
        assert loss(outline, streams, shared).shape == (2,)


def test_no_other_thread_sees_another_default_dtype(small):
    """What a server draws while another thread plans stays float32."""
    inside, seen = threading.Event(), []

    def make():
        inside.set()
        watcher.join()
        return torch.nn.Linear(2, 2)

    def watch():
        inside.wait()
        seen.append((torch.randn(1).dtype, torch.randn(1).device.type))

    watcher = threading.Thread(target=watch)
    watcher.start()
    made = built(make, "transformer", "x", torch.bfloat16)
    assert made.weight.dtype == torch.bfloat16
    assert seen == [(torch.float32, "cpu")]


def test_settings_that_describe_no_model_are_named(small, tmp_path):
    config = small / "text_encoder" / "config.json"
    before = config.read_text()
    try:
        config.write_text('{"hidden_act": "none of torch"}')
        with pytest.raises(ModelError, match=r"text_encoder/config\.json of x describes no model"):
            outline_of(opened(small), torch.float32, "full").text_encoders  # noqa: B018
    finally:
        config.write_text(before)


def test_known_bases_are_planned_for_without_a_file_of_theirs():
    assert shipped_outline("black-forest-labs/FLUX.1-dev") == FLUX_DEV
    assert shipped_outline("somebody/else") is None
