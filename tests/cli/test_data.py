"""Verbs over image sets and their words."""

from __future__ import annotations

import re

from tests.conftest import CAPTION
from tests.vlm.test_openai import completion


def test_check_estimates_tokens_and_keeps_brackets_in_names(make_dataset, run):
    root = make_dataset(sets=1)
    (root / "0001").rename(root / "0001[v2]")
    status, out, _ = run("check", root)
    assert status == 0
    assert "0001[v2]" in out
    estimate = int(re.search(r"~(\d+)", out)[1])
    assert 20 < estimate < 60
    (root / "0001[v2]" / "caption.txt").write_text(CAPTION + " extraordinarily" * 200)
    status, _, err = run("check", root)
    assert status == 0
    assert "may be too long" in err


def test_check_fails_on_errors_and_names_them(make_dataset, run):
    root = make_dataset()
    (root / "0002" / "2.png").unlink()
    status, out, err = run("check", root)
    assert status == 2
    assert "1 errors" in out
    assert re.search(r"error: 0002: .*has 2 images", err)


def test_caption_says_what_is_sent_where_and_never_the_key(make_dataset, writer, monkeypatch, run):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    root = make_dataset(2)
    (root / "0002" / "caption.txt").unlink()
    words = ["caption", str(root), "--captioner", "openai:m", "--api", writer.url]
    status, out, err = run(*words)
    told = out + err
    assert status == 0
    assert f"sent to {writer.url} (model m)" in told
    assert "no side above 768 px" in told
    assert "1 captions written, 1 sets had one already, 0 failed" in told
    assert "sk-secret" not in told
    assert not [f for f in root.rglob("*") if f.is_file() and b"sk-secret" in f.read_bytes()]


def test_caption_ends_with_a_status_and_a_list_where_sets_failed(make_dataset, writer, run):

    writer.behave = lambda body: (200, completion("nonsense"))
    root = make_dataset(1)
    (root / "0001" / "caption.txt").unlink()
    words = ["caption", str(root), "--captioner", "openai:m", "--api", writer.url]
    status, out, _ = run(*words)
    assert status == 1
    assert "caption-failures.json" in out


def test_review_writes_a_page_beside_the_dataset(make_dataset, run):
    root = make_dataset(2)
    status, out, _ = run("review", root)
    assert status == 0
    page = root.with_name(f"{root.name}-review.html")
    assert str(page) in out
    assert page.read_text().count("<section") == 2
