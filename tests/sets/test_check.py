"""What is wrong with image sets, by name, and what training takes over from the check."""

from __future__ import annotations

import pytest
from PIL import Image

from iclora.errors import DatasetError
from iclora.sets import dataset as dataset_room
from iclora.sets.check import accept, check_dataset, training_layouts, typical_layout
from iclora.sets.compose import compose_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.layout import Layout
from tests.conftest import CAPTION, picture


def problems(dataset, **options):
    return [
        *dataset.problems,
        *(p for report in check_dataset(dataset, **options) for p in report.problems),
    ]


def errors(dataset, **options):
    return [p for p in problems(dataset, **options) if p.severity == "error"]


def test_a_missing_panel_is_named_with_its_set(make_dataset):
    root = make_dataset()
    (root / "0002" / "2.png").unlink()
    (problem,) = errors(open_dataset(root))
    assert problem.subject == "0002"
    assert "has 2 images" in problem.text
    assert "1.png, 3.png" in problem.advice


@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("recipe", ["film-storyboard", "home-decoration"])
def test_a_folder_of_too_few_panels_is_never_taken_for_a_composite(make_dataset, left, recipe):
    root = make_dataset(sets=1)
    for i in range(left + 1, 4):
        (root / "0001" / f"{i}.png").unlink()
    found = errors(open_dataset(root, recipe))
    assert any(f"has {left} images" in p.text for p in found)


def test_a_composite_without_visible_borders_is_warned_about(tmp_path):
    picture(96, 144).save(tmp_path / "0001.png")
    found = problems(open_dataset(tmp_path, "film-storyboard"))
    assert any("2 of the borders" in p.text for p in found)


def test_the_canvas_to_generate_on_has_the_shapes_that_were_trained():
    stack = Layout.rows(3, 1024, 1536)
    layout = typical_layout(stack, [[(1080, 480)] * 3, [(900, 400)] * 3, [(100, 400)] * 3], 16)
    assert max(layout.stretch([(1080, 480)] * 3)) < 1.02
    assert 0.9 < layout.width * layout.height / (1024 * 1536) <= 1


def test_a_broken_picture_is_named_and_the_other_sets_still_checked(make_dataset):
    root = make_dataset()
    path = root / "0002" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    (root / "0003" / "caption.txt").write_text("[MOVIE-SHOTS] [SCENE-1] a [SCENE-2] b")
    found = errors(open_dataset(root))
    assert [p.subject for p in found] == ["0002", "0003"]
    assert "0002/2.png" in found[0].text
    assert "SCENE-3" in found[1].text


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        (None, "has no caption"),
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (CAPTION[14:].encode(), "MOVIE-SHOTS"),
        ((CAPTION + " word" * 600).encode(), "tokens long"),
    ],
)
def test_a_caption_that_cannot_be_trained_on_is_an_error(make_dataset, caption, says):
    root = make_dataset(sets=1)
    if caption is None:
        (root / "0001" / "caption.txt").unlink()
    else:
        (root / "0001" / "caption.txt").write_bytes(caption)
    (problem,) = errors(open_dataset(root))
    assert says in problem.text


def test_tokens_are_counted_by_the_bases_own_tokenizer(make_dataset, tiny):
    dataset = open_dataset(make_dataset(sets=1))
    (report,) = check_dataset(dataset, count_tokens=tiny.count_tokens, limit=512)
    assert report.tokens == tiny.count_tokens(dataset.sets[0].caption())
    (report,) = check_dataset(dataset, count_tokens=tiny.count_tokens, limit=20)
    assert "the base reads 20" in next(p for p in report.problems if p.severity == "error").text


def test_small_twin_and_orphan_files_are_warned_about(make_dataset):
    root = make_dataset(sets=2)
    for i in (1, 2, 3):
        (root / "0002" / f"{i}.png").write_bytes((root / "0001" / f"{i}.png").read_bytes())
    (root / "stray.txt").write_text("words")
    found = problems(open_dataset(root))
    assert all(p.severity == "warning" for p in found)
    (root / "0003.txt").write_text(CAPTION)
    assert "0003.txt" in [p.subject for p in errors(open_dataset(root))]
    texts = " ".join(str(p) for p in found)
    assert "the same images as set" in texts
    assert "no image or set takes" in texts
    assert "megapixels" in texts


def test_a_set_trains_at_each_size_once_and_never_above_its_own_pixels():
    stack = Layout.rows(3, 1024, 1536)
    sizes = [(400, 178)] * 3  # 462 x 462 in all
    layouts = training_layouts(stack, sizes, (256, 512, 768, 1024), 16)
    assert len(layouts) == 2
    assert all(a.width * a.height <= 462**2 for a in layouts)
    larger = training_layouts(stack, sizes, (256, 512, 768, 1024), 16, upscale=True)
    assert len(larger) == 4


@pytest.fixture
def decodes(monkeypatch):
    """Names of the pictures that were decoded, in order."""
    names = []

    def counted(data, name):
        names.append(name)
        return decode(data, name)

    decode = dataset_room.read_image
    monkeypatch.setattr(dataset_room, "read_image", counted)
    return names


