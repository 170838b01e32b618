"""Captioners by name: what ships, and what another package registers."""

import pytest

from iclora.errors import VisionModelError
from iclora.vlm import load_vision_model


@pytest.mark.parametrize("name", ["", "openai", "openai:", "local:", "gpt", "toyland:large"])
def test_a_name_nobody_registered_is_refused_with_those_there_are(name):
    with pytest.raises(VisionModelError, match=r"openai:MODEL.*local:PATH.*toyland") as caught:
        load_vision_model(name)
    assert caught.value.setting == "captioner"


def test_the_shipped_captioner_goes_by_its_short_name():
    captioner = load_vision_model("toyland", device="cpu", together=7)
    assert (captioner.name, captioner.together) == ("toyland", 7)
