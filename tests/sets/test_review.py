"""The contact sheet: complete, self-contained, and nothing on it runs."""

import json
import re

from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.review import write_review


def page_of(root, tmp_path, limit=None):
    dataset = open_dataset(root)
    reports = list(check_dataset(dataset, resolutions=(64,)))
    write_review(dataset, reports, tmp_path / "review.html", limit)
    return (tmp_path / "review.html").read_text()


def test_every_set_shows_its_pictures_its_words_and_its_tokens(make_dataset, tmp_path):
    page = page_of(make_dataset(3), tmp_path)
    assert page.count("<section") == 3
    assert page.count("data:image/jpeg;base64,") == 3 * (1 + 3)
    assert page.count('class="marker">[SCENE-2]') == 3
    assert "then &lt;Ana1&gt; fishes" in page
    assert len(re.findall(r">~\d+ of 512 tokens", page)) == 3
    assert "Magenta" not in page


def test_tokens_are_called_estimates_only_if_no_base_counted_them(make_dataset, tmp_path):
    estimated = page_of(make_dataset(1), tmp_path)
    counted = page_of(tmp_path / "data", tmp_path, limit=77)
    assert "Tokens are estimated" in estimated
    assert "estimated" not in counted
    assert re.search(r">\d+ of 77 tokens", counted)


def test_the_page_needs_nothing_from_elsewhere_and_captions_cannot_run_in_it(
    make_dataset, tmp_path
):
    root = make_dataset(1)
    caption = root / "0001" / "caption.txt"
    caption.write_text(caption.read_text().replace("sails out", "<script>alert(1)</script>"))
    page = page_of(root, tmp_path)
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_sets_with_something_to_look_at_are_marked_and_linked(make_dataset, tmp_path):
    root = make_dataset(3)
    (root / "0002" / "caption.txt").write_text("[MOVIE-SHOTS] A day, [SCENE-1] one [SCENE-3] two")
    (root / "0003" / "caption.txt").unlink()
    (root / "0001" / "1.png").write_bytes(b"no picture")
    page = page_of(root, tmp_path)
    assert page.count('class="bad"') == 3
    assert 'href="#set-0002"' in page
    assert "[SCENE-2] is missing" in page
    assert "no caption" in page
    assert "1.png" in page


def test_collected_sets_show_their_score_and_can_be_sorted_by_it(make_dataset, tmp_path):
    root = make_dataset(3)
    lines = [
        {"set": f"000{i}", "scene": f"film <{i}>", "score": score, "reasons": ["dark & small"]}
        for i, score in ((1, 0.9), (2, 0.2), (3, 0.5))
    ]
    (root / "sets.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = page_of(root, tmp_path)
    assert re.findall(r'id="set-(\d+)" class="good" style="--rank: (\d)"', page) == [
        ("0001", "3"),
        ("0002", "1"),
        ("0003", "2"),
    ]
    assert page.count("dark &amp; small") == 3
    assert "film &lt;1&gt;" in page
    assert "<script" not in page
