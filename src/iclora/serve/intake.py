"""From what a client asks for to a job: ids become files, seeds are drawn, folders are fixed.

All that can be known without a base's weights is refused here, before the job is acknowledged.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iclora.errors import AdapterError, SettingsError
from iclora.files import write_text
from iclora.serve.assets import Assets
from iclora.serve.catalog import Catalog
from iclora.serve.engine import adapters_of
from iclora.serve.fits import Fits
from iclora.serve.index import Sets
from iclora.serve.inputs import SETTINGS, Ask, server_decides
from iclora.serve.jobs import Busy, NewJob
from iclora.serve.store import new_id
from iclora.sets.recipe import Recipe
from iclora.settings import ServeSettings, Settings, settings_of

__all__ = ["Intake"]

_MOST_SETS = 8
_MOST_COMPARED = 1000
_LONGEST_PROMPT = 20_000
_IN_OUT = frozenset({"generate", "complete", "reroll", "extend", "evaluate", "check", "prompt"})


class Intake:
    """Makes jobs of what clients ask for.

    Args:
        base: what the workers hold.
        fits: tells if it takes an adapter.
    """

    def __init__(
        self,
        settings: ServeSettings,
        base: str,
        catalog: Catalog,
        assets: Assets,
        sets: Sets,
        fits: Fits,
    ) -> None:
        self._settings, self._base, self._fits = settings, base, fits
        self._catalog, self._assets, self._sets = catalog, assets, sets

    def job(self, ask: Ask, client: str = "") -> NewJob:
        """A job with everything decided, on the disk nowhere yet.

        Raises: IcloraError for what cannot be done, with the setting that it concerns.
        """
        kind, told, job = ask.kind, ask.input, new_id()
        if kind == "train" and self._settings.engine == "ray":
            raise SettingsError(
                "this server's workers are replicas of a Ray cluster, which train nothing",
                "Start the run by `iclora train` on a machine with a GPU; it is shown here.",
            )
        given = {name: getattr(told, name) for name in told.model_fields_set}
        given = {name: value for name, value in given.items() if value is not None}
        seed = type(told).model_fields.get("seed")
        drawn = seed is not None and seed.default is None and "seed" not in given
        if drawn and not given.get("request"):
            given["seed"] = secrets.randbelow(2**32)
            told = told.model_copy(update={"seed": given["seed"]})
        folder = self._folder(kind, job, given)
        values = self._resolved(kind, job, given, client)
        values |= self._servers(kind, values, folder)
        settings = settings_of(SETTINGS[kind], values)
        if kind in ("generate", "complete"):
            self._check_making(settings, given)
        if kind == "evaluate":
            _check_evaluation(settings)
        if again := _made_before(values):  # Its own base has taken its adapters once.
            self._check_same(again, given.get("adapter", ()))
        else:
            self._fits.check(map(self._catalog.adapter, _adapters(kind, given)))
        plain = settings.model_dump(mode="json", exclude_unset=True)
        return NewJob(
            id=job,
            kind=kind,
            input=told.model_dump(mode="json"),
            settings=plain,
            folder=str(folder),
            client=client,
            priority=ask.priority,
            tag=ask.tag,
            exact=ask.exact,
            adapter=adapters_of(plain),
        )

    def _folder(self, kind: str, job: str, given: dict[str, Any]) -> Path:
        if kind in _IN_OUT:
            return self._catalog.out / job
        if kind == "caption":  # Captions are written where the sets are.
            return self._catalog.dataset(given["data"])
        name = given.pop("name")
        folder = self._catalog.new("runs" if kind == "train" else "data", name)
        if folder.exists():
            raise Busy(f"{folder.parent.name}/{name} is there already", "Use another name.")
        return folder

    def _servers(self, kind: str, values: dict[str, Any], folder: Path) -> dict[str, Any]:
        """What the server decides. A set that is made again brings its base and precision."""
        fields = SETTINGS[kind].model_fields
        own: dict[str, Any] = {"out": str(folder)} if "out" in fields else {}
        if _made_before(values):
            return own
        if "base" in fields:
            own["base"] = self._base
        told = self._settings.of_workers()
        here = fields.keys() & server_decides(kind)
        return own | {name: value for name, value in told.items() if name in here}

    # -- ids --------------------------------------------------------------------------------------

    def _resolved(self, kind: str, job: str, given: dict[str, Any], client: str) -> dict[str, Any]:
        """The values with files in place of ids."""
        catalog = self._catalog
        ways: dict[str, Callable[[Any], Any]] = {
            "recipe": lambda name: catalog.recipe(name)[1],
            "data": lambda name: str(catalog.dataset(name)),
            "source": lambda name: str(catalog.dataset(name)),
            "validation": lambda name: str(catalog.dataset(name)),
            "set": lambda name: str(self._sets.get(name, client).path),
            "request": lambda name: str(self._sets.get(name, client).path / "request.json"),
            "given": lambda given: {n: str(self._assets.path(h)) for n, h in given.items()},
            "adapter": lambda names: tuple(map(self._adapter, names)),
            "story": lambda text: self._story(job, text),
            "captioner": lambda name: _offered(name, "captioner", self._settings.captioner),
            "score": lambda name: _offered(name, "score", self._settings.metric),
            "metric": lambda names: tuple(
                _offered(name, "metric", self._settings.metric) for name in names
            ),
        }
        if kind == "evaluate":
            ways["given"] = lambda given: tuple(map(self._given_of_arm, given))
            ways["adapter"] = lambda arms: tuple(map(self._arm, arms))
        return {n: ways[n](value) if n in ways else value for n, value in given.items()}

    def _adapter(self, text: str) -> str:
        """FILE=STRENGTH of ID=STRENGTH."""
        name, equals, strength = text.partition("=")
        return f"{self._catalog.adapter(name).path}{equals}{strength}"

    def _arm(self, text: str) -> str:
        """[NAME=]FILE[=STRENGTH][+FILE...] of the same with ids."""
        name, parts = _of_arm(text)
        files = "+".join(map(self._adapter, parts))
        # Called by their ids: two files may have one name.
        return f"{name or '+'.join(part.partition('=')[0] for part in parts)}={files}"

    def _given_of_arm(self, text: str) -> str:
        panel, equals, sha256 = text.partition("=")
        return f"{panel}={self._assets.path(sha256)}" if equals else text

    def _story(self, job: str, text: str) -> str:
        path = self._catalog.home / "stories" / f"{job}.txt"
        write_text(path, text)
        return str(path)

    # -- what can be known at once ----------------------------------------------------------------

    def _check_making(self, settings: Settings, given: dict[str, Any]) -> None:
        prompts = getattr(settings, "prompt", ())
        check_decided = getattr(settings, "check_decided", None)
        if getattr(settings, "request", None):
            if check_decided:
                check_decided()
            return
        ideas = getattr(settings, "idea", ())
        if not prompts and not ideas:
            raise SettingsError("there is no prompt", "Set `prompt` or `idea`.", "prompt")
        long = max((len(text) for text in (*prompts, *ideas)), default=0)
        if long > _LONGEST_PROMPT:
            raise SettingsError(
                f"a prompt has {long:,} characters", "20,000 are the most.", "prompt"
            )
        wanted = (len(prompts) + len(ideas)) * getattr(settings, "count", 1)
        if wanted * (getattr(settings, "best_of", None) or 1) > _MOST_SETS:
            raise SettingsError(
                f"this job would make more than {_MOST_SETS} sets",
                "Post several jobs: they share what is loaded.",
                "count",
            )
        recipe, panels = self._recipe_of(given)
        if recipe:
            for text in prompts:
                recipe.prompt(text)
        for name in ("given", "panel_seeds"):
            far = [n for n in getattr(settings, name, {}) if panels and n > panels]
            if far:
                raise SettingsError(
                    f"there is no panel {far[0]} of {panels}", "Count from 1.", name
                )

    def _check_same(self, path: Path, named: Sequence[str]) -> None:
        """Refuse to make a set again by other adapters than it was made with.

        Args:
            path: of its request.
            named: ids of the adapters, if the client names them.
        Raises: SettingsError, also for what is no request; AdapterError.
        """
        from iclora.making.request import Request

        request, hashes = Request.read(path), {}
        for place in request.places(named):
            file = self._catalog.adapter(place).path if named else Path(place)
            if not file.is_absolute():  # As in a set from elsewhere: the job looks for it.
                return
            hashes[place] = self._catalog.hash_of(file)
            if not hashes[place]:
                raise AdapterError(
                    f"the adapter {place}, which the set was made with, cannot be read",
                    "Set `adapter` to the one that holds it now.",
                    "adapter",
                )
        request.check_adapters(hashes)

    def _recipe_of(self, given: dict[str, Any]) -> tuple[Recipe | None, int]:
        """The recipe of a wish and its number of panels, 0 if only the base can know them."""
        if given.get("recipe"):
            recipe = self._catalog.recipe(given["recipe"])[0]
            return recipe, recipe.canvas.panels
        names = [text.partition("=")[0] for text in given.get("adapter", ())]
        known = [file for file in map(self._catalog.adapter, names) if file.recipe]
        if not known or known[0].layout is None:
            return None, 0
        return known[0].recipe, known[0].layout.panels


def _made_before(values: Mapping[str, Any]) -> Path | None:
    """The request of a set that is made again, whole or in part; None for new sets."""
    if values.get("request"):
        return Path(values["request"])
    return Path(values["set"]) / "request.json" if values.get("set") else None


def _adapters(kind: str, given: dict[str, Any]) -> list[str]:
    """The ids of all adapters that a client names."""
    named = given.get("adapter", ())
    if kind == "evaluate":
        named = [part for text in named for part in _of_arm(text)[1]]
    return [text.partition("=")[0] for text in named]


def _of_arm(text: str) -> tuple[str, list[str]]:
    """The name, if there is one, and the adapters of [NAME=]ID[=STRENGTH][+ID...]."""
    parts = text.split("+")
    match = re.fullmatch(r"([^=]+)=([^=]*[^-+0-9.eE=][^=]*(=.*)?)", parts[0])
    return (match[1] if match else ""), [match[2] if match else parts[0], *parts[1:]]


def _check_evaluation(settings: Settings) -> None:
    arms = (1 + len(getattr(settings, "adapter", ()))) * max(1, len(getattr(settings, "mode", ())))
    wanted = len(getattr(settings, "prompt", ())) * getattr(settings, "seeds", 1) * arms
    if wanted > _MOST_COMPARED:
        raise SettingsError(
            f"this job would make {wanted:,} sets", f"{_MOST_COMPARED:,} are the most.", "seeds"
        )


def _offered(name: str, setting: str, offered: tuple[str, ...]) -> str:
    if name not in offered:
        raise SettingsError(
            f'this server does not offer "{name[:80]}"',
            f"Use one of {', '.join(offered)}; who starts it decides.",
            setting,
        )
    return name
