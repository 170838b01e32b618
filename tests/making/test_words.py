"""Files of prompts and stories: what is meant for people or for other tools is never painted."""

from __future__ import annotations

import pytest

from iclora.errors import SettingsError
from iclora.making.words import Story, plan_windows, read_prompts


def write(tmp_path, text, coding="utf-8"):
    (tmp_path / "p.txt").write_bytes(text.encode(coding))
    return tmp_path / "p.txt"


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_comments_are_left_out_with_a_word(tmp_path, coding):
    text = "# my prompts\n\n a boat \n//another\n#3\n[TAG] two boats\r\n"
    read = read_prompts(write(tmp_path, text, coding))
    assert read.lines == ("a boat", "[TAG] two boats")
    assert "3 comment lines left out" in read.notes[0]


@pytest.mark.parametrize("form", ["{}. ", "{}) ", "({}) ", "[{}] ", "{}: "])
def test_numbers_that_count_the_lines_are_left_out(tmp_path, form):
    text = "".join(form.format(n) + f"boat {n}\n" for n in (1, 2, 3))
    read = read_prompts(write(tmp_path, text))
    assert read.lines == ("boat 1", "boat 2", "boat 3")
    assert "numbers" in read.notes[0]


def test_a_number_that_belongs_to_a_prompt_stays(tmp_path):
    lines = ("3 boats at sea", "7. symphony", "2 dogs")
    assert read_prompts(write(tmp_path, "\n".join(lines))).lines == lines


@pytest.mark.parametrize(
    "option",
    [
        "--w 64",
        "--ar 16:9",
        "--n bad hands",
        "--niji",
        "<lora:style:0.8>",
        "--seed=3",
        "\u2014ar 3:2",
        "--negative_prompt x",
        "--guidance-scale 3",
        "--lora x",
        "with (red sails:1.3)",
        "[calm:stormy:0.5]",
        "{red|blue} sails",
        "in __colour__",
        "embedding:easynegative",
        "a gull::2",
        "BREAK a gull",
        "-W512 -S 42",
        "((big)) sails",
        "(big)++",
        "a [red|blue] sail",
        "<random:red,blue>",
        "AND a gull",
        "steps=20",
        ", Steps: 20",
        "[sails:7]",
    ],
)
@pytest.mark.parametrize("read", [read_prompts, Story.read])
def test_options_of_other_tools_are_refused_by_line(tmp_path, option, read):
    path = write(tmp_path, f"# note\na boat\na boat at sea {option}\n")
    with pytest.raises(SettingsError, match=r"line 3: .* is an option of another tool"):
        read(path)


@pytest.mark.parametrize(
    "line",
    [
        "/imagine prompt: a boat",
        "/imagine a boat",
        "Negative prompt: blurry",
        "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512",
        '{"prompt": "a boat"}',
        "prompt,seed",
        '"prompt";"seed"',
        "id,prompt",
        '2,"a gull"',
        "x\ta gull",
        "| a gull |",
        "prompt = 'a gull'",
        "prompts:",
        "{\\rtf1 a gull}",
        "Prompt: a gull",
        "a gull # for later",
        "a gull \\",
        "a \x1b[31mgull",
        "https://example.org/a.png a gull",
    ],
)
def test_lines_of_other_tools_are_refused(tmp_path, line):
    with pytest.raises(SettingsError, match=r"line 2: "):
        read_prompts(write(tmp_path, f"a boat\n{line}\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a boat\n- a gull", "bullets"),
        ("\u2022 a boat\n* a gull", "bullets"),
        ('"a boat"\n"a gull"', "quotes"),
        ("\u201ca boat\u201d\n\u201ca gull\u201d", "quotes"),
        ("Prompt: a boat\nprompt: a gull", "prompt:"),
        ("Prompt 1: a boat\nPrompt 2: a gull", "numbers"),
        ("1 - a boat\n2 - a gull", "numbers"),
        ("1.a boat\n2.a gull", "numbers"),
        ("; note\na boat\n% note\na gull", "2 comment lines"),
        ("<!-- a\nnote -->\na boat\n---\na gull", "1 comment line"),
        ("a boat <!-- a\nnote -->\na gull", "<!-- -->"),
        ("```\na boat\na gull\n```", "2 comment lines"),
        ("REM note\na boat\n%note\n;note\na gull", "3 comment lines"),
        ("-- note\na boat\n.. note\na gull", "2 comment lines"),
        ("/* a\nnote */\na boat\na gull", "/* */"),
        ("\u2460a boat\n\u2461a gull", "numbers"),
        ("\u2776 a boat\n\u2777 a gull", "numbers"),
        ("\uff11\uff0ea boat\n\uff12\uff0ea gull", "numbers"),
        ("1\u3001a boat\n2\u3001a gull", "numbers"),
        ("\u0661. a boat\n\u0662. a gull", "numbers"),
        ("1\ufe0f\u20e3 a boat\n2\ufe0f\u20e3 a gull", "numbers"),
        ("I. a boat\nII. a gull", "numbers"),
        ("a) a boat\nb) a gull", "numbers"),
        ("#1 a boat\n#2 a gull", "numbers"),
        ("Scene 1: a boat\nScene 2: a gull", "numbers"),
        ("\u7b2c1\u5e55\uff1aa boat\n\u7b2c2\u5e55\uff1aa gull", "numbers"),
        ("1. a boat\n1. a gull", "numbers"),
        ("2. a boat\n5. a gull", "numbers"),
        ("1/2 a boat\n2/2 a gull", "numbers"),
        ("- [ ] a boat\n- [x] a gull", "bullets"),
        ("> a boat\n> a gull", "bullets"),
        ("\u00aba boat\u00bb\n\u00aba gull\u00bb", "quotes"),
        ("\u200ba boat\n\ufeffa gull", "nobody sees"),
        ("**a boat**\na **gull**", "bold"),
    ],
)
def test_what_stands_around_prompts_is_left_out_with_a_word(tmp_path, text, says):
    read = read_prompts(write(tmp_path, text))
    assert read.lines == ("a boat", "a gull")
    assert says in read.notes[0]


