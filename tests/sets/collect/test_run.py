"""A collection end to end, from a folder of pictures to sets that check and review read."""

import json
import random
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from iclora.errors import DatasetError
from iclora.progress import Cancelled, Progress
from iclora.sets.collect.likeness import Seer
from iclora.sets.collect.run import collect
from iclora.sets.dataset import open_dataset
from iclora.settings import CollectSettings
from iclora.toyland.tasks import TASKS, draw_set


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six pictures before and after a sandstorm, one of them once more, scaled."""
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(6):
        canvas, _ = draw_set(TASKS["sandstorm-effect"], random.Random(number))
        for panel, role in zip(canvas.panels, ("before", "after"), strict=True):
            picture = panel.render()
            picture.save(folder / f"{number}_{role}.png")
            if number == 2:
                picture.resize((150, 150)).save(folder / f"again_{role}.jpg", quality=85)
    (folder / "cut_before.png").write_bytes((folder / "0_before.png").read_bytes()[:300])
    (folder / "cut_after.png").write_bytes(b"")
    return folder


def told(pairs, out, **more):
    return CollectSettings(
        sources=(str(pairs),), recipe="sandstorm-effect", out=str(out), review=False, **more
    )


def rows(out):
    return [json.loads(line) for line in (out / "sets.jsonl").read_text().splitlines()]


def test_pairs_become_sets_once_damaged_ones_are_named_and_a_second_process_is_refused(
    pairs, tmp_path
):
    refused = []

    def meanwhile(_):
        if not refused:
            with pytest.raises(DatasetError, match="another process is writing") as error:
                collect(told(pairs, tmp_path / "sets"))
            refused.append(error.value.problem)

    done = collect(told(pairs, tmp_path / "sets"), Progress(meanwhile))
    assert str(tmp_path / "sets") in refused[0]
    assert (done.sets, done.found) == (6, 8)
    # An enlarged copy is worse than its original.
    (note,) = done.notes
    assert re.search(r"again_before.jpg shows what that of \S*2_before.png shows", note)
    assert {p.subject.rsplit("/", 1)[-1] for p in done.problems} == {
        "cut_after.png",
        "cut_before.png",
    }
    for row in rows(tmp_path / "sets"):
        names = [panel["file"].rsplit("/", 1)[-1] for panel in row["panels"]]
        assert [name.split("_")[1].split(".")[0] for name in names] == ["before", "after"]
        assert names[0].split("_")[0] == names[1].split("_")[0]
        for number, panel in enumerate(row["panels"], 1):
            written = next((tmp_path / "sets" / row["set"]).glob(f"{number}.*"))
            assert written.read_bytes() == Path(panel["file"]).read_bytes()
    dataset = open_dataset(tmp_path / "sets")
    assert dataset.problems == ()
    assert {len(each.images) for each in dataset.sets} == {2}
    assert dataset.origins["0001"].scene.endswith(", 0")


def test_the_kept_sets_are_unlike_each_other(pairs, tmp_path):
    done = collect(told(pairs, tmp_path / "sets", keep=3))
    assert done.sets == len(rows(tmp_path / "sets")) == 3


def test_a_stopped_collection_goes_on_and_ends_as_one_that_was_not(pairs, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    collect(told(pairs, whole))
    events = []

    def stop(event):
        events.append(event)
        if event.what == "judging sets" and event.done == 3:
            progress.cancel()

    progress = Progress(stop)
    with pytest.raises(Cancelled):
        collect(told(pairs, parts), progress)
    with pytest.raises(DatasetError, match="other settings"):
        collect(told(pairs, parts, keep=2))
    collect(told(pairs, parts))
    assert rows(parts) == rows(whole)
    caption = parts / "0001" / "caption.txt"
    caption.write_text("by hand")
    # Killed after its end was noted, before what it kept for going on was freed.
    (parts / ".collect" / "0123456789abcdef").mkdir()
    again = collect(told(pairs, parts))
    assert (again.sets, caption.read_text()) == (6, "by hand")
    assert not [path for path in (parts / ".collect").iterdir() if path.is_dir()]
    assert "already" in again.notes[0]
    files = sorted(p.relative_to(whole) for p in whole.rglob("*.*") if ".collect" not in str(p))
    assert all((parts / f).read_bytes() == (whole / f).read_bytes() for f in files if f.suffix)


def test_a_collection_whose_source_changed_while_it_was_stopped_is_refused(pairs, tmp_path):
    """Its first sets would be those of other pictures than sets.jsonl tells."""
    source, out = tmp_path / "source", tmp_path / "sets"
    shutil.copytree(pairs, source)

    def stop(event):
        if event.what == "writing sets" and event.done == 3:
            progress.cancel()

    progress = Progress(stop)
    with pytest.raises(Cancelled):
        collect(told(source, out), progress)
    picture = Image.open(source / "1_before.png")
    picture.save(source / "1_before.png", compress_level=1)
    with pytest.raises(DatasetError, match="0002 has other pictures than the sources have now"):
        collect(told(source, out))
    assert not (out / "sets.jsonl").exists()
    shutil.copy(pairs / "1_before.png", source)
    assert collect(told(source, out)).sets == len(rows(out)) == 6


def test_records_that_are_not_ours_stop_no_collection(pairs, tmp_path):
    out = tmp_path / "sets"
    before = collect(told(pairs, out))
    told_before = rows(out)
    (out / ".collect" / "done").unlink()
    junk = [
        b'{"key": 1}',
        b"[1]",
        b"\xff",
        b'{"key": "x", "score": "a", "reasons": 3}',
        b"9" * 5000,
    ]
    (out / ".collect" / "quality.jsonl").write_bytes(b"\n".join(junk))
    assert collect(told(pairs, out)).sets == before.sets
    assert rows(out) == told_before


def test_a_collection_into_its_own_source_does_not_read_itself(pairs, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(pairs, source)

    def stop(event):
        if event.what == "writing sets" and event.done == 3:
            progress.cancel()

    progress = Progress(stop)
    with pytest.raises(Cancelled):
        collect(told(source, source / "sets"), progress)
    assert collect(told(source, source / "sets")).found == 8


def test_families_and_what_is_kept_follow_a_model_instead_of_colours(tmp_path):
    """It sees here what colours do not tell: where a picture is bright."""
    bright = Image.linear_gradient("L")
    kinds = [bright, bright.rotate(90), bright.rotate(180)]
    (tmp_path / "in").mkdir()
    for number in range(6):
        grey = kinds[number % 3].point(lambda tone, off=number: max(0, tone - 4 * off))
        ImageOps.colorize(grey, "#200000", "#ffd0a0").save(
            tmp_path / "in" / f"{'qwerty'[number]}.png"
        )

    def embed(pictures):
        corners = [np.asarray(p.convert("L").resize((2, 2)), float).ravel() for p in pictures]
        rows = np.array([c - c.mean() for c in corners])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def collected(name, seer, **more):
        collect(told(tmp_path / "in", tmp_path / name, by="likeness", **more), None, seer)
        return [
            {"qwerty".index(panel["file"][-5]) % 3 for panel in row["panels"]}
            for row in rows(tmp_path / name)
        ]

    seer = Seer(embed, 0.2)
    assert sorted(map(len, collected("seen", seer, likeness="dino:x"))) == [1, 1, 1]
    assert max(map(len, collected("colours", None))) > 1
    grey = tmp_path / "grey"
    grey.mkdir()
    for file in (tmp_path / "in").iterdir():
        Image.open(file).convert("L").save(grey / file.name)
    with pytest.raises(DatasetError, match="6 without colour"):
        collect(told(grey, tmp_path / "none", by="likeness"))
    kept = collected("kept", seer, likeness="dino:x", keep=2)
    assert sorted(map(sorted, kept)) in ([[0], [2]], [[0], [1]], [[1], [2]])


def test_a_folder_that_holds_something_else_is_refused(pairs, film, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not an empty folder"):
        collect(told(pairs, tmp_path / "sets"))
    with pytest.raises(DatasetError, match="no set of 2 pictures"):
        collect(told(tmp_path / "nowhere", tmp_path / "other"))
    path, _ = film
    four = told(path, tmp_path / "other").model_copy(update={"recipe": "font-design"})
    with pytest.raises(DatasetError, match=r"no set of 4 pictures(?s:.*)film.mp4: \d+ shots in 3"):
        collect(four)
    # The next, with the right source, may have that folder.
    assert not (tmp_path / "other").exists()


def test_nothing_is_cut_away_from_the_official_storyboards(official, tmp_path):
    out, few = tmp_path / "sets", tmp_path / "few"
    with zipfile.ZipFile(official) as archive:
        names = [n for n in archive.namelist() if n.endswith((".jpg", ".txt"))]
        archive.extractall(few, [n for n in names if re.search(r"/0003\.", n)])
    settings = {"recipe": "film-storyboard", "out": str(out), "review": False}
    done = collect(CollectSettings(sources=(str(few),), **settings))
    assert (done.sets, done.problems) == (1, ())
    assert {row["score"] for row in rows(out)} == {1.0}
    before = open_dataset(few, "film-storyboard").sets
    after = open_dataset(out).sets
    assert [each.digest for each in after] == [each.digest for each in before]
    assert [each.caption() for each in after] == [each.caption() for each in before]


def test_sheets_with_gutters_are_whole_sets_and_plain_pictures_are_not(tmp_path):
    folder = tmp_path / "sheets"
    folder.mkdir()
    for number in range(2):
        canvas, _ = draw_set(TASKS["film-storyboard"], random.Random(number))
        panels = [panel.render().resize((192, 96)) for panel in canvas.panels]
        sheet = Image.new("RGB", (192, 3 * 96 + 16), "white")
        for place, panel in enumerate(panels):
            sheet.paste(panel, (0, place * 104))
        sheet.save(folder / f"{number * 7 + 3}x{'ab'[number]}.png")
    panel.resize((200, 300)).save(folder / "plain.png")
    out = tmp_path / "sets"
    settings = {"recipe": "film-storyboard", "out": str(out), "review": False}
    done = collect(CollectSettings(sources=(str(folder),), **settings))
    assert done.sets == 2
    dataset = open_dataset(out)
    sizes = [each.measure(dataset.recipe).sizes for each in dataset.sets]
    assert sizes == [((192, 96),) * 3] * 2
