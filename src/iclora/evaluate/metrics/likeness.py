"""Likeness by models that see: DINOv2 and its kin, and CLIP, which also reads.

Pictures are prepared by each model's own processor, as in its published figures; most look at a
square from the middle of a picture, and a note says where panels lose their sides to it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from iclora.errors import ModelError
from iclora.evaluate.metrics.base import Figures, Made, Metric, made_pairs, spread
from iclora.files import digest
from iclora.files.locks import building
from iclora.models.registry import pick_device

__all__ = ["Clip", "Dino", "Likeness", "open_clip", "open_dino"]

Rows = NDArray[np.float32]
_TOGETHER = 16
"""Pictures or texts in one pass."""
_CONSISTENCY = "mean likeness of two panels of a set, at least one of them made"
_BESIDE = "mean likeness of a made panel with the first arm's, from the same words and noise"
_DIVERSITY = (
    "mean unlikeness of the same panel under different seeds; sets that are all alike have none, "
    "however consistent"
)


class Likeness(Metric):
    """Figures from one unit vector per picture, compared by their cosine."""

    main = "consistency"

    def __init__(self, source: str, device: torch.device) -> None:
        super().__init__(source)
        self._device = device
        self._seen: dict[str, Rows] = {}
        self._model, self._processor = self._open(source)

    @abstractmethod
    def _open(self, source: str) -> tuple[Any, Any]:
        """The model on the CPU, and its image processor. Raises: ModelError."""

    @abstractmethod
    def _embed(self, pixel_values: Tensor) -> Tensor:
        """(B, channels), not yet of length 1."""

    def of_sets(self, sets: Iterable[Made]) -> Iterator[Figures]:
        for made in sets:
            yield self._of_set(made)

    def _of_set(self, made: Made) -> Figures:
        pairs = made_pairs(made)
        if not pairs:
            return {}
        rows = self.pictures(made.panels)
        likeness = rows @ rows.T
        return {"consistency": float(np.mean([likeness[p] for p in pairs]))}

    def across_seeds(self, sets: Sequence[Made]) -> Figures:
        rows = [self.pictures(made.panels) for made in sets]
        return {"diversity": spread(sets, lambda a, b, n: 1 - float(rows[a][n] @ rows[b][n]))}

    def beside(self, pairs: Iterable[tuple[Made, Made]]) -> Iterator[Figures]:
        for made, first in pairs:
            one, other = self.pictures(made.panels), self.pictures(first.panels)
            yield {"as the first": float(np.mean([one[n] @ other[n] for n in made.own]))}

    def pictures(self, pictures: Sequence[Image.Image]) -> Rows:
        """(count, channels) float32, each row of length 1."""
        self._tell_of_cropping(pictures)
        # A set's panels are looked at alone, and again beside those of other seeds.
        keys = [digest(str(picture.size), picture.tobytes()) for picture in pictures]
        new = {key: p for key, p in zip(keys, pictures, strict=True) if key not in self._seen}
        if new:
            rows = self._rows(list(new.values()), self._picture_batch)
            self._seen |= dict(zip(new, rows, strict=True))
        return np.stack([self._seen[key] for key in keys])

    def _picture_batch(self, part: Sequence[Image.Image]) -> Tensor:
        values = self._processor(images=list(part), return_tensors="pt")["pixel_values"]
        return self._embed(values.to(self._device))

    @torch.inference_mode()
    def _rows(self, items: Sequence[Any], embed: Callable[[Sequence[Any]], Tensor]) -> Rows:
        # Opened on the CPU to be checked, it moves when it is needed: the base is gone by then.
        self._model.to(self._device)
        parts = [items[at : at + _TOGETHER] for at in range(0, len(items), _TOGETHER)]
        found = torch.cat([embed(part).float() for part in parts])
        rows: Rows = torch.nn.functional.normalize(found, dim=-1).cpu().numpy()
        return rows

    def _tell_of_cropping(self, pictures: Sequence[Image.Image]) -> None:
        if not getattr(self._processor, "do_center_crop", False):
            return
        for width, height in {picture.size for picture in pictures}:
            if max(width, height) > 1.1 * min(width, height):
                note = f"{self.name} sees the middle square of panels of {width}x{height} px"
                if note not in self.notes:
                    self.notes.append(note)


class Dino(Likeness):
    """Cosine of the class token behind the last norm: DINOv2 and other vision transformers.

    Source: the DINO score of Ruiz et al. 2023 (DreamBooth, arXiv 2208.12242), section 4.1, with
    any backbone; there ViT-S/16.
    """

    name = "dino"
    figures: ClassVar[Mapping[str, str]] = {
        "consistency": _CONSISTENCY,
        "diversity": _DIVERSITY,
        "as the first": _BESIDE,
    }

    def _open(self, source: str) -> tuple[Any, Any]:
        model = _load(transformers.AutoModel, source)
        processor = _load_processor(source)
        size = model.config.image_size if hasattr(model.config, "image_size") else 224
        side = size if isinstance(size, int) else size[0]
        with torch.inference_mode():
            probe = processor(images=[Image.new("RGB", (side, side))], return_tensors="pt")
            try:
                state = model(pixel_values=probe["pixel_values"]).last_hidden_state
            except (TypeError, ValueError, AttributeError) as error:
                raise _unlike(source, f"it takes no pictures alone ({error})") from error
        if state.ndim != 3:
            raise _unlike(source, "it has no class token")
        return model, processor

    def _embed(self, pixel_values: Tensor) -> Tensor:
        state: Tensor = self._model(pixel_values=pixel_values).last_hidden_state
        return state[:, 0]


class Clip(Likeness):
    """Likeness of pictures, and of pictures with words (CLIP-I and CLIP-T).

    Source: Radford et al. 2021 (arXiv 2103.00020); CLIP-I and CLIP-T as in DreamBooth.
    """

    name = "clip"
    main = "adherence"
    figures: ClassVar[Mapping[str, str]] = {
        "consistency": f"CLIP-I: {_CONSISTENCY}",
        "adherence": "CLIP-T: mean likeness of a made panel with its own words",
        "leakage": "mean likeness of a made panel with the other panels' words; lower is better, "
        "though words that are alike raise it as well",
        "own over others": "adherence less leakage: how far a panel shows its own words",
        "diversity": _DIVERSITY,
        "as the first": _BESIDE,
    }

    def __init__(self, source: str, device: torch.device) -> None:
        super().__init__(source, device)
        self._tokenizer = _named(
            source,
            lambda: transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False),
        )
        self._limit = int(self._model.config.text_config.max_position_embeddings)
        self._read: dict[str, bool] = {}

    def _open(self, source: str) -> tuple[Any, Any]:
        # Before it is opened: the weights of another kind would be drawn at random, for seconds.
        config = _named(
            source, lambda: transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        )
        if config.model_type != "clip":
            raise _unlike(source, f"it is a {config.model_type}, not a CLIP")
        return _load(transformers.CLIPModel, source), _load_processor(source)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = self._model.get_image_features(pixel_values=pixel_values).pooler_output
        return found

    def texts(self, texts: Sequence[str]) -> Rows:
        """(count, channels) float32, each row of length 1; long texts are cut, and counted."""
        for text in texts:
            if text not in self._read:
                self._read[text] = len(self._tokenizer(text)["input_ids"]) > self._limit
        cut = sum(self._read.values())
        self.notes = [note for note in self.notes if "longer than" not in note]
        if cut:
            self.notes.append(
                f"{cut} of {len(self._read)} panel texts are longer than the {self._limit} tokens "
                "clip reads: it knows their beginning alone"
            )
        return self._rows(texts, self._text_batch)

    def _text_batch(self, part: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            list(part), padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
        ).to(self._device)
        found: Tensor = self._model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return found

    def _of_set(self, made: Made) -> Figures:
        found = super()._of_set(made)
        if made.words:
            told = self.pictures(made.panels) @ self.texts(made.words).T
            count = len(made.panels)
            own = float(np.mean([told[n, n] for n in made.own]))
            found["adherence"] = own
            if count > 1:
                mixed = [told[n, m] for n in made.own for m in range(count) if m != n]
                others = float(np.mean(mixed))
                found |= {"leakage": others, "own over others": own - others}
        return found


def open_dino(model: str, device: str, url: str | None) -> Dino:
    """For `registry.METRICS`."""
    del url
    return Dino(model, pick_device(device))


def open_clip(model: str, device: str, url: str | None) -> Clip:
    """For `registry.METRICS`."""
    del url
    return Clip(model, pick_device(device))


def _load(kind: Any, source: str) -> Any:
    def open_it() -> Any:
        with building():
            return kind.from_pretrained(
                source, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )

    return _named(source, open_it).eval()


def _load_processor(source: str) -> Any:
    # One way to scale pictures everywhere; with torchvision installed it would be another.
    def open_it() -> Any:
        return transformers.AutoImageProcessor.from_pretrained(
            source, trust_remote_code=False, backend="pil"
        )

    return _named(source, open_it)


def _named(source: str, open_it: Callable[[], Any]) -> Any:
    try:
        return open_it()
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{source} cannot be opened as a metric's model: {lines[0]}",
            "Give a folder in transformers' layout with safetensors weights and its processor, or "
            "a hub id.",
        ) from error


def _unlike(source: str, why: str) -> ModelError:
    return ModelError(
        f"{source} is not the kind of model this metric needs: {why}",
        "dino: wants a vision transformer such as facebook/dinov2-base, clip: a CLIP such as "
        "openai/clip-vit-large-patch14.",
    )
