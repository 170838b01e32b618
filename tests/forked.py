"""Imported once by the process that forks others: they begin with all of it done.

An import of torch takes seconds, and so do matplotlib and what transformers works out once.
"""

from __future__ import annotations

import gc
from importlib import import_module

gc.disable()

import torch  # noqa: E402

from iclora.models import load_model  # noqa: E402

for name in (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.transformers.transformer_flux",
    "iclora.cli.main",
    "iclora.jobs.training",
    "iclora.making.preview",
    "iclora.serve.warm",
    "iclora.serve.work",
    "iclora.train.run",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.distributed.fsdp",
):
    import_module(name)
torch.set_num_threads(1)
load_model("tiny", device="cpu").encode_text("a boat")
# Spared from searches for garbage, which would also copy each page of it.
gc.collect()
gc.freeze()
gc.enable()
