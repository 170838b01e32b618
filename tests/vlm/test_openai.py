"""The openai captioner against a real HTTP server that misbehaves as servers do."""

import base64
import gzip
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from iclora.errors import VisionModelError
from iclora.vlm import Ask, load_vision_model
from iclora.vlm.base import Turn
from iclora.vlm.openai import OpenAIModel
from iclora.vlm.wire import Late, Wire

MARKERS = ("[SCENE-1]", "[SCENE-2]", "[SCENE-3]")


def completion(text):
    """What a server answers when all is well."""
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    ).encode()


class Server(ThreadingHTTPServer):
    """Answers as `behave(body)` says: (status, bytes), and perhaps a pause, or headers."""

    daemon_threads = True

    def __init__(self, behave):
        self.behave = behave
        self.bodies, self.headers, self.most, self.now = [], [], 0, 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append({k.lower(): v for k, v in self.headers.items()})
            server.now += 1
            server.most = max(server.most, server.now)
        status, data, *more = server.behave(body)
        headers = next((part for part in more if isinstance(part, dict)), {})
        time.sleep(sum(part for part in more if not isinstance(part, dict)))
        with server.lock:
            server.now -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in ({"Retry-After": "0.01"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        # "cut" stands for a connection that breaks in the middle.
        self.wfile.write(data[: len(data) // 2] if status == 299 else data)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(behave):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(words="Say.", size=(8, 8), count=3):
    return Ask(words, tuple(Image.new("RGB", size, (9 * n, 0, 0)) for n in range(count)), MARKERS)


def only(captioner, one):
    ((number, reply),) = captioner.answer([one])
    assert number == 0
    return reply


def test_a_request_holds_the_pictures_in_order_the_words_and_a_schema(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = serve(lambda body: (200, completion("hello")))
    reply = only(OpenAIModel("m", server.url), ask())
    assert (reply.text, reply.read, reply.written) == ("hello", 7, 3)
    (body,) = server.bodies
    *pictures, words = body["messages"][0]["content"]
    for number, picture in enumerate(pictures):
        kind, data = picture["image_url"]["url"].split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == (9 * number, 0, 0)
    assert words["text"].startswith("Say.")
    assert body["response_format"]["json_schema"]["schema"]["properties"]["panels"]["minItems"] == 3
    assert server.headers[0]["authorization"] == "Bearer sk-secret"


def test_an_objection_is_told_as_the_next_turn_of_the_conversation(serve):
    server = serve(lambda body: (200, completion("x")))
    turned = Ask("Say.", (), MARKERS, (Turn("bad", "Not so."),))
    only(OpenAIModel("m", server.url), turned)
    roles = [m["role"] for m in server.bodies[0]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert server.bodies[0]["messages"][2]["content"] == "Not so."


def test_an_ask_for_a_short_answer_is_given_no_more_tokens(serve):
    server = serve(lambda body: (200, completion("4")))
    only(OpenAIModel("m", server.url), Ask("Mark it.", (), MARKERS, longest=256))
    assert server.bodies[0]["max_tokens"] == 256


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_broken_server_is_asked_again(serve, status):
    turns = iter([(status, b"{}"), (status, b"{}"), (200, completion("late"))])
    server = serve(lambda body: next(turns))
    assert only(OpenAIModel("m", server.url), ask()).text == "late"
    assert len(server.bodies) == 3


def test_a_server_that_stays_busy_costs_that_set_alone(serve):
    def behave(body):
        busy = "Busy." in body["messages"][0]["content"][-1]["text"]
        return (429, b'{"error": {"message": "slow down"}}') if busy else (200, completion("ok"))

    captioner = OpenAIModel("m", serve(behave).url, retries=1)
    replies = dict(captioner.answer([ask("Busy."), ask("Free.")]))
    assert isinstance(replies[0], VisionModelError)
    assert "429" in replies[0].problem
    assert replies[1].text == "ok"


def test_a_timeout_costs_that_set_alone(serve):
    server = serve(lambda body: (200, completion("late"), 1.0))
    captioner = OpenAIModel("m", server.url, retries=0, timeout=0.2)
    reply = only(captioner, ask())
    assert isinstance(reply, VisionModelError)
    assert "in time" in reply.problem


@pytest.mark.parametrize(
    ("status", "data"),
    [(299, completion("cut")), (200, b'{"choices": ['), (200, b"<html>"), (200, b"{}"), (200, b"")],
)
def test_an_answer_that_breaks_off_or_is_something_else_is_no_answer(serve, status, data):
    captioner = OpenAIModel("m", serve(lambda body: (status, data)).url, retries=0)
    try:
        reply = only(captioner, ask())
    except VisionModelError as error:
        reply = error
    assert isinstance(reply, VisionModelError)


def test_ten_megabytes_of_text_come_through_whole_for_the_judge_to_refuse(serve):
    server = serve(lambda body: (200, completion("x" * 10_000_000)))
    assert len(only(OpenAIModel("m", server.url), ask()).text) == 10_000_000


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_schemas_is_asked_for_marked_text_from_then_on(serve, status):
    def behave(body):
        if "response_format" in body:
            return status, b'{"error": {"message": "unknown field response_format"}}'
        return 200, completion("text")

    server = serve(behave)
    captioner = OpenAIModel("m", server.url, together=1)
    assert [reply.text for _, reply in captioner.answer([ask(), ask()])] == ["text", "text"]
    schemas = ["response_format" in body for body in server.bodies]
    assert schemas == [True, True, False, False]
    assert "[SCENE-2] what it shows" in server.bodies[2]["messages"][0]["content"][-1]["text"]


def test_a_model_that_refuses_a_temperature_is_asked_without_and_still_with_a_schema(serve):
    def behave(body):
        return (400, b"{}") if "temperature" in body else (200, completion("text"))

    server = serve(behave)
    captioner = OpenAIModel("m", server.url, together=1)
    assert [reply.text for _, reply in captioner.answer([ask(), ask()])] == ["text", "text"]
    assert len(server.bodies) == 3
    assert all("response_format" in body for body in server.bodies)


def test_what_was_under_way_when_the_key_was_refused_is_not_lost(serve, monkeypatch):
    monkeypatch.setattr("iclora.vlm.openai._BRIEF", 60.0)

    def behave(body):
        bad = "Bad." in body["messages"][0]["content"][-1]["text"]
        return (401, b"{}") if bad else (200, completion("paid"), 0.3)

    captioner = OpenAIModel("m", serve(behave).url, together=2)
    answers = captioner.answer([ask("Good."), ask("Bad."), *[ask("Late.")] * 9])
    assert next(answers)[1].text == "paid"
    with pytest.raises(VisionModelError, match="refuses the key"):
        list(answers)


def test_a_server_that_hangs_does_not_keep_a_run_whose_key_was_refused(serve, monkeypatch):
    monkeypatch.setattr("iclora.vlm.openai._BRIEF", 0.2)
    hangs, over = threading.Event(), threading.Event()

    def behave(body):
        if "Bad." in body["messages"][0]["content"][-1]["text"]:
            assert hangs.wait(60)
            return 401, b"{}"
        hangs.set()
        over.wait(60)
        return 200, completion("late")

    server = serve(behave)
    captioner = OpenAIModel("m", server.url, together=2)
    with pytest.raises(VisionModelError, match="refuses the key"):
        list(captioner.answer([ask("Slow."), ask("Bad.")]))
    assert server.now == 1, "it was waited for"
    over.set()


def test_ctrl_c_waits_for_no_server(serve):
    over = threading.Event()
    server = serve(lambda body: over.wait(300) and (200, completion("late")))
    program = (
        # A shell starts what runs in its background deaf to Ctrl-C, and children inherit that.
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from iclora.vlm import Ask\n"
        "from iclora.vlm.openai import OpenAIModel\n"
        f"captioner = OpenAIModel('m', {server.url!r})\n"
        "list(captioner.answer([Ask('x', (), ('[A]', '[B]'))] * 4))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        try:
            while len(server.bodies) < 4:
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert b"KeyboardInterrupt" in process.communicate(timeout=200)[1]
        finally:
            # Left running it would be found, and blamed on, a later test.
            process.kill()
            over.set()


def test_an_account_without_quota_ends_the_run(serve):
    error = b'{"error": {"message": "pay", "code": "insufficient_quota"}}'
    captioner = OpenAIModel("m", serve(lambda body: (429, error)).url, retries=0, together=1)
    with pytest.raises(VisionModelError, match="quota is used up"):
        list(captioner.answer([ask(), ask()]))


def test_a_refusal_of_one_set_does_not_change_how_the_next_are_asked(serve):
    def behave(body):
        odd = "Odd." in body["messages"][0]["content"][-1]["text"]
        return (400, b"{}") if odd and "response_format" in body else (200, completion("ok"))

    server = serve(behave)
    captioner = OpenAIModel("m", server.url, together=1)
    assert len(list(captioner.answer([ask("Fine."), ask("Odd."), ask("Fine.")]))) == 3
    assert "response_format" in server.bodies[-1]


def test_an_answer_cut_off_at_the_most_tokens_is_known_as_such(serve):
    cut = completion("half an").replace(b'"stop"', b'"length"')
    assert not only(OpenAIModel("m", serve(lambda body: (200, cut)).url), ask()).whole
    whole = serve(lambda body: (200, completion("all")))
    assert only(OpenAIModel("m", whole.url), ask()).whole


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "http://host:abc/v1", "ftp://host", "http://"]
)
def test_what_is_no_base_url_is_refused_before_anything_is_sent(url):
    with pytest.raises(VisionModelError, match="not the base URL"):
        OpenAIModel("m", url)


@pytest.mark.parametrize(("status", "what"), [(401, "refuses the key"), (404, "knows no model")])
def test_a_wrong_key_or_model_ends_the_run_and_the_key_is_not_told(
    serve, monkeypatch, status, what
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = serve(lambda body: (status, b'{"error": {"message": "no: sk-secret"}}'))
    captioner = OpenAIModel("m", server.url, together=1)
    with pytest.raises(VisionModelError, match=what) as refused:
        list(captioner.answer([ask(), ask(), ask()]))
    assert "secret" not in str(refused.value)
    assert len(server.bodies) < 3


@pytest.mark.parametrize(
    ("status", "error", "says", "setting"),
    [
        (
            400,
            {"object": "error", "message": "At most 1 image(s) may be provided"},
            "At most 1",
            "send",
        ),
        (500, {"error": "too many images: only one image per prompt"}, "only one image", "send"),
        (
            200,
            {"error": "Unexpected endpoint or method. (POST /chat/completions)"},
            "Unexpected",
            "api",
        ),
        (404, {"detail": "Not Found"}, "Not Found", "captioner"),
        (405, {"detail": "Method Not Allowed"}, "Not Allowed", "api"),
        (404, {"error": 'model "m" not found, try pulling it first'}, "try pulling", "captioner"),
        (
            400,
            {"error": {"message": "The model `m` does not exist"}},
            "does not exist",
            "captioner",
        ),
        (200, {"error": {"message": "No models loaded", "code": 400}}, "No models", "captioner"),
        (
            400,
            [{"error": {"message": "m does not support image input"}}],
            "image input",
            "captioner",
        ),
        (401, {"message": "Unauthorized"}, "Unauthorized", None),
        (402, {"error": {"message": "Payment due"}}, "Payment due", None),
        (
            200,
            {"error": {"message": "You exceeded your current quota", "code": 429}},
            "quota",
            None,
        ),
    ],
)
def test_what_meets_every_ask_ends_the_run_at_once_with_the_servers_words(
    serve, status, error, says, setting
):
    server = serve(lambda body: (status, json.dumps(error).encode()))
    with pytest.raises(VisionModelError) as refused:
        list(OpenAIModel("m", server.url, together=1).answer([ask()] * 5))
    assert says in refused.value.problem
    assert refused.value.setting == setting
    assert len(server.bodies) == 1


def test_one_picture_a_set_is_advised_if_a_server_takes_no_more(serve):
    error = b'{"message": "At most 1 image(s) may be provided in one prompt."}'
    with pytest.raises(VisionModelError) as refused:
        list(OpenAIModel("m", serve(lambda body: (400, error)).url).answer([ask()]))
    assert "`send` composite" in refused.value.advice


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (200, {"error": {"message": "The server is sad"}}, "is sad"),
        (200, {"choices": [{"error": {"message": "provider down", "code": 400}}]}, "provider down"),
        (400, {"error": {"message": "maximum context length is 4096 tokens"}}, "maximum context"),
        (413, {"detail": [{"msg": "body too large"}]}, "body too large"),
        (503, {"error": {"message": "\x1b[31mloading"}}, "loading"),
    ],
)
def test_what_concerns_one_ask_costs_that_alone_with_the_servers_words(serve, status, error, says):
    def behave(body):
        bad = "Bad." in body["messages"][0]["content"][-1]["text"]
        return (status, json.dumps(error).encode()) if bad else (200, completion("ok"))

    server = serve(behave)
    replies = dict(OpenAIModel("m", server.url, retries=0).answer([ask("Bad."), ask("Good.")]))
    assert says in replies[0].problem
    assert "\x1b" not in replies[0].problem
    assert replies[1].text == "ok"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "a "}, {"type": "text", "text": "gull"}],
        [{"type": "thinking", "text": "Hm"}, {"type": "output_text", "text": "a gull"}],
        ["a ", "gull"],
        {"type": "text", "text": "a gull"},
    ],
)
def test_an_answer_in_parts_is_joined(serve, content):
    assert (
        only(OpenAIModel("m", serve(lambda body: (200, completion(content))).url), ask()).text
        == "a gull"
    )


