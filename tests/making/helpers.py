"""What tests of making sets share."""

from __future__ import annotations

import torch

from iclora.adapter import attach
from iclora.making.preparing import prepare
from iclora.making.session import AS_IS, Ask, Session
from iclora.sets.recipe import load_recipe
from iclora.settings import Wish, settings_of

STORY = load_recipe("film-storyboard")
SIZE = (96, 192)


def told(**more):
    """What `generate` and `complete` are told, for small sets made fast."""
    return {"recipe": STORY, "size": SIZE, "steps": 4, **more}


def prepared(model, prompt, *, recipe=None, adapter=None, given=None, latents=None, **settings):
    """The request of a wish with these settings, and its notes as texts."""
    wish = settings_of(Wish, {"prompt": prompt, **settings})
    request, notes = prepare(
        model, wish, recipe=recipe, adapter=adapter, given=given, latents=latents
    )
    return request, [str(note) for note in notes]


def run(model, request, given=None, latents=None):
    """The set of one request, by the adapter the base carries."""
    asks = [Ask(request, given or {}, latents or {}, AS_IS)]
    return next(made for _, made in Session(model).make(asks))


def carry_noise(model, seed=0):
    """A LoRA that changes what the base does, so that nothing is zero."""
    parameters = attach(model, rank=2, alpha=2, targets="all", seed=0)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.1)
