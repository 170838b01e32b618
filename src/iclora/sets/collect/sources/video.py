"""Videos: a sharp frame of every shot, away from cuts and fades, grouped into storyboards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from iclora.errors import DatasetError
from iclora.files import digest_each
from iclora.sets.collect.likeness import same_picture, unlike
from iclora.sets.collect.picture import Found, Look, Origin, Picture
from iclora.sets.collect.sources.film import SHOTS, extract
from iclora.sets.collect.sources.wanted import Wanted
from iclora.sets.listing import Problem

__all__ = ["VIDEO_SUFFIXES", "read_video"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".m4v", ".avi")
_EQUAL = 2
"""Times the difference of a copy up to which two shots show the same."""
_STRANGE = 0.52
"""`unlike` of two shots above which they are of different scenes."""
_BACK = 3
"""Shots that a new one is compared with: in a dialogue every second one is alike."""


def read_video(source: str, path: Path, want: Wanted) -> list[Found]:
    """The storyboards of a video.

    Raises: DatasetError if nothing of it can be read; SettingsError without PyAV.
    """
    key = ("shots and looks of", _hash(path))
    folder = want.pool.growing(*key, make=partial(extract, path, want.progress))
    told = json.loads((folder / SHOTS).read_text(encoding="utf-8"))
    if told["damage"]:
        want.tell(
            Problem(
                source,
                f"it cannot be read beyond {told['seconds']:.1f} s ({told['damage']}); the shots "
                "before are used",
                "Copy or export it again.",
                "warning",
            )
        )
    if told["hdr"]:
        want.tell(
            Problem(
                source,
                f"it is HDR ({told['hdr']}), and its brightness is taken as that of other videos, "
                "so its pictures look pale or dark",
                "Convert it to SDR (BT.709) first.",
                "warning",
            )
        )
    ends = [(row["first"], row["end"]) for row in told["shots"]]
    want.progress("finding shots", len(ends), len(ends), f"in {path.name}", shots=ends)
    pictures = [_picture(source, folder, row) for row in told["shots"]]
    for picture, row in zip(pictures, told["shots"], strict=True):
        want.looks.know(picture, Look.from_json(row["look"]))
    looks = want.looks.of_all(pictures)
    known = [
        (picture, look, bool(row["faded"]))
        for picture, look, row in zip(pictures, looks, told["shots"], strict=True)
        if look is not None
    ]
    return _storyboards(source, known, want)


def _hash(path: Path) -> str:
    """Of a file's bytes: what a stopped reading found is used for no other film."""
    try:
        with path.open("rb") as file:
            return digest_each(iter(lambda: file.read(1 << 20), b""))
    except OSError as error:
        raise DatasetError(
            f"video {path} cannot be read: {error}", "Copy or export it again."
        ) from error


def _picture(source: str, folder: Path, row: dict[str, Any]) -> Picture:
    place = {"time": row["time"], "frame": row["frame"]}
    origin = Origin(source, place, None if row["box"] is None else tuple(row["box"]))
    return Picture(origin, (folder / row["picture"]).read_bytes)


def _storyboards(
    source: str, shots: Sequence[tuple[Picture, Look, bool]], want: Wanted
) -> list[Found]:
    """Neighbouring shots of one scene, as many as a set has panels."""
    found: list[Found] = []
    count, equal = 0, 0
    for number, scene in enumerate(_scenes(shots), 1):
        own: list[tuple[Picture, Look]] = []
        for picture, look in scene:
            if any(same_picture(look, other, _EQUAL) for _, other in own):
                equal += 1
            else:
                own.append((picture, look))
        count = number
        for start in range(0, len(own) - want.panels + 1, want.panels):
            chosen = tuple(picture for picture, _ in own[start : start + want.panels])
            found.append(Found(chosen, f"{source}, scene {number}", "shots of one scene"))
    used = len(found) * want.panels
    want.note(
        f"{source}: {len(shots)} shots in {count} scenes make {len(found)} sets; {equal} shots "
        f"show what an earlier one of their scene shows, and {len(shots) - equal - used} are left, "
        f"since a set takes {want.panels} of one scene"
    )
    return found


def _scenes(shots: Sequence[tuple[Picture, Look, bool]]) -> Iterator[list[tuple[Picture, Look]]]:
    """Shots that follow each other and look alike; a fade or dissolve opens a new scene."""
    scene: list[tuple[Picture, Look]] = []
    for picture, look, faded in shots:
        away = min((unlike(look, other) for _, other in scene[-_BACK:]), default=0.0)
        if scene and (faded or away > _STRANGE):
            yield scene
            scene = []
        scene.append((picture, look))
    if scene:
        yield scene
