"""The real openai package against the server, over a real socket."""

import base64
import http.client
import io
import json
import re
import threading
import time

import pytest
import uvicorn
from PIL import Image

from iclora.errors import AdapterError
from tests.serve.conftest import Opened, one_app, picture


@pytest.fixture(scope="module")
def openai():
    """Half a second of imports, for who runs these tests."""
    import openai

    return openai


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """A server on a port of its own; uvicorn runs in a thread."""
    opened = Opened(tmp_path_factory.mktemp("served"))
    config = uvicorn.Config(one_app(), "127.0.0.1", 0, log_config=None, log_level="error")
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    opened.port = web.servers[0].sockets[0].getsockname()[1]
    yield opened
    web.should_exit = True
    thread.join()


@pytest.fixture
def client(serving, openai):
    with openai.OpenAI(
        api_key=serving.token, base_url=f"http://127.0.0.1:{serving.port}/v1", max_retries=0
    ) as found:
        yield found


def opened_picture(data):
    return Image.open(io.BytesIO(base64.b64decode(data.b64_json)))


def test_models_are_the_base_and_the_adapters(client, openai):
    assert [model.id for model in client.models.list()] == ["toyland"]
    assert client.models.retrieve("toyland").id == "toyland"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


def test_generations_give_a_picture_a_set_and_tell_job_set_and_seeds(client):
    made = client.images.generate(model="toyland", prompt="a fox", n=2, extra_body={"seed": 7})
    assert [opened_picture(each).size for each in made.data] == [(32, 16)] * 2
    assert [each.iclora["seeds"] for each in made.data] == [[7, 8], [8, 9]]
    assert made.output_format == "png"


def test_generations_give_panels_in_another_format(client):
    made = client.images.generate(
        model="toyland",
        prompt="a fox",
        output_format="webp",
        extra_body={"iclora": {"output": "panels", "resample": 1, "panel_seeds": {"2": 5}}},
    )
    assert [each.iclora["panel"] for each in made.data] == [1, 2]
    assert opened_picture(made.data[0]).format == "WEBP"


def test_a_url_is_opened_with_the_token(client, serving):
    made = client.images.generate(model="toyland", prompt="a fox", response_format="url")
    path = made.data[0].url.split(str(serving.port), 1)[1]
    assert made.data[0].b64_json is None
    assert client.get("/.." + path, cast_to=object) is not None
    serving.server.settings = serving.server.settings.model_copy(
        update={"public_url": "https://studio.example/iclora/"}
    )
    made = client.images.generate(model="toyland", prompt="a fox", response_format="url")
    assert made.data[0].url.startswith("https://studio.example/iclora/api/v1/sets/")


@pytest.mark.parametrize(
    ("files", "more", "slots"),
    [
        ([("1.png", "red"), ("3.png", "blue")], {}, {"1", "3"}),
        ([("a.png", "red"), ("b.png", "blue")], {}, {"1", "2"}),
        ([("a.png", "red"), ("b.png", "blue")], {"known": [3, 2]}, {"3", "2"}),
    ],
)
def test_edits_complete_a_set_around_the_panels_that_are_given(client, serving, files, more, slots):
    images = [(name, picture(colour), "image/png") for name, colour in files]
    extra = {**more, "iclora": {"mode": "clean", "boost": 1.5}}
    made = client.images.edit(model="toyland", image=images, prompt="a fox", extra_body=extra)
    assert len(made.data) == 1
    order = serving.engine.orders[-1]
    assert order.kind == "complete"
    assert set(order.input["given"]) == slots
    assert (order.input["mode"], order.input["boost"]) == ("clean", 1.5)


def test_a_mask_is_refused_with_advice(client, openai):
    with pytest.raises(openai.UnprocessableEntityError, match="not needed"):
        client.images.edit(
            model="toyland", prompt="a", image=("1.png", picture()), mask=("m.png", picture())
        )


@pytest.mark.parametrize(
    "told",
    [
        {"extra_body": {"stepps": 3}},
        {"extra_body": {"iclora": {"stepps": 3}}},
        {"quality": "hd"},
        {"style": "vivid"},
        {"n": 9},
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(client, openai, told):
    name = next(iter(told))
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(model="toyland", prompt="a", **told)
    assert ("iclora" if "iclora" in str(told) else name.replace("extra_body", "stepps")) in str(
        refused.value
    )


def test_an_adapter_that_does_not_fit_is_an_error_of_the_request(
    client, openai, serving, monkeypatch
):
    found = AdapterError("layer 7 does not exist", "Use one of this base.")
    monkeypatch.setattr(serving.engine, "failure", found)
    with pytest.raises(openai.UnprocessableEntityError, match="layer 7 does not exist"):
        client.images.generate(model="toyland", prompt="a")


def test_a_wrong_key_is_an_authentication_error(client, openai):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_what_takes_longer_goes_on_and_says_where(client, openai, serving, monkeypatch):
    monkeypatch.setattr("iclora.serve.routes.openai._WAIT", 0.05)
    serving.engine.hold()
    with pytest.raises(openai.InternalServerError) as late:
        client.with_options(max_retries=2).images.generate(model="toyland", prompt="a")
    assert late.value.status_code == 504
    job = late.value.response.headers["location"].rpartition("/")[2]
    serving.engine.go.set()
    found = None
    while found is None or found["status"] not in ("succeeded", "failed"):
        found = client.get(f"/../api/v1/jobs/{job}", cast_to=object)
    assert found["status"] == "succeeded"
    listed = client.get("/../api/v1/jobs?limit=1000", cast_to=object)["jobs"]
    assert [each["status"] for each in listed if each["created"] >= found["created"]] == [
        "succeeded"
    ]


def test_a_client_that_hangs_up_cancels_its_job_unless_it_sent_a_key(serving, monkeypatch):
    monkeypatch.setattr("iclora.serve.routes.openai._LOOK", 0.05)
    serving.engine.hold()
    queue, until = serving.server.queue, time.monotonic() + 60

    def newest():
        return next(iter(queue.page(limit=1)), None)

    def noticed():
        """How many requests the server has given up on."""
        count = r'http_seconds_count{route="/v1/images/generations",status="503"} (\d+)'
        found = re.search(count, serving.server.metrics.text().decode())
        return int(found[1]) if found else 0

    for key, end in ((None, {"cancelled", "cancelling"}), ("k", {"running", "queued"})):
        headers = {"Authorization": f"Bearer {serving.token}", "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {}
        before, gone = newest(), noticed()
        asking = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=60)
        body = json.dumps({"model": "toyland", "prompt": "a"})
        asking.request("POST", "/v1/images/generations", body, headers)
        while newest() == before or newest().status == "queued":
            assert time.monotonic() < until
            time.sleep(0.01)
        asking.close()
        while noticed() == gone:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert newest().status in end
    serving.engine.go.set()
