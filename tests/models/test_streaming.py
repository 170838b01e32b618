"""Blocks that come to the device one ahead, against the same blocks whole on it.

The device is the CPU here, as the place that blocks lie in: what is copied, when and where is the
same, but for the streams of a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iclora.adapter import attach, remove
from iclora.adapter.layers import apply
from iclora.models import load_model
from iclora.models.levels import Schedule
from iclora.models.streaming import Stream, arrive, block_bytes, slot_bytes
from iclora.models.widened import widened
from iclora.settings import Machine
from iclora.train.costs import Costs
from tests.conftest import CAPTION

SIZE = (64, 48)
NAMES = {
    "tiny": "clean",
    "tiny-klein": "klein",
    "tiny-zimage": "zimage",
    "tiny-krea": "krea",
    "tiny-qwen": "qwen",
}


@pytest.fixture(params=NAMES)
def pair(request):
    """A base whose blocks stream, and the same one whole."""
    whole = request.getfixturevalue(NAMES[request.param])
    streamed = load_model(request.param, "cpu", "fp32")
    streamed.offload = "blocks"
    streamed.max_text_tokens = whole.max_text_tokens
    yield streamed, whole
    remove(whole)
    whole.recompute = 0


def velocity(model, text, unguided=None):
    tokens = SIZE[0] * SIZE[1] // model.grid**2
    z = torch.randn(1, tokens, model.channels, generator=torch.Generator().manual_seed(1))
    free = None if unguided is None else [unguided]
    return model.velocity(z, torch.tensor([0.6]), [text], SIZE, 3.0, None, free)


def drawn(model):
    """A LoRA on every linear layer."""
    generator = torch.Generator().manual_seed(2)
    shapes = {n: model.denoiser.get_submodule(n).weight.shape for n in model.lora_targets("all")}
    weights = {}
    for name, (out, width) in shapes.items():
        weights[f"{name}.lora_A.weight"] = torch.randn(31, width, generator=generator) / 4
        weights[f"{name}.lora_B.weight"] = torch.randn(out, 31, generator=generator)
    return weights


def test_a_pass_is_the_same_to_the_bit_and_with_an_adapter_to_rounding(pair):
    streamed, whole = pair
    text, free = whole.encode_text(CAPTION), None
    if whole.sampling.guided == "two-pass":
        free = whole.encode_text("")
    with torch.no_grad():
        plain = velocity(whole, text, free)
        for _ in range(2):
            assert torch.equal(velocity(streamed, text, free), plain)
        weights = drawn(whole)
        for model in pair:
            apply(model, [(weights, 0.1)])
        found, expected = (velocity(model, text, free) for model in pair)
        # Whole on the device, weights take the LoRA into their product.
        assert widened(whole.denoiser)
        assert not widened(streamed.denoiser)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, plain, atol=1e-2)
        remove(whole)
        assert torch.equal(velocity(whole, text, free), plain)


def test_steps_that_are_modulated_together_are_the_same_to_the_bit_in_every_sampling(pair):
    streamed, whole = pair
    text = whole.encode_text(CAPTION)
    z = torch.randn(1, 12, whole.channels, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for steps in (3, 2):  # The second sampling reads them again.
            sigmas, found = whole.sigmas(steps, 12), []
            for model in pair:
                with Schedule(sigmas) as schedule:
                    for sigma in sigmas[:-1]:
                        level, step = torch.tensor([sigma]), schedule.at(sigma)
                        v = model.velocity(z, level, [text], SIZE, 3.0, step=step)
                        found.append(v)
            assert all(map(torch.equal, found[:steps], found[steps:]))
    # What blocks modulate themselves by comes last, and only where they do.
    spared = 0
    for block in blocks_of(streamed):
        stream, number = block.__dict__["_arrival"]
        less = sum(map(block_bytes, streamed.passes.modulating(block)))
        assert stream._needed[number] == block_bytes(block) - less
        spared += less
    assert (spared > 0) == (whole.family in ("flux", "zimage", "qwen-image"))


def test_the_gradients_of_a_lora_are_the_same_to_the_bit(pair):
    text, found = pair[1].encode_text(CAPTION), []
    for model in pair:
        lora = attach(model, rank=2, alpha=2.0, targets="all", seed=3)
        for name, parameter in lora.items():
            if ".lora_B." in name:
                nn.init.ones_(parameter)
        model.recompute = model.blocks
        for _ in range(2):
            velocity(model, text).square().mean().backward()
        # Of the last text stream nothing is read in some families.
        grads = {n: p.grad for n, p in lora.items() if p.grad is not None}
        found.append(grads)
    assert found[1]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_that_stream_compile_once_and_give_the_same(counted):
    """Every block's tensors stay where they are: what was compiled for them holds."""
    model = load_model("tiny-zimage", "cpu", "fp32")
    text = model.encode_text(CAPTION)
    with torch.no_grad():
        expected = velocity(model, text)
        model.release("denoiser")
        model.offload, model.compiled = "blocks", frozenset({"sampling"})
        found, began = [velocity(model, text)], counted()
        found += [velocity(model, text) for _ in range(2)]
    assert counted() == began
    for each in found:
        torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-5)


