"""Numbers before texts are known by counting, in any script."""

import pytest

from iclora.sets.counted import split_at_counts, without_counts


@pytest.mark.parametrize(
    "texts",
    [
        ["3 boats", "4 gulls"],
        ["1.5 m of rope", "2.5 m of rope"],
        ["10:30 a boat", "10:45 a gull"],
        ["Room 1 is red", "Room 2 is blue"],
        ["[SCENE-1] a boat", "[SCENE-2] a gull"],
        ["I am here", "II am there"],
        ["v. small", "vi. large"],
        ["1) a boat", "2. a gull"],
        ["\u7b2c\u4e00\u7f15\u9633\u5149", "\u7b2c\u4e8c\u7f15\u9633\u5149"],
    ],
)
def test_words_that_begin_with_a_number_stay(texts):
    assert without_counts(texts) == []


@pytest.mark.parametrize(
    "form",
    [
        "\uc7a5\uba74 {}: ",
        "\u0627\u0644\u0645\u0634\u0647\u062f {}: ",
        "\u0421\u0446\u0435\u043d\u0430 {}: ",
        "\u7b2c{}\u4e2a\u573a\u666f\uff1a",
        "\u56fe{}\uff1a",
        "Plan {} : ",
        "Scene {} (wide shot): ",
        "Image {} of 3 - ",
        "**{}.** ",
        "({}) ",
    ],
)
def test_a_label_of_any_language_is_known_by_its_numbers(form):
    lines = [form.format(n) + words for n, words in enumerate(["a boat", "a gull"], 1)]
    assert without_counts(lines, first=1) == ["a boat", "a gull"]
    assert without_counts(lines[::-1], first=1) == []
    found = split_at_counts("\n".join(["A day.", *lines]), 2)
    assert found == ("A day.\n", ["a boat\n", "a gull"])
    assert split_at_counts("\n".join(["A day.", *lines]), 3) is None
