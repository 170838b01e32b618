"""The dataset that a configuration names, if it is on this machine: its recipe and its captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iclora.errors import DatasetError, IcloraError, SettingsError
from iclora.sets.dataset import Dataset, open_dataset
from iclora.sets.recipe import Recipe, load_recipe, recipe_names

__all__ = ["Sets"]


class Sets:
    """The dataset, if it is on this machine, and its recipe."""

    def __init__(
        self,
        values: Mapping[str, Any],
        recipe: str | None,
        prompts: tuple[str, ...],
        notes: list[str],
    ) -> None:
        self._data, self._notes = Path(values["data"]), notes
        self.setting: str | None = recipe
        """What to write as `recipe`; None if the dataset names its own."""
        self._dataset: Dataset | None = None
        self._recipe: Recipe
        if recipe is None and self._opened(None):
            return
        if recipe is None:
            self.setting = self._of_prompts(prompts)
            notes.append(f"the prompts are in the form of {self.setting}, taken as `recipe`")
        self._recipe = load_recipe(str(self.setting))
        self._opened(str(self.setting))

    def _opened(self, recipe: str | None) -> bool:
        if not self._data.exists():
            return False
        try:
            self._dataset = open_dataset(self._data, recipe)
        except DatasetError:
            # What else is wrong with the sets is told by `check`, which every run begins with.
            return False
        self._recipe = self._dataset.recipe
        return True

    def _of_prompts(self, prompts: tuple[str, ...]) -> str:
        def fits(recipe: Recipe) -> bool:
            try:
                return bool([recipe.parse(text) for text in prompts])
            except IcloraError:
                return False

        found = [name for name in recipe_names() if fits(load_recipe(name))]
        if len(found) == 1:
            return found[0]
        why = f"the prompts fit {', '.join(found)}" if found else "the prompts fit none that ships"
        raise SettingsError(
            f"the file does not say which recipe its sets are of: {why}",
            "Name it by `recipe`.",
            setting="recipe",
        )

    def check_trigger(self, word: str | None) -> None:
        """Raises: SettingsError if captions lack the word that ai-toolkit would put in front."""
        if not word or word in self._recipe.prefix:
            return
        if self._dataset is None:
            raise SettingsError(
                f'ai-toolkit puts the trigger word "{word}" in front of captions that lack it; '
                "iclora trains captions as they are written, and they are not here to be checked",
                "Set `data` to the folder of the sets; or remove trigger_word from the file if all "
                "captions hold it.",
                setting="data",
            )
        bare = [each.name for each in self._dataset.sets if word not in each.caption()]
        if bare:
            raise SettingsError(
                f'{len(bare)} of {len(self._dataset.sets)} captions lack the trigger word "{word}",'
                f' such as that of set "{bare[0]}"; ai-toolkit would put it in front of them, and '
                "iclora trains captions as they are written",
                "Write it into them; or remove trigger_word from the file to train without it.",
            )
        self._notes.append(f'all captions hold the trigger word "{word}"')
