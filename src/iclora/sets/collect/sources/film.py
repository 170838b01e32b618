"""A video read once: its shots, and a sharp frame of each, also from where it was stopped."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.errors import DatasetError
from iclora.files import append_line, clear_leftovers, digest, write_text
from iclora.progress import Progress
from iclora.sets.bars import find_edges, opposite
from iclora.sets.collect.picture import glimpse
from iclora.sets.collect.sources.extras import needed
from iclora.sets.collect.sources.shots import TINY, Shot, ShotFinder
from iclora.sets.collect.sources.stills import encode_still, sharpness
from iclora.sets.edges import Edges

__all__ = ["SHOTS", "extract"]

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
_AHEAD = 4
"""Frames that are decoded while one is looked at: several cores share the work."""

_HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions of ITU-T H.273."""
SHOTS = "shots.json"
_ROWS, _STOPPED = "rows.jsonl", "stopped.json"
"""Until a video was read: its shots so far, and the state in which it can be read on."""
_EVERY_S = 5.0
"""Seconds of work between two such states."""

Row = dict[str, Any]
Note = Callable[[Callable[[], Row | None]], None]
"""Takes what tells the state of a reading, to write it down if it is time to."""


def extract(path: Path, progress: Progress, folder: Path) -> None:
    """Write a picture of every shot into a folder, and what is known of the shots.

    A folder that an earlier call was stopped in is filled on from there.

    Raises: DatasetError if nothing can be read.
    """
    av = needed("av", "av (PyAV)", "videos")
    clear_leftovers(folder, alone=True)
    try:
        rows, told = _read_on(av, path, folder, progress) or _read(av, path, folder, progress)
    except (av.error.FFmpegError, OSError) as error:
        raise DatasetError(
            f"video {path} cannot be read: {error}", "Copy or export it again."
        ) from error
    damage = told["damage"]
    if not rows:
        raise DatasetError(
            f"video {path} holds no shot of {_SHORTEST} frames" + f" ({damage})" * bool(damage),
            "Look at it in a player.",
        )
    write_text(folder / SHOTS, json.dumps({"shots": rows, **told}))
    for name in (_ROWS, _STOPPED):
        (folder / name).unlink(missing_ok=True)


def _read(av: Any, path: Path, folder: Path, progress: Progress) -> tuple[list[Row], Row]:
    """A video's shots and what is to be told of it, read from its start."""
    with _opened(av, path) as film:
        bars = film.bars()
    for name in (_ROWS, _STOPPED):
        (folder / name).unlink(missing_ok=True)
    # Opened again: some containers cannot be wound back.
    with _opened(av, path) as film:
        return _Writer(folder, bars, []).write(film, _Reading(), progress)


def _read_on(av: Any, path: Path, folder: Path, progress: Progress) -> tuple[list[Row], Row] | None:
    """The same, read on from where it was stopped; None if it cannot be."""
    if (noted := _noted(folder)) is None:
        return None
    told, rows, bars = noted
    with _opened(av, path) as film:
        try:
            reading = film.found_again(told)
        except (av.error.FFmpegError, ValueError, KeyError, TypeError):
            reading = None
        if reading is None:
            return None
        # Shots that were found behind this state are found again.
        write_text(folder / _ROWS, "".join(f"{json.dumps(row)}\n" for row in rows))
        return _Writer(folder, bars, rows).write(film, reading, progress)


@contextmanager
def _opened(av: Any, path: Path) -> Iterator[_Film]:
    # The thread has ended before the container is closed.
    with av.open(str(path)) as container, ThreadPoolExecutor(1) as decoder:
        yield _Film(av, container, path, decoder)


