"""Sets made: generate, complete, reroll, extend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iclora.adapter import Adapter, load_stack
from iclora.errors import IcloraError
from iclora.evaluate.making import scorer
from iclora.files import clear_leftovers
from iclora.jobs import at_once
from iclora.jobs.opening import Opener
from iclora.making.asks import Sources, asks_of, base_of, load_adapter_of, machine_for, open_sources
from iclora.making.best import best_of
from iclora.making.made import Choice, GeneratedSet, find_kept
from iclora.making.preparing import recipe_of
from iclora.making.session import Ask
from iclora.making.story import ask_again
from iclora.making.story import extend as tell
from iclora.making.words import Story, plan_windows
from iclora.models.base import DiffusionModel
from iclora.progress import Console, Progress
from iclora.sets.images import open_given
from iclora.settings import ExtendSettings, GenerateSettings, RerollSettings

__all__ = ["Planned", "extend", "make", "make_together", "plan", "reroll"]


@dataclass(frozen=True)
class Planned:
    """The sets that settings ask for, checked; nothing is computed yet."""

    settings: GenerateSettings
    model: DiffusionModel
    sources: Sources
    prompts: tuple[str, ...]
    """All of them, those of ideas as they were written out."""
    wishes: Mapping[int, Sequence[Ask]]
    """By number, from 0: the ask for a set, or those it is the best of."""

    def kept(self, warn: Callable[[str], None]) -> dict[int, Path]:
        """Those of the folder `out` that an earlier command made, by the number of their wish."""
        requests = [[ask.request for ask in asks] for asks in self.wishes.values()]
        found = find_kept(Path(self.settings.out), requests, self.settings.score, warn)
        numbers = list(self.wishes)
        return {numbers[at]: folder for at, folder in found.items()}


def plan(
    settings: GenerateSettings, console: Console, opener: Opener, only: Sequence[int] | None = None
) -> Planned:
    """Turn settings into asks.

    Args:
        only: the wishes to prepare, by number from 0: `count` for each prompt; by default all.
    Raises: IcloraError for whatever cannot be met.
    """
    sources = open_sources(settings, opener.adapter)
    _tell_notes(sources.adapter, console)
    model = opener.base(sources.base, sources.machine)
    written: list[str] = []

    def say(prompt: str) -> None:
        written.append(prompt)
        console.say(f"prompt: {prompt}")

    asks = asks_of(settings, model, sources, warn=console.warn, say=say, only=only)
    of = settings.best_of or 1
    groups = [asks[at : at + of] for at in range(0, len(asks), of)]
    numbers = range(len(groups)) if only is None else only
    prompts = (*sources.prompts, *written)
    return Planned(settings, model, sources, prompts, dict(zip(numbers, groups, strict=True)))


def make(
    settings: GenerateSettings,
    console: Console,
    opener: Opener,
    *,
    own: bool = False,
    places: Mapping[int, Path] | None = None,
) -> list[Path]:
    """Make what `generate` and `complete` are told to.

    Args:
        own: True if nobody else writes into `out`, so that what is there is an earlier attempt's.
        places: the wishes to make, each with its folder; see `plan`. By default all of them, each
            under the next free number.
    Returns: the folders of all sets, also of those that were there, in the order of the wishes.
    Raises: IcloraError, Cancelled.
    """
    planned = plan(settings, console, opener, None if places is None else list(places))
    shelf = _Shelf(planned, console, places, own)
    if shelf.wanted:
        _make(planned, shelf.wanted, console, opener, shelf.keep)
    return shelf.folders


class _Shelf:
    """The sets of a plan on disk: those that were there, and those that are made.

    Args:
        places, own: as in `make`.
    """

    def __init__(
        self, planned: Planned, console: Console, places: Mapping[int, Path] | None, own: bool
    ) -> None:
        self._settings, self._console, self._places = planned.settings, console, places
        clear_leftovers(Path(planned.settings.out), alone=own)
        self._found: dict[int, Path] = {}
        if places is not None:
            self._found = {n: folder for n, folder in places.items() if folder.exists()}
        elif own or not planned.settings.request:
            self._found = planned.kept(console.warn)
        for folder in self._found.values():
            console.say(f"kept {folder}: it is what would be made")
            console.show(folder / "composite.png")
        self.wanted = {n: asks for n, asks in planned.wishes.items() if n not in self._found}
        """The wishes that are to be made."""

    @property
    def folders(self) -> list[Path]:
        """Of all sets, in the order of the wishes."""
        return [self._found[number] for number in sorted(self._found)]

    def keep(self, number: int, made: GeneratedSet) -> None:
        """Write the set of a wish."""
        settings, place = self._settings, self._places[number] if self._places else None
        choice = Choice(settings.score, settings.best_of or 1) if settings.score else None
        # Somebody else may have taken that number meanwhile.
        if place is None or place.exists():
            folder = made.save_next(settings.out, choice)
        else:
            folder = made.save(place, choice)
        self._found[number] = folder
        self._console.say(
            f"wrote {folder}: composite.png, panel-1.png to panel-{len(made.panels)}.png, "
            "request.json"
        )
        self._console.show(folder / "composite.png")


def make_together(
    several: Sequence[tuple[GenerateSettings, Console]], opener: Opener, progress: Progress
) -> list[list[Path] | IcloraError]:
    """Make what several were told to, those that are alike in one batch.

    A batch has at most as many sets as there are of them, however many each asks for.

    Args:
        several: settings whose folder `out` is theirs alone, on one base.
        progress: of the whole.
    Returns: of each, the folders of its sets, or why it cannot be met.
    Raises: IcloraError while sets are made, whosever it is; Cancelled.
    """
    planned: list[Planned | IcloraError] = []
    for settings, console in several:
        try:
            at_once.check_sets(settings, console)
            planned.append(plan(settings, console, opener))
        except IcloraError as error:
            planned.append(error)
    shelves = {
        at: _Shelf(each, several[at][1], None, own=True)
        for at, each in enumerate(planned)
        if isinstance(each, Planned)
    }
    wanted = [(at, n, a) for at, shelf in shelves.items() for n, (a,) in shelf.wanted.items()]
    models = {id(each.model): each.model for each in planned if isinstance(each, Planned)}
    assert len(models) <= 1, "jobs of one batch have one base"
    for model in models.values():
        asks = [ask for _, _, ask in wanted]
        for number, made in opener.session(model, progress).make(asks, together=len(several)):
            at, wish, _ = wanted[number]
            shelves[at].keep(wish, made)
    return [
        e if isinstance(e, IcloraError) else shelves[at].folders for at, e in enumerate(planned)
    ]


def _make(
    planned: Planned,
    wanted: Mapping[int, Sequence[Ask]],
    console: Console,
    opener: Opener,
    keep: Callable[[int, GeneratedSet], None],
) -> None:
    settings, numbers = planned.settings, list(wanted)
    asks = [ask for group in wanted.values() for ask in group]
    with console.progress() as progress:
        session = opener.session(planned.model, progress)
        if not settings.best_of or not settings.score:
            for at, made in session.make(asks):
                keep(numbers[at], made)
            return
        recipe = planned.sources.recipe
        assert recipe is not None, "a prompt has one"
        metric = opener.metric(settings.score, settings.model_device, settings.api, recipe)
        source, score = f"{metric.source} ({metric.main})", scorer(metric, recipe)
        for at, best in best_of(session, asks, settings.best_of, score, source):
            shown = ", ".join("-" if score is None else f"{score:.3f}" for score in best.scores)
            console.say(f"{metric.name} {metric.main} of {len(best.scores)} sets: {shown}")
            keep(numbers[at], best.made)


def reroll(
    settings: RerollSettings, console: Console, opener: Opener, *, own: bool = False
) -> Path:
    """Make what `reroll` is told to.

    Args:
        own: as in `make`.
    Returns: the new set's folder. Raises: IcloraError, Cancelled.
    """
    made = GeneratedSet.load(settings.set)
    adapter = load_adapter_of(made.request, settings.adapter, opener.adapter)
    _tell_notes(adapter, console)
    machine = machine_for(settings, made.request)
    model = opener.base(settings.base or made.request.base, machine)
    ask = ask_again(
        model,
        made,
        settings.panel,
        seed=settings.seed,
        adapter=adapter,
        mode=settings.mode,
        boost=settings.boost,
        resample=settings.resample,
        resample_from=settings.resample_from,
    )
    out = Path(settings.out)
    kept = find_kept(out, [[ask.request]], warn=console.warn) if own else {}
    if kept:
        return kept[0]
    with console.progress() as progress:
        other = next(again for _, again in opener.session(model, progress).make([ask]))
    folder = other.save_next(out)
    console.show(folder / "composite.png")
    return folder


def extend(settings: ExtendSettings, console: Console, opener: Opener) -> int:
    """Make what `extend` is told to. Returns: the images of the story. Raises: IcloraError."""
    story = Story.read(settings.story)
    given = open_given(settings.given, settings.background)
    adapter = load_stack(settings.adapter, opener.adapter)
    _tell_notes(adapter, console)
    panels = recipe_of(settings.recipe, adapter).canvas.panels
    plan_windows(story, panels, settings.anchor, settings.fresh, given)
    model = opener.base(base_of(settings.base, adapter), machine_for(settings))
    with console.progress() as progress:
        made = tell(
            model,
            story,
            Path(settings.out),
            settings=settings,
            adapter=adapter,
            anchors=settings.anchor,
            fresh=settings.fresh,
            given=given,
            progress=progress,
            warn=console.warn,
            show=console.show,
            session=opener.session(model, progress),
        )
    return len(made)


def _tell_notes(adapter: Adapter | None, console: Console) -> None:
    for note in adapter.notes if adapter else ():
        console.warn(note)