def test_composing_decodes_each_picture_twice_and_training_its_composite_twice(
    make_dataset, tmp_path, decodes
):
    source = open_dataset(make_dataset(2))
    compose_dataset(source, tmp_path / "out")
    assert len(decodes) == 2 * 2 * 3
    decodes.clear()
    dataset = open_dataset(tmp_path / "out")
    sets = accept(dataset, check_dataset(dataset))
    assert [(s.name, s.caption) for s in sets] == [(s.name, s.caption()) for s in dataset.sets]
    assert [s.digest for s in sets] == [s.digest for s in dataset.sets]
    assert sorted(decodes) == ["0001.png", "0002.png"]
    for checked in sets:
        panels = checked.load()
        assert tuple(panels.sizes) == checked.sizes
        assert checked.layouts == tuple(training_layouts(dataset.recipe.canvas, panels.sizes))
    assert sorted(decodes) == ["0001.png", "0001.png", "0002.png", "0002.png"]


def test_a_composite_s_seams_are_searched_once(tmp_path, monkeypatch):
    panels = [picture(160, h, i) for i, h in enumerate((90, 100, 98))]
    composite = Image.new("RGB", (160, 288))
    for panel, top in zip(panels, (0, 90, 190), strict=True):
        composite.paste(panel, (0, top))
    composite.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(CAPTION)
    dataset = open_dataset(tmp_path, "film-storyboard")
    (checked,) = accept(dataset, check_dataset(dataset))
    monkeypatch.setattr("iclora.sets.canvas.cut_apart", None)
    assert [p.tobytes() for p in checked.load().panels] == [p.tobytes() for p in panels]


def test_pictures_that_change_after_the_check_are_refused(make_dataset):
    root = make_dataset(1)
    dataset = open_dataset(root)
    (checked,) = accept(dataset, check_dataset(dataset))
    picture(80, 32).save(root / "0001" / "2.png")
    with pytest.raises(DatasetError, match='"0001" have changed'):
        checked.load()


def test_a_dataset_with_errors_is_not_accepted_and_warnings_are_told(make_dataset):
    root = make_dataset(2)
    said = []
    dataset = open_dataset(root)
    assert len(accept(dataset, check_dataset(dataset), said.append)) == 2
    assert any("megapixels" in text for text in said)
    (root / "0002" / "caption.txt").unlink()
    dataset = open_dataset(root)
    with pytest.raises(DatasetError, match="1 problem in"):
        accept(dataset, check_dataset(dataset))
    later = accept(dataset, check_dataset(dataset), captions=False)
    assert [s.caption for s in later][1] == ""


@pytest.mark.parametrize("words", ["米拉在码头", "Мира ведёт лодку", "ミラは港で手を振る"])
def test_words_that_the_base_cannot_read_are_warned_of_with_their_share(make_dataset, tiny, words):
    root = make_dataset(sets=2)
    text = f"[MOVIE-SHOTS] {words} [SCENE-1] {words} [SCENE-2] {words} [SCENE-3] {words}"
    (root / "0002" / "caption.txt").write_text(text, encoding="utf-8")
    found = problems(
        open_dataset(root), count_tokens=tiny.count_tokens, limit=512, unknown=tiny.unknown_letters
    )
    (problem,) = [p for p in found if "cannot read" in p.text]
    assert (problem.subject, problem.severity) == ("0002", "warning")
    share = int(problem.text.split("%")[0].split()[-1])
    assert 20 < share <= 100


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("**a boat**", 'holds "**"'),
        ("&lt;Ana&gt; waves", 'holds "&lt;"'),
        ("<b>a boat</b>", 'holds "</b>"'),
        ("a boat<|im_end|>", 'holds "<|"'),
        ("a (boat:1.3)", 'holds "(boat:1.3)"'),
        ("a boat <lora:x:1>", 'holds "<lora:x:1>"'),
        ("it\u00e2\u20ac\u2122s a boat", "holds"),
        ("\u017c\u00f3\u0142ta \u0142\u00f3d\u017a", "tokenizer"),
        ("m\u1ed9t chi\u1ebfc thuy\u1ec1n", "tokenizer"),
        ("<Ana> waves \u2013 it\u2019s a caf\u00e9, \U0001d41a \uff22", None),
    ],
)
def test_what_nobody_means_as_words_of_a_caption_is_warned_of(make_dataset, words, says):
    root = make_dataset(sets=1)
    text = f"[MOVIE-SHOTS] {words} [SCENE-1] {words} [SCENE-2] {words} [SCENE-3] {words}"
    (root / "0001" / "caption.txt").write_text(text, encoding="utf-8")
    found = [p.text for p in problems(open_dataset(root)) if p.caption]
    assert len(found) == (says is not None)
    assert all(says in text for text in found)


def test_a_caption_may_be_longer_than_the_budget_if_each_panel_reads_its_own(make_dataset, tiny):
    root = make_dataset(sets=1)
    long = CAPTION.replace("then", "then " + "and on " * 140).replace(
        "home", "home " + "far " * 200
    )
    (root / "0001" / "caption.txt").write_text(long)
    dataset, budget = open_dataset(root), {"count_tokens": tiny.count_tokens, "limit": 512}
    joint, apart = (
        next(iter(check_dataset(dataset, **budget, text=kind))) for kind in ("joint", "isolated")
    )
    assert joint.tokens is None
    assert any("tokens long" in p.text for p in joint.problems)
    texts = dataset.recipe.parse(long).texts("isolated")
    assert apart.by_text == tuple(map(tiny.count_tokens, texts))
    assert apart.tokens == max(apart.by_text) <= 512 < sum(apart.by_text)
    assert not any("tokens" in p.text for p in apart.problems)
    short = {**budget, "limit": apart.tokens - 1}
    (report,) = check_dataset(dataset, **short, text="isolated")
    assert any("panel" in p.text and "tokens long" in p.text for p in report.problems)