def test_an_answer_among_the_thoughts_is_found_and_thoughts_alone_are_none(serve):
    def message(**fields):
        whole = json.loads(completion(None))
        whole["choices"][0]["message"] |= fields
        return json.dumps(whole).encode()

    given = {"overview": "Sea.", "panels": ["a", "b", "c"]}
    answers = iter(
        [
            message(reasoning_content=f"So: {json.dumps(given)}"),
            message(reasoning_content="hm"),
            message(refusal="Not this one."),
            message(tool_calls=[{"function": {"name": "f", "arguments": json.dumps(given)}}]),
            message(reasoning_details=[{"type": "reasoning.text", "text": json.dumps(given)}]),
        ]
    )
    captioner = OpenAIModel("m", serve(lambda body: (200, next(answers))).url)
    assert json.loads(only(captioner, ask()).text) == given
    assert not only(captioner, ask()).text
    refusal = only(captioner, ask())
    assert (refusal.text, refusal.refused) == ("Not this one.", True)
    assert json.loads(only(captioner, ask()).text) == given
    assert json.loads(only(captioner, ask()).text) == given


def test_an_answer_that_a_filter_held_back_is_called_so(serve):
    held = completion(None).replace(b'"stop"', b'"content_filter: PROHIBITED_CONTENT"')
    reply = only(OpenAIModel("m", serve(lambda body: (200, held)).url), ask())
    assert (reply.refused, reply.text) == (True, "content_filter: PROHIBITED_CONTENT")