def test_errors_count_the_lines_of_the_file_also_behind_comments_of_several(tmp_path):
    with pytest.raises(SettingsError, match="line 4"):
        read_prompts(write(tmp_path, "<!-- a\nnote -->\na boat\na gull --steps 20"))


@pytest.mark.parametrize(
    "line",
    [
        "[MOVIE-SHOTS] A day, [SCENE-1] at (3:2) two boats, [SCENE-2] 9:30, [SCENE-3] a -- b",
        "a sign that says \u201cSteps: 20\u201d beside a door",
        '"Home", she says, and a "boat"',
        "a boy \u2014tired\u2014 walks __ slowly",
        "1.5 metres of rope",
        "[TOP-LEFT] a {curly} pattern",
        "1984: a year in grey",
        "a sign that says ROCK AND ROLL",
        "a verse (Genesis 1:3) on a wall - 5 m high, C++ on a shirt",
        "\u4e8c\u4eba\u5728\u6d77\u8fb9",
    ],
)
def test_words_of_a_prompt_are_no_options(tmp_path, line):
    assert read_prompts(write(tmp_path, line)).lines == (line,)


def test_a_story_reads_its_lines_as_prompts_are_read(tmp_path):
    story = Story.read(write(tmp_path, "# a story\nA day\n// one\nshe wakes\nshe sleeps"))
    assert (story.overview, story.images) == ("A day", ("she wakes", "she sleeps"))


@pytest.mark.parametrize("marks", [("1. ", "2. "), ("\u2460", "\u2461"), ("Day 1: ", "Day 2: ")])
def test_the_images_of_a_story_may_be_numbered_behind_its_overview(tmp_path, marks):
    story = Story.read(write(tmp_path, f"A day\n{marks[0]}she wakes\n{marks[1]}she sleeps"))
    assert (story.overview, story.images) == ("A day", ("she wakes", "she sleeps"))
    assert "numbers" in story.notes[0]


@pytest.mark.parametrize("text", ["My boats\n1. a boat\n2. a gull", "1. a\n2. boat\nat sea"])
def test_a_line_without_a_number_among_numbered_ones_is_no_prompt(tmp_path, text):
    with pytest.raises(SettingsError, match=r"line [13]: it has no number"):
        read_prompts(write(tmp_path, text))


@pytest.mark.parametrize("given", [[4], [0, 1], [1, 2, 3]])
def test_images_that_cannot_be_given_are_known_from_the_words_alone(given):
    with pytest.raises(SettingsError, match="given"):
        plan_windows(Story("", ("a", "b", "c")), 3, given=given)


@pytest.mark.parametrize("head", ["prompt", '"Prompts"', "caption"])
def test_the_head_of_a_table_is_no_prompt(tmp_path, head):
    with pytest.raises(SettingsError, match="line 1: this is JSON or a table"):
        read_prompts(write(tmp_path, f"{head}\na boy in the rain\n"))
