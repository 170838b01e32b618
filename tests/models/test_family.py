"""A family of another package: what it has to write, and that nothing else has to change."""

from __future__ import annotations

import json
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

from iclora.adapter import Adapter
from iclora.errors import ModelError
from iclora.jobs.opening import Opener
from iclora.making.session import complete, generate
from iclora.models import flow, load_model
from iclora.models.base import Sampling
from iclora.models.folder import FolderModel
from iclora.models.registry import FAMILIES
from iclora.settings import Machine
from iclora.train.run import train
from tests.conftest import CAPTION, picture
from tests.making.helpers import told

# -- the family: 40 lines -----------------------------------------------------------------------


class Net(diffusers.ModelMixin, ConfigMixin, PeftAdapterMixin):
    @register_to_config
    def __init__(self, width: int = 12):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, width)])


class Dummy(FolderModel):
    """A token is the mean colour of 16x16 px, four times; a text is its length."""

    family, network, block_prefixes, blocks = "dummy", Net, ("blocks.",), 1
    grid = multiple = 16
    channels, max_text_tokens = 12, 1000
    sampling = Sampling(steps=2, guidance=None, guided="none")
    targets = {"all": ".*", "attention+mlp": ".*", "attention": ".*"}  # noqa: RUF012
    folders = {"text": (), "vae": (), "denoiser": ("transformer",)}  # noqa: RUF012
    held = {"text": (), "vae": (), "denoiser": ("denoiser",)}  # noqa: RUF012

    def count_tokens(self, text):
        return len(text.split())

    def text_tokens(self, text):
        return 1

    def encode_text(self, text):
        return {"length": torch.tensor([len(text) / 100])}

    def encode_image(self, pixels):
        h, w = (edge // 16 for edge in pixels.shape[:2])
        means = pixels.reshape(h, 16, w, 16, 3).mean((1, 3)).reshape(-1, 3)
        return torch.tensor(means / 127.5 - 1).float().repeat(1, 4)

    def decode(self, tokens, width, height):
        cells = tokens.view(height // 16, width // 16, 4, 3).mean(2)
        pixels = ((cells + 1) * 127.5).clamp(0, 255).byte().numpy()
        return np.kron(pixels, np.ones((16, 16, 1), np.uint8))

    def velocity(self, z, sigma, texts, size, guidance, given=None, unguided=None, panels=None):
        length = self.on_device(texts)["length"][:, None]
        return self.denoiser.blocks[0](z * sigma[:, None, None] + length)

    def sigmas(self, steps, tokens):
        return torch.linspace(1, 0, steps + 1).tolist()

    def shift(self, sigma, tokens):
        return flow.shift(sigma, 0.0)


# -- and every verb runs on it -------------------------------------------------------------------


def test_a_family_of_another_package_is_trained_and_makes_sets(monkeypatch, tmp_path, config):
    Net().save_pretrained(tmp_path / "base" / "transformer")
    (tmp_path / "base" / "model_index.json").write_text(
        json.dumps({"_class_name": "DummyPipeline"})
    )
    point = SimpleNamespace(name="DummyPipeline", load=lambda: Dummy)
    monkeypatch.setattr(
        "iclora.settings.registry.entry_points",
        lambda group: [point] if group == "iclora.families" else [],
    )
    monkeypatch.setattr(FAMILIES, "_found", None)
    model = load_model(str(tmp_path / "base"), device="cpu")
    assert isinstance(model, Dummy)
    with pytest.raises(ModelError, match="family dummy stay on its device"):
        Opener().base(model.name, Machine(device="cpu", offload="blocks"))
    result = train(config(base=model.name, conditional=0.5), model)
    adapter = Adapter.load(result.adapter)
    assert adapter.info.family == "dummy"
    plain = generate(model, CAPTION, **told())
    made = generate(model, CAPTION, adapter=adapter, **told())
    assert made.request.steps == 4
    assert made.composite.tobytes() != plain.composite.tobytes()
    given = {1: picture(96, 64)}
    completed = complete(model, CAPTION, given, adapter=adapter, **told())
    assert completed.request.mode == "clean"
    assert completed.panels[0] == given[1]
