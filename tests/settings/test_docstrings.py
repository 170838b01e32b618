"""The help of settings, compared with what pydantic reads of the same class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from iclora.settings import Settings


class Plain(Settings):
    """No field's help."""

    one: int = 1
    """one line"""
    two: int = 2
    three: int = 3
    """several
        lines, the second indented"""

    def inner(self) -> None:
        four: int = 4  # noqa: F841
        """of a function"""

    """below no field"""
    five: int = Field(5, description="said by the field itself")
    """not this"""


class Child(Plain):
    two: int = 22
    """the child's"""


class ReadByPydantic(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    one: int = 1
    """one line"""
    two: int = 2
    three: int = 3
    """several
        lines, the second indented"""
    five: int = Field(5, description="said by the field itself")
    """not this"""


def told(model: type[BaseModel]) -> dict[str, str | None]:
    return {name: field.description for name, field in model.model_fields.items()}


def test_a_settings_help_is_what_pydantic_reads_below_it():
    assert told(Plain) == told(ReadByPydantic)
    assert told(Plain)["three"] == "several\nlines, the second indented"


def test_a_child_keeps_its_parents_help_and_adds_its_own():
    assert told(Child) == {**told(Plain), "two": "the child's"}


def test_two_classes_of_one_name_have_each_their_own_help():
    def first() -> type[Settings]:
        class Same(Settings):
            one: int = 1
            """the first's"""

        return Same

    def second() -> type[Settings]:
        class Same(Settings):
            one: int = 1
            """the second's"""

        return Same

    assert [told(make())["one"] for make in (first, second)] == ["the first's", "the second's"]


def test_a_json_schema_has_every_help():
    found = Child.model_json_schema()["properties"]
    assert {name: field.get("description") for name, field in found.items()} == told(Child)


def test_a_model_made_without_a_file_has_no_help():
    made = type("Made", (Settings,), {"__annotations__": {"one": int}, "one": 1})
    assert told(made) == {"one": None}
