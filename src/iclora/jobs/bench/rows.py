"""What there is to measure: rows as data, the most valuable first.

`takes` is what a row needs on a fast card. No row has run on a GPU yet, so these are estimates:
they decide alone whether a row is begun in the time that is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from iclora.errors import SettingsError
from iclora.settings import nearest

__all__ = ["ROWS", "Row", "Seen", "chosen", "left_out"]

GB = 10**9


@dataclass(frozen=True)
class Row:
    """One thing to measure, in a process of its own."""

    name: str
    about: str
    """What it measures, in one line."""
    call: str
    """The function that measures, "module:function"; it is told a `Bench` and `told`."""
    told: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 120
    """Seconds after which its process is ended."""
    takes: int = 20
    """Seconds that it is expected to take; with less time left it is not begun."""
    on: Literal["any", "card", "cpu"] = "any"
    """The kind of device it is for."""
    packages: tuple[str, ...] = ("diffusers", "peft", "transformers")
    """Packages it needs beside torch."""
    memory: float = 0
    """GB (10^9 bytes) of a card that it needs."""
    disk: float = 0
    """GB of free disk that it needs."""
    script: str | None = None
    """The file in the repository's folder benchmarks/ that it runs."""


def _script(name: str, about: str, script: str, told: Mapping[str, Any], **more: Any) -> Row:
    call = "iclora.jobs.bench.scripts:run"
    return Row(name, about, call, {"script": script, "settings": told}, script=script, **more)


_WALKS = {
    "smoke": ("verbs", "verbs that train and make, on {}", 120, 15),
    "precisions": (
        "precisions",
        "training and making on {} in fp8, int8 and nf4, resumed, blocks recomputed, streamed",
        150,
        18,
    ),
    "compile": (
        "compiled",
        "a run of three steps with compiled blocks on {}, and the time of compiling",
        200,
        60,
    ),
}
"""The function of `smoke`, what it measures on a base, its limit, and what it takes."""


def _walk(sort: str, base: str) -> Row:
    function, about, limit, takes = _WALKS[sort]
    called = f"iclora.jobs.bench.smoke:{function}"
    on = base if base == "toyland" else f"{base} (random weights)"
    told = {"base": base}
    return Row(f"{sort}-{base}", about.format(on), called, told, limit=limit, takes=takes)


_TINY = ("tiny-klein", "tiny-zimage", "tiny-krea", "tiny-qwen")
_DEV = "black-forest-labs/FLUX.1-dev"
_KLEIN = "black-forest-labs/FLUX.2-klein-base-4B"
_CARDS = (80, 24, 16, 48, 12)
"""GB of the presets' cards, the ones that say most first."""
_TRUE = {"true_size": True, "rounds": 2}
_SQUARE = {"true_size": True, "width": 512, "height": 512}
_REPLAYED = ["ours", "ours-graphs", "ours-compiled", "ours-compiled-graphs"]
_SMALL = {"width": 256, "height": 384, "batch": 2, "rounds": 1}

