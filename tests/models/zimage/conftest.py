"""diffusers' own pipeline of the tiny Z-Image, and its distilled kin."""

import pytest

from tests.conftest import resting


@pytest.fixture(scope="session")
def pipeline(zimage):
    import diffusers
    import torch

    made = diffusers.ZImagePipeline.from_pretrained(zimage.folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def turbo(tmp_path_factory):
    """The same sizes, distilled: another seed, and Turbo's schedule."""
    from iclora.models.zimage.tiny import write_tiny_zimage

    folder = tmp_path_factory.mktemp("distilled") / "Z-Image-Turbo"
    write_tiny_zimage(folder, turbo=True, seed=1)
    return resting(str(folder))