def test_pictures_do_not_follow_a_redirect(serve):
    other = serve(lambda body: (200, completion("x")))

    def behave(body):
        return 307, b"", {"Location": f"http://me:hush@127.0.0.1:{other.server_port}/v1?key=hush"}

    server = serve(behave)
    with pytest.raises(VisionModelError, match="redirects to http://127") as refused:
        list(OpenAIModel("m", server.url).answer([ask()]))
    assert "hush" not in str(refused.value)
    assert not other.bodies


def test_headers_that_come_one_by_one_are_not_waited_for():
    listener = socket.create_server(("127.0.0.1", 0))

    def behave():
        connection, _ = listener.accept()
        connection.recv(1 << 16)
        with suppress(OSError), connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            for number in range(90):
                connection.sendall(b"X-%d: a\r\n" % number)
                time.sleep(0.3)

    threading.Thread(target=behave, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(Late):
        Wire(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "", 0.5).post("x", {})
    assert time.monotonic() - began < 20
    listener.close()


@pytest.mark.parametrize("packed", ["gzip", "deflate", "br", "gzip, gzip"])
def test_a_small_body_that_unpacks_to_a_huge_one_is_not_unpacked(serve, packed):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if packed == "gzip" else 15)
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(64)) + packer.flush()
    server = serve(lambda body: (200, bomb, {"Content-Encoding": packed}))
    reply = only(OpenAIModel("m", server.url), ask())
    assert "cannot be read" in reply.problem
    assert len(server.bodies) == 1


