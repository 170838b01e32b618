"""Models of transformers on this machine: Qwen-VL, SmolVLM, LLaVA and their kin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from iclora.errors import VisionModelError
from iclora.files.locks import building
from iclora.vlm.base import Answer, Ask, VisionModel

__all__ = ["LocalModel", "conversation", "open_local"]


class LocalModel(VisionModel):
    """An image-text-to-text model with a chat template, decoding greedily.

    Only safetensors are read and no code that comes with a model is run.

    Args:
        model: a folder in transformers' layout, or a hub id.
        device: auto, cuda, cuda:N, mps or cpu; auto takes what there is.
        together: sets in one batch.
        name: what it is called; by default local:MODEL.
    Raises: VisionModelError if it cannot be opened, or is not such a model.
    """

    def __init__(
        self, model: str, *, device: str = "auto", together: int = 4, name: str = ""
    ) -> None:
        import torch
        import transformers
        from safetensors import SafetensorError

        super().__init__(name or f"local:{model}", together)
        where = device if device != "auto" else _best_device(torch)
        kind: dict[str, Any] = {"dtype": "auto" if where.startswith("cuda") else torch.float32}
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(
                model, trust_remote_code=False
            )
            with building():
                self._model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                    model, use_safetensors=True, trust_remote_code=False, **kind
                )
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            raise VisionModelError(
                f"{model} cannot be opened as an image-text-to-text model: {error}",
                "Give a folder or hub id of such a model, with safetensors weights and a chat "
                "template.",
            ) from error
        if not getattr(self._processor, "chat_template", None):
            raise VisionModelError(
                f"{model} has no chat template", "Use an instruction-tuned version of it."
            )
        tokenizer = self._processor.tokenizer
        # Answers begin where the longest question of a batch ends.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._model.eval()
        self._where = where
        try:
            # The weights go there when they are needed: the base may still be in use.
            torch.empty(1, device=where)
        except (RuntimeError, AssertionError) as error:
            raise VisionModelError(
                f'{model} cannot run on "{where}" ({str(error).splitlines()[0]})',
                "Set `model_device` to auto, cuda, cuda:1, mps or cpu.",
                setting="model_device",
            ) from error

    def free(self) -> None:
        import torch

        self._model.to("cpu")
        if self._where.startswith("cuda"):
            torch.cuda.empty_cache()
        elif self._where.startswith("mps"):
            torch.mps.empty_cache()

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer | VisionModelError]]:
        self._model.to(self._where)
        for start in range(0, len(asks), self.together):
            part = asks[start : start + self.together]
            yield from enumerate(self._batch(part), start)

    def _batch(self, asks: Sequence[Ask]) -> list[Answer]:
        import torch

        inputs = self._processor.apply_chat_template(
            [conversation(ask) for ask in asks],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._model.device)
        length = inputs["input_ids"].shape[1]
        longest = min(self.longest, max(ask.longest for ask in asks))
        with torch.inference_mode():
            written = self._model.generate(
                **inputs,
                max_new_tokens=longest,
                do_sample=False,
                pad_token_id=self._processor.tokenizer.pad_token_id,
            )[:, length:]
        texts = self._processor.batch_decode(written, skip_special_tokens=True)
        padding = self._processor.tokenizer.pad_token_id
        ends = torch.tensor(self._ends(), device=written.device)
        return [
            Answer(
                text,
                int(mask.sum()),
                int((tokens != padding).sum()),
                whole=len(tokens) < longest or bool(torch.isin(tokens, ends).any()),
            )
            for text, mask, tokens in zip(texts, inputs["attention_mask"], written, strict=True)
        ]

    def _ends(self) -> list[int]:
        """The tokens that end an answer."""
        ends = self._model.generation_config.eos_token_id
        if ends is None:
            ends = self._processor.tokenizer.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def conversation(ask: Ask) -> list[dict[str, Any]]:
    """An ask as the messages of a chat template."""
    content: list[dict[str, Any]] = [{"type": "image", "image": p} for p in ask.pictures]
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [*content, {"type": "text", "text": ask.as_text}]}
    ]
    for turn in ask.earlier:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        turns.append({"role": "user", "content": [{"type": "text", "text": turn.objection}]})
    return turns


def open_local(
    model: str, *, url: str | None, together: int | None, device: str, schema: bool
) -> LocalModel:
    """For `registry.CAPTIONERS`: neither `url` nor `schema` concerns it."""
    del url, schema
    return LocalModel(model, device=device, together=together or 4)
