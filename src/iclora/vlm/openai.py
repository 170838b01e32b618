"""Models behind any server of OpenAI's chat completions: vLLM, Ollama, hosted ones."""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from iclora.errors import VisionModelError
from iclora.sets.images import encode_png
from iclora.vlm.base import Answer, Ask, VisionModel
from iclora.vlm.complaints import (
    EndsTheRun,
    complaint,
    is_about_form,
    pause_of,
    status_of,
    words_of,
)
from iclora.vlm.objects import find_object
from iclora.vlm.wire import Broken, Late, Reply, Unreadable, Wire

__all__ = ["OpenAIModel", "answer_in", "open_openai"]

_HOSTED = "https://api.openai.com/v1"
_FORMS = ((True, True), (True, False), (False, True), (False, False))
"""Is a JSON schema sent, and are temperature and length? Some servers know no schemas, and hosted
reasoning models refuse the other two."""
_LARGEST_PNG = 300_000
"""Bytes; above it a picture travels as JPEG."""
_PATIENCE = 10.0
"""Seconds that answers under way are waited for once no other ask can be answered."""
_BRIEF = 1.0
"""The same, if those under way will be refused as well."""
_LONGEST_PAUSE = 60.0
"""Seconds; a server that asks for a longer one is left alone."""
_BUSY = (408, 409, 425, 429)
_LONGEST_THOUGHTS = 20_000
"""Characters of thoughts, from their end, in which an answer is looked for."""
_THOUGHTS = ("parsed", "reasoning_content", "reasoning", "thinking", "reasoning_details")
_FILTERED = re.compile(
    "content_filter|safety|prohibited|recitation|blocklist|spii|guardrail", re.IGNORECASE
)
"""How an answer ends that was held back."""