def test_a_packed_answer_is_read_all_the_same(serve):
    body = gzip.compress(completion("sea"))
    server = serve(lambda _: (200, body, {"Content-Encoding": "gzip"}))
    assert only(OpenAIModel("m", server.url), ask()).text == "sea"


@pytest.mark.parametrize("pause", ["3600", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_pause_nobody_would_wait_for_is_told_at_once(serve, pause):
    server = serve(lambda body: (429, b'{"error": "slow"}', {"Retry-After": pause}))
    with pytest.raises(VisionModelError, match=r"asks to wait \d+ (minutes|hours).*slow"):
        list(OpenAIModel("m", server.url, together=1).answer([ask()] * 3))
    assert len(server.bodies) == 1


def test_a_server_that_never_answers_in_time_ends_the_run(serve):
    server = serve(lambda body: (200, completion("late"), 1.0))
    captioner = OpenAIModel("m", server.url, timeout=0.05, together=1)
    with pytest.raises(VisionModelError, match="3 times in a row"):
        list(captioner.answer([ask()] * 9))


@pytest.mark.parametrize(
    ("url", "is_shown"),
    [
        ("https://host.example/sk-abcdef123456/v1", "https://host.example/.../v1"),
        ("https://me:hush-hush@host.example/v1#hush-hush", "https://host.example/v1"),
        ("https://host.example/openai/v1?api_key=hush-hush", "https://host.example/openai/v1"),
    ],
)
def test_a_key_in_an_address_is_never_shown(serve, url, is_shown):
    captioner = OpenAIModel("m", url)
    assert captioner.notices == [f"pictures and instructions are sent to {is_shown} (model m)"]
    for secret in ("sk-abcdef123456", "hush-hush"):
        if secret in url:
            for spelling in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")):
                assert captioner.without_secrets(f"x {spelling} y") == "x *** y"


def test_a_key_that_a_page_of_markup_repeats_is_not_told(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "<sk>&secret")
    captioner = OpenAIModel("m", "http://localhost/v1")
    assert captioner.without_secrets("<p>&lt;sk&gt;&amp;secret</p>") == "<p>***</p>"


@pytest.mark.parametrize(
    "form", ["\\u{:04x}", "\\\\u{:04X}", "\\u{{{:x}}}", "\\x{:02x}", "&#{};", "%{:02X}"]
)
def test_a_key_whose_every_letter_a_server_escapes_is_not_told(monkeypatch, form):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-Secret<7>89")
    captioner = OpenAIModel("m", "http://localhost/v1")
    coded = "".join(form.format(ord(sign)) for sign in "sk-Secret<7>89")
    half = "sk-Se" + "".join(form.format(ord(sign)) for sign in "cret<7>89")
    assert captioner.without_secrets(f"a {coded} b {half} c") == "a *** b *** c"


def _streamed(text, ended='"stop"'):
    """As servers stream: pieces of ten letters, a comment, the end, the tokens."""
    cut = [json.dumps({"content": text[at : at + 10]}) for at in range(0, len(text), 10)]
    pieces = [f'{{"choices": [{{"delta": {piece}}}]}}' for piece in cut]
    last = f'{{"choices": [{{"delta": {{}}, "finish_reason": {ended}}}]}}'
    usage = '{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}'
    events = [f"data: {each}" for each in (*pieces, last, usage, "[DONE]")]
    return (200, "\r\n\r\n".join([": ping", *events, ""]).encode())


def test_an_answer_that_is_streamed_unasked_is_put_together(serve):
    server = serve(lambda body: _streamed('{"overview": "sea"}'))
    model = OpenAIModel("m", server.url, together=1, retries=0)
    ((_, reply),) = model.answer([ask()])
    assert (reply.text, reply.read, reply.written) == ('{"overview": "sea"}', 5, 7)
    assert reply.whole
    server.behave = lambda body: _streamed('{"over', "null")
    assert not next(model.answer([ask()]))[1].whole
    server.behave = lambda body: (200, b'data: {"error": {"message": "GPU on fire"}}\n\n')
    assert "GPU on fire" in next(model.answer([ask()]))[1].problem


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("localhost:8000/v1", "Write http://localhost:8000/v1."),
        ("api.example.com/v1", "Write https://api.example.com/v1."),
        ("me:hush@api.example.com/v1", "Write https://api.example.com/v1."),
    ],
)
def test_an_address_without_a_scheme_is_refused_with_the_whole_one(url, advice):
    with pytest.raises(VisionModelError, match="does not begin with http") as refused:
        OpenAIModel("m", url)
    assert (refused.value.advice, refused.value.setting) == (advice, "api")
    assert "hush" not in str(refused.value)


