"""Recorded and replayed passes against the same passes run as they are, to the bit.

There is no CUDA graph on a CPU. In its place stands a tape that is as blind: it records the
operations of a pass without keeping what they gave, and runs these again on the tensors they read,
no Python between them. What it leaves in memory that others may use is spoilt.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iclora.adapter import Adapter, attach, remove
from iclora.adapter.layers import apply
from iclora.jobs.bench import smoke
from iclora.jobs.bench.equality import replayed
from iclora.jobs.opening import Opener, record_by
from iclora.making.session import Ask, Session
from iclora.models import flow
from iclora.models.base import Given, Panels
from iclora.models.graphs import Graphs, graphs_for, prevented
from iclora.models.levels import Schedule
from iclora.models.widened import narrow, widened
from iclora.settings import MakingMachine
from tests.conftest import CAPTION, picture
from tests.making.helpers import prepared, told
from tests.models.conftest import FAMILIES
from tests.models.helpers import random_lora, tensors

NAMES = {"tiny": "brief", **FAMILIES}


class Tape(TorchDispatchMode):
    """Operations as they come, and what they read of the world outside."""

    def __init__(self):
        super().__init__()
        self.steps, self.own, self.outside = [], {}, {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # A card would have to wait for what it has not computed.
        assert op is not torch.ops.aten._local_scalar_dense.default, "the host reads a number"
        read = list(tensors((args, *kwargs.values())))
        out = op(*args, **kwargs)
        places = {x.untyped_storage()._cdata for x in read}
        for x in read:
            place = x.untyped_storage()._cdata
            if place not in self.own:
                self.outside[place] = x
        for x in tensors(out):
            if x.untyped_storage()._cdata not in places:
                self.own[x.untyped_storage()._cdata] = x
        self.steps.append((op, args, kwargs, out))
        return out

    def spoil(self, but=None):
        for x in self.own.values():
            if but is None or x.untyped_storage()._cdata != but.untyped_storage()._cdata:
                whole = x.new_empty(0).set_(x.untyped_storage())
                whole.fill_(float("nan") if x.is_floating_point() or x.is_complex() else 0)


@dataclass
class Taped:
    tape: Tape
    out: torch.Tensor
    recorder: CpuRecorder
    freed: bool = False

    def replay(self):
        assert not self.freed
        self.recorder.replays += 1
        self.out.fill_(float("nan"))
        for op, args, kwargs, out in self.tape.steps:
            again = op(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                    old.copy_(new)
        self.tape.spoil(but=self.out)
        return self.out

    def free(self):
        self.freed = True


class CpuRecorder:
    def __init__(self):
        self.warmed = self.replays = 0
        self.made = []
        """Every recording, also those that were freed."""

    def warm(self, run):
        self.warmed += 1
        return run()

    def record(self, run):
        with Tape() as tape:
            out = run()
        # A capture computes nothing.
        tape.spoil()
        self.made.append(Taped(tape, out, self))
        return self.made[-1]

    @property
    def alive(self):
        return [each for each in self.made if not each.freed]


# -- whole samplings ------------------------------------------------------------------------------


@pytest.fixture
def recorder():
    return CpuRecorder()


@pytest.fixture
def base(request, monkeypatch):
    """A base, whose passes a test may record on the CPU."""
    model = request.getfixturevalue(NAMES[getattr(request, "param", "tiny-klein")])
    monkeypatch.setattr(model, "max_text_tokens", min(model.max_text_tokens, 96))
    remove(model)
    yield model
    model.graphs = None
    remove(model)


def asks_of(model, lora):
    """What differs between passes: canvas, given panels and how they are read, texts, adapter."""
    panels = {2: picture(48, 32, 2)}
    kept = {"mode": "clean", "isolated": True}
    wishes = [
        ({}, {}, None),
        ({}, {"size": (96, 48)}, None),  # As many tokens.
        (panels, kept, None),
        ({1: picture(48, 32, 1)}, {"mode": "boost", "resample": 1}, None),
        (panels, {"text": "isolated", **kept}, None),
        ({}, {"prompt": CAPTION + " At last.", "seed": 3}, lora),
    ]
    if model.reads_references:
        wishes.append((panels, {"mode": "reference"}, None))
    for given, more, adapter in wishes:
        told_more = {"prompt": CAPTION, **told(steps=3, size=(48, 96)), **more}
        alone = told_more.pop("isolated", False)
        request, _ = prepared(model, given=given, adapter=adapter, **told_more)
        yield Ask(request.model_copy(update={"isolate_given": alone}), given, adapter=adapter)


FEW = {"tiny": range(6), "tiny-klein": (2, 5, 6)}
"""The sets that `make test` makes with each base; `make check` makes all of them."""
EACH = [
    *(pytest.param(name, FEW.get(name, (2,)), id=name) for name in NAMES),
    *(
        pytest.param(name, range(7), id=f"{name}-all", marks=pytest.mark.machine)
        for name in FAMILIES
    ),
]


@pytest.mark.parametrize(("base", "which"), EACH, indirect=["base"])
def test_whole_samplings_replayed_are_those_run_as_they_are_to_the_bit(base, which, recorder):
    lora = Adapter(random_lora(base, rank=8))  # Of which some is in the matrices' own products.
    asks = [ask for n, ask in enumerate(asks_of(base, lora)) if n in which]
    expected = latents(base, asks)
    base.graphs = Graphs(recorder)
    found = latents(base, asks)
    for n, panels in expected.items():
        for one, other in zip(panels, found[n], strict=True):
            assert torch.equal(one, other), asks[n].request
    # Each kind of pass is run once, and no more are than there must be.
    assert recorder.warmed == len(recorder.made)
    assert recorder.replays > recorder.warmed
    # Keys and values of given tokens are freed with their sampling.
    assert all(kind.reads is None for kind in base.graphs._kept.values())


def latents(model, asks):
    return {n: made.latents for n, made in Session(model).make(asks)}


@pytest.mark.parametrize("base", NAMES, indirect=True)
def test_a_recording_reads_nothing_that_may_be_gone_when_it_is_replayed(base, recorder):
    """Its inputs, weights, tables of the network, and what it holds itself."""
    tokens = torch.arange(24) % 2 == 1
    given = Given(tokens, clean=True, isolated=True, cache=[])
    base.graphs = Graphs(recorder)
    for _ in range(3):
        velocity(base, given)
    lasting = [*base.denoiser.parameters(), *base.denoiser.buffers()]
    for module in base.denoiser.modules():
        # Tables of angles, some in objects that are no modules.
        for value in vars(module).values():
            lasting += [*tensors(value), *tensors([*getattr(value, "__dict__", {}).values()])]
    for kind in base.graphs._kept.values():
        assert kind.held[0][0] is given
        lasting += [*kind.inputs, *tensors(given.cache)]
    known = {x.untyped_storage()._cdata for x in lasting}
    assert recorder.alive
    for each in recorder.alive:
        assert not each.tape.outside.keys() - known


@cache
def words(model):
    return model.encode_text("a fox"), model.encode_text("")


def velocity(model, given=None, sigma=0.5, z=None, schedule=None):
    """Of a canvas of 24 tokens, without gradients."""
    text, empty = words(model)
    free = [empty] if model.sampling.guided == "two-pass" else None
    if z is None:
        z = torch.randn(1, 24, model.channels, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sigmas = torch.full((1,), sigma)
        step = schedule and schedule.at(sigma)
        return model.velocity(z, sigmas, [text], (64, 96), 4.0, given, free, None, step)


def sampled(model):
    """Latents behind four steps, which are modulated at once."""
    levels = (1.0, 0.75, 0.5, 0.25, 0.0)
    noise = torch.randn(1, 24, model.channels, generator=torch.Generator().manual_seed(2))
    with Schedule(levels) as schedule:

        def step(z, sigma):
            return velocity(model, None, sigma, z, schedule=schedule)

        return flow.denoise(step, noise, levels)


# -- which passes, how many, how long -------------------------------------------------------------


def test_passes_that_must_run_as_they_are_do(base, recorder):
    tokens = torch.arange(24) % 2 == 1
    base.graphs = Graphs(recorder)
    kept = Given(tokens, clean=True, isolated=True, cache=[])
    with torch.no_grad():
        assert graphs_for(base, None, None)
        assert graphs_for(base, kept, None) is None, "it fills the cache"
        kept.cache.append((tokens, tokens))
        assert graphs_for(base, kept, None)
        for name, value in (("offload", "blocks"), ("mesh", object()), ("graphs", None)):
            before = getattr(base, name)
            setattr(base, name, value)
            assert graphs_for(base, None, None) is None, name
            setattr(base, name, before)
    assert graphs_for(base, None, None) is None, "with gradients"


def test_passes_that_read_otherwise_are_recorded_apart(base, recorder):
    base.graphs = Graphs(recorder)
    tokens, panels = torch.arange(24) % 2 == 1, Panels(torch.arange(24) // 8, (3, 4, 3))
    with torch.no_grad():
        ways = [
            (None, None),
            (Given(tokens, clean=True), None),
            (Given(~tokens, clean=True), None),
            (Given(tokens, clean=True, isolated=True), None),
            (Given(tokens, scale=2.0), None),
            (Given(tokens, scale=3.0), None),
            (Given(tokens, references=tokens.int()), None),
            (Given(tokens, references=2 * tokens.int()), None),
            (Given(tokens, clean=True, isolated=True, cache=[(tokens, tokens)]), None),
            (Given(tokens, clean=True, isolated=True, cache=[(tokens, tokens)]), None),
            (None, panels),
            (None, Panels(panels.owner.flip(0), panels.lengths)),
            (None, Panels(panels.owner, (4, 3, 3))),
        ]
        keys = [graphs_for(base, *way).how for way in ways]
        again = graphs_for(base, Given(tokens.clone(), scale=2.0), None)
    assert len(set(keys)) == len(keys)
    assert again.how == keys[4], "another sampling of the same kind replays its passes"


def test_the_recordings_used_last_are_kept_and_the_others_are_freed(recorder):
    graphs = Graphs(recorder, most=2)

    def run(key, *numbers):
        return [float(graphs.run(key, lambda x: 2 * x[0], [torch.tensor(n)])) for n in numbers]

    assert run("a", 1.0, 2.0, 3.0) == [2, 4, 6]
    assert run("b", 1.0, 2.0) == [2, 4]
    assert run("a", 4.0) == [8]
    assert run("c", 5.0, 6.0) == [10, 12]
    assert [graphs.count, len(recorder.alive), recorder.warmed] == [2, 2, 3]
    assert run("a", 7.0) == [14]
    assert recorder.warmed == 3
    assert run("b", 8.0, 9.0) == [16, 18]
    assert recorder.warmed == 4
    graphs.clear()
    assert not recorder.alive
    assert not graphs.count


def test_a_pass_of_another_thread_runs_as_it_is(recorder):
    graphs, found = Graphs(recorder), []

    def inner(x):
        return graphs.run("a", lambda x: x[0] + 1, x)

    def outer(x):
        thread = threading.Thread(target=lambda: found.append(inner(x)))
        thread.start()
        thread.join()
        return 2 * x[0]

    assert float(graphs.run("a", outer, [torch.tensor(3.0)])) == 6
    assert found == [4]
    assert [recorder.warmed, graphs.count] == [1, 1]


def test_a_change_of_adapter_or_a_release_frees_all_recordings(base, recorder):
    weights = random_lora(base, base.lora_targets("attention")[:2])
    base.graphs = Graphs(recorder)
    changes = {
        "apply": lambda: apply(base, [(weights, 1.0)]),
        "other strength": lambda: apply(base, [(weights, 0.5)]),
        "remove": lambda: remove(base),
        "attach": lambda: attach(base, rank=2, alpha=2, targets="attention", seed=0),
        "remove again": lambda: remove(base),
        "release": lambda: base.release("denoiser"),
    }
    for name, change in changes.items():
        for _ in range(2):
            velocity(base)
        assert recorder.alive, name
        change()
        assert not recorder.alive, name
    assert len(recorder.made) == len(changes)
    velocity(base)
    remove(base)  # There is none.
    assert base.graphs.count == 1


def test_a_pass_that_cannot_be_recorded_runs_as_it_is_and_that_is_said_once(base, caplog):
    class Unable(CpuRecorder):
        def record(self, run):
            run()
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    expected, base.graphs = velocity(base), Graphs(Unable())
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert torch.equal(velocity(base), expected)
    (said,) = caplog.messages
    assert "not permitted when stream is capturing" in said
    assert "more" not in said
    assert not base.graphs.count


def test_a_base_whose_passes_are_not_recorded_is_said_once(base, caplog):
    asked = MakingMachine(device="cpu", graphs=True)
    with caplog.at_level(logging.WARNING):
        assert Opener().base("tiny", asked).graphs is None
    assert caplog.messages == [
        "`graphs` has no effect: it is for NVIDIA cards, and the base computes on cpu"
    ]
    there = type(base)(base.folder, base.name, torch.device("cuda"), torch.bfloat16)
    assert record_by(there, asked) is None
    first = there.graphs
    assert record_by(there, asked) is None
    assert first is there.graphs is not None
    there.offload = "blocks"
    assert "one at a time" in prevented(there)
    there.offload, there.mesh = "none", object()
    assert "spread" in prevented(there)
    there.mesh = None
    record_by(there, MakingMachine())
    assert there.graphs is None


def test_weights_that_moved_are_read_where_they_lie(base, recorder):
    wide = [name for name in base.lora_targets("all") if "to_qkv_mlp_proj" in name]
    apply(base, [(random_lora(base, wide, rank=32), 1.0)])
    base.graphs = Graphs(recorder)
    expected = [velocity(base) for _ in range(2)][-1]
    assert recorder.warmed == 1, "the first pass moves them"
    assert widened(base.denoiser)
    narrow(base.denoiser)
    there = {x.untyped_storage()._cdata for x in base.denoiser.parameters()}
    (first,) = recorder.made
    gone = [x for place, x in first.tape.outside.items() if place not in there]
    for x in gone:
        x.zero_()
    for _ in range(3):
        assert torch.equal(velocity(base), expected)
    assert recorder.warmed == 2


def test_the_bench_finds_replayed_passes_equal_and_says_how_far_wrong_ones_are(base, recorder):
    assert replayed(base, Graphs(recorder)) == 0
    assert recorder.replays > 4
    assert recorder.warmed == len(recorder.made)

    class Wrong(CpuRecorder):
        def record(self, run):
            return super().record(lambda: run() * 1.01)

    assert 1e-3 < replayed(base, Graphs(Wrong())) < 0.1


@pytest.mark.parametrize("base", ["tiny"], indirect=True)
def test_passes_that_could_not_be_recorded_are_never_measured_as_replayed(base):
    """Recording gives up by a warning, and all passes are then run as they are: 0 off."""

    class Unable(CpuRecorder):
        def record(self, run):
            raise RuntimeError("operation not permitted when stream is capturing")

    def make(*_, **__):
        with pytest.raises(RuntimeError, match="could not be recorded"):
            replayed(base, Graphs(Unable()))

    failed = []
    bench = SimpleNamespace(fail=lambda *why: failed.append(why))
    smoke.replaying(SimpleNamespace(make=make, bench=bench), {})
    ((what, why),) = failed
    assert what == "generate, passes replayed"
    assert "operation not permitted" in why


@pytest.mark.parametrize("base", ["tiny"], indirect=True)
@pytest.mark.parametrize("where", ["decode", "velocity"])
def test_recordings_make_room_where_memory_is_missing(base, recorder, where, monkeypatch):
    (ask,) = [ask for n, ask in enumerate(asks_of(base, None)) if n == 0]
    expected, real, tried = latents(base, [ask]), getattr(base, where), []
    base.graphs = Graphs(recorder)
    latents(base, [ask])

    def short(*how, **more):
        tried.append(len(recorder.alive))
        if recorder.alive:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*how, **more)

    with monkeypatch.context() as patched:
        patched.setattr(base, where, short)
        patched.setattr("iclora.making.session.load_vae", lambda _: None)
        found = latents(base, [ask])
    assert all(map(torch.equal, expected[0], found[0]))
    assert tried[:2] == [1, 0]
    base.graphs = None
    monkeypatch.setattr(recorder.made[0], "freed", False)
    with monkeypatch.context() as patched:
        patched.setattr(base, where, short)
        with pytest.raises(torch.OutOfMemoryError):
            latents(base, [ask])


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_are_recorded_without_being_compiled_again(zimage, counted):
    """A tape would be compiled, too; here a recorded pass is run again on the same inputs."""

    class Again(CpuRecorder):
        def record(self, run):
            self.made.append(SimpleNamespace(replay=run, free=lambda: None))
            return self.made[-1]

    began, recorder = counted(), Again()
    try:
        zimage.compiled = frozenset({"sampling"})
        expected = sampled(zimage)
        traced = counted()
        zimage.graphs = Graphs(recorder)
        assert torch.equal(sampled(zimage), expected)
        assert counted() == traced > began
        assert recorder.made
    finally:
        zimage.compiled, zimage.graphs = frozenset(), None
        zimage.release("denoiser")
