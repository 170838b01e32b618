"""What is asked for, checked in full before anything is computed, and what came of it.

OUT/0001/composite.png
OUT/0001/panel-1.png ...
OUT/0001/request.json        run again, it makes the same set
OUT/0001/latents.safetensors of its panels: a panel that is kept for another set does not drift
"""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iclora import __version__
from iclora.adapter import Adapter
from iclora.errors import AdapterError, SettingsError, StorageError
from iclora.files import digest, inside, storage_error, write_bytes, write_text
from iclora.models.base import DiffusionModel, Sampling
from iclora.sets.caption import check_budget
from iclora.sets.images import open_image, write_png
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe
from iclora.settings import Precision, problems_of

__all__ = [
    "GeneratedSet",
    "Mode",
    "Request",
    "check_base",
    "describe_known",
    "fit_known",
    "fitting_latents",
    "known_latents",
    "load_adapter_of",
    "next_folder",
    "prepare",
    "read_latents",
]

_LATENTS = "latents.safetensors"


class KnownPanel(BaseModel):
    """A given panel: its file beside the request, and the hash of its pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str
    latents: str = ""
    """Hash of its latents, if they come from a set that was made; else it is encoded."""


Mode = Literal["sdedit", "resample", "boost", "clean"]
"""How missing panels are made.

sdedit: known panels are as noisy as the rest at every step (the paper's).
resample: the same, and steps early on are taken several times (`Request.resample`).
boost: the same, and the rest pays known panels more attention.
clean: known panels carry no noise and the base is told so; for adapters trained on it.
"""


class Request(BaseModel):
    """Everything that decides the pixels of a set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    base_fingerprint: str
    device: str
    dtype: Literal["float32", "bfloat16"]
    precision: Precision = "full"
    """How the base's blocks were kept."""
    adapter: str | None = None
    """Path of the adapter file."""
    adapter_sha256: str = ""
    strength: float = 1.0
    """Factor on the adapter's update."""
    recipe: str
    prompt: str
    layout: Layout
    seeds: tuple[int, ...]
    """One per panel: changing one re-rolls the noise of that panel alone."""
    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    known: dict[int, KnownPanel] = {}
    """Given panels by number, counted from 1."""
    mode: Mode = "sdedit"
    isolate_given: bool = False
    """In clean mode: known panels attend to themselves alone, as the adapter was trained."""
    boost: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 2.0
    """In boost mode, the factor on attention."""
    resample: Annotated[int, Field(ge=0, le=100)] = 0
    """How often an early step is repeated from new noise; in any mode, known panels or none."""
    resample_from: Annotated[float, Field(ge=0, le=1)] = 0.6
    """The lowest noise level from which steps are repeated."""
    versions: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, values: Any) -> Any:
        """Requests of version 0.1 name repetitions in every mode, but made them in one."""
        if not isinstance(values, dict) or values.get("mode") == "resample":
            return values
        versions = values.get("versions")
        if not isinstance(versions, dict) or versions.get("iclora") != "0.1.0":
            return values
        return {k: v for k, v in values.items() if not k.startswith("resample")}

    @model_validator(mode="after")
    def _fits_together(self) -> Request:
        panels = self.layout.panels
        if len(self.seeds) != panels:
            raise ValueError(f"{len(self.seeds)} seeds for {panels} panels")
        if not set(self.known) < set(range(1, panels + 1)):
            raise ValueError(f"known panels {sorted(self.known)} of {panels}")
        return self

    @property
    def canvas(self) -> Layout:
        return self.layout

    @classmethod
    def load(cls, path: str | Path) -> tuple[Request, dict[int, Image.Image]]:
        """Read a request.json and the known panels it names, which must lie beside it.

        Raises: SettingsError if it is not a request, names files elsewhere, or a known panel has
            been changed; ImageError.
        """
        path = Path(path)
        try:
            request = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise SettingsError(
                f"{path} is no request: {problems_of(error)}",
                "Use what `generate` or `complete` wrote.",
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"request {path} cannot be read: {error}", "Check the path."
            ) from error
        known = {}
        for number, panel in request.known.items():
            image = open_image(inside(path.parent, panel.file, SettingsError))
            if digest(image.tobytes()) != panel.sha256:
                raise SettingsError(
                    f"known panel {number} ({panel.file}) is not the one {path} was made with",
                    "Restore it, or start anew with `iclora complete --known`.",
                )
            known[number] = image
        return request, known