ROWS: tuple[Row, ...] = (
    Row(
        "card",
        "the device: memory, matrix products in bf16 and fp8, copies",
        "iclora.jobs.bench.card:card",
        limit=180,
        takes=15,
        packages=(),
    ),
    _walk("smoke", "tiny"),
    Row(
        "equal",
        "velocity, loss, gradient and picture against a CPU's in float32, on six bases",
        "iclora.jobs.bench.equality:equal",
        limit=150,
        takes=30,
    ),
    _script(
        "train-dev",
        "a training step at FLUX.1-dev's size, 1024x1536, batch 4: ours against diffusers' script",
        "train_step.py",
        {**_TRUE, "arms": ["script", "ours"]},
        limit=150,
        takes=50,
        on="card",
        memory=70,
    ),
    _script(
        "memory-dev",
        "the peak of a step at FLUX.1-dev's size against the count of `iclora plan`, five presets",
        "peak_memory.py",
        {"presets": [f"official-{size}gb" for size in _CARDS]},
        limit=180,
        takes=60,
        on="card",
        memory=20,
    ),
    _script(
        "sample-dev",
        "20 steps at FLUX.1-dev's size, 1024x1536, with an adapter: ours, in bf16 and fp8, against "
        "diffusers",
        "sample_step.py",
        {"true_size": True, "arms": ["diffusers", "ours", "ours-each", "ours-beside", "ours-fp8"]},
        limit=160,
        takes=60,
        on="card",
        memory=34,
    ),
    Row(
        "attention",
        "torch's attention kernels at the sizes of training, and the choice among them",
        "iclora.jobs.bench.attention:kernels",
        limit=90,
        takes=12,
        packages=(),
    ),
    Row(
        "layers",
        "frozen layers in int8, nf4 and fp8: ours beside torchao's, bitsandbytes' and quanto's",
        "iclora.jobs.bench.layers:kinds",
        limit=120,
        takes=25,
    ),
    _script(
        "train-dev-compiled",
        "the same step with compiled blocks, against diffusers compiled and without recomputing",
        "train_step.py",
        {**_TRUE, "arms": ["script-best", "ours-compiled"], "peer_micro": 1},
        limit=300,
        takes=140,
        on="card",
        memory=79,
    ),
    _walk("smoke", "toyland"),
    _script(
        "cached-dev",
        "completing at FLUX.1-dev's size with kept keys and values, 1 given and 1 made",
        "cached_completion.py",
        {"true_size": True, "rounds": 5, "cases": [[1, 1]]},
        limit=120,
        takes=30,
        on="card",
        memory=30,
    ),
    _script(
        "sample-klein-512",
        "20 steps at klein 4B's size, 512x512, with an adapter: ours, plain, compiled and with "
        "replayed passes, against diffusers",
        "sample_step.py",
        {**_SQUARE, "base": "klein", "arms": ["diffusers", *_REPLAYED]},
        limit=180,
        takes=60,
        on="card",
        memory=16,
    ),
    *(_walk("smoke", base) for base in _TINY),
    *(_walk("precisions", base) for base in ("tiny", "toyland", *_TINY)),
    _script(
        "memory-klein",
        "the same peaks at FLUX.2-klein-base-4B's size",
        "peak_memory.py",
        {"presets": [f"klein-{size}gb" for size in _CARDS]},
        limit=150,
        takes=45,
        on="card",
        memory=20,
    ),
    _script(
        "train-klein",
        "a training step at klein 4B's size, 1024x1536, batch 4: ours against diffusers' script",
        "klein_step.py",
        {**_TRUE, "width": 1024, "height": 1536},
        limit=150,
        takes=40,
        on="card",
        memory=75,
    ),
    Row(
        "encode",
        "texts and pictures at true size: T5 and CLIP, Qwen3-4B, the VAE",
        "iclora.jobs.bench.encoding:encode",
        {"bases": [_DEV, _KLEIN]},
        limit=150,
        takes=40,
        on="card",
        memory=16,
    ),
    *(_walk("compile", base) for base in ("tiny", "toyland")),
    _script(
        "train-dev-all",
        "the step with a LoRA on every linear layer: ours against ai-toolkit's way",
        "train_step.py",
        {**_TRUE, "arms": ["ai-toolkit", "ours-all"]},
        limit=180,
        takes=60,
        on="card",
        memory=79,
    ),
    Row(
        "first-picture",
        "from the start of a command to its first picture: klein 4B's size, from a warm disk",
        "iclora.jobs.bench.starting:first_picture",
        {"base": _KLEIN},
        limit=240,
        takes=100,
        on="card",
        memory=20,
        disk=24,
    ),
    _script(
        "sample-dev-512",
        "20 steps at FLUX.1-dev's size, 512x512: ours, plain, compiled and with replayed passes",
        "sample_step.py",
        {**_SQUARE, "arms": _REPLAYED},
        limit=200,
        takes=75,
        on="card",
        memory=34,
    ),
    _script(
        "sample-dev-compiled",
        "the 20 steps at 1024x1536: ours, plain, compiled and with replayed passes, against "
        "diffusers with compiled blocks",
        "sample_step.py",
        {"true_size": True, "arms": ["diffusers-compiled", *_REPLAYED]},
        limit=260,
        takes=125,
        on="card",
        memory=34,
    ),
    _script(
        "sample-dev-streamed",
        "the same 20 steps with the base on the card, and with blocks that come to it one ahead",
        "sample_step.py",
        {"true_size": True, "arms": ["ours", "ours-streamed"]},
        limit=180,
        takes=60,
        on="card",
        memory=34,
    ),
    Row(
        "encode-small",
        "texts and pictures on tiny bases",
        "iclora.jobs.bench.encoding:encode",
        {"bases": ["tiny", "tiny-klein"], "small": True},
        on="cpu",
    ),
    _script(
        "memory-small",
        "the peak of a pass of a small FLUX.1 against the count of `iclora plan`",
        "peak_memory.py",
        {"presets": ["official-12gb"], "smoke": True},
        limit=240,
        on="cpu",
    ),
    _script(
        "train-small",
        "a training step of a 69M FLUX.1, 256x384, batch 2: ours against diffusers' script",
        "train_step.py",
        {**_SMALL, "arms": ["script", "ours"]},
        on="cpu",
    ),
    _script(
        "sample-small",
        "4 steps of a 69M FLUX.1 at 256x384 with an adapter: ours against diffusers",
        "sample_step.py",
        {"width": 256, "height": 384, "steps": 4, "arms": ["diffusers", "ours"]},
        on="cpu",
    ),
    _script(
        "cached-small",
        "completing on a 69M FLUX.1 with kept keys and values, 1 given and 1 made",
        "cached_completion.py",
        {"rounds": 1, "cases": [[1, 1]]},
        limit=240,
        takes=40,
        on="cpu",
    ),
    Row(
        "first-picture-small",
        "from the start of a command to its first picture: toyland",
        "iclora.jobs.bench.starting:first_picture",
        {"base": "toyland"},
        takes=30,
        on="cpu",
    ),
)
"""All rows, in their order of worth."""


