"""Videos: a sharp frame of every shot, away from cuts and fades, grouped into storyboards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.errors import DatasetError
from iclora.files import write_text
from iclora.progress import Progress
from iclora.sets.bars import find_edges, opposite
from iclora.sets.collect.likeness import same_picture, unlike
from iclora.sets.collect.picture import Found, Look, Origin, Picture, glimpse
from iclora.sets.collect.sources.extras import needed
from iclora.sets.collect.sources.shots import TINY, Shot, ShotFinder
from iclora.sets.collect.sources.wanted import Wanted
from iclora.sets.edges import Edges
from iclora.sets.listing import Problem

__all__ = ["VIDEO_SUFFIXES", "read_video"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".m4v", ".avi")
_LARGEST = 8192
_SAMPLES = 24
"""Frames in which black bars are looked for."""
_NEAR = 3
"""px by which the widths of one bar differ in compressed frames."""
_SHOWS = 12.0
"""Deviation of a frame's pixels from which its bars can be told from its picture."""
_A_SECOND = 4
"""Frames a second whose sharpness is measured."""
_HELD = 4
"""Sharpest frames of a shot that are held until its end is known."""
_MARGIN = 6
"""Frames next to a cut that are not taken: encoders blend and blur them."""
_SHORTEST = 8
"""Frames; what is shorter is a flash or a mistake."""
_SEEN = 640
"""Width at which sharpness is measured, px."""
_EQUAL = 2
"""Times the difference of a copy up to which two shots show the same."""
_STRANGE = 0.52
"""`unlike` of two shots above which they are of different scenes."""
_BACK = 3
"""Shots that a new one is compared with: in a dialogue every second one is alike."""
_PNG_LEVEL = 1
"""Frames are many; level 4 saves a fifth of their size and takes three times as long."""

_HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions of ITU-T H.273."""
_SHOTS = "shots.json"


def read_video(source: str, path: Path, want: Wanted) -> list[Found]:
    """The storyboards of a video.

    Raises: DatasetError if nothing of it can be read; SettingsError without PyAV.
    """
    about = path.stat()
    key = ("shots and looks", str(path.resolve()), str(about.st_size), str(about.st_mtime_ns))
    folder = want.pool.folder(*key, make=partial(_extract, path, want.progress))
    told = json.loads((folder / _SHOTS).read_text(encoding="utf-8"))
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


# -- reading ------------------------------------------------------------------------------------


def _extract(path: Path, progress: Progress, folder: Path) -> None:
    """Write a picture of every shot into a folder, and what is known of the shots."""
    av = needed("av", "av (PyAV)", "videos")
    rows: list[dict[str, Any]] = []
    try:
        with av.open(str(path)) as container:
            film = _Film(av, container, path)
            bars = film.bars()
        # Opened again: some containers cannot be wound back.
        # Pictures are compressed while the film is read on; the last one is waited for, so that few
        # are in memory.
        with av.open(str(path)) as container, ThreadPoolExecutor(1) as writer:
            film = _Film(av, container, path)
            last: Future[None] | None = None
            seen: list[Look] = []
            for shot, time, frame in film.shots(progress):
                picture, box = film.cut(frame.frame, bars)
                name = f"{len(rows) + 1:05d}.png"
                if last is not None:
                    last.result()
                last = writer.submit(_keep, picture, folder / name, seen)
                rows.append(
                    {
                        "picture": name,
                        "time": round(time, 3),
                        "frame": frame.number,
                        "first": shot.first,
                        "end": shot.end,
                        "faded": shot.faded,
                        "box": box,
                    }
                )
            if last is not None:
                last.result()
            damage, seconds, hdr = film.damage, film.seconds, film.hdr
    except (av.error.FFmpegError, OSError) as error:
        raise DatasetError(
            f"video {path} cannot be read: {error}", "Copy or export it again."
        ) from error
    if not rows:
        raise DatasetError(
            f"video {path} holds no shot of {_SHORTEST} frames" + f" ({damage})" * bool(damage),
            "Look at it in a player.",
        )
    for row, look in zip(rows, seen, strict=True):
        row["look"] = look.to_json()
    told = {"shots": rows, "damage": damage, "seconds": seconds, "hdr": hdr}
    write_text(folder / _SHOTS, json.dumps(told))


def _keep(picture: Image.Image, path: Path, seen: list[Look]) -> None:
    """Write a picture, and see what it looks like while it is in memory."""
    picture.save(path, compress_level=_PNG_LEVEL)
    seen.append(glimpse(picture))


@dataclass(frozen=True)
class _Held:
    """A frame that may be taken."""

    number: int
    sharpness: float
    frame: Any = field(repr=False)


class _Film:
    """A video stream, read from its start."""

    def __init__(self, av: Any, container: Any, path: Path) -> None:
        if not container.streams.video:
            raise DatasetError(f"{path} holds no video", "Give a video.")
        self._av, self._container = av, container
        self._stream = container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.damage = ""
        """What ended the reading before the video's end; empty if nothing did."""
        self.seconds = 0.0
        self.hdr = _HDR.get(int(self._stream.codec_context.color_trc), "")
        """The kind of HDR; empty for none."""
        width, height = self._stream.width, self._stream.height
        if not 0 < width <= _LARGEST or not 0 < height <= _LARGEST:
            raise DatasetError(
                f"video {path} is of {width}x{height} px", f"At most {_LARGEST} px a side are read."
            )
        # One for all frames: each keeps what it has worked out of a size.
        self._small, self._tiny = (av.video.reformatter.VideoReformatter() for _ in range(2))
        self._every = max(1, round(float(self._stream.average_rate or 24) / _A_SECOND))

    def shots(self, progress: Progress) -> Iterator[tuple[Shot, float, _Held]]:
        """Every shot of some length, the time of its sharpest frame in s, and that frame."""
        finder = ShotFinder()
        held: list[_Held] = []
        times: dict[int, float] = {}
        for number, frame in enumerate(self._frames(progress)):
            ended = finder.feed(self._shrunk(frame))
            if number % self._every == 0 and not frame.is_corrupt:
                held.append(_Held(number, self._sharpness(frame), frame))
                times[number] = frame.time or 0.0
            for shot in ended:
                if (best := _best(held, shot)) is not None:
                    yield shot, times[best.number], best
                held = [each for each in held if each.number >= shot.end]
            # Of what is settled, few have a chance; frames are large.
            old = [each for each in held if each.number < finder.settled - _MARGIN]
            old.sort(key=lambda each: -each.sharpness)
            gone = {each.number for each in old[_HELD:]}
            held = [each for each in held if each.number not in gone]
        for shot in finder.close():
            if (best := _best(held, shot)) is not None:
                yield shot, times[best.number], best

    def _frames(self, progress: Progress) -> Iterator[Any]:
        total = self._container.duration
        seconds = int(total / self._av.time_base) if total else 0
        last = -1
        try:
            for frame in self._container.decode(self._stream):
                if frame.time is not None and int(frame.time) > last:
                    last = int(frame.time)
                    self.seconds = float(frame.time)
                    progress("reading a video", min(last, seconds), max(seconds, last, 1), "s")
                yield frame
        except self._av.error.FFmpegError as error:
            self.damage = str(error)

    def _shrunk(self, frame: Any) -> NDArray[np.uint8]:
        """A tiny picture of a frame, (18, 32, 3)."""
        small = self._tiny.reformat(
            frame, width=TINY[0], height=TINY[1], format="rgb24", interpolation="AREA"
        )
        found: NDArray[np.uint8] = small.to_ndarray()
        return found

    def _sharpness(self, frame: Any) -> float:
        """Mean size of the Laplacian at 640 px."""
        height = max(16, round(frame.height * _SEEN / frame.width / 2) * 2)
        small = self._small.reformat(
            frame, width=_SEEN, height=height, format="gray", interpolation="BILINEAR"
        )
        grey = small.to_ndarray().astype(np.int16)
        inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1]
        inner = inner - grey[1:-1, :-2] - grey[1:-1, 2:]
        return float(np.abs(inner).mean())

    def bars(self) -> Edges:
        """The black bars that most frames have, found in frames all over the video."""
        told: list[Edges] = []
        for picture in self._samples():
            if np.asarray(picture.convert("L").reduce(4)).std() >= _SHOWS:
                told.append(opposite(picture, find_edges(picture)))
        found = [edges for edges in told if any(edges)]
        if not found:
            return Edges()
        middle = [median(widths) for widths in zip(*found, strict=True)]
        near = [
            edges
            for edges in found
            if all(abs(a - b) <= _NEAR for a, b in zip(edges, middle, strict=True))
        ]
        # Also the frames of a film in which night hides the bar count.
        return Edges(*map(max, zip(*near, strict=True))) if 2 * len(near) > len(told) else Edges()

    def _samples(self) -> Iterator[Image.Image]:
        total = self._container.duration
        if not total:
            return
        for number in range(_SAMPLES):
            try:
                self._container.seek(int(total * (number + 0.5) / _SAMPLES))
                frame = next(self._container.decode(self._stream))
            except (self._av.error.FFmpegError, StopIteration):
                continue
            yield self._image(frame)

    def cut(self, frame: Any, bars: Edges) -> tuple[Image.Image, list[int] | None]:
        """A frame as a picture without bars; what was taken of it, None for all."""
        picture = self._image(frame)
        if not any(bars):
            return picture, None
        width, height = picture.size
        box = (bars.left, bars.top, width - bars.right, height - bars.bottom)
        taken = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        return picture.crop(box), taken

    def _image(self, frame: Any) -> Image.Image:
        """A frame as it is shown: its colours, its pixels square, upright."""
        # What does not say so is by custom BT.709 from 720 lines on.
        unknown = int(frame.colorspace) not in (1, 4, 5, 6, 7, 9)
        how = {"src_colorspace": "ITU709"} if unknown and frame.height >= 720 else {}
        picture: Image.Image = frame.to_image(**how)
        aspect = self._stream.sample_aspect_ratio
        if aspect and aspect not in (0, 1) and 0.25 < aspect < 4:
            width = max(2, round(picture.width * float(aspect)))
            picture = picture.resize((width, picture.height), Image.Resampling.LANCZOS)
        turn = getattr(frame, "rotation", 0)
        return picture.rotate(turn, expand=True) if turn else picture


def _best(held: Sequence[_Held], shot: Shot) -> _Held | None:
    """The sharpest held frame of a shot that is not next to its ends."""
    if shot.end - shot.first < _SHORTEST:
        return None
    margin = min(_MARGIN, (shot.end - shot.first) // 4)
    inside = [each for each in held if shot.first + margin <= each.number < shot.end - margin]
    return max(inside, key=lambda each: each.sharpness, default=None)