def test_plain_words_of_an_address_do_not_go_missing_in_captions():
    captioner = OpenAIModel("m", "https://host.example/accounts/gallery-of-art/v1?tier=standard")
    words = "A standard gallery-of-art, and accounts of it."
    assert captioner.without_secrets(words) == words


def test_a_server_that_is_gone_ends_the_run_with_advice(serve):
    server = serve(lambda body: (200, completion("x")))
    server.shutdown()
    server.server_close()
    with pytest.raises(VisionModelError, match="no connection") as refused:
        list(OpenAIModel("m", server.url, retries=0).answer([ask()]))
    assert "same command again" in refused.value.advice


def test_no_more_requests_run_at_once_than_were_allowed(serve):
    full = threading.Event()

    def behave(body):
        if server.now >= 3:
            full.set()
        assert full.wait(60)
        return 200, completion("x"), 0.05

    server = serve(behave)
    list(OpenAIModel("m", server.url, together=3).answer([ask()] * 9))
    assert server.most == 3


def test_large_photographs_travel_as_jpeg(serve):
    noise = Image.effect_noise((700, 700), 90).convert("RGB")
    server = serve(lambda body: (200, completion("x")))
    only(OpenAIModel("m", server.url), Ask("Say.", (noise,), MARKERS))
    url = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")


def test_the_users_of_a_remote_model_are_told_where_pictures_go_but_no_password(monkeypatch):
    captioner = load_vision_model("openai:vision", url="https://me:hush@host.example/v1?key=hush")
    assert captioner.notices == [
        "pictures and instructions are sent to https://host.example/v1 (model vision)"
    ]


def test_a_key_with_a_line_end_works_and_one_that_is_none_is_not_shown(serve, monkeypatch):
    server = serve(lambda body: (200, completion("x")))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    only(OpenAIModel("m", server.url), ask())
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    monkeypatch.setenv("OPENAI_API_KEY", "\u201csk-secret\u201d")
    with pytest.raises(VisionModelError, match="no key has") as refused:
        OpenAIModel("m", server.url)
    assert "secret" not in str(refused.value)


def test_openai_itself_needs_a_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(VisionModelError, match="OPENAI_API_KEY is not set"):
        load_vision_model("openai:m")


@pytest.mark.parametrize("name", ["", "openai:", "gpt", "local:", "magic:m"])
def test_an_unknown_captioner_is_refused_with_the_forms_there_are(name):
    with pytest.raises(VisionModelError, match="there is no captioner"):
        load_vision_model(name)