def chosen(names: Sequence[str], rows: Iterable[Row] = ROWS) -> list[Row]:
    """The rows of these names or beginnings of names, in their order; all if none is named.

    Raises: SettingsError for a name that no row has.
    """
    rows = list(rows)
    exact = {row.name for row in rows} & set(names)
    begun = tuple(set(names) - exact)
    for name in begun:
        if not any(row.name.startswith(name) for row in rows):
            near = nearest(name, {row.name: row.name for row in rows})
            raise SettingsError(
                f'there is no row "{name}"',
                (f"Did you mean {near}? " if near else "")
                + f"The rows are {', '.join(row.name for row in rows)}.",
                setting="rows",
            )
    return [r for r in rows if not names or r.name in exact or r.name.startswith(begun)]


@dataclass(frozen=True)
class Seen:
    """What a machine has, by which rows are left out."""

    card: bool
    """True if a CUDA card was opened."""
    memory: float = 0
    """GB of the card that are free."""
    disk: float = 0
    """GB that are free where rows may write."""
    packages: frozenset[str] = frozenset()
    """Those that are installed, of the ones that rows need."""
    scripts: frozenset[str] = frozenset()
    """Files of the folder benchmarks/, if there is one."""
    no_card: str = "this machine has no CUDA card that torch can use"
    """Why there is none."""


def left_out(row: Row, seen: Seen) -> str | None:
    """Why a row cannot run on this machine; None if it can."""
    if row.on == "card" and not seen.card:
        return f"it needs a card: {seen.no_card}"
    if row.on == "cpu" and seen.card:
        return "it stands for others where there is no card"
    missing = [name for name in row.packages if name not in seen.packages]
    if missing:
        return f"it needs {' and '.join(missing)}, not installed here"
    if row.script and row.script not in seen.scripts:
        return f"it runs benchmarks/{row.script} of the repository, which is not here"
    if row.on == "card" and row.memory > seen.memory:
        return f"it needs {row.memory:g} GB of free memory on the card, which has {seen.memory:.1f}"
    if row.disk > seen.disk:
        return f"it needs {row.disk:g} GB of free disk, and there are {seen.disk:.1f}"
    return None
