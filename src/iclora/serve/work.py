"""From an order to what was made: the verbs' own functions, their results as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeAlias

from iclora.errors import IcloraError, SettingsError
from iclora.files.locks import alone
from iclora.jobs import at_once, data, evaluating, making
from iclora.jobs.opening import Opener
from iclora.progress import Console, Progress
from iclora.serve.children import own_device
from iclora.serve.engine import Order
from iclora.sets.check import Problem
from iclora.sets.dataset import open_dataset
from iclora.settings import (
    CaptionSettings,
    CheckSettings,
    CompleteSettings,
    ComposeSettings,
    EvaluateSettings,
    ExtendSettings,
    GenerateSettings,
    PromptSettings,
    RerollSettings,
    Settings,
    settings_of,
)

__all__ = ["KINDS", "work", "work_together"]

Result: TypeAlias = dict[str, Any]

_PATIENCE = 30.0
"""Seconds to wait for a process that still writes a job's folder: one that is about to end."""


def work(order: Order, console: Console, opener: Opener) -> Result:
    """Do what an order says.

    Returns: what was made, as JSON: paths of "sets", a "report", "problems" of a dataset. Folders
        that are the order's own are not named.
    Raises: IcloraError, Cancelled.
    """
    if order.kind not in KINDS:
        raise SettingsError(
            f'there is no kind of job "{order.kind}"', f"Use one of {', '.join(KINDS)}."
        )
    model, run = KINDS[order.kind]
    values = own_device(order.input)
    share = values.pop("share", None)
    if "out" in model.model_fields:
        values["out"] = order.folder
    settings = settings_of(model, values)
    if getattr(settings, "workers", 1) != 1:
        raise SettingsError(
            "this is a worker, and starts no others", "Leave `workers` out.", "workers"
        )
    if share is not None:
        return _make_share(settings, share, console, opener)
    with _writing(Path(order.folder)) if "out" in values else nullcontext():
        return run(settings, console, opener)


def work_together(
    orders: Sequence[Order], consoles: Sequence[Console], opener: Opener, progress: Progress
) -> list[Result | IcloraError]:
    """Make the sets of several orders, those that are alike in one batch.

    Returns: what each made, or why it cannot be made.
    Raises: what is no order's own: the whole is then to be done one by one. Cancelled.
    """
    told = []
    for order, console in zip(orders, consoles, strict=True):
        values = own_device(order.input) | {"out": order.folder}
        settings = settings_of(KINDS[order.kind][0], values)
        assert isinstance(settings, GenerateSettings), "only sets are made together"
        told.append((settings, console))
    with ExitStack() as held:
        for order in orders:
            held.enter_context(_writing(Path(order.folder)))
        made = making.make_together(told, opener, progress)
    return [found if isinstance(found, IcloraError) else {"sets": _paths(found)} for found in made]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold a job's folder, and wait a while if an earlier attempt's process still does."""
    place = folder.with_name(f".{folder.name}.job")
    until = monotonic() + _PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(alone(place, folder, partial(SettingsError, setting="out")))
                break
            except SettingsError:
                if monotonic() > until:
                    raise
            sleep(0.1)
        yield


def _make_share(
    settings: Settings, share: Mapping[str, Any], console: Console, opener: Opener
) -> Result:
    """Make some of the sets that settings ask for; see `sharing`."""
    if isinstance(settings, EvaluateSettings):
        only = {(str(arm), int(number)) for arm, number in share["only"]}
        evaluating.make_some(settings, console, opener, only)
        return {}
    assert isinstance(settings, GenerateSettings), "only sets are shared"
    places = {int(number): Path(folder) for number, folder in share["places"].items()}
    return {"sets": _paths(making.make(settings, console, opener, places=places))}


# -- kinds --------------------------------------------------------------------------------------


def _make(settings: GenerateSettings, console: Console, opener: Opener) -> Result:
    at_once.check_sets(settings, console)
    return {"sets": _paths(making.make(settings, console, opener, own=True))}


def _reroll(settings: RerollSettings, console: Console, opener: Opener) -> Result:
    at_once.check_reroll(settings)
    return {"sets": _paths([making.reroll(settings, console, opener, own=True)])}


def _extend(settings: ExtendSettings, console: Console, opener: Opener) -> Result:
    at_once.check_extend(settings, console)
    images = making.extend(settings, console, opener)
    out = Path(settings.out)
    windows = sorted(path for path in (out / "windows").glob("[0-9]*") if path.is_dir())
    names = [out / f"{number:02d}.png" for number in range(1, images + 1)]
    return {"images": _paths([name for name in names if name.exists()]), "sets": _paths(windows)}


def _evaluate(settings: EvaluateSettings, console: Console, opener: Opener) -> Result:
    at_once.check_sets(settings, console)
    setup, table = evaluating.evaluate(settings, console, opener)
    from iclora.evaluate.report import as_text

    arms = [arm.name for arm in setup.arms]
    report = str(setup.out / "report.html")
    return {"report": report, "arms": arms, "figures": as_text(setup, table), "notes": table.notes}


def _caption(settings: CaptionSettings, console: Console, opener: Opener) -> Result:
    dataset = open_dataset(settings.data, settings.recipe)
    summary = data.caption(settings, dataset, console, opener)
    return {
        "problems": _problems(dataset.problems),
        "written": summary.written,
        "kept": summary.kept,
        "failed": [
            {"name": each.name, "problem": each.problem, "advice": each.advice}
            for each in summary.failed
        ],
        "tokens_read": summary.read,
        "tokens_written": summary.wrote,
    }


def _check(settings: CheckSettings, console: Console, opener: Opener) -> Result:
    with console.progress() as progress:
        found = data.check(settings, opener, progress)
    sets = [
        {
            "name": report.name,
            "sizes": [list(size) for size in report.sizes],
            "tokens": list(report.by_text),
            "problems": _problems(report.problems),
        }
        for report in found.reports
    ]
    severities = [problem.severity for problem in found.problems]
    return {
        "recipe": found.dataset.recipe.name,
        "checked": sets,
        "problems": _problems(found.dataset.problems),
        "errors": severities.count("error"),
        "warnings": len(severities) - severities.count("error"),
    }


def _compose(settings: ComposeSettings, console: Console, opener: Opener) -> Result:  # noqa: ARG001
    source = open_dataset(settings.source, settings.recipe, settings.background)
    with console.progress() as progress:
        problems = data.compose(source, settings, progress, own=True)
    return {"composed": len(source.sets), "problems": _problems(problems)}


def _prompt(settings: PromptSettings, console: Console, opener: Opener) -> Result:
    return {"prompt": data.prompt(settings, console, opener)}


Run = Callable[[Any, Console, Opener], Result]

KINDS: Mapping[str, tuple[type[Settings], Run]] = {
    "generate": (GenerateSettings, _make),
    "complete": (CompleteSettings, _make),
    "reroll": (RerollSettings, _reroll),
    "extend": (ExtendSettings, _extend),
    "evaluate": (EvaluateSettings, _evaluate),
    "caption": (CaptionSettings, _caption),
    "check": (CheckSettings, _check),
    "compose": (ComposeSettings, _compose),
    "prompt": (PromptSettings, _prompt),
}
"""What a worker does, by kind: what it is told, and how it is done."""


def _paths(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


def _problems(problems: Iterable[Problem]) -> list[dict[str, str]]:
    names = ("severity", "subject", "text", "advice")
    return [{name: str(getattr(each, name)) for name in names} for each in problems]
