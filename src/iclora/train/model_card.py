"""The README.md of a run: a model card as the hub reads it.

It says what the adapter is for, how it was tuned and how it is loaded, shows the last previews,
and names no folder of this machine. Equal runs give equal cards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from iclora import __version__
from iclora.adapter import AdapterInfo
from iclora.adapter.export import shared_name
from iclora.errors import RunError
from iclora.files import write_text
from iclora.files.documents import read_words
from iclora.models.base import Sampling
from iclora.models.licences import LICENCES, hub_id
from iclora.pages.page import render_markdown
from iclora.sets.recipe import Recipe
from iclora.settings import TrainSettings

__all__ = ["ADAPTER", "CARD", "base_card", "model_card", "prompt_form", "write_card"]

CARD = "README.md"
ADAPTER = "adapter.safetensors"
_TAGS = ("text-to-image", "lora", "in-context-lora", "diffusers", "iclora", "template:sd-lora")
"""The template gives the page on the hub its gallery."""
_OURS = "<!-- Written by iclora"


def write_card(
    folder: Path, info: AdapterInfo, settings: TrainSettings, sets: int, sampling: Sampling
) -> bool:
    """Write the card of a run that has ended, with the previews of its last step.

    Args:
        folder: of the run.
        info: of its adapter.
        sets: image sets it was trained on.
        sampling: the base's own.
    Returns: False if a card is there that somebody has made their own; it is left alone.
    Raises: StorageError.
    """
    path = folder / CARD
    if path.exists() and _OURS not in read_words(path, RunError, "model card"):
        return False
    prompts = settings.previewed(info.recipe.example)
    last = f"previews/step-{info.steps:06d}"
    pictures = [f"{last}-{number}.png" for number in range(1, len(prompts) + 1)]
    shown = [(p, url) for p, url in zip(prompts, pictures, strict=True) if (folder / url).is_file()]
    grid = f"{last}.png" if (folder / f"{last}.png").is_file() else None
    write_text(path, model_card(info, settings, sets, sampling, shown, grid))
    return True


def model_card(
    info: AdapterInfo,
    settings: TrainSettings,
    sets: int,
    sampling: Sampling,
    shown: Sequence[tuple[str, str]] = (),
    grid: str | None = None,
) -> str:
    """A model card: YAML for the hub, then Markdown for people.

    Args:
        shown: prompts and the pictures of them, by paths relative to the card.
        grid: a picture of base and adapter side by side, likewise.
    """
    recipe, base, known = info.recipe, shared_name(info.base), hub_id(info.base)
    licence = LICENCES.get(info.base)
    form = prompt_form(recipe)
    front = ModelCardData(
        base_model=known,
        base_model_relation="adapter" if known else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        instance_prompt=form,
        tags=[info.family, *_TAGS],
        widget=[{"text": prompt, "output": {"url": url}} for prompt, url in shown] or None,
    )
    body = render_markdown(
        "model-card",
        recipe=recipe,
        layout=info.layout,
        base=base,
        known=known,
        licence=licence,
        adapter=ADAPTER,
        sets=sets,
        version=__version__,
        grid=grid,
        prompts=len(shown) or 1,
        form=form,
        example=_in_quotes(recipe.example),
        code=_diffusers(info, base, sampling),
        settings={"base": base, "recipe": recipe.name, **settings.shown(), "steps": info.steps},
    )
    return f"---\n{front.to_yaml(line_break=chr(10))}\n---\n{body}"


def base_card(info: AdapterInfo, settings: TrainSettings) -> str:
    """The card of a base of its own, every weight of whose denoiser was trained."""
    recipe, base, known = info.recipe, shared_name(info.base), hub_id(info.base)
    licence = LICENCES.get(info.base)
    front = ModelCardData(
        base_model=known,
        base_model_relation="finetune" if known else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        instance_prompt=prompt_form(recipe),
        tags=[info.family, "text-to-image", "diffusers", "iclora"],
    )
    body = render_markdown(
        "base-card",
        recipe=recipe,
        base=base,
        licence=licence,
        steps=info.steps,
        version=__version__,
        form=prompt_form(recipe),
        example=_in_quotes(recipe.example),
        code="from diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("FOLDER")',
        settings={"base": base, "recipe": recipe.name, **settings.shown(), "steps": info.steps},
    )
    return f"---\n{front.to_yaml(line_break=chr(10))}\n---\n{body}"


def prompt_form(recipe: Recipe) -> str:
    """The form of a joint prompt, dots for words: "[MOVIE-SHOTS] ... [SCENE-1] ..."."""
    return f"{recipe.prefix} ... {' ... '.join(recipe.markers)} ...".lstrip()


def _in_quotes(text: str) -> str:
    """A text as one word of a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _diffusers(info: AdapterInfo, base: str, usual: Sampling) -> str:
    """Python that loads base and adapter and paints the example."""
    sampling = info.recipe.sampling
    # A base that was distilled to few steps wins over the recipe, as in `prepare`.
    steps, guidance = sampling.steps, sampling.guidance
    if usual.fixed_steps:
        steps, guidance = usual.steps, usual.guidance
    told: dict[str, Any] = {
        "width": info.layout.width,
        "height": info.layout.height,
        "num_inference_steps": steps,
        "guidance_scale": guidance or None,
    }
    rest = "".join(f"    {name}={value},\n" for name, value in told.items() if value is not None)
    example = json.dumps(info.recipe.example, ensure_ascii=False)
    return f"""import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({json.dumps(base)}, dtype=torch.bfloat16)
pipeline.load_lora_weights("USER/NAME", weight_name="{ADAPTER}")
pipeline.enable_model_cpu_offload()
picture = pipeline(
    prompt={example},
{rest}    generator=torch.Generator().manual_seed(0),
).images[0]
picture.save("{info.recipe.name}.png")"""