class OpenAIModel(VisionModel):
    """A model behind an OpenAI-compatible endpoint.

    Args:
        model: the server's name for it.
        url: the endpoint's base URL; by default $OPENAI_BASE_URL, else OpenAI's own.
        together: requests at the same time.
        retries: of one request after 429, 5xx or a broken connection, each after a longer pause.
        timeout: seconds to wait for one answer.
        schema: whether to begin with a JSON schema. A server that ignores it without a word may
            be better off without.
    Raises: VisionModelError if the address is none, or a key is needed and there is none.
    """

    def __init__(
        self,
        model: str,
        url: str | None = None,
        *,
        together: int = 4,
        retries: int = 5,
        timeout: float = 180,
        schema: bool = True,
    ) -> None:
        url = url or os.environ.get("OPENAI_BASE_URL") or _HOSTED
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and (key.isprintable() or not key)):
            raise VisionModelError(
                "$OPENAI_API_KEY holds characters that no key has", "Set it again; it is not shown."
            )
        if not key and url.startswith(_HOSTED):
            raise VisionModelError(
                "OpenAI wants a key and $OPENAI_API_KEY is not set",
                "Set it, or name another server by `api` or $OPENAI_BASE_URL.",
                setting="api",
            )
        super().__init__(f"openai:{model}", together)
        self._wire = Wire(url, key, timeout)
        self._model, self._retries, self._timeout = model, retries, timeout
        self._form = 0 if schema else 2
        self._form_works = False
        self._lock = threading.Lock()
        self._late = 0
        self._answered = False
        self.notices = [f"pictures and instructions are sent to {self._wire.shown} (model {model})"]

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer | VisionModelError]]:
        yield from _as_they_come(self._one, asks, self.together)

    def without_secrets(self, text: str) -> str:
        return self._wire.free(text)

    def _one(self, ask: Ask, over: threading.Event) -> Answer | VisionModelError:
        """One answer, or what came instead: in the form that worked last, or in the next.

        Args:
            over: set if nobody wants an answer any more.
        Raises: VisionModelError if no other ask would fare better.
        """
        form = self._form
        while True:
            reply = self._exchange(self._body(ask, *_FORMS[form]), over)
            if isinstance(reply, VisionModelError):
                return reply
            if form == len(_FORMS) - 1 or not is_about_form(reply):
                break
            form += 1
        answer = answer_in(reply.data, ask)
        if answer is None or status_of(reply) >= 300:
            failed = complaint(reply, self._wire.shown, self._model, len(ask.pictures))
            if isinstance(failed, EndsTheRun):
                raise failed
            return failed
        if not self._form_works:
            # Once one form has worked, a refusal is about that set alone.
            self._form, self._form_works = form, True
        return answer

    def _exchange(self, body: dict[str, Any], over: threading.Event) -> Reply | VisionModelError:
        """Send a request, and again while the server is busy or breaks off.

        Raises: VisionModelError if no other request would fare better.
        """
        for retry in range(self._retries + 1):
            if over.is_set():
                return VisionModelError("the run has ended", "Run it again.")
            last = retry == self._retries
            pause = min(8.0, 0.5 * 2**retry)
            try:
                reply = self._wire.post("chat/completions", body)
            except Late:
                if last or retry or not self._answered:
                    return self._too_late()
            except Broken as error:
                if last:
                    raise VisionModelError(
                        f"there is no connection to {self._wire.shown} ({error})",
                        "Start the server, or check `api`; then run the same command again.",
                        setting="api",
                    ) from None
            except Unreadable as error:
                return VisionModelError(
                    f"the server's answer cannot be read ({error})", "See the server's log."
                )
            else:
                self._late = 0
                self._answered = True
                if not self._again(reply, retry):
                    return reply
                if (asked := pause_of(reply)) is not None:
                    pause = asked
            over.wait(0 if last else pause)
        return reply

    def _again(self, reply: Reply, retry: int) -> bool:
        """True if the same request may fare better after a pause.

        Raises: VisionModelError if the server asks for a pause nobody would wait for.
        """
        status = status_of(reply)
        if status < 300:
            broken = not isinstance(reply.data, dict) or not reply.data.get("choices")
            # Once, as it may have been paid for.
            return broken and retry == 0 < self._retries
        known = complaint(reply, self._wire.shown, self._model, 2)
        if (status not in _BUSY and status < 500) or isinstance(known, EndsTheRun):
            return False
        asked = pause_of(reply)
        if asked is not None and asked > _LONGEST_PAUSE:
            raise VisionModelError(
                f"{self._wire.shown} asks to wait {_span(asked)} (status {status}: "
                f"{words_of(reply)})",
                "Wait as long, then run the same command again.",
            )
        return retry < self._retries

    def _too_late(self) -> VisionModelError:
        """Raises: VisionModelError if ask after ask was not answered in time."""
        with self._lock:
            self._late += 1
            late = self._late
        problem = f"the server did not answer in time ({self._timeout:g} s)"
        advice = "Ask for fewer at a time by `together`, or use a faster model."
        if late > self.together + 1:
            raise VisionModelError(
                f"{problem}, {late} times in a row", advice, setting="together"
            ) from None
        return VisionModelError(problem, advice, setting="together")

    def _body(self, ask: Ask, structured: bool, plain: bool) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(picture)}}
            for picture in ask.pictures
        ]
        content.append({"type": "text", "text": ask.as_json if structured else ask.as_text})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        for turn in ask.earlier:
            messages.append({"role": "assistant", "content": turn.answer})
            messages.append({"role": "user", "content": turn.objection})
        # Some servers stream unless they are told not to.
        body: dict[str, Any] = {"model": self._model, "messages": messages, "stream": False}
        if plain:
            body |= {"temperature": 0, "max_tokens": min(self.longest, ask.longest)}
        if structured:
            schema = {"name": "joint_caption", "schema": ask.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


def answer_in(data: Any, ask: Ask) -> Answer | None:
    """The answer a completion holds, of whatever types; None if it holds none."""
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None
    content = message.get("content")
    if not isinstance(content, str | list | dict | None):
        return None
    text, ended = _text_of(content), str(choice.get("finish_reason"))
    refused = bool(_FILTERED.search(ended))
    if not text.strip():
        # Some servers put the answer elsewhere, or among the thoughts, or refuse in words.
        found = _elsewhere(message, ask)
        text = json.dumps(found) if found else _text_of(message.get("refusal"))
        refused = refused or (bool(text.strip()) and not found)
        if refused and not text.strip():
            text = ended
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        whole=choice.get("finish_reason") != "length",
        refused=refused,
    )