def _noted(folder: Path) -> tuple[Row, list[Row], Edges] | None:
    """The state in which a reading was stopped, and its shots and bars; None if there is none."""
    try:
        told = json.loads((folder / _STOPPED).read_text(encoding="utf-8"))
        lines = (folder / _ROWS).read_text(encoding="utf-8").splitlines() if told["rows"] else []
        rows = [json.loads(line) for line in lines[: told["rows"]]]
        return (told, rows, Edges(*told["bars"])) if len(rows) == told["rows"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # What somebody else wrote is left alone.


class _Writer:
    """Writes pictures while the film is read on; the last one is waited for, so that few are in
    memory."""

    def __init__(self, folder: Path, bars: Edges, rows: list[Row]) -> None:
        self._folder, self._bars, self._rows = folder, bars, rows
        self._last: Future[None] | None = None
        self._noted = time.monotonic()

    def write(
        self, film: _Film, reading: _Reading, progress: Progress
    ) -> tuple[list[Row], dict[str, Any]]:
        with ThreadPoolExecutor(1) as pool:
            for shot, seconds, frame in film.shots(reading, progress, self._note):
                picture, box = film.cut(frame.frame, self._bars)
                row = {
                    "picture": f"{len(self._rows) + 1:05d}.png",
                    "time": round(seconds, 3),
                    "frame": frame.number,
                    "first": shot.first,
                    "end": shot.end,
                    "faded": shot.faded,
                    "box": box,
                }
                self._wait()
                self._last = pool.submit(_keep, picture, self._folder, row)
                self._rows.append(row)
            self._wait()
        told = {"damage": film.damage, "seconds": film.seconds, "hdr": film.hdr}
        return self._rows, told

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def _note(self, state: Callable[[], Row | None]) -> None:
        """Write down what was found up to now, if it is time to."""
        if time.monotonic() - self._noted < _EVERY_S or (told := state()) is None:
            return
        self._wait()
        told |= {"rows": len(self._rows), "bars": list(self._bars)}
        write_text(self._folder / _STOPPED, json.dumps(told))
        self._noted = time.monotonic()


def _keep(picture: Image.Image, folder: Path, row: Row) -> None:
    """Write a picture, and see what it looks like while it is in memory."""
    (folder / row["picture"]).write_bytes(encode_still(picture))
    row["look"] = glimpse(picture).to_json()
    append_line(folder / _ROWS, json.dumps(row))


@dataclass(frozen=True)
class _Held:
    """A frame that may be taken."""

    number: int
    sharpness: float
    frame: Any = field(repr=False)


@dataclass
class _Reading:
    """Where the reading of a film stands."""

    finder: ShotFinder = field(default_factory=ShotFinder)
    held: list[_Held] = field(default_factory=list)
    stamps: dict[int, int | None] = field(default_factory=dict)
    """The time stamps of the frames that the finder holds, and of those held."""

    def state(self, seconds: float) -> Row | None:
        """What `_Film.found_again` needs; None if frames cannot be told by their time stamps."""
        finder, held = self.finder.state(), sorted(each.number for each in self.held)
        first = min([finder["base"], *held])
        self.stamps = {n: s for n, s in self.stamps.items() if n >= finder["base"] or n in held}
        known = [stamp for stamp in self.stamps.values() if stamp is not None]
        if len(known) < len(self.stamps) or any(b <= a for a, b in pairwise(known)):
            return None
        told = {"finder": finder, "held": held, "first": first, "stamp": self.stamps[first]}
        return told | {"seconds": seconds, "proof": self.proof()}

    def proof(self) -> str:
        """Equal for another reading only if it has the same frames."""
        kept = self.finder.kept()
        return digest(json.dumps(sorted(self.stamps.items())), kept.tobytes())


class _Film:
    """A video stream, read once; `decoder` is one thread that decodes ahead."""

    def __init__(self, av: Any, container: Any, path: Path, decoder: ThreadPoolExecutor) -> None:
        if not container.streams.video:
            raise DatasetError(f"{path} holds no video", "Give a video.")
        self._av, self._container, self._decoder = av, container, decoder
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
        # One for all reading: what a decoder has begun must not be lost.
        self._decoded = container.decode(self._stream)
        self._every = max(1, round(float(self._stream.average_rate or 24) / _A_SECOND))

    def shots(
        self, reading: _Reading, progress: Progress, note: Note
    ) -> Iterator[tuple[Shot, float, _Held]]:
        """Every shot of some length, the time of its sharpest frame in s, and that frame."""
        finder = reading.finder
        for number, frame in enumerate(self._frames(progress, finder.count), finder.count):
            settled = finder.settled
            reading.stamps[number] = frame.pts
            ended = finder.feed(self._shrunk(frame))
            if number % self._every == 0 and not frame.is_corrupt:
                reading.held.append(self._hold(number, frame))
            for shot in ended:
                if (best := _best(reading.held, shot)) is not None:
                    yield shot, best.frame.time or 0.0, best
                reading.held = [each for each in reading.held if each.number >= shot.end]
            # Of what is settled, few have a chance; frames are large.
            old = [each for each in reading.held if each.number < finder.settled - _MARGIN]
            old.sort(key=lambda each: -each.sharpness)
            gone = {each.number for each in old[_HELD:]}
            reading.held = [each for each in reading.held if each.number not in gone]
            if finder.settled != settled:
                note(lambda: reading.state(self.seconds))
        for shot in finder.close():
            if (best := _best(reading.held, shot)) is not None:
                yield shot, best.frame.time or 0.0, best

    def found_again(self, told: Row) -> _Reading | None:
        """The reading whose state was told, its frames decoded again; None if they differ."""
        finder, first, held = told["finder"], told["first"], set(told["held"])
        self._container.seek(told["stamp"], stream=self._stream)
        reading, kept, number = _Reading(), [], first
        for frame in self._decoded:
            if frame.pts is None or (number == first and frame.pts < told["stamp"]):
                continue
            if number >= finder["base"]:
                kept.append(self._shrunk(frame))
            if number in held:
                reading.held.append(self._hold(number, frame))
            if number >= finder["base"] or number in held:
                reading.stamps[number] = frame.pts
            number += 1
            if number == finder["count"]:
                break
        if number != finder["count"] or not kept:
            return None
        reading.finder = ShotFinder.from_state(finder, np.stack(kept))
        self.seconds = float(told["seconds"])
        return reading if reading.proof() == told["proof"] else None

    def _hold(self, number: int, frame: Any) -> _Held:
        return _Held(number, self._sharpness(frame), frame)

    def _frames(self, progress: Progress, read: int) -> Iterator[Any]:
        total = self._container.duration
        seconds = int(total / self._av.time_base) if total else 0
        last = int(self.seconds) if read else -1
        try:
            for frame in self._ahead():
                if frame.time is not None and int(frame.time) > last:
                    last = int(frame.time)
                    self.seconds = float(frame.time)
                    progress("reading a video", min(last, seconds), max(seconds, last, 1), "s")
                yield frame
        except self._av.error.FFmpegError as error:
            self.damage = str(error)

    def _ahead(self) -> Iterator[Any]:
        waiting = deque(self._decoder.submit(next, self._decoded, None) for _ in range(_AHEAD))
        while (frame := waiting.popleft().result()) is not None:
            waiting.append(self._decoder.submit(next, self._decoded, None))
            yield frame

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
        return sharpness(small.to_ndarray())

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
