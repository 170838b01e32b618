"""Captions from any server that speaks OpenAI's chat completions: vLLM, Ollama, hosted ones."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from PIL import Image

from iclora.captioners.base import Answer, Ask, Captioner
from iclora.errors import CaptionerError
from iclora.images import encode_png

__all__ = ["OpenAICaptioner"]

_HOSTED = "https://api.openai.com/v1"
_FORMS = ((True, True), (True, False), (False, True), (False, False))
"""Whether a JSON schema is sent, and whether temperature and length are: some servers know no
schemas, and hosted reasoning models refuse the other two."""
_LARGEST_PNG = 300_000
"""Bytes; above it a picture travels as JPEG."""


class OpenAICaptioner(Captioner):
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
    Raises: CaptionerError if the openai package is missing, or a key is needed and there is none.
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
            raise CaptionerError(
                "captions from a server need the openai package",
                "Install it: pip install 'iclora[openai]'.",
            ) from error
        url = url or os.environ.get("OPENAI_BASE_URL") or _HOSTED
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and (key.isprintable() or not key)):
            raise CaptionerError(
                "$OPENAI_API_KEY holds signs no key has", "Set it anew; it is not shown here."
            )
        if not key and url.startswith(_HOSTED):
            raise CaptionerError(
                "OpenAI wants a key and $OPENAI_API_KEY is not set",
                "Set it, or name another server with --api URL or $OPENAI_BASE_URL.",
            )
        super().__init__(f"openai:{model}", together)
        self._model, self._url = model, url
        self._client = openai.OpenAI(
            base_url=url, api_key=key or "none", max_retries=retries, timeout=timeout
        )
        self._errors = openai
        self._form = 0 if schema else 2
        self.notices = [f"pictures and instructions are sent to {_bare(url)} (model {model})"]

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer | CaptionerError]]:
        with ThreadPoolExecutor(self.together) as pool:
            waiting = {pool.submit(self._one, ask): number for number, ask in enumerate(asks)}
            try:
                yield from _as_they_come(waiting)
            finally:
                # What is not under way yet must not be paid for once the caller has given up.
                pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, ask: Ask) -> Answer | CaptionerError:
        """One answer, or what came instead.

        Raises: CaptionerError where no other ask would fare better.
        """
        api = self._errors
        try:
            return self._request(ask)
        except (api.AuthenticationError, api.PermissionDeniedError) as error:
            raise CaptionerError(
                f"{_bare(self._url)} refuses the key (status {error.status_code})",
                "Check $OPENAI_API_KEY.",
            ) from None
        except api.NotFoundError:
            raise CaptionerError(
                f"{_bare(self._url)} knows no model {self._model}, or speaks no chat completions",
                "Check the model's name and --api, which usually ends in /v1.",
            ) from None
        except api.APITimeoutError:
            return CaptionerError("the server did not answer in time", "Try again later.")
        except api.APIConnectionError as error:
            raise CaptionerError(
                f"there is no connection to {_bare(self._url)} ({error.__cause__ or error})",
                "Start the server, or check --api; then run the same command again.",
            ) from None
        except api.APIStatusError as error:
            return CaptionerError(
                f"the server refused with status {error.status_code}: {_short(error.message)}",
                "See the server's log.",
            )
        except (api.OpenAIError, ValueError, AttributeError, TypeError, IndexError) as error:
            # Servers that break off in the middle, or answer with something else altogether.
            return CaptionerError(
                f"the server's answer cannot be read ({_short(str(error))})", "Try again."
            )

    def _request(self, ask: Ask) -> Answer:
        """Ask in the form that worked last; where the server refuses it, in the next."""
        for form in range(self._form, len(_FORMS)):
            try:
                reply = self._client.chat.completions.create(**self._body(ask, *_FORMS[form]))
                self._form = form
                break
            except (self._errors.BadRequestError, self._errors.UnprocessableEntityError):
                if form == len(_FORMS) - 1:
                    raise
        if isinstance(reply, str) or not reply.choices:
            raise ValueError("no choices in it")
        usage = reply.usage
        text = reply.choices[0].message.content or reply.choices[0].message.refusal or ""
        if not isinstance(text, str):
            raise ValueError("its content is no text")
        return Answer(
            text,
            (usage.prompt_tokens or 0) if usage else 0,
            (usage.completion_tokens or 0) if usage else 0,
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
            body |= {"temperature": 0, "max_tokens": self.longest}
        if structured:
            schema = {"name": "joint_caption", "schema": ask.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


def _as_they_come(
    waiting: Mapping[Future[Answer | CaptionerError], int],
) -> Iterator[tuple[int, Answer | CaptionerError]]:
    """Yield what is done; after a fatal error only what was under way already, then raise it."""
    left = set(waiting)
    fatal: CaptionerError | None = None
    while left:
        done, _ = wait(left, return_when=FIRST_COMPLETED)
        left -= done
        for future in done:
            try:
                reply = future.result()
            except CaptionerError as error:
                fatal = fatal or error
                left -= {other for other in left if other.cancel()}
            else:
                yield waiting[future], reply
    if fatal:
        raise fatal


def _bare(url: str) -> str:
    """A URL without what people put a password into."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.split('?')[0].rpartition('@')[2]}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _data_url(picture: Image.Image) -> str:
    """Lossless where that is small, as drawings are; else JPEG."""
    data, kind = encode_png(picture), "png"
    if len(data) > _LARGEST_PNG:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
