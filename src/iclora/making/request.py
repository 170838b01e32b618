"""A request: everything that decides the pixels of a set.

Written beside a set as request.json, it makes the same set again. It imports no torch, so that one
that is none is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator

from iclora.errors import AdapterError, SettingsError
from iclora.files import digest, inside
from iclora.files.documents import read_json
from iclora.making.beside import Beside
from iclora.making.given import GivenPanel
from iclora.sets.images import open_image
from iclora.sets.layout import Layout
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
    problems_of,
    split_strength,
)

__all__ = ["Request"]

_OLD_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
"""As requests of version 0.2 spelled them at first."""
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

    def places(self, named: Sequence[str] = ()) -> list[str]:
        """Where its adapters lie: as they are named, in any order, else where they lay then.

        Raises: SettingsError for one that is named with a strength, which the request decides;
            AdapterError if it is not known where one lay.
        """
        told = next((name for name in named if split_strength(name)[1] is not None), None)
        if told:
            raise SettingsError(
                f"{told} names a strength, and the request decides it",
                "Name the file alone, or make a new request.",
                setting="adapter",
            )
        where = list(named) or [each.file for each in self.adapters if each.file]
        if not named and len(where) < len(self.adapters):
            raise AdapterError(
                "this request was made with an adapter, and does not say where it lies",
                "Set `adapter` to its file.",
                setting="adapter",
            )
        return where

    def check_adapters(self, found: Mapping[str, str]) -> None:
        """Compare adapters with those it was made with.

        Args:
            found: the hash of each by what it is called.
        Raises: AdapterError for another one, or if one is missing.
        """
        wanted = {each.sha256 for each in self.adapters}
        other = next((name for name, sha256 in found.items() if sha256 not in wanted), None)
        if other:
            raise AdapterError(
                f"{other} is not the adapter this request was made with",
                "Set `adapter` to the right file, or make a new request with this one.",
                setting="adapter",
            )
        if wanted - set(found.values()):
            raise AdapterError(
                f"this request was made with {len(self.adapters)} adapters, and {len(found)} are"
                " named",
                "Name every one by `adapter`, or none where they still lie where they did.",
                setting="adapter",
            )

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
