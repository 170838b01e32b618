"""What servers say in refusing, and what it means for the set and for the run."""

import json

import pytest

from iclora.vlm.complaints import EndsTheRun, complaint, is_about_form, pause_of, words_of
from iclora.vlm.wire import Reply


def reply(status, data, pause=None):
    page = isinstance(data, str)
    return Reply(status, None if page else data, data if page else json.dumps(data), pause)


def error(message, **more):
    return {"error": {"message": message, **more}}


ALL = [
    (400, error("this model is missing data required for image input"), "captioner"),
    (404, error("No endpoints found that support image input"), "captioner"),
    (400, error("At most 0 image(s) may be provided in one prompt."), "captioner"),
    (400, error("m is not a valid model ID"), "captioner"),
    (400, error("Unable to access model m. Please visit x"), "captioner"),
    (400, error("The model is off", code="model_not_supported"), "captioner"),
    (400, error("\u6a21\u578b\u4e0d\u5b58\u5728"), "captioner"),
    (400, [error("API key not valid. Please pass a valid API key.")], None),
    (400, error("User location is not supported for the API use."), None),
    (400, error("Your credit balance is too low."), None),
    (400, error("Access denied", code="Arrearage"), None),
    (200, "<!doctype html><title>Open WebUI</title>", "api"),
    (200, {"message": {"role": "assistant", "content": "{}"}, "done": True}, "api"),
    (200, {"output": [{"type": "message"}]}, "api"),
]
ONE = [
    (403, error("Your input was flagged for sexual content"), "captioner"),
    (400, error("Your input image may contain content not allowed by our safety system"), None),
    (400, error("triggering Azure OpenAI's content management policy"), "captioner"),
    (400, error("bad", code="content_filter"), "captioner"),
    (200, {"choices": []}, "captioner"),
    (529, error("Overloaded"), None),
    (429, error("You exceeded your current quota. Please retry in 37.2s."), "together"),
]


@pytest.mark.parametrize(("status", "data", "setting"), ALL)
def test_what_meets_every_set_ends_the_run(status, data, setting):
    found = complaint(reply(status, data), "URL", "m", 3)
    assert isinstance(found, EndsTheRun)
    assert found.setting == setting


@pytest.mark.parametrize(("status", "data", "setting"), ONE)
def test_what_concerns_one_set_does_not_end_the_run(status, data, setting):
    found = complaint(reply(status, data), "URL", "m", 3)
    assert not isinstance(found, EndsTheRun)
    assert setting in (None, found.setting)
    if setting == "captioner" and status >= 300:
        assert not is_about_form(reply(status, data))


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("Please retry in 37.2s.", 37.2),
        ("try again in 2m30s", 150),
        ("Please try again in 7h12m30.5s", 25950.5),
        ("Try again after 5 minutes", 300),
        ("wait for 900ms", 0.9),
        ("try again later", None),
    ],
)
def test_a_pause_is_read_from_a_server_s_words(words, seconds):
    assert pause_of(reply(429, error(words))) == seconds


def test_the_words_of_a_page_and_of_a_server_behind_another_are_told():
    page = "<html><style>b{}</style><script>var x</script><p>Sorry, blocked</html>"
    assert words_of(reply(403, page)) == "Sorry, blocked"
    inner = error("Provider returned error", metadata={"raw": "m is rate-limited upstream"})
    assert words_of(reply(200, inner)) == "Provider returned error: m is rate-limited upstream"
    choice = {"choices": [{"error": {"message": "down", "code": 502}, "message": {"content": ""}}]}
    assert words_of(reply(200, choice)) == "down"