def _elsewhere(message: dict[str, Any], ask: Ask) -> dict[str, Any] | None:
    """The object of an answer that stands in a call of a tool, or among a model's thoughts."""
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    called = [call.get("function") for call in calls if isinstance(call, dict)]
    called.append(message.get("function_call"))
    places = [call.get("arguments") for call in called if isinstance(call, dict)]
    for place in [*places, *(message.get(name) for name in _THOUGHTS)]:
        words = json.dumps(place) if isinstance(place, dict) else _text_of(place, thoughts=True)
        if found := find_object(words[-_LONGEST_THOUGHTS:], *ask.schema["required"]):
            return found
    return None


def _text_of(content: Any, *, thoughts: bool = False) -> str:
    """The text of a message's content: a string, or parts of which some are text.

    Args:
        thoughts: also of parts that are thoughts.
    """
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict):
            plain = part.get("type", "text") in ("text", "output_text")
            part = part.get("text") if plain or thoughts else None
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts)


def _count(value: Any) -> int:
    """A number of tokens, 0 for anything else."""
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9
    return value if good else 0


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"


def _as_they_come(
    one: Callable[[Ask, threading.Event], Answer | VisionModelError],
    asks: Sequence[Ask],
    together: int,
) -> Iterator[tuple[int, Answer | VisionModelError]]:
    """Answer `asks`, `together` at a time, and yield what is done.

    After an error that ends the run, what is under way is waited for a little, then the error is
    raised; hardly at all if it would be refused as well. The threads are daemons: a caller that
    gives up, or Ctrl-C, waits for no server.
    """
    waiting: queue.SimpleQueue[tuple[int, Ask]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Answer | VisionModelError | BaseException]]
    done = queue.SimpleQueue()
    for pair in enumerate(asks):
        waiting.put(pair)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                number, ask = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, one(ask, over)))
            except BaseException as error:
                over.set()
                done.put((-1, error))

    for _ in range(min(together, len(asks))):
        threading.Thread(target=work, daemon=True).start()
    fatal: BaseException | None = None
    left, until = len(asks), 0.0
    try:
        while left:
            try:
                # In short turns: on Windows an endless wait does not hear Ctrl-C.
                number, reply = done.get(timeout=0.5)
            except queue.Empty:
                if fatal and time.monotonic() > until:
                    break
                continue
            left -= 1
            if number >= 0:
                assert isinstance(reply, Answer | VisionModelError)
                yield number, reply
            elif fatal is None:
                assert isinstance(reply, BaseException)
                patience = _BRIEF if isinstance(reply, EndsTheRun) else _PATIENCE
                fatal, until = reply, time.monotonic() + patience
                # What nobody has taken up yet never will be.
                left -= _drain(waiting)
    finally:
        over.set()
    if fatal:
        raise fatal


def _drain(waiting: queue.SimpleQueue[tuple[int, Ask]]) -> int:
    """Empty a queue. Returns: how many were in it."""
    count = 0
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return count
        count += 1


def _data_url(picture: Image.Image) -> str:
    """A picture as a URL that holds it: lossless if that is small, as drawings are; else JPEG."""
    data, kind = encode_png(picture), "png"
    if len(data) > _LARGEST_PNG:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def open_openai(
    model: str, *, url: str | None, together: int | None, device: str, schema: bool
) -> OpenAIModel:
    """For `registry.CAPTIONERS`: `device` does not concern it."""
    del device
    return OpenAIModel(model, url, schema=schema, together=together or 4)
