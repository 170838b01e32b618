"""Decks: pages in order, title and closing in their places; hostile documents are named."""

import zlib

import pytest
from PIL import Image

from iclora.sets.collect.sources import read_source
from tests.conftest import picture
from workshop.collecting.decks import deck_pages, png, write_pdf, write_pptx


@pytest.fixture(autouse=True)
def _no_office(monkeypatch):
    """Decks of these tests are no files that an office program would open."""
    monkeypatch.setattr("iclora.sets.collect.sources.pages.find_office", lambda: None)


@pytest.fixture
def deck(tmp_path):
    """A PDF of a title, twelve pages with builds and blanks between, and a closing page."""
    pages = deck_pages(1, 12)
    write_pdf(tmp_path / "deck.pdf", [(lines, shapes) for lines, shapes, _ in pages])
    return tmp_path / "deck.pdf", [kind for *_, kind in pages]


def test_slides_are_sets_in_order_with_the_title_first_and_the_closing_last(deck, want):
    path, kinds = deck
    wanted = want("ppt-template")
    found = read_source(str(path), wanted)
    assert wanted.problems == []
    pages = [picture.origin.at["page"] for each in found for picture in each.pictures]
    assert pages == sorted(pages)
    taken = [kinds[page - 1] for page in pages]
    assert len(found) == (2 + kinds.count("content")) // 4
    assert taken == ["title", *["content"] * (len(taken) - 2), "closing"]
    assert "a title page, a closing page" in wanted.notes[0]
    width, height = found[0].pictures[0].open().size
    assert abs(width / height - 960 / 540) < 0.01
    box = want("ppt-template").recipe.canvas.sizes[0]
    assert 0.97 < width * height / (box[0] * box[1]) < 1.03


def test_pages_of_text_on_one_layout_are_no_steps_of_each_other(want, tmp_path):
    """As in most decks: the same white ground, head and foot, other words."""
    foot = ((0.8, 0.1, 0.1), (40, 30, 880, 4))
    words = [lines for lines, _, kind in deck_pages(3, 9) if kind == "content"][:8]
    write_pdf(tmp_path / "deck.pdf", [(lines, [foot]) for lines in words])
    wanted = want("ppt-template")
    assert len(read_source(str(tmp_path / "deck.pdf"), wanted)) == 2
    assert "0 are empty or built up" in wanted.notes[0]


def test_hostile_documents_are_refused_by_name_and_the_rest_goes_on(deck, want, tmp_path):
    path, _ = deck
    one = deck_pages(2, 1)[1][:2]
    write_pdf(tmp_path / "endless.pdf", [one], count=100_000)
    locked = "/Encrypt << /Filter /Standard /V 1 /R 2 /O (x) /U (y) /P -4 >> /ID [(a) (b)]"
    write_pdf(tmp_path / "locked.pdf", [one], trailer=locked)
    write_pdf(tmp_path / "bomb.pdf", [one] * 5, picture=(60_000, 60_000))
    script = "/OpenAction << /S /JavaScript /JS (this.addField\\('x'\\)) >>"
    write_pdf(tmp_path / "script.pdf", [page[:2] for page in deck_pages(4, 4)], catalog=script)
    (tmp_path / "cut.pdf").write_bytes(path.read_bytes()[:200])
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "no.pptx").write_bytes(b"PK")
    wanted = want("ppt-template")
    found = read_source(str(tmp_path), wanted)
    assert {each.scene.rsplit("/", 1)[-1] for each in found} == {"deck.pdf", "script.pdf"}
    told = {p.subject.rsplit("/", 1)[-1]: p.text for p in wanted.problems}
    assert set(told) >= {"endless.pdf", "locked.pdf", "bomb.pdf", "cut.pdf", "empty.pdf", "no.pptx"}
    assert "100,000 pages" in told["endless.pdf"]
    assert "encrypted" in told["locked.pdf"]
    assert "60000x60000" in told["bomb.pdf"]
    assert "JavaScript is refused" in told["script.pdf"]
    assert "deck.pdf" not in told


def bomb():
    """A PNG that claims 60,000 x 60,000 px."""
    head = b"IHDR" + (60_000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = ((len(c) - 4).to_bytes(4) + c + zlib.crc32(c).to_bytes(4) for c in (head, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pictures_of_a_pptx_come_in_the_order_of_its_slides_and_a_bomb_is_named(want, tmp_path):
    pictures = [
        png(Image.effect_mandelbrot((96, 96), (-2, -1, 1, 1), 9 + i).convert("RGB"))
        for i in range(6)
    ]
    slides = [pictures[:2], [pictures[2], bomb()], pictures[3:4], pictures[4:]]
    write_pptx(tmp_path / "deck.pptx", slides, order=(3, 1, 2, 4))
    wanted = want("visual-identity", by="order")
    found = read_source(str(tmp_path / "deck.pptx"), wanted)
    data = [picture.read() for each in found for picture in each.pictures]
    assert data == [pictures[i] for i in (3, 0, 1, 2, 4, 5)]
    (problem,) = wanted.problems
    assert "decompression bomb" in problem.text
    assert "image4.png" in problem.subject


def test_slides_that_only_an_office_program_draws_are_named_with_the_way_out(want, tmp_path):
    write_pptx(tmp_path / "deck.pptx", [[], [png(picture(96, 96))], []], order=(1, 2, 3))
    wanted = want("ppt-template")
    read_source(str(tmp_path / "deck.pptx"), wanted)
    problem = wanted.problems[0]
    assert "2 of its 3 slides hold no picture (1, 3)" in problem.text
    assert "PDF" in problem.advice


def test_pictures_in_pages_are_taken_at_their_own_size(want, tmp_path):
    pictures = [Image.effect_noise((80 + 20 * i, 100), 60).convert("RGB") for i in range(4)]
    pictures[0].save(tmp_path / "book.pdf", save_all=True, append_images=pictures[1:])
    found = read_source(str(tmp_path / "book.pdf"), want("visual-identity", "order", "pictures"))
    sizes = [picture.open().size for each in found for picture in each.pictures]
    assert sizes == [picture.size for picture in pictures]
