"""The settings of what measures this software on a machine."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from iclora.settings.fields import Device, FilePath, Settings, setting

__all__ = ["BenchSettings"]


class BenchSettings(Settings):
    """What `bench` is told."""

    rows: tuple[str, ...] = setting((), many="list", metavar="ROW")
    """run these rows alone: names, or beginnings of names, such as smoke"""
    list: bool = False
    """show the rows in their order of worth, and what each takes; measure nothing"""
    minutes: Annotated[float, Field(gt=0, le=1440)] | None = setting(None, metavar="LENGTH")
    """end within so many minutes: rows run in their order of worth, and those for which no time is
    left are said to be"""
    patience: Annotated[float, Field(ge=1, le=100)] = setting(1.0, metavar="FACTOR")
    """factor on the rows' limits of time, which are those of a fast card, for a slow machine"""
    out: FilePath = setting("bench", metavar="FOLDER")
    """folder for bench.json, bench.md and bench.log, written after every row"""
    keep: bool = False
    """keep rows that the folder holds already, measured on the same card by the same code"""
    device: Device = "auto"
    """auto, cuda, cuda:N or cpu"""
    commit: Annotated[str, Field(pattern=r"^[0-9A-Za-z._-]{1,80}$")] | None = None
    """the commit to write down, for a copy that git does not know"""
