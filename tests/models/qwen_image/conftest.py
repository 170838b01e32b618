"""diffusers' own pipeline of the tiny Qwen-Image."""

import pytest


@pytest.fixture(scope="session")
def pipeline(qwen):
    import diffusers
    import torch

    made = diffusers.QwenImagePipeline.from_pretrained(qwen.folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made
