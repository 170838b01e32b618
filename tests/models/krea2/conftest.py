"""diffusers' own pipeline of the tiny Krea 2, and its distilled kin."""

import pytest

from tests.conftest import resting


@pytest.fixture(scope="session")
def pipeline(krea):
    import diffusers
    import torch

    made = diffusers.Krea2Pipeline.from_pretrained(krea.folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def turbo(tmp_path_factory):
    """The same sizes, distilled, and other weights."""
    from iclora.models.krea2.tiny import write_tiny_krea

    folder = tmp_path_factory.mktemp("distilled") / "Krea-2-Turbo"
    write_tiny_krea(folder, turbo=True, seed=1)
    return resting(str(folder))