def test_two_places_hold_what_plan_counts(pair):
    from iclora.models.outline import outline_of
    from iclora.settings import TrainSettings

    streamed, whole = pair
    stream = streamed.denoiser and next(
        m.__dict__["_arrival"][0] for m in streamed.denoiser.modules() if "_arrival" in m.__dict__
    )
    inside = {id(t) for block in blocks_of(streamed) for t in tensors(block)}
    rest = sum(t.nbytes for t in tensors(streamed.denoiser) if id(t) not in inside)
    settings = TrainSettings(base="tiny", data="d", out="o", offload="blocks")
    costs = Costs(outline_of(whole, torch.float32, "full"), settings, "cpu")
    assert costs.weights == rest + sum(len(slot) for slot in stream._slots)
    if whole.blocks > 2:
        assert costs.weights < sum(t.nbytes for t in tensors(whole.denoiser))
    assert costs.text() == 0


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def blocks_of(model):
    return [m for m in model.denoiser.modules() if "_arrival" in m.__dict__]


# -- the order of copies --------------------------------------------------------------------------


@pytest.fixture
def line():
    """Five blocks of unlike sizes, on what they hold, and the numbers of those that were copied."""
    blocks = [nn.Linear(n, 3).requires_grad_(False) for n in (5, 2, 7, 1, 4)]
    before = [[t.clone() for t in tensors(block)] for block in blocks]
    stream, copied = Stream(blocks, torch.device("cpu")), []
    begin = stream._begin

    def watch(number, whole):
        if stream._there[number % 2][0] != number:
            copied.append(number)
        begin(number, whole)

    stream._begin = watch
    return blocks, before, copied


def test_each_block_holds_its_own_when_it_has_arrived_in_any_order(line):
    blocks, before, _ = line
    for number in (0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 3, 0, 4, 2, 2):
        arrive(blocks[number])
        for now, then in zip(tensors(blocks[number]), before[number], strict=True):
            assert torch.equal(now, then)
            assert now.data_ptr() % 64 == blocks[number].weight.data_ptr() % 64


def test_the_next_block_is_copied_while_one_computes_forwards_and_backwards(line):
    blocks, _, copied = line
    for number in range(5):
        arrive(blocks[number])
    # One is there when it is needed, the next on its way; the first has the last one's place.
    assert copied == [0, 1, 2, 3, 4]
    for number in (4, 3, 2, 1, 0):
        arrive(blocks[number])
    assert copied[5:] == [2, 1, 0]
    for number in range(5):
        arrive(blocks[number])
    assert copied[8:] == [2, 3, 4]


def test_what_is_spared_comes_when_it_is_wanted_and_not_before():
    blocks = [
        nn.Sequential(nn.Linear(9, 9), nn.Linear(5, 5)).requires_grad_(False) for _ in range(3)
    ]
    before = [[t.clone() for t in tensors(block)] for block in blocks]
    stream = Stream(blocks, torch.device("cpu"), lambda block: [block[0]])
    for whole in (True, False, True):
        if not whole:
            stream._there = [(None, 0)] * 2
            for slot in stream._slots:
                slot.zero_()
        for number, block in enumerate(blocks):
            arrive(block, whole)
            same = [torch.equal(*each) for each in zip(tensors(block), before[number], strict=True)]
            assert same == [whole, whole, True, True]
            size = block_bytes(block if whole else block[1])
            assert stream._there[number % 2] == (number, size)


def test_places_are_as_large_as_the_largest_of_the_blocks_that_take_turns_there(line):
    blocks, _, _ = line
    sizes = [block_bytes(block) for block in blocks]
    assert slot_bytes(sizes) == (max(sizes[0], sizes[2], sizes[4]), max(sizes[1], sizes[3]))
    arrive(nn.Linear(2, 2))  # One of no stream stays as it is.


# -- text encoders --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_text_encoders_that_stay_compute_on_the_cpu_whatever_the_base_computes_on(name, request):
    expected = request.getfixturevalue(NAMES[name])
    model = type(expected)(expected.folder, name, torch.device("cuda"), torch.float32)
    model.max_text_tokens = expected.max_text_tokens
    assert model.text_device.type == "cuda"
    model.offload = Machine(offload="text").offload
    found = model.encode_text(CAPTION)
    assert all(torch.equal(found[k], v) for k, v in expected.encode_text(CAPTION).items())
