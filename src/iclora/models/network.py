"""A family's forward pass: what is before, in and behind its blocks, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from iclora.models.double import of_silu
from iclora.models.graphs import Keyed
from iclora.models.passes import Block, Pass, Shapes, Streams, as_block, modulate, run_block
from iclora.models.streaming import Stream
from iclora.models.widened import lend

__all__ = ["Network", "read_out", "shard"]


@dataclass(frozen=True)
class Network:
    """A pass whose parts can also be run and counted one by one (`iclora.models.outline`)."""

    embed: Callable[..., tuple[Streams, Pass]]
    """(net, inputs, attention, shapes) to the input of the first block, and what all share."""
    modules: Callable[[Any], list[tuple[Callable[..., Streams], nn.Module]]]
    """The blocks in order, each behind the function of (block, *streams, pass) that runs it."""
    read_out: Callable[[Any, Streams, Pass], Tensor]
    """(net, streams behind the last block, pass) to what the network gives."""
    modulating: Callable[[Any], Sequence[nn.Module]] = lambda _: ()
    """The layers of a block that modulate it, which it gives to `Pass.made`; none in a family whose
    blocks share theirs."""

    def __call__(
        self,
        net: Any,
        inputs: Any,
        attention: Any,
        *,
        recompute: int = 0,
        shapes: Shapes | None = None,
        graphs: Keyed | None = None,
    ) -> Tensor:
        """Run the whole pass.

        Args:
            net: the transformer, with LoRA layers or without.
            inputs, attention: as the family's `embed` takes them.
            recompute: how many of the blocks keep their input alone for the backward pass.
            shapes: those that blocks are compiled for; None compiles none.
            graphs: those that the pass is recorded in, or replayed from; None runs it as it is.
        """
        # A spread network gathers its weights around its own call.
        run: Any = net if isinstance(net, FSDPModule) else partial(self._whole, net)
        if graphs is not None:
            return graphs.run(lambda inputs: run(inputs, attention, 0, shapes), inputs, attention)
        out: Tensor = run(inputs, attention, recompute, shapes)
        return out

    def _whole(
        self, net: Any, inputs: Any, attention: Any, recompute: int, shapes: Shapes | None
    ) -> Tensor:
        streams, shared = self.embed(net, inputs, attention, shapes)
        for number, block in enumerate(self.blocks(net)):
            streams = run_block(block, streams, shared, number < recompute)
        return self.read_out(net, streams, shared)

    def blocks(self, net: Any) -> list[Block]:
        """The blocks in order, as functions of (*streams, pass)."""
        return [as_block(run, module, self.modulating) for run, module in self.modules(net)]

    def stream(self, net: Any, device: torch.device) -> None:
        """Have the blocks' weights come to a device one ahead; see `iclora.models.streaming`."""
        Stream([block for _, block in self.modules(net)], device, self.modulating)

    def shard(self, net: Any, mesh: Any) -> None:
        """Spread the weights over a device mesh; see `shard`."""
        shard(net, self._whole, self.modules(net), mesh)


def shard(
    net: nn.Module,
    forward: Callable[..., Any],
    blocks: Sequence[tuple[Callable[..., Streams], nn.Module]],
    mesh: Any,
) -> None:
    """Spread a network's weights over a device mesh (FSDP2).

    A block's weights are gathered for its forward pass and again for its backward pass, and freed
    behind each. The network itself is the one root, so that the next block is gathered while one
    computes, and it spreads what stands outside the blocks. Only what is there now is spread: a
    LoRA that is added later is whole on every device. From here on every process of the mesh must
    run every pass. Blocks are brought to the mesh's device one by one.

    Args:
        forward: the whole pass, called with the network first.
        blocks: each block with the function of (block, *streams, pass) that runs it.
    """
    lend(net)
    # FSDP gathers around a module's call, so that call must be our pass, not diffusers'.
    module: Any
    for run, module in blocks:
        module.forward = partial(run, module)
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    module = net
    module.forward = partial(forward, net)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def read_out(net: Any, streams: Streams, shared: Pass) -> Tensor:
    """The velocity from what the last block made of the image's tokens: FLUX's and Qwen-Image's."""
    img = streams[0]
    mod = shared.made(net.norm_out.linear, of_silu)
    scale, shift = mod.to(img.dtype).chunk(2, -1)
    out: Tensor = net.proj_out(modulate(img, shift, scale, shared.tokens))
    return out
