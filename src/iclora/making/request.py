"""A request: everything that decides the pixels of a set, checked before anything is computed.

`prepare` makes one of a wish, a base, an adapter and given panels. Written beside a set as
request.json, it makes the same set again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator
from torch import Tensor

from iclora import __version__
from iclora.adapter import Adapter
from iclora.errors import SettingsError
from iclora.files import digest, inside
from iclora.files.documents import read_json
from iclora.making.beside import Beside, describe_beside
from iclora.making.checks import (
    Note,
    check_adapter,
    check_mode,
    isolates,
    mode_of,
    notes_of_base,
    notes_of_panels,
    repetitions,
    without_effect,
)
from iclora.making.given import GivenPanel, describe_given, fitting_latents
from iclora.making.texts import checked_texts, text_kind
from iclora.models.base import DTYPES, DiffusionModel
from iclora.sets.around import canvas_around
from iclora.sets.caption import unknown_note
from iclora.sets.images import open_image
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe, load_recipe
from iclora.settings import (
    MOST_PIXELS,
    Boost,
    Device,
    FilePath,
    Guidance,
    Mode,
    Offload,
    Precision,
    Prompt,
    Resample,
    Seed,
    Settings,
    Sigma,
    Steps,
    Strength,
    TextKind,
    Wish,
    problems_of,
)

__all__ = ["Request", "check_base", "machine_of", "panel_seed", "prepare", "recipe_of"]

_OLD_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
"""As requests of version 0.2 spelled them at first."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NO_PIXELS = frozenset({"base", "adapter", "recipe", "versions", "together"})
"""What decides no pixel: names, beside which hashes stand, and what is rounding alone."""


