"""The error tree. Every message says what went wrong and why, then what to do next.

IcloraError            anything a user can fix; the command line prints it and exits with status 2
|- LayoutError         panels that do not fit a canvas or the token grid
|- ImageError          a picture that cannot be read as it should be
|- CaptionError        markers that do not match the layout, or too many tokens
|- RecipeError         an unknown recipe or a TOML file that is not one
|- DatasetError        image sets on disk that are incomplete or ambiguous
|- SettingsError       an invalid setting
|- VisionModelError    a vision-language model that cannot be used, or gave no answer
|- ModelError          a base model that cannot be found, opened or used
|- AdapterError        LoRA weights that do not fit the base
|- RunError            a training run that cannot start, go on or be resumed
`- StorageError        a disk that is full, or a path that must not be written
"""

from __future__ import annotations


class IcloraError(Exception):
    """A problem its reader can fix.

    Messages name settings by their field in backticks, such as `recipe`; each door says them its
    own way, the command line as --recipe, a page as the field "Recipe".

    Args:
        problem: what is wrong and why, naming the file, set, panel or setting.
        advice: what to do next, one or two short sentences.
        setting: the field of the settings that it concerns, for doors that show errors beside it.
    """

    def __init__(self, problem: str, advice: str, setting: str | None = None) -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = advice
        self.setting = setting

    def __str__(self) -> str:
        return f"{self.problem}\n{self.advice}"


class LayoutError(IcloraError):
    """Panels that do not fit a canvas or the token grid."""


class ImageError(IcloraError):
    """A picture that cannot be read as it should be."""


class CaptionError(IcloraError):
    """Markers that do not match the layout, or more tokens than the base reads."""


class RecipeError(IcloraError):
    """An unknown recipe, or a TOML file that is not one."""


class DatasetError(IcloraError):
    """Image sets on disk that are incomplete or ambiguous."""


class SettingsError(IcloraError):
    """An invalid setting."""


class VisionModelError(IcloraError):
    """A vision-language model or server that cannot be used, or that gave no answer."""


class ModelError(IcloraError):
    """A base model that cannot be found, opened or used."""


class AdapterError(IcloraError):
    """LoRA weights that cannot be read or do not fit the base."""


class RunError(IcloraError):
    """A training run that cannot start, go on or be resumed."""


class StorageError(IcloraError):
    """A disk that is full, or a path that must not be written."""
