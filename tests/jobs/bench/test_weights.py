"""Random weights stand where loaded ones would."""

from __future__ import annotations

import pytest
import torch

from iclora.jobs.bench.smoke import write_sets
from iclora.jobs.bench.weights import random_denoiser
from iclora.models import load_model
from iclora.sets.dataset import open_dataset


@pytest.mark.parametrize(
    ("base", "precision"),
    [("tiny", "full"), ("tiny-klein", "int8"), ("tiny-zimage", "nf4"), ("tiny-krea", "full")],
)
def test_random_weights_have_the_names_sizes_and_kinds_of_loaded_ones(base, precision):
    loaded = load_model(base, "cpu", "bf16", precision=precision)
    made = load_model(base, "cpu", "bf16", weights=False, precision=precision)
    random_denoiser(made)

    def kinds(net):
        return {name: (tuple(t.shape), t.dtype) for name, t in net.state_dict().items()}

    assert kinds(made.denoiser) == kinds(loaded.denoiser)
    assert {type(m) for m in made.denoiser.modules()} == {
        type(m) for m in loaded.denoiser.modules()
    }
    for name, parameter in made.denoiser.named_parameters():
        assert not parameter.is_meta
        assert not parameter.requires_grad
        if parameter.is_floating_point():
            assert torch.isfinite(parameter).all(), name
            assert parameter.numel() == 1 or parameter.float().std() > 1e-3, name


def test_the_sets_of_the_smoke_rows_are_whole(tmp_path):
    dataset = open_dataset(write_sets(tmp_path / "sets"), None)
    assert len(dataset.sets) == 2
    assert not dataset.problems
