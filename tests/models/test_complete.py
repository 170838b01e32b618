"""A base whose weights are not all there, or are no weights, is refused and never painted with."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from iclora.errors import ModelError
from iclora.models import load_model


def lacking(weights):
    return dict(list(weights.items())[1:])


def more(weights):
    """As files have it that were scaled to fp8."""
    return weights | {"x_embedder.scale_weight": torch.ones(1)}


def whole(weights):
    return {name: value.to(torch.int8) for name, value in weights.items()}


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("transformer", lacking, "lacks weights"),
        ("transformer", more, "nothing reads: x_embedder.scale_weight"),
        ("transformer", whole, "whole numbers for weights"),
        ("vae", lacking, "lacks weights"),
        ("text_encoder", lacking, "lacks weights"),
    ],
)
def test_weights_that_are_not_those_of_the_base_are_refused(tmp_path, zimage, part, change, says):
    folder = tmp_path / "base"
    shutil.copytree(zimage.folder, folder)
    (file,) = (folder / part).glob("*.safetensors")
    save_file(change(load_file(file)), file, {"format": "pt"})
    model = load_model(str(folder), "cpu")
    use = {
        "vae": lambda: model.decode(torch.zeros(16, model.channels), 64, 64),
        "transformer": lambda: model.denoiser,
        "text_encoder": lambda: model.encode_text("a fox"),
    }
    with pytest.raises(ModelError, match=says):
        use[part]()
