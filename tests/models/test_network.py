"""How a network's weights are spread over processes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from iclora.models.network import shard


@pytest.fixture
def mesh():
    """One process, as a group of its own."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))


def run_one(block, x):
    return nn.functional.linear(x, block.weight, block.bias)


def run_all(net, x):
    x = net.embed(x)
    for block in net.blocks:
        x = block(x) if isinstance(block, FSDPModule) else run_one(block, x)
    return net.last(x)


def test_a_spread_network_has_one_root_over_all_its_blocks(mesh):
    """Blocks that are roots of their own are gathered and computed one after the other."""
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 4)
    whole = run_all(net, x)
    shard(net, run_all, [(partial(run_one), block) for block in net.blocks], mesh)
    assert torch.equal(net(x), whole)
    states = {
        name: m._get_fsdp_state() for name, m in net.named_modules() if isinstance(m, FSDPModule)
    }
    assert [name for name, state in states.items() if state._is_root] == [""]
    assert set(states) == {"", "blocks.0", "blocks.1", "blocks.2"}
    # They share the streams of the root, on which the next is gathered while one computes.
    assert len({id(state._comm_ctx) for state in states.values()}) == 1
