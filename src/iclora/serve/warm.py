"""What a worker keeps from one job to the next: a base, adapters, encoded texts.

Everything kept is bounded: one base, so many bytes of adapters and of texts; what was used longest
ago goes first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from iclora.adapter import Adapter
from iclora.adapter.locate import locate
from iclora.errors import IcloraError
from iclora.jobs.opening import Opener, compiled_by, record_by
from iclora.making.checks import check_adapter
from iclora.making.preparing import prepare
from iclora.making.session import Ask, Session
from iclora.models.base import PARTS, DiffusionModel, Text
from iclora.models.registry import pick_device, pick_dtype
from iclora.progress import Progress
from iclora.settings import Machine, Wish

__all__ = ["Lru", "Warm"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Stamp = tuple[tuple[str, int, int, int], ...]
"""Names, sizes, times and numbers of files: others mean that they were written again."""


class Lru(Generic[K, V]):
    """Values that were used last, up to a number of bytes.

    Args:
        limit: bytes; a value that is larger alone is not kept.
        size: bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self.limit = limit
        self.bytes = 0
        """Of all values that are kept."""
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        """The value of a key, if it is still kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value, and drop those that were used longest ago if there is no room."""
        old = self._kept.pop(key, None)
        self.bytes -= 0 if old is None else self._size(old)
        size = self._size(value)
        if size > self.limit:
            return
        self._kept[key] = value
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= self._size(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        """Drop all of them."""
        self._kept.clear()
        self.bytes = 0


class Warm(Opener):
    """Opens what is not open yet, and keeps it.

    Args:
        adapters: bytes of adapters that stay in the machine's memory.
        texts: bytes of encoded texts; one of FLUX.1 takes 4 MB in bf16.
    """

    def __init__(self, adapters: int = 4 * 2**30, texts: int = 2**28) -> None:
        self.adapters: Lru[str, tuple[Stamp, Adapter]] = Lru(adapters, lambda kept: _held(kept[1]))
        self.texts: Lru[tuple[str, ...], Text] = Lru(texts, _bytes)
        self._base: tuple[tuple[object, ...], Stamp, DiffusionModel] | None = None
        self._rules: tuple[str, Stamp, DiffusionModel] | None = None
        self._reading = threading.RLock()
        """Adapters are read for jobs, and for who asks if they fit."""

    def base(self, name: str, machine: Machine) -> DiffusionModel:
        """The base that is held if it is this one, unchanged; else this one in its place."""
        # A set that is made again names what a wish leaves to the machine.
        device = pick_device(machine.device)
        how = (pick_dtype(machine.dtype, device), machine.precision, machine.offload)
        wanted = (name, device, *how)
        if self._base and self._base[0] == wanted and self._base[1] == _stamp(self._base[2]):
            self._base[2].compiled = compiled_by(machine)
            record_by(self._base[2], machine)
            return self._base[2]
        self.release()
        model = super().base(name, machine)
        # On a GPU the text encoders and the denoiser take turns with every new text.
        model.rests = model.device.type == "cuda"
        self._base = wanted, _stamp(model), model
        return model

    def adapter(self, source: str) -> Adapter:
        """An adapter; the same object as before as long as its file is the same."""
        with self._reading:
            return self._adapter(source)

    def check_fit(self, base: str, source: str) -> None:
        """Find out if a base takes an adapter, whatever base is held; from any thread.

        Raises: AdapterError if it does not; ModelError if the base is not at hand.
        """
        check_adapter(self.rules(base), self.adapter(source))

    def rules(self, name: str) -> DiffusionModel:
        """As `Opener.rules`; the one that was asked for last is kept, with its modules' names."""
        with self._reading:
            kept = self._rules
            if kept is None or kept[0] != name or kept[1] != _stamp(kept[2]):
                model = super().rules(name)
                # Once weights load, no other thread can work names out until that is done.
                Adapter({}).check(model)
                kept = self._rules = name, _stamp(model), model
            return kept[2]

    def _adapter(self, source: str) -> Adapter:
        path = locate(source)
        # PEFT's scale stands in a file of its own.
        stamp = _files((path, path.with_name("adapter_config.json")))
        key = str(path.resolve())
        kept = self.adapters.get(key)
        if kept and kept[0] == stamp:
            return kept[1]
        adapter = super().adapter(str(path))
        self.adapters.put(key, (stamp, adapter))
        return adapter

    def session(self, model: DiffusionModel, progress: Progress) -> Session:
        return Session(model, progress, shelf=self.texts)

    def paint_once(self, model: DiffusionModel, sources: Iterable[str]) -> Iterator[str]:
        """Paint a step with each adapter, once for all of one canvas and shape.

        Blocks are compiled then, and no job waits for it.

        Yields: why an adapter was left out, if it cannot be used.
        """
        seen = set()
        for source in sources:
            try:
                adapter = self.adapter(source)
                recipe = adapter.info.recipe if adapter.info else None
                if recipe is None:
                    continue
                wish = Wish(prompt=recipe.example, steps=1)
                request, _ = prepare(model, wish, adapter=adapter)
                shapes = tuple(sorted((n, t.shape) for n, t in adapter.weights.items()))
                if (request.layout.size, shapes) in seen:
                    continue
                seen.add((request.layout.size, shapes))
                for _ in self.session(model, Progress()).make([Ask(request, {}, {}, adapter)]):
                    pass
            except IcloraError as error:
                yield f"not painted once: {source}: {error}"

    def release(self) -> None:
        """Let go of the base."""
        if self._base:
            self._base[2].rests = False
            self._base[2].release(*PARTS)
        self._base = None


def _stamp(model: DiffusionModel) -> Stamp:
    wanted = (".safetensors", ".json", ".txt", ".model", ".jinja")
    files = (path for path in model.folder.rglob("*") if path.suffix in wanted)
    return _files(sorted(files))


def _files(paths: Iterable[Path]) -> Stamp:
    found = []
    for path in paths:
        try:
            about = path.stat()
        except OSError:
            continue
        found.append((str(path), about.st_size, about.st_mtime_ns, about.st_ino))
    return tuple(found)


def _bytes(text: Text) -> int:
    return sum(tensor.nbytes for tensor in text.values())


def _held(adapter: Adapter) -> int:
    return sum(tensor.nbytes for tensor in adapter.weights.values())