@dataclass(frozen=True)
class GeneratedSet:
    """A composite, its panels, and the request that made them."""

    composite: Image.Image
    panels: tuple[Image.Image, ...]
    request: Request
    latents: tuple[Tensor, ...] = ()
    """Of every panel, (rows, columns, channels) float32; empty where nobody kept them."""
    vae: str = ""
    """Fingerprint of the VAE they are for."""

    @classmethod
    def load(cls, folder: str | Path) -> GeneratedSet:
        """A set that `save` wrote. Raises: SettingsError if something is missing or not its own."""
        folder = Path(folder)
        request, _ = Request.load(folder / "request.json")
        panels = [open_image(folder / f"panel-{n}.png") for n in range(1, len(request.seeds) + 1)]
        kept = [read_latents(folder / f"panel-{n}.png", p) for n, p in enumerate(panels, 1)]
        whole = [k for k in kept if k]
        latents = tuple(k[0] for k in whole) if len(whole) == len(panels) else ()
        composite = open_image(folder / "composite.png")
        return cls(composite, tuple(panels), request, latents, whole[0][1] if latents else "")

    def save(self, folder: str | Path) -> Path:
        """Write composite.png, panel-1.png ... and request.json, all or none of them.

        Returns: the folder. Raises: StorageError if it exists or cannot be written.
        """
        folder = Path(folder)
        # A name of its own: another process may be writing a set beside this one.
        work = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        try:
            if folder.exists():
                raise FileExistsError(errno.EEXIST, "it exists already")
            write_png(work / "composite.png", self.composite)
            for number, panel in enumerate(self.panels, 1):
                write_png(work / f"panel-{number}.png", panel)
            write_text(work / "request.json", self.request.model_dump_json(indent=2) + "\n")
            if self.latents:
                write_bytes(work / _LATENTS, self._latents())
            work.rename(folder)
        except OSError as error:
            raise storage_error(folder, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return folder

    def _latents(self) -> bytes:
        tensors = {f"panel-{n}": t.contiguous() for n, t in enumerate(self.latents, 1)}
        pixels = {f"panel-{n}": digest(p.tobytes()) for n, p in enumerate(self.panels, 1)}
        return save(tensors, {"iclora": json.dumps({"vae": self.vae, "pixels": pixels})})

    def save_next(self, out: str | Path) -> Path:
        """`save` under the next free number of a folder: OUT/0001, OUT/0002 and on.

        Returns: the new folder. Raises: StorageError.
        """
        while True:
            folder = next_folder(Path(out))
            try:
                return self.save(folder)
            except StorageError:
                # Somebody else took that number meanwhile; every other reason stands.
                if not folder.exists():
                    raise


def read_latents(panel: Path, image: Image.Image) -> tuple[Tensor, str] | None:
    """The latents a panel of a made set was decoded from, if they lie beside it.

    Args:
        panel: the file. image: its picture; latents of another one are not taken.
    Returns: (rows, columns, channels) float32, and the fingerprint of their VAE.
    Raises: SettingsError if the file of latents is damaged.
    """
    path = panel.with_name(_LATENTS)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["iclora"])
            if about["pixels"].get(panel.stem) != digest(image.tobytes()):
                return None
            return file.get_tensor(panel.stem).float(), str(about["vae"])
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise SettingsError(
            f"{path} cannot be read: {error!r}",
            "Remove it; panels are then encoded again from their pixels.",
        ) from error


def known_latents(request: Request, folder: Path) -> dict[int, Tensor]:
    """The latents of a request's known panels that were made before.

    Args:
        folder: where the request and its panels lie.
    Raises: SettingsError if they are gone or not those the request was made with.
    """
    found = {}
    for number, panel in request.known.items():
        if not panel.latents:
            continue
        file = inside(folder, panel.file, SettingsError)
        kept = read_latents(file, open_image(file))
        if kept is None or hash_latents(kept[0]) != panel.latents:
            raise SettingsError(
                f"the latents of known panel {number} are not beside {file} any more",
                f"Restore {_LATENTS}, or start anew with `iclora complete --known`.",
            )
        found[number] = kept[0]
    return found


def hash_latents(latents: Tensor) -> str:
    """What stands for them in a request."""
    return digest(latents.contiguous().numpy().tobytes())


