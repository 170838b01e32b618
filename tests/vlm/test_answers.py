"""Answers as models write them: whatever stands around a caption never reaches it."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iclora.errors import CaptionError, IcloraError
from iclora.evaluate.metrics.judge import read_score
from iclora.sets.caption import estimate_tokens
from iclora.sets.recipe import load_recipe
from iclora.vlm.asking import Unanswerable, read_answer

STORY, PAIR = load_recipe("film-storyboard"), load_recipe("couple-profile")
FOUR = load_recipe("font-design")
WORDS = [
    "<Ana> rows out.",
    "A gull lands on the oar.",
    "She sleeps under the sail.",
    "Night falls.",
]
OVER = "A quiet day at sea."


def rendered(recipe):
    panels = zip(recipe.markers, WORDS, strict=False)
    return " ".join(
        [*filter(None, [recipe.prefix, OVER]), *(f"{mark} {words}" for mark, words in panels)]
    )


def read(text, recipe=STORY):
    return read_answer(text, recipe, estimate_tokens, 512).render()


def whole(recipe=STORY, **change):
    value = {"overview": OVER, "panels": WORDS[: len(recipe.markers)]}
    return json.dumps({**value, **change})


def marked(form, count=3, between=" "):
    return between.join(
        [OVER, *(form.format(n=n) + words for n, words in enumerate(WORDS[:count], 1))]
    )


AROUND = {
    "thoughts": f"<think>A draft: {whole(overview='Draft.')}</think>\n{whole()}",
    "thoughts without a beginning": f"The user wants a caption {{sea}}.\n</think>\n\n{whole()}",
    "Kimi's thoughts": f"\u25c1think\u25b7Hm.\u25c1/think\u25b7{whole()}",
    "Mistral's thoughts": f"[THINK]Hm, three.[/THINK]{whole()}",
    "thoughts by another name": f"<reasoning>It is\n</reasoning><answer>{whole()}</answer>",
    "a channel": "<|channel|>analysis<|message|>Hm {<|end|><|start|>assistant<|channel|>final"
    f"<|message|>{whole()}<|return|>",
    "prose": f"Sure! {{Here}} it is: {whole()} Anything else?",
    "a fence": f"Certainly.\n\n```json\n{json.dumps(json.loads(whole()), indent=2)}\n```\nEnjoy!",
    "a box": f"<|begin_of_box|>{whole()}<|end_of_box|>",
    "a draft before": f"{whole(overview='Draft.')} Better: {whole()}",
    "a shell": json.dumps({"caption": json.loads(whole())}),
    "a list": f"[{whole()}]",
    "a string": json.dumps(whole()),
    "commas too many": whole().replace("]}", ",],}"),
    "escapes": whole().replace('"', "&quot;").replace("<Ana>", "&lt;Ana&gt;"),
    "raw line ends": whole().replace("A gull lands", "A gull\nlands"),
    "large keys": whole().replace("overview", "Overview").replace("panels", "Panels"),
    "markers for keys": json.dumps(
        {"overview": OVER} | {f"Scene {n}": words for n, words in enumerate(WORDS[:3], 1)}
    ),
    "markers for keys, out of order": whole(
        panels={f"[SCENE-{n}]": WORDS[n - 1] for n in (3, 1, 2)}
    ),
    "panels for keys": json.dumps(
        {"overview": OVER} | {f"panel_{n}": words for n, words in enumerate(WORDS[:3], 1)}
    ),
    "objects for panels": whole(
        panels=[{"marker": f"[SCENE-{n}]", "text": w} for n, w in enumerate(WORDS[:3], 1)]
    ),
    "one string of panels": whole(
        panels=" ".join(f"[SCENE-{n}] {w}" for n, w in enumerate(WORDS[:3], 1))
    ),
    "a list in a list": whole(panels=[WORDS[:3]]),
    "an empty panel too many": whole(panels=[*WORDS[:3], ""]),
    "the overview as a panel": whole(panels=[f"[MOVIE-SHOTS] {OVER}", *WORDS[:3]]),
    "two objects": json.dumps({"overview": OVER}) + json.dumps({"panels": WORDS[:3]}),
    "another name": whole().replace("overview", "summary"),
    "a caption in an object": json.dumps({"caption": marked("[SCENE-{n}] ")}),
    "Python": str(json.loads(whole())),
    "no quotes": whole().replace('"overview"', "overview").replace('"panels"', "panels"),
    "comments": whole().replace('"overview"', '\n// what all share\n"overview"'),
    "Chinese signs": whole().replace(": ", "\uff1a").replace(", ", "\uff0c").replace('"', "\u201d"),
    "a call of a tool": json.dumps({"name": "f", "arguments": whole()}),
    "numbers for keys": whole(panels=dict(enumerate(WORDS[:3], 1))),
}


@pytest.mark.parametrize("text", AROUND.values(), ids=AROUND)
def test_a_json_object_is_found_wherever_it_stands(text):
    assert read(text) == rendered(STORY)


INSIDE = {
    "bold labels": [f"**Scene {n}:** {words}" for n, words in enumerate(WORDS[:3], 1)],
    "labels": [f"Panel {n} - {words}" for n, words in enumerate(WORDS[:3], 1)],
    "labels of": [f"Image {n} of 3: {words}" for n, words in enumerate(WORDS[:3], 1)],
    "labels from 0": [f"Scene {n}: {words}" for n, words in enumerate(WORDS[:3])],
    "headings": [f"### Scene {n}\n{words}" for n, words in enumerate(WORDS[:3], 1)],
    "ordinals": [f"{w} panel: {t}" for w, t in zip(("First", "Second", "Third"), WORDS, strict=0)],
    "own markers": [f"[SCENE-{n}] {words}" for n, words in enumerate(WORDS[:3], 1)],
    "markers and labels": [f"**[Scene {n}]** Scene {n}: {w}" for n, w in enumerate(WORDS[:3], 1)],
    "numbers": [f"{n}. {words}" for n, words in enumerate(WORDS[:3], 1)],
    "brackets": [f"({n}) {words}" for n, words in enumerate(WORDS[:3], 1)],
    "bullets": [f"- *{words}*" for words in WORDS[:3]],
    "chat tokens": [WORDS[0] + "<|im_end|>", "<s>[INST]" + WORDS[1], WORDS[2] + "</s>"],
    "more tokens": [WORDS[0] + "<\uff5cend\u2581of\u2581sentence\uff5c>", *WORDS[1:3]],
    "tokens apart": [WORDS[0] + "<|im_<|im_end|>end|>", *WORDS[1:3]],
    "escaped": ["&lt;Ana&gt; rows&nbsp;out.", WORDS[1] + "&amp;lt;/s&amp;gt;", WORDS[2]],
    "html": [f"<p><b>{WORDS[0]}</b></p>", WORDS[1] + "<br/>", f'<span class="x">{WORDS[2]}</span>'],
    "signs": [f"\u200b`{WORDS[0]}`\x1b[31m", "\u202e" + WORDS[1], "\ufeff" + WORDS[2]],
    "quotes": [f'"{WORDS[0]}"', f"\u201c{WORDS[1]}\u201d", WORDS[2]],
    "line ends": [WORDS[0].replace(" ", "\\n"), WORDS[1].replace(" ", "\n"), WORDS[2]],
    "labels of other languages": [
        f"\u7b2c{n}\u5f20\u56fe\uff1a{w}" for n, w in enumerate(WORDS[:3], 1)
    ],
    "Korean labels": [f"\uc7a5\uba74 {n}: {w}" for n, w in enumerate(WORDS[:3], 1)],
    "labels with a shot": [f"Scene {n} (wide shot): {w}" for n, w in enumerate(WORDS[:3], 1)],
    "circled numbers": [f"{n}{w}" for n, w in zip("\u2460\u2461\u2462", WORDS, strict=False)],
    "letters": [f"{'abc'[n]}) {w}" for n, w in enumerate(WORDS[:3])],
    "what it is": [f"Caption: {w}" for w in WORDS[:3]],
    "boxes": [WORDS[0] + "<|box_start|>(1,2),(3,4)<|box_end|>", WORDS[1] + "<loc_9>", WORDS[2]],
    "links": [f'<a href="http://x">{WORDS[0]}</a>', f"<td>{WORDS[1]}</td>", WORDS[2] + "[1]"],
    "sources": [WORDS[0] + "\u30101\u2020a\u3011", WORDS[1] + " (7 words)", WORDS[2] + " [END]"],
    "pieces": [WORDS[0].replace(" ", "\u2581"), WORDS[1].replace(" ", "\u0120"), WORDS[2]],
    "TeX": [f"$\\text{{{WORDS[0]}}}$", *WORDS[1:3]],
    "a next turn": [*WORDS[:2], WORDS[2] + "\nHuman: thanks\nAssistant: welcome"],
    "a remark": [*WORDS[:2], WORDS[2] + "\n\nLet me know if you want changes!"],
}


@pytest.mark.parametrize("panels", INSIDE.values(), ids=INSIDE)
def test_what_a_model_adds_to_its_words_never_reaches_a_caption(panels):
    assert read(whole(panels=panels)) == rendered(STORY)


@pytest.mark.parametrize(
    "overview",
    [
        f"[MOVIE-SHOTS] {OVER}",
        f"**[Movie Shots]** {OVER}",
        f"**Overview:** {OVER}",
        f"Sure! Here's the caption:\n{OVER}",
        f"Sure, here is a joint caption for the three pictures: [MOVIE-SHOTS]: {OVER}",
        f"# Summary\nOverview: {OVER}".replace("# Summary\n", ""),
    ],
)
def test_an_overview_is_read_without_preface_and_prefix(overview):
    assert read(whole(overview=overview)) == rendered(STORY)


FORMS = [
    "[SCENE-{n}] ",
    "**[SCENE-{n}]** ",
    "**[SCENE-{n}]:** ",
    "[Scene {n}] ",
    "[scene_{n}]: ",
    "(Scene {n}) ",
    "\u3010SCENE {n}\u3011",
    "\uff3bSCENE-{n}\uff3d ",
    "[SCENE\u2013{n}] ",
    "\n\u56fe{n}\uff1a",
    "\n\u0421\u0446\u0435\u043d\u0430 {n}: ",
    "[Panel {n}] ",
    "\nScene {n}: ",
    "\n**Scene {n}:** ",
    "\n- **Scene {n}** - ",
    "\n### Scene {n}\n",
    "\nPanel {n} \u2014 ",
    "\nImage {n} of 3: ",
    "\n{n}. ",
    "\n{n}) ",
    "\n- ",
    "\n\u2022 ",
    "\n* ",
    "({n}) ",
]


@pytest.mark.parametrize("form", FORMS)
def test_markers_are_read_in_any_spelling_and_written_in_ours(form):
    assert read(marked(form)) == rendered(STORY)
    text = f"Sure! Here is the caption:\n\n```\n[MOVIE-SHOTS] {marked(form)}\n```\nAnything else?"
    assert read(text) == rendered(STORY)
    assert read(f"Hm.</think>{marked(form)}\n\nLet me know if it fits!") == rendered(STORY)


@pytest.mark.parametrize(
    ("recipe", "marks"),
    [
        (PAIR, ["Left:", "Right:"]),
        (PAIR, ["**Left panel:**", "**Right panel:**"]),
        (PAIR, ["[left]", "[right]"]),
        (PAIR, ["1.", "2."]),
        (FOUR, ["[Top Left]", "[top_right]", "[Bottom left]", "[BOTTOM RIGHT]"]),
        (FOUR, ["Upper left:", "Upper right:", "Lower left:", "Lower right:"]),
        (FOUR, ["**[TOP-LEFT]**", "**[TOP-RIGHT]**", "**[BOTTOM-LEFT]**", "**[BOTTOM-RIGHT]**"]),
        (FOUR, ["[PANEL-1]", "[PANEL-2]", "[PANEL-3]", "[PANEL-4]"]),
    ],
)
def test_named_places_are_markers_too(recipe, marks):
    texts = [f"{mark} {words}" for mark, words in zip(marks, WORDS, strict=False)]
    assert read("\n".join([OVER, *texts]), recipe) == rendered(recipe)
    assert read(whole(recipe, panels=texts), recipe) == rendered(recipe)


@pytest.mark.parametrize(
    "panels",
    [
        ["3 gulls circle.", "1.5 metres of rope.", "At 5, left: a boat"],
        ["A robot posing as an AI model.", "She says: I'm sorry.", "Panel vans pass."],
        [
            "Scene of a storm_light, 5 * 3 m.",
            "snake_case is on her shirt.",
            "Left behind, she waits.",
        ],
        ["R&D labs.", "a < b on the board.", 'The sign reads "OPEN".'],
        ["<Eva> waits; <B> too.", "Sorry sights.", "The first panel van arrives."],
    ],
)
def test_words_that_only_look_like_chatter_stay(panels):
    text = read(whole(panels=panels))
    assert [re.sub(r"\s", "", words) for words in STORY.parse(text).panels] == [
        re.sub(r"\s", "", words) for words in panels
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        (" \n<|im_end|></s>", "is empty"),
        ("<think>Hm.</think>\n", "beyond its thoughts"),
        ("I wonder.</think>", "beyond its thoughts"),
        ("<|channel|>analysis<|message|>Hm", "beyond its thoughts"),
        (f"<think>{whole()}", "beyond its thoughts"),
        (whole(panels=["Scene 2: a", "Scene 1: b", "Scene 3: c"]), "label of another panel"),
        (whole(panels=["A. Scene 2: b", "Gulls.", "Night."]), "panel 1 holds a marker"),
        (whole(panels=3), "panels a list"),
        (whole(panels=None, overview=None), "not a whole JSON"),
        (whole(panels=[WORDS[0], None, WORDS[2]]), "not a string"),
        ("[" * 9000 + '{"overview":' * 500, "not a whole JSON object"),
        ("Three pictures of a boat.", "[SCENE-1] is missing"),
        (whole(panels=[WORDS[0], WORDS[1], "Same as scene 1."]), "panel 3 has no words"),
        (whole(panels=["[text of panel 1]", *WORDS[1:3]]), 'holds "[text of panel 1]"'),
        (whole(panels=["a cafe\u0301 \u00e2\u20ac\u2122", *WORDS[1:3]]), "holds"),
        (whole(panels=["rows%20out", *WORDS[1:3]]), "holds"),
    ],
)
def test_an_answer_of_no_use_is_refused_with_the_reason(text, problem):
    with pytest.raises(CaptionError) as refused:
        read(text)
    assert problem in refused.value.problem


@pytest.mark.parametrize(
    "words",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, but I can\u2019t describe people.",
        "Hm.</think>**I apologize, but I cannot identify anyone.**",
        "As an AI language model, I am unable to see.",
        "Unfortunately, I don't see any images here.",
        "It seems no images were provided. Please upload the images.",
        "Sure, but I must decline.",
        "\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u63cf\u8ff0\u3002",
        "There are no images attached to your message.",
        "This request violates our content policy.",
        "You haven't uploaded any pictures.",
        "D\u00e9sol\u00e9, je ne peux pas.",
        "\u7533\u3057\u8a33\u3042\u308a\u307e\u305b\u3093\u304c\u3001\u8868\u793a\u3067\u304d\u307e\u305b\u3093\u3002",
        "\u0639\u0630\u0631\u0627\u064b\u060c \u0644\u0627 \u0623\u0633\u062a\u0637\u064a\u0639.",
    ],
)
def test_a_refusal_in_prose_is_final_and_shown(words):
    with pytest.raises(Unanswerable, match="refuses") as refused:
        read(words)
    assert refused.value.setting == "captioner"
    assert words.split("</think>")[-1].strip("*")[:20] in refused.value.problem


PIECES = st.sampled_from(
    [
        whole(),
        marked("[Scene {n}] "),
        *FORMS,
        *INSIDE["chat tokens"],
        *(
            [
                "<think>",
                "</think>",
                "{",
                "}",
                "[",
                "]",
                '"',
                "overview",
                '"panels":',
                "```",
                "**",
                "1.",
                "&lt;",
                "Scene",
                "Left:",
            ]
        ),
        *(
            [
                "[TOP-LEFT]",
                "<answer>",
                "<|channel|>final<|message|>",
                "<|begin_of_box|>",
                "Sure!",
                "&quot;",
            ]
        ),
        *("\n", "\\", "\ud83d", "\x1b[", "Scene 1:", "I'm sorry, "),
    ]
)


def _survives(text):
    for recipe in (STORY, PAIR, FOUR):
        try:
            caption = read(text, recipe)
        except IcloraError:
            continue
        assert recipe.parse(caption).render() == caption
        assert not re.search(r"\*\*|<\||</s>|&lt;|[\x00-\x1f\x7f]|```", caption)
    assert read_score(text) in (None, 1, 2, 3, 4, 5)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PIECES | st.text(max_size=8), max_size=12).map("".join))
def test_no_answer_breaks_the_reader(text):
    _survives(text)


@pytest.mark.parametrize(
    "answer",
    [
        f"overview: {OVER}\npanels:\n" + "\n".join(f"  - {w}" for w in WORDS[:3]),
        f"<overview>{OVER}</overview>"
        + "".join(f"<panel{n}>{w}</panel{n}>" for n, w in enumerate(WORDS[:3], 1)),
        f"<caption><overview>{OVER}</overview>\n"
        + "".join(f'<scene id="{n}">{w}</scene>\n' for n, w in enumerate(WORDS[:3], 1))
        + "</caption>",
        marked("\nSzene {n}: "),
        marked("\n\u573a\u666f{n}\uff1a"),
        whole(panels=[f"{n}\ufe0f\u20e3 {w}" for n, w in enumerate(WORDS[:3], 1)]),
        whole(
            panels=[
                f"In the {n} panel, {w}"
                for n, w in zip(("first", "second", "third"), WORDS, strict=False)
            ]
        ),
    ],
)
def test_no_list_element_or_label_of_another_language_reaches_a_caption(answer):
    assert read(answer) == rendered(STORY)


@pytest.mark.parametrize("words", ["N/A", "none", "null", "(empty)", "No description."])
def test_a_panel_of_which_a_model_has_nothing_to_say_is_refused(words):
    with pytest.raises(CaptionError, match="panel 2 has no words"):
        read(whole(panels=[WORDS[0], words, WORDS[2]]))
