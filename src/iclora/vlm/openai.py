"""Models behind any server of OpenAI's chat completions: vLLM, Ollama, hosted ones."""

from __future__ import annotations

import base64
import io
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from iclora.errors import VisionModelError
from iclora.sets.images import encode_png
from iclora.vlm.base import Answer, Ask, VisionModel

__all__ = ["OpenAIModel", "open_openai"]

_HOSTED = "https://api.openai.com/v1"
_FORMS = ((True, True), (True, False), (False, True), (False, False))
"""Is a JSON schema sent, and are temperature and length? Some servers know no schemas, and hosted
reasoning models refuse the other two."""
_LARGEST_PNG = 300_000
"""Bytes; above it a picture travels as JPEG."""
_PATIENCE = 20.0
"""Seconds that answers under way are waited for once no other ask can be answered."""


class OpenAIModel(VisionModel):
    """A model behind an OpenAI-compatible endpoint.

    Args:
        model: the server's name for it.
        url: the endpoint's base URL; by default $OPENAI_BASE_URL, else OpenAI's own.
        together: requests at the same time.
        retries: of one request after 429, 5xx, a timeout or a broken connection, each after a
            longer pause.
        timeout: seconds to wait for one answer.
        schema: whether to begin with a JSON schema. A server that ignores it without a word may
            be better off without.
    Raises: VisionModelError if the openai package is missing, or a key is needed and there is none.
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
        try:
            import openai
        except ImportError as error:
            raise VisionModelError(
                "captions from a server need the openai package",
                "Install it: pip install 'iclora[openai]'.",
            ) from error
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
        _refuse_odd(url)
        super().__init__(f"openai:{model}", together)
        self._model, self._url, self._retries = model, url, retries
        self._client = openai.OpenAI(
            base_url=url, api_key=key or "none", max_retries=retries, timeout=timeout
        )
        self._errors = openai
        self._form = 0 if schema else 2
        self._form_works = False
        self.notices = [f"pictures and instructions are sent to {_bare(url)} (model {model})"]

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer | VisionModelError]]:
        yield from _as_they_come(self._one, asks, self.together)

    def _one(self, ask: Ask) -> Answer | VisionModelError:
        """One answer, or what came instead.

        Raises: VisionModelError if no other ask would fare better.
        """
        api = self._errors
        try:
            return self._readable(ask)
        except (api.AuthenticationError, api.PermissionDeniedError) as error:
            raise VisionModelError(
                f"{_bare(self._url)} refuses the key (status {error.status_code})",
                "Check $OPENAI_API_KEY.",
            ) from None
        except api.NotFoundError:
            raise VisionModelError(
                f"{_bare(self._url)} knows no model {self._model}, or speaks no chat completions",
                "Check the model's name and `api`, which usually ends in /v1.",
                setting="api",
            ) from None
        except api.APITimeoutError:
            return VisionModelError("the server did not answer in time", "Try again later.")
        except api.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise VisionModelError(
                    f"{_bare(self._url)} says that the account's quota is used up",
                    "Settle that with its provider.",
                ) from None
            return VisionModelError(
                f"the server refused with status 429: {_short(error.message)}",
                "Ask for fewer at a time by `together`, or try later.",
                setting="together",
            )
        except api.APIConnectionError as error:
            raise VisionModelError(
                f"there is no connection to {_bare(self._url)} ({error.__cause__ or error})",
                "Start the server, or check `api`; then run the same command again.",
                setting="api",
            ) from None
        except api.APIStatusError as error:
            return VisionModelError(
                f"the server refused with status {error.status_code}: {_short(error.message)}",
                "See the server's log.",
            )

    def _readable(self, ask: Ask) -> Answer | VisionModelError:
        """Ask again if a server breaks off in the middle, or answers something else."""
        for retry in range(self._retries + 1):
            try:
                return self._request(ask)
            except self._errors.APIError:
                raise
            except (
                self._errors.OpenAIError,
                ValueError,
                AttributeError,
                TypeError,
                IndexError,
            ) as error:
                unread = str(error)
            time.sleep(min(8.0, 0.5 * 2**retry) if retry < self._retries else 0)
        return VisionModelError(
            f"the server's answer cannot be read ({_short(unread)})", "Try again."
        )

    def _request(self, ask: Ask) -> Answer:
        """Ask in the form that worked last, and in the next if the server refuses it."""
        for form in range(self._form, len(_FORMS)):
            try:
                reply = self._client.chat.completions.create(**self._body(ask, *_FORMS[form]))
                break
            except (self._errors.BadRequestError, self._errors.UnprocessableEntityError):
                if form == len(_FORMS) - 1:
                    raise
        if not self._form_works:
            # Once one form has worked, a refusal is about that set alone.
            self._form, self._form_works = form, True
        if isinstance(reply, str) or not reply.choices:
            raise ValueError("no choices in it")
        usage = reply.usage
        text = reply.choices[0].message.content or reply.choices[0].message.refusal or ""
        if not isinstance(text, str):
            raise ValueError("its content is not text")
        return Answer(
            text,
            (usage.prompt_tokens or 0) if usage else 0,
            (usage.completion_tokens or 0) if usage else 0,
            whole=reply.choices[0].finish_reason != "length",
        )

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
        body: dict[str, Any] = {"model": self._model, "messages": messages}
        if plain:
            body |= {"temperature": 0, "max_tokens": min(self.longest, ask.longest)}
        if structured:
            schema = {"name": "joint_caption", "schema": ask.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


def _as_they_come(
    one: Callable[[Ask], Answer | VisionModelError], asks: Sequence[Ask], together: int
) -> Iterator[tuple[int, Answer | VisionModelError]]:
    """Answer `asks`, `together` at a time, and yield what is done.

    After an error that ends the run, what is under way is waited for a little, then the error is
    raised. The threads are daemons: a caller that gives up, or Ctrl-C, waits for no server.
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
                done.put((number, one(ask)))
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
                number, reply = done.get(timeout=until - time.monotonic() if fatal else None)
            except (queue.Empty, ValueError):
                break
            left -= 1
            if number >= 0:
                assert isinstance(reply, Answer | VisionModelError)
                yield number, reply
            elif fatal is None:
                assert isinstance(reply, BaseException)
                fatal, until = reply, time.monotonic() + _PATIENCE
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


def _refuse_odd(url: str) -> None:
    """Raises: VisionModelError for anything but a base URL."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise VisionModelError(
            f'"{_bare(url)}" is not the base URL of a server',
            "It looks like http://localhost:8000/v1.",
        )


def _bare(url: str) -> str:
    """A URL without what people put a password into."""
    scheme, mark, rest = url.rpartition("://")
    return f"{scheme}{mark}{rest.split('?')[0].rpartition('@')[2]}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


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
