"""Videos: frames of one shot alone, without bars, grouped by scene; hostile ones are named."""

from fractions import Fraction

import numpy as np
import pytest

from iclora.sets.collect.picture import look_at
from iclora.sets.collect.sources import read_source
from tests.conftest import picture as smooth


def test_storyboards_are_of_one_scene_and_their_frames_of_one_shot(film, want):
    path, truth = film
    wanted = want("film-storyboard")
    found = read_source(str(path), wanted)
    assert wanted.problems == []
    assert len(found) >= 2
    for each in found:
        frames = [picture.origin.at["frame"] for picture in each.pictures]
        shots = [next(s for s in truth.shots if s.first <= f < s.end) for f in frames]
        assert len({shot.scene for shot in shots}) == 1
        assert len(set(shots)) == 3
        for shot, frame in zip(shots, frames, strict=True):
            assert shot.first + 3 < frame < shot.end - 4
        for picture in each.pictures:
            assert picture.origin.box == truth.box
            assert picture.open().size == truth.box[2:]
    scenes = [each.scene for each in found]
    assert scenes == sorted(scenes)


def test_a_frame_is_found_again_by_its_time_and_its_look_is_that_of_its_file(film, want):
    import av

    path, truth = film
    wanted = want("film-storyboard")
    picture = read_source(str(path), wanted)[0].pictures[1]
    known, seen = wanted.looks.of(picture), look_at(picture)
    assert (known.size, known.hash) == (seen.size, seen.hash)
    assert np.array_equal(known.tones, seen.tones)
    with av.open(str(path)) as container:
        frame = next(
            f for f in container.decode(video=0) if f.time >= picture.origin.at["time"] - 1e-3
        )
        left, top, width, height = truth.box
        whole = frame.to_image().crop((left, top, left + width, top + height))
    assert np.array_equal(np.asarray(whole), np.asarray(picture.open()))


def write_clip(path, *, sar=1, transfer=1, turned=False):
    """Two shots of 30 frames, 96x64 px: a white corner at the left top, and then without it."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(sar)
        stream.codec_context.color_trc = transfer
        for number in range(60):
            pixels = np.asarray(smooth(96, 64, 5)).copy() // 2
            pixels[:16, : 24 if number < 30 else 0] = 255
            pixels[40:, 60:] //= 2 if number < 30 else 9
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    if turned:  # As a phone has it: the matrix in the track's header, here a quarter to the right.
        one = (1 << 16).to_bytes(4)
        upright = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4)
        right = bytes(4) + one + bytes(4) + (-1 << 16).to_bytes(4, signed=True) + bytes(16)
        data = path.read_bytes()
        at = data.index(upright, data.index(b"tkhd"))
        path.write_bytes(data[:at] + right + upright[32:] + data[at + 36 :])


@pytest.mark.parametrize(
    ("how", "size", "corner"),
    [
        ({}, (96, 64), (4, 4)),
        ({"sar": Fraction(4, 3)}, (128, 64), (4, 4)),
        ({"turned": True}, (64, 96), (60, 4)),
        ({"sar": Fraction(4, 3), "turned": True}, (64, 128), (60, 4)),
    ],
)
def test_pictures_are_upright_and_their_pixels_square(how, size, corner, want, tmp_path):
    write_clip(tmp_path / "clip.mp4", **how)
    wanted = want("sandstorm-effect")
    (found,) = read_source(str(tmp_path / "clip.mp4"), wanted)
    first = found.pictures[0].open()
    assert first.size == size
    white = [xy for xy in ((4, 4), (60, 4), (4, 60), (60, 60)) if min(first.getpixel(xy)) > 180]
    assert white == [corner]
    assert wanted.problems == []


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_told(transfer, name, want, tmp_path):
    write_clip(tmp_path / "clip.mp4", transfer=transfer)
    wanted = want("sandstorm-effect")
    assert len(read_source(str(tmp_path / "clip.mp4"), wanted)) == 1
    (problem,) = wanted.problems
    assert f"HDR ({name})" in problem.text


def test_damaged_videos_are_named_and_a_missing_library_too(film, want, tmp_path, monkeypatch):
    path, _ = film
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:20000])
    (tmp_path / "text.mkv").write_text("no video")
    wanted = want("film-storyboard")
    assert read_source(str(tmp_path), wanted) == []
    named = {problem.subject.rsplit("/", 1)[-1] for problem in wanted.problems}
    assert named >= {"empty.mp4", "cut.mp4", "text.mkv"}
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    wanted = want("film-storyboard")
    read_source(str(tmp_path / "cut.mp4"), wanted)
    assert "iclora[collect]" in wanted.problems[0].advice