def next_folder(out: Path) -> Path:
    """OUT/0001, or the number after the highest there: nothing is overwritten."""
    taken = [int(p.name) for p in out.glob("[0-9]*") if p.name.isdigit()] if out.is_dir() else []
    return out / f"{max(taken, default=0) + 1:04d}"


def prepare(
    model: DiffusionModel,
    prompt: str,
    *,
    recipe: Recipe | None = None,
    adapter: Adapter | None = None,
    strength: float = 1.0,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    panel_seeds: Mapping[int, int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    known: Mapping[int, Image.Image] | None = None,
    latents: Mapping[int, Tensor] | None = None,
    layout: Layout | None = None,
    mode: Mode | None = None,
    boost: float | None = None,
    resample: int | None = None,
    resample_from: float | None = None,
) -> tuple[Request, list[str]]:
    """Turn a wish into a request, checked in full before any computing.

    Args:
        prompt: a joint prompt in the recipe's form.
        recipe: by default the one the adapter carries.
        size: canvas width and height, px; by default one that keeps the known panels at their own
            size, or else of the adapter's or the recipe's area with the known panels' shapes.
        seed: decides the seeds of all panels.
        panel_seeds: own seeds for some panels, by number counted from 1.
        steps: Euler steps; by default the base's own number, else the recipe's.
        guidance: by default the recipe's.
        known: given panels by number, counted from 1.
        latents: of known panels that were made before, (rows, columns, channels); where they do
            not fit their box, the picture is encoded instead.
        layout: the canvas itself, instead of `size`.
        mode: how missing panels are made; by default clean if the adapter was trained for it,
            else sdedit.
        boost, resample, resample_from: see `Request`.
    Returns: the request, and notes for the user.
    Raises: SettingsError, CaptionError (markers, token limit), LayoutError.
    """
    known = dict(known or {})
    task = recipe or (adapter.info.recipe if adapter and adapter.info else None)
    if task is None:
        raise SettingsError(
            "no recipe is known: neither was one given, nor does the adapter name one",
            "Pass --recipe, such as --recipe film-storyboard.",
        )
    text, notes = task.prompt(prompt)
    # encode_text refuses a long one as well; here it happens before any weights are loaded.
    check_budget(text, model.count_tokens, model.max_text_tokens, "the prompt")
    layout = layout or _layout(model, task, adapter, size, known)
    for number, image in fit_known(layout, known).items():
        if image.size != known[number].size:
            notes.append(
                f"panel {number} is {known[number].width}x{known[number].height} px and "
                f"{image.width}x{image.height} in the composite (its edges lie on the "
                f"{model.grid} px token grid); panel-{number}.png keeps your pixels"
            )
    wish = model.sampling
    if guidance is not None and wish.guided == "none":
        notes.append(f"{model.name} is not guided: --guidance has no effect")
    for number in panel_seeds or {}:
        layout.check_number(number)
    how = _mode(mode, adapter, bool(known), notes)
    tuned = {"boost": boost, "resample": resample, "resample_from": resample_from}
    tuned = {name: value for name, value in tuned.items() if value is not None}
    if boost is not None and how != "boost":
        notes.append(f"boost has no effect in mode {how}")
    if how == "resample":
        tuned.setdefault("resample", _REPETITIONS)
    elif resample_from is not None and not resample:
        notes.append("resample_from has no effect without resample")
    latents = fitting_latents(layout, latents or {}, known, model.grid)
    seeds = tuple(
        (panel_seeds or {}).get(n, int(digest("seed", str(seed), str(n))[:8], 16))
        for n in range(1, layout.panels + 1)
    )
    settings = {
        "base": model.name,
        "base_fingerprint": model.identity(),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "precision": model.precision,
        "adapter": str(adapter.path) if adapter and adapter.path else None,
        "adapter_sha256": adapter.sha256 if adapter else "",
        "strength": strength,
        "recipe": task.name,
        "prompt": text,
        "layout": layout,
        "seeds": seeds,
        "steps": next(n for n in (steps, *_steps(wish, task)) if n is not None),
        "guidance": next(
            g for g in (guidance, task.sampling.guidance, wish.guidance, 0.0) if g is not None
        ),
        "known": describe_known(known, latents),
        "mode": how,
        "isolate_given": bool(
            how == "clean" and adapter and adapter.info and adapter.info.isolate_given
        ),
        **tuned,
        "versions": {"iclora": __version__, "torch": torch.__version__},
    }
    try:
        return Request.model_validate(settings), notes
    except ValidationError as error:
        raise SettingsError(
            f"settings that make no sense: {problems_of(error)}", "Change them."
        ) from error


def _steps(base: Sampling, recipe: Recipe) -> tuple[int | None, int]:
    """Steps of the recipe before the base's own, unless the base knows one number only."""
    return (None if base.fixed_steps else recipe.sampling.steps), base.steps


_REPETITIONS = 3
"""Of steps in mode resample, unless told otherwise."""


def describe_known(
    known: Mapping[int, Image.Image], latents: Mapping[int, Tensor]
) -> dict[int, KnownPanel]:
    """Known panels as a request names them."""
    return {
        n: KnownPanel(
            file=f"panel-{n}.png",
            sha256=digest(image.tobytes()),
            latents=hash_latents(latents[n]) if n in latents else "",
        )
        for n, image in sorted(known.items())
    }


def _mode(mode: Mode | None, adapter: Adapter | None, known: bool, notes: list[str]) -> Mode:
    learnt = bool(adapter and adapter.info and adapter.info.conditional)
    if not known:
        if mode is not None:
            notes.append(f"no panel is known: mode {mode} has no effect")
        return "sdedit"
    if mode == "clean" and not learnt:
        notes.append(
            "the adapter was not trained with clean panels (`train --conditional 0.5`), so what "
            "mode clean makes is a matter of luck"
        )
    return mode or ("clean" if learnt else "sdedit")


def fitting_latents(
    layout: Layout, latents: Mapping[int, Tensor], known: Mapping[int, Image.Image], grid: int
) -> dict[int, Tensor]:
    """Those latents that belong to a known panel and are as large as its box."""
    found = {}
    for number in sorted(set(latents) & set(known)):
        box = layout.boxes[number - 1]
        if latents[number].shape[:2] == (box.height // grid, box.width // grid):
            found[number] = latents[number]
    return found


def _layout(
    model: DiffusionModel,
    recipe: Recipe,
    adapter: Adapter | None,
    size: tuple[int, int] | None,
    known: Mapping[int, Image.Image],
) -> Layout:
    """The canvas: as asked, else the usual area with the known panels' shapes."""
    usual = recipe.canvas
    if adapter and adapter.info and adapter.info.recipe.same_task(recipe):
        usual = adapter.info.layout
    for number in known:
        usual.check_number(number)
    if known and len(known) == usual.panels:
        raise SettingsError("all panels are known; nothing is left to complete", "Leave one out.")
    if size is not None:
        return usual.resized(*size, model.grid)
    area = usual.width * usual.height
    if known:
        around = usual.fit_around({n - 1: image.size for n, image in known.items()}, model.grid)
        # Within these bounds of the usual area a base still paints well, and nothing is resized.
        if around and 0.15 * area <= around.width * around.height <= 1.5 * area:
            return around
    sizes = list(usual.sizes)
    for number, image in known.items():
        sizes[number - 1] = image.size
    return usual.fit(sizes, area, model.grid)


def fit_known(layout: Layout, known: Mapping[int, Image.Image]) -> dict[int, Image.Image]:
    """The known panels at the size of their boxes. Raises: LayoutError if one would be bent."""
    return {number: layout.fit_panel(number, image) for number, image in known.items()}


def check_base(request: Request, model: DiffusionModel) -> None:
    """Raises: SettingsError if the base is not the one the request was made with."""
    if request.base_fingerprint != model.identity():
        raise SettingsError(
            f"the weights of {model.name} are not those this request was made with, so the "
            "pictures would be others",
            "Restore that base, or make a new request.",
        )


def load_adapter_of(request: Request, path: str | None = None) -> Adapter | None:
    """The adapter a request was made with, from its place then or from `path`.

    Raises: AdapterError if it is gone or has other content.
    """
    where = path or request.adapter
    if where is None:
        if request.adapter_sha256:
            raise AdapterError(
                "this request was made with an adapter, and does not say where it lies",
                "Pass it as --adapter.",
            )
        return None
    adapter = Adapter.load(where)
    if adapter.sha256 != request.adapter_sha256:
        raise AdapterError(
            f"{where} is not the adapter this request was made with",
            "Pass the right file as --adapter, or make a new request with this one.",
        )
    return adapter
