"""Settings of a run that is gone on with. It imports no torch: what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iclora.errors import RunError
from iclora.settings import RunSettings, TrainSettings, about, read_settings

__all__ = ["Warn", "find_run", "resume_settings", "resumed"]

Warn = Callable[[str], None]


def find_run(folder: str | Path, setting: str | None = None) -> Path:
    """The settings' file of the run in a folder. Raises: RunError if there is none."""
    path = Path(folder, "config.toml")
    if not path.is_file():
        raise RunError(f"{folder} holds no run (no config.toml)", "Check the path.", setting)
    return path


def resume_settings(
    folder: str | Path, overrides: Mapping[str, Any], warn: Warn | None = None
) -> TrainSettings:
    """Read the settings of the run in `folder`, with those changed that a resumed run may change.

    What it may change is said by each field of `TrainSettings` ("resume" in its metadata).

    Args:
        overrides: settings by name, as numbers or strings.
        warn: told of changes after which the run is no longer what it would have been unstopped.
    Raises: RunError for a setting that would make it another run; SettingsError.
    """
    path = find_run(folder)

    def those(kind: str | None) -> list[str]:
        known = [name for name in overrides if name in TrainSettings.model_fields]
        return sorted(n for n in known if about(TrainSettings, n).get("resume") == kind)

    fixed = those(None)
    if fixed:
        raise RunError(
            f"a resumed run cannot change {', '.join(f'`{name}`' for name in fixed)}",
            "Start a new run in another folder for that.",
            setting=fixed[0],
        )
    differing = those("differs")
    if differing and warn:
        warn(
            f"with another {', '.join(f'`{name}`' for name in differing)} the result differs from "
            "an unstopped run's"
        )
    return read_settings(TrainSettings, path, {**overrides, "out": str(folder)})


def resumed(
    folder: str, changes: Mapping[str, Any], warn: Callable[[str], None] | None = None
) -> RunSettings:
    """Settings of the run in a folder, to go on with it.

    Args:
        changes: settings that a resumed run may change.
        warn: told of changes after which the result differs from an unstopped run's.
    Raises: RunError, SettingsError.
    """
    own = resume_settings(folder, changes, warn)
    values = {name: getattr(own, name) for name in own.model_fields_set}
    return RunSettings.model_validate({**values, "resume": folder})
