"""The ten recipes of the paper, and recipes of the user's own."""

from __future__ import annotations

import pytest

from iclora.errors import CaptionError, RecipeError
from iclora.sets.recipe import Recipe, load_recipe, recipe_names

# arXiv 2410.23775 and its released models: panels, canvas, markers, prefix.
CORNERS = "[TOP-LEFT] [TOP-RIGHT] [BOTTOM-LEFT] [BOTTOM-RIGHT]"
PAPER = {
    "couple-profile": ((2,), (2048, 1024), "[LEFT] [RIGHT]", ""),
    "film-storyboard": ((1, 1, 1), (1024, 1536), "[SCENE-1] [SCENE-2] [SCENE-3]", "[MOVIE-SHOTS]"),
    "font-design": ((2, 2), (1792, 1216), CORNERS, ""),
    "home-decoration": ((2, 2), (1344, 1728), CORNERS, ""),
    "portrait-illustration": ((2,), (1152, 1088), "[LEFT] [RIGHT]", ""),
    "portrait-photography": ((2, 2), (1344, 1728), CORNERS, ""),
    "ppt-template": ((2, 2), (1984, 1152), CORNERS, ""),
    "sandstorm-effect": ((1, 1), (1408, 1600), "[TOP] [BOTTOM]", "[SANDSTORM-PSA]"),
    "sparklers-effect": ((1, 1), (960, 1088), "[TOP] [BOTTOM]", "[REAL-SPARKLERS-OVERLAYS]"),
    "visual-identity": ((2,), (1472, 1024), "[LEFT] [RIGHT]", ""),
}


def test_there_are_the_papers_ten():
    assert recipe_names() == sorted(PAPER)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_a_shipped_recipe_is_the_papers_and_its_example_parses(name):
    recipe = load_recipe(name)
    rows, size, markers, prefix = PAPER[name]
    assert recipe.name == name
    assert recipe.canvas.per_row == rows
    assert recipe.canvas.size == size
    assert " ".join(recipe.markers) == markers
    assert recipe.prefix == prefix
    assert (recipe.sampling.steps, recipe.sampling.guidance) == (None, None)
    recipe.canvas.check_grid(16)
    assert recipe.parse(recipe.example).render() == recipe.example
    assert len(recipe.instruction) > 200


OWN = """
name = "before-after"
summary = "A room before and after."
markers = ["[BEFORE]", "[AFTER]"]
instruction = "Describe both."
example = "A room [BEFORE] empty, [AFTER] furnished."
[layout]
width = 1024
height = 512
per_row = [2]
"""


def test_a_file_of_the_users_own_works_where_a_name_does(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    recipe = load_recipe(path)
    assert recipe.markers == ("[BEFORE]", "[AFTER]")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_free_boxes_make_a_recipe(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace("per_row = [2]", "boxes = [[0,0,512,512],[512,0,512,256]]"))
    assert load_recipe(path).canvas.sizes == ((512, 512), (512, 256))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('["[BEFORE]", "[AFTER]"]', '["[BEFORE]"]', "1 markers for 2 panels"),
        ('["[BEFORE]", "[AFTER]"]', '["[A]", "[A]"]', "same marker"),
        ('["[BEFORE]", "[AFTER]"]', '["BEFORE", "AFTER"]', "square brackets"),
        ("[AFTER] furnished", "furnished", "example|missing"),
        ("per_row = [2]", "", "per_row or boxes"),
        ("per_row = [2]", "per_row = [12]", "2 to 9"),
        ("width = 1024", 'width = "wide"', "layout.width"),
        ("width = 1024", "widht = 1024", "widht"),
        ('name = "before-after"', 'name = "../x"', "name"),
        ("[layout]", "[layout", "not valid TOML"),
    ],
)
def test_a_recipe_that_does_not_fit_together_is_refused_with_the_reason(tmp_path, old, new, says):
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace(old, new))
    with pytest.raises(RecipeError, match=says):
        load_recipe(path)


def test_an_unknown_recipe_lists_those_there_are(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe \"storybord\"[^\n]*\n.*film-storyboard"):
        load_recipe("storybord")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not UTF-8"):
        load_recipe(tmp_path / "b.toml")


def test_a_caption_without_the_task_prefix_is_refused():
    story = load_recipe("film-storyboard")
    with pytest.raises(CaptionError, match="MOVIE-SHOTS"):
        story.parse("A day [SCENE-1] a [SCENE-2] b [SCENE-3] c")


def test_a_complete_prompt_goes_through_unchanged_and_without_a_word():
    story = load_recipe("film-storyboard")
    assert story.prompt(story.example) == (story.example, [])
