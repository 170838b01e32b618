"""Captioning a dataset: what is asked again, what is written when, what survives a kill."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from iclora.errors import CaptionError, DatasetError, StorageError, VisionModelError
from iclora.progress import Progress
from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import load_recipe
from iclora.vlm.caption import FAILURES, caption_dataset, write_prompt
from iclora.vlm.openai import OpenAIModel
from tests.vlm.test_openai import Server, completion

STORY = load_recipe("film-storyboard")


def good(word="sea"):
    texts = [f"<Ana> leaves the {word}.", "A gull lands.", "Night falls over the bay."]
    return json.dumps({"overview": f"A day by the {word}.", "panels": texts})


@pytest.fixture
def serve():
    servers = []

    def start(behave):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def bare(make_dataset):
    """Storyboards without captions."""

    def make(sets=3):
        root = make_dataset(sets)
        for caption in root.rglob("caption.txt"):
            caption.unlink()
        return root

    return make


def caption(root, server, together=2, **more):
    captioner = OpenAIModel("m", server.url, retries=0, together=together)
    return caption_dataset(open_dataset(root), captioner, **more)


def test_sets_are_told_in_their_order_whenever_their_answers_came(bare, serve):
    came, others = [], threading.Event()
    first = iter([True])

    def late(body):
        # Asked for 0001 or 0002, and answered last, it does not come in its place.
        assert not next(first, False) or others.wait(200)
        return 200, completion(good())

    def note(event):
        came.append(event.note)
        if len(came) == 2:
            others.set()

    summary = caption(bare(3), serve(late), progress=Progress(note))
    assert summary.written == ["0001", "0002", "0003"] == sorted(came) != came


def test_every_set_gets_a_caption_that_check_finds_nothing_wrong_with(bare, serve):
    root = bare(5)
    summary = caption(root, serve(lambda body: (200, completion(good()))))
    assert summary.written == ["0001", "0002", "0003", "0004", "0005"]
    assert (summary.read, summary.wrote) == (35, 15)
    for report in check_dataset(open_dataset(root), resolutions=(64,)):
        assert not [p for p in report.problems if p.caption]
    text = (root / "0003" / "caption.txt").read_text()
    assert text.startswith("[MOVIE-SHOTS] A day by the sea. [SCENE-1] <Ana> leaves")


@pytest.mark.skipif(os.name == "nt", reason="there are no such locks")
def test_what_a_killed_run_left_half_written_is_gone_after_the_next_one(bare, serve):
    root = bare(2)
    left = root / "0001" / ".caption.txt.0123456789ab.tmp"
    left.write_text("half")
    os.utime(left, (0, 0))
    caption(root, serve(lambda body: (200, completion(good()))))
    assert {p.name for p in (root / "0001").iterdir()} == {"1.png", "2.png", "3.png", "caption.txt"}


def test_composites_get_their_text_beside_them(tmp_path, serve):
    for name in "ab":
        Image.new("RGB", (64, 96 + ord(name))).save(tmp_path / f"{name}.png")
    (tmp_path / "iclora.toml").write_text('recipe = "film-storyboard"\n')
    server = serve(lambda body: (200, completion(good())))
    caption(tmp_path, server)
    assert (tmp_path / "a.txt").read_text().startswith("[MOVIE-SHOTS]")
    assert len(server.bodies[0]["messages"][0]["content"]) == 4
    (tmp_path / "a.txt").unlink()
    caption(tmp_path, server, send="composite")
    assert len(server.bodies[-1]["messages"][0]["content"]) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"overview": "x", "panels": ["a b", "c d"]}', "2 panel texts for 3 panels"),
        (good()[:-9], "not a whole JSON object"),
        ("y" * 10_000_000, "10,000,000 characters"),
        ('{"overview": "x", "panels": ["a gull", "a gull", "d"]}', "nearly the same words"),
        (good("sea " * 600), "the base reads 512"),
    ],
)
def test_a_useless_answer_is_asked_again_with_the_reason(bare, serve, bad, reason):
    def behave(body):
        return 200, completion(good() if len(body["messages"]) > 1 else bad)

    server = serve(behave)
    assert caption(bare(1), server).written == ["0001"]
    _, told, objection = server.bodies[-1]["messages"]
    assert reason in objection["content"]
    assert len(told["content"]) <= 2000


def test_a_set_without_a_good_answer_is_listed_and_the_rest_goes_on(bare, serve):
    def behave(body):
        first = body["messages"][0]["content"][0]["image_url"]["url"]
        return 200, completion("no idea" if first == hopeless else good())

    seen = serve(lambda body: (200, completion("no")))
    root = bare(3)
    dataset = open_dataset(root)
    caption_dataset(dataset, OpenAIModel("m", seen.url, together=1))
    hopeless = seen.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    server = serve(behave)
    summary = caption(root, server)
    assert summary.written == ["0002", "0003"]
    (row,) = json.loads((root / FAILURES).read_text())
    assert (row["set"], row["last answer"], row["tries"]) == ("0001", "no idea", 2)
    assert 'in prose, twice: "no idea"' in row["problem"]
    assert caption(root, serve(lambda body: (200, completion(good())))).written == ["0001"]
    assert not (root / FAILURES).exists()


def test_a_picture_that_cannot_be_read_costs_its_own_set_alone(bare, serve):
    root = bare(2)
    (root / "0001" / "2.png").write_bytes(b"no picture")
    summary = caption(root, serve(lambda body: (200, completion(good()))))
    assert summary.written == ["0002"]
    assert "2.png" in summary.failed[0].problem


def test_nothing_a_person_wrote_is_overwritten_unless_asked_for(make_dataset, serve):
    root = make_dataset(2)
    mine = (root / "0001" / "caption.txt").read_bytes()
    (root / "0002" / "caption.txt").write_text("  \n")
    server = serve(lambda body: (200, completion(good())))
    summary = caption(root, server)
    assert (summary.kept, summary.written) == (["0001"], ["0002"])
    assert (root / "0001" / "caption.txt").read_bytes() == mine
    assert caption(root, server, overwrite=True).written == ["0001", "0002"]
    assert (root / "0001" / "caption.txt").read_bytes() != mine


def test_a_set_that_is_named_is_captioned_alone_and_again_each_time(make_dataset, serve):
    root = make_dataset(3)
    server = serve(lambda body: (200, completion(good())))
    before = (root / "0001" / "caption.txt").read_text()
    for _ in range(2):
        assert caption(root, server, overwrite=True, only=("0002",)).written == ["0002"]
    assert (root / "0001" / "caption.txt").read_text() == before
    assert caption(root, server, only=("0002",)).kept == ["0002"]
    with pytest.raises(DatasetError, match='no set "0009"'):
        caption(root, server, only=("0009",))


def test_a_caption_that_was_written_meanwhile_is_kept(bare, serve):
    root = bare(1)

    def behave(body):
        (root / "0001" / "caption.txt").write_text("mine")
        return 200, completion(good())

    assert caption(root, serve(behave)).kept == ["0001"]
    assert (root / "0001" / "caption.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_whose_server_died_goes_on_and_captions_nothing_twice(make_dataset, serve, overwrite):
    root = make_dataset(6)
    if not overwrite:
        for file in root.rglob("caption.txt"):
            file.unlink()
    lock, served = threading.Lock(), []

    def behave(body):
        with lock:
            served.append(1)
            if len(served) > 3:
                # What the client of a killed server sees.
                server.server_close()
                raise ConnectionAbortedError
        return 200, completion(good())

    server = serve(behave)
    with pytest.raises(VisionModelError, match=r"no connection.*of 6 captions are written"):
        caption(root, server, together=1, overwrite=overwrite)
    after = serve(lambda body: (200, completion(good("lake"))))
    summary = caption(root, after, together=1, overwrite=overwrite)
    assert len(summary.written) == 3
    texts = [file.read_text() for file in sorted(root.rglob("caption.txt"))]
    assert [("sea" in t, "lake" in t) for t in texts] == [(True, False)] * 3 + [(False, True)] * 3


def test_a_killed_run_leaves_whole_captions_and_goes_on(bare, serve):
    root, asked, killed = bare(8), itertools.count(1), threading.Event()

    def behave(body):
        # However late the kill comes, it comes before the end.
        assert next(asked) < 7 or killed.wait(600)
        return 200, completion(good()), 0.05

    server = serve(behave)
    program = (
        "import sys\nfrom iclora.cli.main import main\n"
        f"main(['caption', {str(root)!r}, '--captioner', 'openai:m', '--api', {server.url!r}, "
        "'--together', '1'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    while len(list(root.rglob("caption.txt"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed.set()
    done = {f.parent.name for f in root.rglob("caption.txt")}
    assert 2 <= len(done) < 8
    for name in done:
        STORY.parse((root / name / "caption.txt").read_text())
    summary = caption(root, serve(lambda body: (200, completion(good()))))
    assert set(summary.kept) == done
    assert set(summary.written) | done == {f"{n:04d}" for n in range(1, 9)}


@pytest.mark.parametrize("name", ["0002/caption.txt", "caption-failures.json"])
def test_a_caption_that_cannot_be_written_is_said_before_anything_is_asked(bare, serve, name):
    root, server = bare(2), serve(lambda body: (200, completion(good())))
    (root / name).mkdir()
    (root / name / "x").touch()
    with pytest.raises(StorageError, match="is a folder"):
        caption(root, server)
    assert server.bodies == []


def test_a_second_process_that_captions_the_same_sets_is_refused_before_it_asks(bare, serve):
    root, refused = bare(2), []
    idle = serve(lambda body: (200, completion(good())))

    def meanwhile(event):
        with pytest.raises(DatasetError, match="another process is writing"):
            caption(root, idle)
        refused.append(event.done)

    half = root / "0001" / ".caption.txt.0123456789ab.tmp"
    half.touch()
    os.utime(half, (1, 1))
    server = serve(lambda body: (200, completion(good())))
    assert len(caption(root, server, progress=Progress(meanwhile)).written) == 2
    assert refused == [1, 2]
    assert idle.bodies == []
    assert list(root.rglob(".*")) == [], "no lock, and nothing a killed run left"


def test_a_run_nobody_answers_stops_and_lists_what_it_asked(bare, serve):
    root = bare(20)
    server = serve(lambda body: (429, b"{}"))
    with pytest.raises(VisionModelError, match=r"9 sets in a row got no answer.*429.*0 of 20"):
        caption(root, server, together=1)
    assert len(server.bodies) < 20
    assert len(json.loads((root / FAILURES).read_text())) == 9


def test_an_overwriting_run_that_failed_for_one_set_goes_on_with_that_alone(make_dataset, serve):
    root = make_dataset(3)
    hopeless = []

    def behave(body):
        first = body["messages"][0]["content"][0]["image_url"]["url"]
        hopeless[:] = hopeless or [first]
        return 200, completion("no" if first == hopeless[0] else good())

    assert len(caption(root, serve(behave), together=1, overwrite=True).failed) == 1
    after = caption(root, serve(lambda body: (200, completion(good()))), overwrite=True)
    assert (len(after.kept), len(after.written)) == (2, 1)
    again = caption(root, serve(lambda body: (200, completion(good()))), overwrite=True)
    assert len(again.written) == 3


def test_an_answer_that_was_cut_off_or_empty_is_asked_again(bare, serve):
    cut = completion(good()).replace(b'"stop"', b'"length"')
    answers = iter([cut, completion(""), completion(good())])
    server = serve(lambda body: (200, next(answers)))
    assert caption(bare(1), server, together=1).written == ["0001"]
    assert "cut off" in server.bodies[1]["messages"][2]["content"]
    assert all(m["content"] for m in server.bodies[2]["messages"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (completion("I\u2019m sorry, but I can\u2019t assist with that."), "can\u2019t assist"),
        (completion(good().replace("A day", "I cannot help with that. A day")), "I cannot help"),
        (completion(""), "answer is empty"),
        (completion(" \n"), "answer is empty"),
    ],
)
def test_a_refusal_or_no_answer_at_all_is_not_argued_with(bare, serve, answer, said):
    server = serve(lambda body: (200, answer))
    told = []
    summary = caption(bare(2), server, warn=told.append)
    assert len(server.bodies) == len(summary.failed) == len(told) == 2
    assert all("`captioner`" in text for text in told)
    assert all(said in failed.problem for failed in summary.failed)


def test_an_answer_that_is_always_cut_off_is_asked_for_twice(bare, serve):
    cut = completion(good()).replace(b'"stop"', b'"length"')
    server = serve(lambda body: (200, cut))
    (failed,) = caption(bare(1), server).failed
    assert "cut off before its end, twice" in failed.problem
    assert len(server.bodies) == 2


@pytest.mark.parametrize("escaped", [False, True])
def test_a_key_that_a_server_echoes_is_neither_stored_nor_shown(bare, serve, monkeypatch, escaped):
    key = "sk-Secret-123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said, root = [], bare(3)
    # Bold signs within it, which come off only when the answer is read.
    echo = "sk-Secret**-**123456789" if escaped else key
    # Asked in rounds: every set once, then again those without a good answer.
    first = [good(f"bay {echo}"), f"no idea, {key}", f"I'm sorry, {key}, I can't help."]
    answers = iter([*first, *[f"no idea, {key}"] * 3])
    server = serve(lambda body: (200, completion(next(answers))))
    summary = caption(root, server, together=1, warn=said.append)
    assert (len(summary.written), len(summary.failed)) == (1, 2)
    stored = [f.read_text() for f in root.rglob("*") if f.suffix in (".txt", ".json", ".jsonl")]
    assert not [text for text in [*stored, *said, str(summary)] if key in text]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"a":' * 500_000,
        b'{"choices": ' + b"9" * 6000 + b"}",
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": [[]]}',
        b'{"choices": {"a": 1}, "usage": []}',
        b'{"choices": [{"message": {"content": [{"type": 4, "text": []}]}}], "usage": {}}',
        b"\xff\xfe\x00",
        b"null",
    ],
)
def test_a_body_of_no_use_costs_its_set_alone(bare, serve, body):
    answers = iter([body])
    server = serve(lambda _: (200, next(answers, completion(good()))))
    summary = caption(bare(2), server, together=1)
    assert summary.written == ["0002"]
    assert summary.failed[0].problem


@pytest.mark.parametrize("count", ['"12"', "[1]", "null", "1e400", "-4", "true", '{"a": 1}'])
def test_token_counts_that_are_no_numbers_count_for_nothing(bare, serve, count):
    odd = completion(good()).replace(b'"prompt_tokens": 7', b'"prompt_tokens": ' + count.encode())
    summary = caption(bare(1), serve(lambda body: (200, odd)))
    assert (summary.written, summary.read, summary.wrote) == (["0001"], 0, 3)


def test_a_run_that_does_not_overwrite_leaves_the_journal_of_one_that_does(make_dataset, serve):
    root = make_dataset(3)
    answers = iter([good(), "no", good(), "no", "no", "no"])
    server = serve(lambda body: (200, completion(next(answers, good()))))
    assert len(caption(root, server, together=1, overwrite=True).failed) == 1
    assert not caption(root, server).written
    # A caption that somebody removed meanwhile is written again.
    (root / "0001" / "caption.txt").unlink()
    after = caption(root, server, overwrite=True)
    assert (after.kept, after.written) == (["0003"], ["0001", "0002"])


def test_an_overwriting_run_with_other_settings_begins_anew(make_dataset, serve):
    root = make_dataset(2)
    answers = iter([good(), "no", "no", "no", "no"])
    server = serve(lambda body: (200, completion(next(answers, good()))))
    assert len(caption(root, server, together=1, overwrite=True).failed) == 1
    assert not caption(root, server, overwrite=True, limit=300).kept


def test_a_journal_that_somebody_damaged_is_read_as_far_as_it_goes(make_dataset, serve):
    root = make_dataset(2)
    server = serve(lambda body: (200, completion("no")))
    caption(root, server, overwrite=True)
    (journal,) = root.glob(".iclora-captioning*")
    with journal.open("ab") as file:
        file.write(b'"0002"\n[1]\nnull\n{"a": 1}\n\xff\n' + b"[" * 9000 + b"\n4")
    server = serve(lambda body: (200, completion(good())))
    assert caption(root, server, overwrite=True).kept == ["0002"]


def test_captions_that_a_disk_may_take_for_one_file_are_refused(tmp_path, serve):
    for name in ("a.png", "A.jpg"):
        Image.new("RGB", (64, 96), (40, 90, len(name))).save(tmp_path / name)
    (tmp_path / "iclora.toml").write_text('recipe = "film-storyboard"\n')
    with pytest.raises(DatasetError, match="ignores case"):
        caption(tmp_path, serve(lambda body: (200, completion(good()))))


def test_a_caption_in_other_letters_that_came_meanwhile_is_kept(bare, serve):
    root = bare(1)

    def behave(body):
        (root / "0001" / "Caption.TXT").write_text("mine")
        return 200, completion(good())

    assert caption(root, serve(behave)).kept == ["0001"]


def test_an_archive_is_refused_with_advice(official, serve):
    server = serve(lambda body: (200, completion(good())))
    with pytest.raises(DatasetError, match="captions are written beside the images"):
        caption_dataset(open_dataset(official, STORY.name), OpenAIModel("m", server.url))


def test_an_idea_becomes_a_prompt_the_recipe_reads_or_an_error(serve):
    server = serve(lambda body: (200, completion(good("carnival"))))
    captioner = OpenAIModel("m", server.url, retries=0)
    text = write_prompt(STORY, "a shy boy at a carnival", captioner)
    assert STORY.parse(text).words[1] == "A gull lands."
    asked = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in asked] == ["text"]
    assert re.search("a shy boy at a carnival", asked[0]["text"])
    silent = OpenAIModel("m", serve(lambda body: (200, completion("no"))).url, retries=0)
    with pytest.raises(CaptionError, match="in 2 tries: the model answers in prose"):
        write_prompt(STORY, "an idea", silent)
    busy = OpenAIModel("m", serve(lambda body: (503, b"{}")).url, retries=0)
    with pytest.raises(VisionModelError, match="status 503"):
        write_prompt(STORY, "an idea", busy)


def test_every_set_is_reported_and_those_without_a_caption_are_warned_about(bare, serve):
    answers = iter([good()])
    server = serve(lambda body: (200, completion(next(answers, "a gull"))))
    events, said = [], []
    summary = caption(
        bare(3), server, together=1, progress=Progress(events.append), warn=said.append
    )
    assert [(e.what, e.done, e.total) for e in events] == [("captioning", n, 3) for n in (1, 2, 3)]
    assert summary.written == ["0001"]
    assert [bool(e.values["outcome"].caption) for e in events] == [True, False, False]
    assert [text.split(":")[0] for text in said] == [e.note for e in events[1:]]
