import pytest

from iclora.serve.inputs import INPUTS, NAMED, SETTINGS, input_of, server_decides
from iclora.settings import GenerateSettings
from iclora.settings.fields import FilePath, names_files


@pytest.mark.parametrize("kind", SETTINGS)
def test_no_client_can_name_a_file_of_the_server(kind):
    fields = INPUTS[kind].model_fields
    assert not [n for n, field in fields.items() if names_files(field.rebuild_annotation())]


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_setting_of_a_verb_is_a_clients_or_the_servers(kind):
    own, told = SETTINGS[kind].model_fields, INPUTS[kind].model_fields
    assert set(own) - set(told) <= server_decides(kind)
    assert not server_decides(kind) & set(told)
    for name in set(told) & set(own) - set(NAMED) - {"seed"}:
        assert told[name].description == own[name].description
        assert told[name].metadata == own[name].metadata


def test_a_new_setting_that_names_a_file_is_refused_until_it_is_said_what_clients_name():
    class Newer(GenerateSettings):
        mood: FilePath | None = None

    with pytest.raises(TypeError, match="mood"):
        input_of("generate", Newer)


def test_a_new_setting_is_told_without_a_line_in_the_server():
    class Newer(GenerateSettings):
        mood: int = 3

    assert input_of("generate", Newer).model_validate({"mood": 4}).mood == 4


def test_the_worker_does_every_kind_that_is_offered():
    from iclora.serve.work import KINDS  # It imports torch.

    assert set(SETTINGS) - {"train"} == set(KINDS)
