"""diffusers' own pipeline of the tiny Qwen-Image, and one cache for short runs."""

import pytest


@pytest.fixture(scope="session")
def encodings(tmp_path_factory):
    """One cache for all runs."""
    return str(tmp_path_factory.mktemp("encoded"))


@pytest.fixture(scope="session")
def pipeline(qwen):
    import diffusers
    import torch

    made = diffusers.QwenImagePipeline.from_pretrained(qwen.folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made
