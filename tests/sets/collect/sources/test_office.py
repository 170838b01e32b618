"""Slides of a PPTX, drawn by LibreOffice: the real one in `make check`, where it is installed."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from iclora.sets.collect.sources import office, read_source
from tests.conftest import picture
from workshop.collecting.decks import deck_pages, png, write_pdf, write_pptx

PAGE = '<draw:page draw:name="{n}" draw:master-page-name="m"><draw:frame svg:x="2cm" svg:y="{n}cm" '
PAGE += 'svg:width="16cm" svg:height="6cm"><draw:text-box><text:p>{words}</text:p>'
PAGE += "</draw:text-box></draw:frame></draw:page>"


def write_slides(folder, words):
    """A PPTX as LibreOffice writes it, with a text on each slide."""
    spaces = {
        "office": "office",
        "draw": "drawing",
        "text": "text",
        "style": "style",
        "svg": "svg-compatible",
        "fo": "xsl-fo-compatible",
    }
    named = " ".join(
        f'xmlns:{short}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for short, name in spaces.items()
    )
    pages = "".join(PAGE.format(n=n, words=each) for n, each in enumerate(words))
    text = (
        f'<?xml version="1.0"?><office:document {named} office:version="1.3" '
        'office:mimetype="application/vnd.oasis.opendocument.presentation">'
        '<office:automatic-styles><style:page-layout style:name="p"/></office:automatic-styles>'
        '<office:master-styles><style:master-page style:name="m" style:page-layout-name="p"/>'
        f"</office:master-styles><office:body><office:presentation>{pages}"
        "</office:presentation></office:body></office:document>"
    )
    (folder / "slides.fodp").write_text(text)
    program = office.find_office()
    home = f"-env:UserInstallation={(folder / 'profile').as_uri()}"
    command = [program, "--headless", home, "--convert-to", "pptx", "--outdir", str(folder)]
    subprocess.run([*command, str(folder / "slides.fodp")], check=True, capture_output=True)
    return folder / "slides.pptx"


@pytest.mark.machine
@pytest.mark.skipif(office.find_office() is None, reason="LibreOffice is not installed")
def test_slides_are_drawn_and_make_sets_in_their_order(want, tmp_path):
    # Each text stands elsewhere, or a page could pass for a step of the next one.
    path = write_slides(tmp_path, ["several words " * (12 + n) for n in range(8)])
    wanted = want("ppt-template")
    found = read_source(str(path), wanted)
    assert (wanted.problems, len(found)) == ([], 2), wanted.notes
    assert [[p.origin.at["page"] for p in each.pictures] for each in found] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
    ]
    width, height = found[0].pictures[0].open().size
    assert width / height == pytest.approx(16 / 9, abs=0.01)


# -- without LibreOffice --------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A stand-in for LibreOffice that copies a PDF, or says why not."""
    pages = [(lines, shapes) for lines, shapes, _ in deck_pages(1, 12)]
    write_pdf(tmp_path / "drawn.pdf", pages)

    def make(works):
        path = tmp_path / "bin" / "soffice"
        path.parent.mkdir(exist_ok=True)
        done = f"shutil.copyfile({str(tmp_path / 'drawn.pdf')!r}, work + '/slides.pdf')"
        path.write_text(
            f"#!{sys.executable}\nimport shutil, sys\n"
            "work = sys.argv[sys.argv.index('--outdir') + 1]\n"
            + (done if works else "print('Error: source file could not be loaded')")
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(path.parent))

    return make


def deck(tmp_path):
    path = tmp_path / "deck.pptx"
    write_pptx(path, [[png(picture(96, 96, n))] for n in range(4)], order=(1, 2, 3, 4))
    return path


def test_pages_are_those_of_what_it_drew_and_of_the_deck_by_name(want, tmp_path, program):
    program(works=True)
    path = deck(tmp_path)
    wanted = want("ppt-template")
    found = read_source(str(path), wanted)
    assert all("page" in p.origin.at for each in found for p in each.pictures)
    assert {Path(each.scene).name for each in found} == {"deck.pptx"}
    assert any("drawn by LibreOffice" in note for note in wanted.notes)


@pytest.mark.parametrize("kind", ["fails", "is missing"])
def test_where_it_fails_or_is_missing_the_pictures_are_taken_and_that_is_said(
    want, tmp_path, program, monkeypatch, kind
):
    program(works=False)
    if kind == "is missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    wanted = want("ppt-template")
    found = read_source(str(deck(tmp_path)), wanted)
    assert all("slide" in p.origin.at for each in found for p in each.pictures)
    says = "could not be loaded" if kind == "fails" else "is not installed"
    assert any(says in note and "Save it as PDF" in note for note in wanted.notes)


def test_a_deck_that_draws_on_what_lies_outside_is_not_handed_to_it(want, tmp_path, program):
    program(works=True)
    path = deck(tmp_path)
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(
            "ppt/slides/_rels/slide9.xml.rels",
            f'<Relationships><Relationship Id="a" TargetMode="External" Type="{kind}/hyperlink" '
            f'Target="https://a.example"/><Relationship Id="b" TargetMode="External" '
            f'Type="{kind}/image" Target="http://10.0.0.1/x.png"/></Relationships>',
        )
    wanted = want("ppt-template")
    found = read_source(str(path), wanted)
    assert all("slide" in p.origin.at for each in found for p in each.pictures)
    assert any("image http://10.0.0.1/x.png" in note for note in wanted.notes)


def test_it_is_ended_with_all_it_started_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(office, "_MOST_SECONDS", 0.3)
    sleep = shutil.which("sleep")
    assert office._run([sleep, "60"]) == "it took more than 0.3 s"
