"""What jobs over image sets open for them."""

import numpy as np
import pytest
import torch
import transformers

from iclora.errors import ModelError, SettingsError
from iclora.jobs.data import open_seer
from tests.conftest import picture

PICTURES = [picture(96, 64, seed) for seed in range(3)]


@pytest.mark.parametrize("kind", ["dino", "clip"])
def test_a_model_that_compares_pictures_sees_what_transformers_own_does(kind, request):
    folder = request.getfixturevalue(f"{kind}_folder")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    values = processor(images=PICTURES, return_tensors="pt")
    with torch.no_grad():
        if kind == "dino":
            theirs = transformers.Dinov2Model.from_pretrained(folder)(**values).pooler_output
        else:
            words = transformers.AutoTokenizer.from_pretrained(folder)(["a"], return_tensors="pt")
            theirs = transformers.CLIPModel.from_pretrained(folder)(**values, **words).image_embeds
    theirs = theirs.double().numpy()
    theirs /= np.sqrt((theirs**2).sum(1, keepdims=True))
    ours = open_seer(f"{kind}:{folder}").embed(PICTURES)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (theirs[0] @ theirs[1]) < 0.9999, "a model that sees no difference tells nothing"


def test_what_compares_no_pictures_is_refused_by_its_setting(tmp_path, dino_folder):
    for name in ("openai:gpt-4o", "dino:", str(dino_folder)):
        with pytest.raises(SettingsError, match="does not compare pictures") as told:
            open_seer(name)
        assert told.value.setting == "likeness"
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((dino_folder / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be opened"):
        open_seer(f"dino:{tmp_path}")
