"""What FLUX.1's toyland computes on canvases, module by module, for `translate`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workshop.toyland.klein.network import new_painter, turn_of
from workshop.toyland.klein.painter import SHARES, TRANSLATED, Scene, Shown, draw_scene
from workshop.toyland.klein.reader import Reader, read_ids
from workshop.toyland.klein.translate import Example, aligned, translate
from workshop.toyland.klein.words import TEXT_TOKENS, message
from workshop.toyland.pretrain.canvases import Encoded
from workshop.toyland.pretrain.stage import Log, save_done

__all__ = ["begin_translated", "example_of", "listening"]

_SAID = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "proj", "proj_mlp")


@contextmanager
def listening(net: Any) -> Iterator[dict[str, Tensor]]:
    """What the modules that `translate` reads give in the next pass, by name."""
    heard: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def run(_module: Any, args: Any, output: Any) -> None:
            if name.endswith(":in"):
                heard[name] = args[0].float()
            elif isinstance(output, tuple):
                heard[f"{name}:text"], heard[f"{name}:image"] = (y.float() for y in output)
            else:
                heard[name] = output.float()

        return run

    hooks = []
    for name, module in net.named_modules():
        last = name.rpartition(".")[2]
        if name in ("context_embedder", "proj_out") or last in _SAID:
            hooks.append(module.register_forward_hook(keep(name)))
        elif last in ("norm2", "norm2_context"):
            hooks.append(module.register_forward_hook(keep(f"{name}:in")))
        elif name.rpartition(".")[0] in ("transformer_blocks", "single_transformer_blocks"):
            hooks.append(module.register_forward_hook(keep(name)))
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def example_of(scene: Scene, shown: Shown, reader: Reader, tokenizer: Any, painter: Any) -> Example:
    """A scene as both see it."""
    ids, mask, offsets = read_ids(tokenizer, scene.texts)
    theirs = shown.pipeline.tokenizer_2(
        scene.texts,
        padding="max_length",
        max_length=TEXT_TOKENS,
        truncation=True,
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    front = message(tokenizer, "\0").index("\0")
    with listening(shown.net) as heard:
        shown(scene)
    to = aligned(
        scene.captions, mask, offsets, front, theirs["offset_mapping"], theirs["attention_mask"]
    )
    turn = turn_of(painter, scene.places, TEXT_TOKENS)
    return Example(scene.noisy, reader(ids, mask).float(), scene.sigma, turn, to, dict(heard))


def begin_translated(
    work: Path,
    log: Log,
    shown: Shown,
    reader: Reader,
    tokenizer: Any,
    data: dict[str, Encoded],
    *,
    seed: int,
    batches: int,
) -> None:
    """Write the painter before any training to work, if it is not there.

    A batch holds what FLUX.1 computes on 8 canvases, some 100 MB.
    """
    done = work / TRANSLATED
    if done.is_file():
        return
    torch.manual_seed(seed)
    painter, examples, texts = new_painter(), [], []
    for number in range(batches):
        rng = random.Random(f"translate {seed} {number}")
        name = rng.choices(list(data), [SHARES[a] for a in data])[0]
        scene = draw_scene(rng, data[name], name, 8)
        examples.append(example_of(scene, shown, reader, tokenizer, painter))
        texts.append(scene.texts[0])
    translate(
        painter, shown.net, examples, shown.pooled(texts), lambda **s: log(stage="translation", **s)
    )
    save_done(done, painter.state_dict())
