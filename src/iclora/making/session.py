"""The one way sets are made: generating, completing, and all that builds on them.

    for number, made in Session(model).make(asks):     # see `asks.asks_of` and `request.prepare`
        made.save_next("OUT")

A session encodes every text once and frees the text encoders before the denoiser is loaded: some
10 GB that are never on an accelerator together with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from iclora.adapter import Adapter, remove
from iclora.adapter.layers import apply
from iclora.errors import AdapterError, SettingsError
from iclora.making.checks import check_adapter
from iclora.making.made import GeneratedSet
from iclora.making.preparing import check_base, prepare
from iclora.making.request import Request
from iclora.making.sampling import AS_IS, Ask, Read, count_steps, load_vae, paint
from iclora.models.base import DiffusionModel, Text
from iclora.progress import Progress
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe
from iclora.settings import Wish, settings_of

__all__ = ["AS_IS", "Ask", "Session", "Shelf", "complete", "generate"]


class Shelf(Protocol):
    """Keeps encoded texts from one session to the next."""

    def get(self, key: tuple[str, ...]) -> Text | None:
        """The text that was put there under this key, if it still is there."""

    def put(self, key: tuple[str, ...], text: Text) -> None:
        """Keep a text, perhaps in place of older ones."""


class Session:
    """Makes sets with one base.

    Args:
        progress: hears of every text encoded and every step painted; `Progress.cancel` ends the
            work between two of them.
        free: free the text encoders before the denoiser is loaded, and the denoiser before they
            are loaded again; by default on an accelerator.
        shelf: where encoded texts are looked for first, and kept.
    """

    def __init__(
        self,
        model: DiffusionModel,
        progress: Progress | None = None,
        free: bool | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.model = model
        self.free = model.device.type != "cpu" if free is None else free
        self._progress = progress or Progress()
        self._shelf = shelf
        self._texts: dict[str, Text] = {}
        self._checked: set[str] = set()
        """Fingerprints that were compared with the base's."""

    def encode(self, requests: Iterable[Request]) -> None:
        """Encode what these requests read, each text once in the session's life.

        A session that is told all its requests at first loads the text encoders once.

        Raises: CaptionError for a text that is too long.
        """
        texts = dict.fromkeys(chain.from_iterable(map(self._read, requests)))
        if self._shelf is not None:
            found = {text: self._shelf.get(self._key(text)) for text in texts}
            self._texts |= {text: kept for text, kept in found.items() if kept is not None}
        wanted = [text for text in texts if text not in self._texts]
        if not wanted:
            return
        if self.free and self.model.offload == "none":
            self.model.release("denoiser")
        for number, text in enumerate(wanted, 1):
            self._texts[text] = self.model.encode_text(text)
            if self._shelf is not None:
                self._shelf.put(self._key(text), self._texts[text])
            self._progress("encoding texts", number, len(wanted))
        if self.free:
            self.model.release("text")

    def _key(self, text: str) -> tuple[str, ...]:
        """All that decides how a text is encoded."""
        model = self.model
        return (model.fingerprint("text"), model.device.type, str(model.dtype), text)

    def _read(self, request: Request) -> tuple[str, ...]:
        """The texts of a request: what panels read and, if the base has one, the unguided pass."""
        two = self.model.sampling.guided == "two-pass"
        return (*request.texts, request.negative) if two else request.texts

    def _encoded(self, request: Request) -> Read:
        two = self.model.sampling.guided == "two-pass"
        guided = tuple(self._texts[text] for text in request.texts)
        return Read(guided, self._texts[request.negative] if two else None)

    def _lengths(self, request: Request) -> tuple[int, ...]:
        """Tokens of each text of a request."""
        guided, unguided = self._encoded(request)
        texts = guided if unguided is None else (*guided, unguided)
        return tuple(map(self.model.text_tokens, texts))

    def make(self, asks: Sequence[Ask], together: int = 1) -> Iterator[tuple[int, GeneratedSet]]:
        """Make a set for every ask.

        Asks with the same adapter are made one after another, and among these the ones that differ
        in seeds, pictures and equally long words alone; else the order is that of the asks.

        Args:
            together: most sets in one batch; 1 gives the same bytes whatever else is asked for.
        Yields: the number of an ask, from 0, and its set, as soon as its batch is made.
        Raises: at once, SettingsError, LayoutError, AdapterError for an ask that cannot be met,
            such as one whose adapter does not fit the base; while sets are made, Cancelled, and
            AdapterError for such an adapter if only the base's weights can tell.
        """
        for ask in asks:
            self._check(ask)
        return self._make(asks, together)

    def _make(self, asks: Sequence[Ask], together: int) -> Iterator[tuple[int, GeneratedSet]]:
        self.encode(ask.request for ask in asks)
        if self.free:
            # Others may have loaded them.
            self.model.release("text")
        load_vae(self.model)
        batches = [
            numbers[at : at + together]
            for numbers in _alike(asks, [self._lengths(ask.request) for ask in asks])
            for at in range(0, len(numbers), together)
        ]
        steps = [count_steps(self.model, asks[batch[0]].request) for batch in batches]
        done = sets = 0
        for batch, count in zip(batches, steps, strict=True):
            first, last = sets + 1, sets + len(batch)
            note = f"set {first}" if first == last else f"sets {first} to {last}"
            note += f" of {len(asks)}"

            def on_step(step: int, _: int, before: int = done, note: str = note) -> None:
                self._progress("painting", before + step, sum(steps), note)

            _use(self.model, asks[batch[0]])
            texts = [self._encoded(asks[number].request) for number in batch]
            made = paint(self.model, [asks[n] for n in batch], texts, on_step)
            for number in batch:
                # Taken out, so that nothing is held here once its taker lets go of it.
                yield number, made.pop(0)
            done, sets = done + count, last

    def _check(self, ask: Ask) -> None:
        request = ask.request
        if set(ask.given) != set(request.given):
            raise SettingsError(
                f"pictures of panels {sorted(ask.given)} are given, and the request is for "
                f"{sorted(request.given)}",
                "Give a picture for each of these.",
                setting="given",
            )
        request.layout.check_grid(self.model.grid)
        if request.base_fingerprint not in self._checked:
            check_base(request, self.model)
            self._checked.add(request.base_fingerprint)
        if ask.adapter is AS_IS:
            encoded = self._texts.keys() >= set(self._read(request))
            assert encoded or not self.free, "texts are encoded before the denoiser is as it is"
        elif _hashes(ask.adapter) != [each.sha256 for each in request.adapters]:
            raise AdapterError(
                "the request was made with another adapter",
                "Use that one, or make a new request.",
                setting="adapter",
            )
        if isinstance(ask.adapter, Adapter):
            check_adapter(self.model, ask.adapter)