class Request(Settings):
    """Everything that decides the pixels of a set."""

    base: FilePath
    """Path or hub id; the fingerprint decides."""
    base_fingerprint: str
    device: Device
    dtype: Annotated[
        Literal["bf16", "fp32"], BeforeValidator(lambda value: _OLD_DTYPES.get(str(value), value))
    ]
    precision: Precision = "full"
    """How the linear layers of the base's blocks were kept."""
    offload: Offload = "none"
    """What stayed in the machine's memory: text encoders then round as a CPU does."""
    compile: bool = False
    """True if the blocks were compiled, which rounds elsewhere."""
    adapter: FilePath | None = None
    """Where the adapter's file lay; the hash decides."""
    adapter_sha256: str = ""
    strength: Strength = 1.0
    """Factor on the adapter's update."""
    beside: tuple[Beside, ...] = ()
    """Further adapters whose updates are added."""
    recipe: str
    markers: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    """The recipe's. In mode reference, those of given panels are read as other words; in others
    they decide nothing, and are there for panels that are made again in that mode."""
    prompt: Prompt
    negative: Annotated[str, Field(max_length=100_000)] = ""
    """What the unguided pass reads, for bases that are guided by two passes."""
    text: TextKind = "joint"
    panel_texts: tuple[Prompt, ...] = ()
    """What each panel reads, if that is not the prompt as a whole."""
    layout: Layout
    seeds: tuple[Seed, ...]
    """One per panel: changing one makes the noise of that panel alone again."""
    steps: Steps
    guidance: Guidance
    given: Annotated[
        dict[int, GivenPanel], Field(validation_alias=AliasChoices("given", "known"))
    ] = {}  # noqa: RUF012 (pydantic copies it)
    """Given panels by number, counted from 1."""
    mode: Mode = "sdedit"
    isolate_given: bool = False
    """In clean mode: given panels attend to themselves alone, as the adapter was trained."""
    boost: Boost = 2.0
    """In boost mode, the factor on attention."""
    resample: Resample = 0
    """How often an early step is repeated from new noise; in any mode, given panels or none."""
    resample_from: Sigma = 0.6
    """The lowest noise level from which steps are repeated."""
    together: Annotated[int, Field(ge=1)] = 1
    """How many sets shared its batch, which rounds elsewhere."""
    versions: dict[str, str] = {}  # noqa: RUF012

    @model_validator(mode="after")
    def _fits_together(self) -> Request:
        panels = self.layout.panels
        if self.layout.width * self.layout.height > MOST_PIXELS:
            raise ValueError(
                f"a canvas of {self.layout.width}x{self.layout.height} px is too large"
            )
        if len(self.seeds) != panels:
            raise ValueError(f"{len(self.seeds)} seeds for {panels} panels")
        if self.markers and len(self.markers) != panels:
            raise ValueError(f"{len(self.markers)} markers for {panels} panels")
        if len(self.panel_texts) != (0 if self.text == "joint" else panels):
            raise ValueError(f"{len(self.panel_texts)} texts of panels, text {self.text}")
        if not set(self.given) < set(range(1, panels + 1)):
            raise ValueError(f"given panels {sorted(self.given)} of {panels}")
        return self

    @property
    def words(self) -> str:
        """The prompt as the base reads it: in mode reference, given panels by their number there.

        "[SCENE-1]" becomes "image 1" if panel 1 is given, as people name pictures to such bases.
        """
        text = self.prompt
        if self.mode == "reference" and self.markers:
            for number, panel in enumerate(sorted(self.given), 1):
                text = text.replace(self.markers[panel - 1], f"image {number}")
        return text

    @property
    def texts(self) -> tuple[str, ...]:
        """What is encoded: one text for all panels, or one for each."""
        return self.panel_texts or (self.words,)

    def same_pixels(self, other: Request) -> bool:
        """True if both make the same set, whatever their base and adapter are called."""
        nameless: Any = dict.fromkeys(_NO_PIXELS, True) | {"beside": {"__all__": {"file"}}}
        # Requests of before have no markers in other modes.
        silent = set() if self.mode == "reference" else {"markers"}
        mine, theirs = (
            each.model_dump(exclude=nameless | dict.fromkeys(silent, True))
            for each in (self, other)
        )
        return mine == theirs

    @property
    def adapters(self) -> tuple[Beside, ...]:
        """All adapters that are added up, none for the base alone."""
        if not (self.adapter_sha256 or self.beside):
            return ()
        first = Beside(file=self.adapter, sha256=self.adapter_sha256, strength=self.strength)
        return (first, *self.beside)

    def shared(self) -> Request:
        """The same request without the folders of this machine, for files that are passed on."""
        names = {"base": self.base, "adapter": self.adapter}
        own = {n: Path(path).name for n, path in names.items() if path and Path(path).is_absolute()}
        beside = tuple(each.shared() for each in self.beside)
        return self.model_copy(update={**own, "beside": beside})

    @classmethod
    def read(cls, path: str | Path) -> Request:
        """Read a request.json alone. Raises: SettingsError if it is not a request."""
        try:
            return cls.model_validate(read_json(path, SettingsError, "request"))
        except ValidationError as error:
            raise SettingsError(
                f"{path} is not a request: {problems_of(error)}",
                "Use what `iclora generate` or `iclora complete` wrote.",
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> tuple[Request, dict[int, Image.Image]]:
        """Read a request.json and the given panels it names, which must lie beside it.

        Raises: SettingsError if it is not a request, names files elsewhere, or a given panel has
            been changed; ImageError.
        """
        path = Path(path)
        request, given = cls.read(path), {}
        for number, panel in request.given.items():
            image = open_image(inside(path.parent, panel.file, SettingsError))
            if digest(image.tobytes()) != panel.sha256:
                raise SettingsError(
                    f"given panel {number} ({panel.file}) is not the one {path} was made with",
                    "Restore it, or start again with `iclora complete`.",
                )
            given[number] = image
        return request, given


# -- from a wish to a request ---------------------------------------------------------------------


def prepare(
    model: DiffusionModel,
    wish: Wish,
    *,
    recipe: Recipe | None = None,
    adapter: Adapter | None = None,
    given: Mapping[int, Image.Image] | None = None,
    latents: Mapping[int, Tensor] | None = None,
    layout: Layout | None = None,
) -> tuple[Request, list[Note]]:
    """Turn a wish into a request, checked in full before any computing.

    Args:
        recipe: by default the one the wish names, else the one the adapter carries.
        given: pictures of given panels by number, counted from 1; `wish.given` names their files,
            which are not read here.
        latents: of given panels that were made before, (rows, columns, channels); if they do not
            fit their box, the picture is encoded instead.
        layout: the canvas itself, instead of `wish.size`. By default a canvas that keeps given
            panels at their own size, or else one of the adapter's or the recipe's area with the
            given panels' shapes.
    Returns: the request, and notes for the user.
    Raises: SettingsError, CaptionError (markers, token limit), LayoutError, RecipeError;
        AdapterError for an adapter of another family, or that the base has no place for.
    """
    given = dict(given or {})
    if adapter:
        check_adapter(model, adapter)
    task = recipe_of(wish.recipe, adapter, recipe)
    text, said = task.prompt(wish.prompt)
    notes = [Note(each, "prompt") for each in said]
    kind, odd = text_kind(model, wish.text, adapter)
    notes += [Note(odd, "adapter")] * bool(odd)
    texts = checked_texts(model, task, text, kind)
    unread = unknown_note(text, model.unknown_letters)
    if unread:
        notes.append(Note(f"{unread}: write the prompt in English", "prompt"))
    layout = layout or _layout(model, task, adapter, wish.size, given)
    for number in (*given, *wish.panel_seeds):
        layout.check_number(number)
    notes += notes_of_panels(layout, given, model.grid)
    notes += notes_of_base(model, adapter)
    mode = mode_of(wish, adapter, bool(given), notes)
    check_mode(model, mode, kind)
    notes += without_effect(model, wish, mode)
    values = {
        **machine_of(model),
        "adapter": str(adapter.path) if adapter and adapter.path else None,
        "adapter_sha256": adapter.sha256 if adapter else "",
        "strength": wish.strength * (adapter.strength if adapter else 1.0),
        "beside": describe_beside(adapter, wish.strength),
        "recipe": task.name,
        "markers": task.markers,
        "prompt": text,
        "negative": wish.negative,
        "text": kind,
        "panel_texts": () if kind == "joint" else texts,
        "layout": layout,
        "seeds": tuple(
            wish.panel_seeds.get(n, panel_seed(wish.seed, n)) for n in range(1, layout.panels + 1)
        ),
        **_sampling(model, wish, task),
        "given": describe_given(given, fitting_latents(layout, latents or {}, given, model.grid)),
        "mode": mode,
        "isolate_given": mode == "clean" and isolates(adapter),
        "boost": wish.boost,
        "resample": repetitions(wish.resample, mode),
        "resample_from": wish.resample_from,
    }
    try:
        return Request.model_validate(values), notes
    except ValidationError as error:
        raise SettingsError(f"invalid settings: {problems_of(error)}", "Change them.") from error


def machine_of(model: DiffusionModel) -> dict[str, Any]:
    """What a request says of the base and the machine that make it."""
    return {
        "base": model.name,
        "base_fingerprint": model.identity(),
        "device": model.device.type,
        "dtype": _NAMES[model.dtype],
        "precision": model.precision,
        "offload": model.offload,
        "compile": "sampling" in model.compiled,
        "versions": {"iclora": __version__, "torch": torch.__version__},
    }


def recipe_of(name: str | None, adapter: Adapter | None, recipe: Recipe | None = None) -> Recipe:
    """The recipe itself, else the one of that name, else the adapter's.

    Raises: SettingsError if there is none; RecipeError for an unknown name.
    """
    found = recipe or (load_recipe(name) if name else None)
    if found is None and adapter and adapter.info:
        found = adapter.info.recipe
    if found is None:
        raise SettingsError(
            "no recipe is known: none was given, and the adapter carries none",
            "Set `recipe`, for instance to film-storyboard.",
            setting="recipe",
        )
    return found


def panel_seed(seed: int, number: int) -> int:
    """The seed of one panel's noise, from the seed of the whole and a number counted from 1."""
    return int(digest("seed", str(seed), str(number))[:8], 16)


def _sampling(model: DiffusionModel, wish: Wish, task: Recipe) -> dict[str, Any]:
    """Steps and guidance: the wish's, else the recipe's, else the base's own."""
    base = model.sampling
    steps = (wish.steps, None if base.fixed_steps else task.sampling.steps, base.steps)
    # What an adapter's recipe says of guidance is of the base it was trained on.
    told = None if base.guided == "none" else task.sampling.guidance
    guidance = (wish.guidance, told, base.guidance, 0.0)
    return {
        "steps": next(n for n in steps if n is not None),
        "guidance": next(value for value in guidance if value is not None),
    }


def _layout(
    model: DiffusionModel,
    recipe: Recipe,
    adapter: Adapter | None,
    size: tuple[int, int] | None,
    given: Mapping[int, Image.Image],
) -> Layout:
    """The canvas: as asked, else the usual area with the given panels' shapes."""
    usual = recipe.canvas
    if adapter and adapter.info and adapter.info.recipe.same_task(recipe):
        usual = adapter.info.layout
    sizes = {number: image.size for number, image in given.items()}
    return canvas_around(usual, sizes, size, model.multiple)


# -- repeating a request ------------------------------------------------------------------------


def check_base(request: Request, model: DiffusionModel) -> None:
    """Raises: SettingsError if the base is not the one the request was made with."""
    if request.base_fingerprint != model.identity():
        raise SettingsError(
            f"the weights of {model.name} are not those this request was made with, so the "
            "pictures would differ",
            "Restore that base, or make a new request.",
            setting="base",
        )
