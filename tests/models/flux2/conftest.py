"""diffusers' own pipeline of the tiny FLUX.2 klein."""

import pytest

from tests.conftest import resting


@pytest.fixture(scope="session")
def pipeline(klein):
    import diffusers
    import torch

    made = diffusers.Flux2KleinPipeline.from_pretrained(klein.folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def distilled(tmp_path_factory):
    """The same sizes, distilled: another seed, and the mark in model_index.json."""
    from iclora.models.flux2.tiny import write_tiny_klein

    folder = tmp_path_factory.mktemp("distilled") / "FLUX.2-klein-4B"
    write_tiny_klein(folder, distilled=True, seed=1)
    model = resting(str(folder))
    model.max_text_tokens = 96
    return model