def generate(
    model: DiffusionModel,
    prompt: str,
    *,
    recipe: Recipe | None = None,
    adapter: Adapter | None = None,
    given: Mapping[int, Image.Image] | None = None,
    latents: Mapping[int, Tensor] | None = None,
    layout: Layout | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> GeneratedSet:
    """Make a new set from words.

    Args:
        prompt: a joint prompt in the recipe's form.
        recipe, adapter, given, latents, layout: as in `request.prepare`.
        settings: fields of `settings.MakeSettings`, such as size, seed, steps, mode.
    Raises: CaptionError, SettingsError, LayoutError, AdapterError.
    """
    wish = settings_of(Wish, {"prompt": prompt, **settings})
    request, _ = prepare(
        model, wish, recipe=recipe, adapter=adapter, given=given, latents=latents, layout=layout
    )
    ask = Ask(request, given or {}, latents or {}, adapter)
    return next(made for _, made in Session(model, progress).make([ask]))


def complete(
    model: DiffusionModel, prompt: str, given: Mapping[int, Image.Image], **more: Any
) -> GeneratedSet:
    """Make the missing panels of a set; the given ones come back unchanged, pixel for pixel.

    If a given panel's size is off the token grid, the composite holds it resized to its box;
    `GeneratedSet.panels` still holds the picture that was given. Nothing is cropped.

    Args:
        given: pictures by panel number, counted from 1.
        more: as in `generate`.
    Raises: as `generate`; SettingsError if no panel is given, or all are.
    """
    if not given:
        raise SettingsError(
            "no panel is given", "Set `given` to at least one picture.", setting="given"
        )
    return generate(model, prompt, given=given, **more)


# -- order --------------------------------------------------------------------------------------


def _alike(asks: Sequence[Ask], lengths: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Numbers of asks that can share a batch, those of one adapter beside each other.

    Args:
        lengths: tokens of each ask's texts.
    """
    groups: dict[Any, dict[Any, list[int]]] = {}
    for number, (ask, read) in enumerate(zip(asks, lengths, strict=True)):
        r = ask.request
        parts = ask.adapter.parts if isinstance(ask.adapter, Adapter) else (ask.adapter,)
        weights = [part.weights if isinstance(part, Adapter) else part for part in parts]
        carried = (*map(id, weights), r.strength, *(each.strength for each in r.beside))
        how = (r.layout, tuple(sorted(r.given)), r.mode, r.isolate_given, r.boost, r.steps)
        more = (r.guidance, r.resample, r.resample_from, r.text, read)
        groups.setdefault(carried, {}).setdefault(how + more, []).append(number)
    return list(chain.from_iterable(group.values() for group in groups.values()))


def _hashes(adapter: Adapter | None) -> list[str]:
    """Those that requests hold: none for weights that lie in no file."""
    known = adapter and (adapter.sha256 or adapter.beside)
    return [part.sha256 for part in adapter.parts] if adapter and known else []


def _use(model: DiffusionModel, ask: Ask) -> None:
    """Load the ask's adapter into the denoiser, or unload any."""
    if isinstance(ask.adapter, Adapter):
        strengths = [ask.request.strength, *(each.strength for each in ask.request.beside)]
        weights = [part.weights for part in ask.adapter.parts]
        apply(model, list(zip(weights, strengths, strict=True)))
    elif ask.adapter is None:
        remove(model)
