"""Panels are in the order of their names, whatever tells it."""

import pytest

from iclora.sets.order import panel_order

FOUR = ("[TOP-LEFT]", "[TOP-RIGHT]", "[BOTTOM-LEFT]", "[BOTTOM-RIGHT]")
THREE = ("[SCENE-1]", "[SCENE-2]", "[SCENE-3]")


@pytest.mark.parametrize(
    ("names", "markers"),
    [
        ("top-left top-right bottom-left bottom-right", FOUR),
        ("TopLeft TopRight BottomLeft BottomRight", FOUR),
        ("left_top right_top left_bottom right_bottom", FOUR),
        ("ana-tl ana-tr ana-bl ana-br", FOUR),
        ("one two three", THREE),
        ("begin middle end", THREE),
        ("left centre right", THREE),
        ("\u4e00 \u4e8c \u4e09", THREE),
        ("\u7b2c\u4e00\u5e55 \u7b2c\u4e8c\u5e55 \u7b2c\u4e09\u5e55", THREE),
        ("\u2460 \u2461 \u2462", THREE),
        ("\u0668 \u0669 \u0661\u0660", THREE),
        ("shot_8 shot_9 shot_10", THREE),
        ("cat_before dog_after", THREE[:2]),
        ("shot-A shot-B shot-C", THREE),
    ],
)
def test_panels_are_ordered_as_their_names_mean(names, markers):
    names = [f"0001/{name}.png" for name in names.split()]
    assert panel_order(names[::-1], markers) == (names, True)


@pytest.mark.parametrize("names", ["close detail wide", "drawing photo"])
def test_an_order_of_the_alphabet_alone_is_called_unsure(names):
    names = [f"{name}.png" for name in names.split()]
    assert panel_order(names[::-1], THREE[: len(names)]) == (names, False)
