"""The choice of an attention kernel, among real ways to compute attention on a CPU."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from iclora.models.attention_cpu import blockwise, fused
from iclora.models.choices import Choices
from iclora.models.kernels import Chooser, about, card_ways, kind_of, ways_on
from iclora.models.trials import Example, Way, try_ways
from tests.models.test_attention_cpu import dense, gradients

CPU = torch.device("cpu")
HEADS, WIDTH = 3, 16
ABOUT = about(CPU)
CHECKS = 6
"""Calls before any is timed: two sizes, each with scores near zero and far below and above."""


class Clock:
    """A clock that goes on by what is computed, so that nothing depends on this machine's speed."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def way(self, *costs, attend=fused):
        """Attention that takes these seconds a call, the last of them from then on."""
        left = list(costs)

        def run(q, k, v):
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return attend(q, k, v)

        return Way(run)

    def thrice(self):
        once = self.way(1.0).attend
        return Way(lambda q, k, v: (once(q, k, v) + once(q, k, v) + once(q, k, v)) / 3)


def draw(queries=40, keys=50, learns=False):
    rng = torch.Generator().manual_seed(4)
    sizes = ((1, n, HEADS, WIDTH) for n in (queries, keys, keys))
    return [
        torch.randn(size, generator=rng).transpose(1, 2).requires_grad_(learns) for size in sizes
    ]


def choose(clock, folder, ways, **more):
    return Chooser(CPU, ways, Choices(ABOUT, folder), clock=clock, short=0, **more)


def only(found):
    (name,) = set(found.values())
    return name


@pytest.mark.parametrize("learns", [False, True])
def test_the_fastest_way_computes_the_formula(tmp_path, learns):
    clock = Clock()
    attend = choose(clock, tmp_path, {"thrice": clock.thrice(), "once": clock.way(1.0)})
    qkv, weights = draw(learns=learns), torch.randn(1, 40, HEADS * WIDTH)
    began = clock.now
    if learns:
        for one, other in zip(
            gradients(attend, qkv, weights), gradients(dense, qkv, weights), strict=True
        ):
            torch.testing.assert_close(one, other.to(one.dtype), atol=2e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(attend(*qkv), dense(*qkv).float(), atol=2e-5, rtol=1e-4)
    assert only(attend.chosen) == "once"
    assert clock.now > began + 10  # It was measured, and now it is not:
    began = clock.now
    attend(*qkv)
    assert clock.now == began + 1


@pytest.mark.parametrize(
    ("first", "other", "taken"),
    [
        ([1.0], [0.96], "first"),
        ([1.0], [0.94], "other"),
        # Faster by far, but not in every round.
        ([1.0], [*[0.5] * (CHECKS + 3), *[1.5] * 3, 0.5], "first"),
        ([1.0], [2.0], "first"),
    ],
)
def test_the_first_way_is_taken_unless_another_is_clearly_faster(tmp_path, first, other, taken):
    clock = Clock()
    ways = {"first": clock.way(*first), "other": clock.way(*other)}
    attend = choose(clock, tmp_path, ways)
    attend(*draw())
    assert only(attend.chosen) == taken


def _doubled(q, k, v):
    """The right output, and twice the gradient of the queries."""
    return fused(2 * q - q.detach(), k, v)


def _raises(q, k, v):
    raise RuntimeError("no kernel\nimage")


def _naive(q, k, v):
    """The formula without taking the largest score off first."""
    exp = (q @ k.mT / q.shape[-1] ** 0.5).exp()
    return (exp @ v / exp.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)


def _half_full(q, k, v):
    """Right but where the last block of 128 keys is half full."""
    return fused(q, k[:, :, :-1], v[:, :, :-1]) if k.shape[2] % 128 == 64 else fused(q, k, v)


WRONG = {
    "NaN": Way(lambda q, k, v: fused(q, k, v).index_fill(1, torch.tensor([7]), torch.nan)),
    "another": Way(lambda q, k, v: fused(q, k, v.roll(1, 2))),
    "one head": Way(lambda q, k, v: fused(q, torch.cat([k[:, :2], k[:, 2:] * 1.2], 1), v)),
    "gradient": Way(_doubled),
    "naive": Way(_naive),
    "half full": Way(_half_full),
}


def test_a_wrong_or_raising_way_is_out_however_fast_it_is(tmp_path, caplog):
    clock = Clock()
    unfit = Way(fused, lambda *_: False)
    ways = {**WRONG, "raises": Way(_raises), "unfit": unfit, "right": clock.way(9.0)}
    attend = choose(clock, tmp_path, ways)
    qkv = draw(learns=True)
    with caplog.at_level(logging.INFO, "iclora.models"):
        attend(*qkv)
        attend(*qkv)
    assert only(attend.chosen) == "right"
    (trial,) = attend.trials.values()
    assert {n for n, fault in trial.out.items() if fault.wrong} == set(WRONG)
    assert trial.out["raises"].why == "raised RuntimeError: no kernel image"
    assert set(trial.out) == set(ways) - {"right"}
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == len(WRONG)
    assert sum("differs from the formula" in w for w in warned) == len(WRONG) - 1
    assert sum("(float32, 3 heads" in w and "far from zero" in w for w in warned) == 1
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert "forward and backward): right; right 9e+03 ms, NaN differs" in told


def test_a_wrong_gradient_alone_is_no_fault_of_a_forward_pass(tmp_path):
    clock = Clock()
    attend = choose(clock, tmp_path, {"slow": clock.way(9.0), "gradient": Way(_doubled)})
    attend(*draw())
    assert only(attend.chosen) == "gradient"


def test_without_a_right_way_work_goes_on_by_the_first_and_nothing_is_kept(tmp_path, caplog):
    attend = choose(Clock(), tmp_path, {"gradient": Way(_doubled), "raises": Way(_raises)})
    qkv = draw(learns=True)
    assert attend(*qkv).equal(fused(*qkv))
    assert attend(*qkv).equal(fused(*qkv))
    assert "no kernel could be chosen" in caplog.text
    assert not list(tmp_path.iterdir())
    full = Way(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    attend = choose(Clock(), tmp_path, {"first": Way(fused), "full": full})
    attend(*draw())
    # A way that met a full card may be the fastest another time.
    assert only(attend.chosen) == "first"
    assert not list(tmp_path.iterdir())


def test_a_choice_holds_in_later_processes_and_kinds_are_apart(tmp_path):
    clock = Clock()
    attend = choose(clock, tmp_path, {"slow": clock.way(2.0), "fast": clock.way(1.0)})
    attend(*draw())
    later = choose(clock, tmp_path, {"slow": clock.way(1.0), "fast": clock.way(2.0)})
    later(*draw(41, 52))  # The same kind.
    assert only(later.chosen) == "fast"
    assert not later.trials
    later(*draw(learns=True))
    with torch.no_grad():
        later(*draw(learns=True))
    assert sorted(later.chosen.values()) == ["fast", "slow"]
    # Of other versions nothing is known, and a name that no way has is none.
    other = Chooser(
        CPU,
        {"slow": clock.way(1.0), "fast": clock.way(2.0)},
        Choices({**ABOUT, "torch": "0"}, tmp_path),
        clock=clock,
        short=0,
    )
    other(*draw())
    assert only(other.chosen) == "slow"
    assert len(list(tmp_path.iterdir())) == 2
    renamed = choose(clock, tmp_path, {"a": clock.way(2.0), "b": clock.way(1.0)})
    renamed(*draw())
    assert only(renamed.chosen) == "b"


def test_a_person_may_choose_in_the_file_and_then_no_call_reads_a_number_back(tmp_path):
    clock = Clock()
    ways = {"slow": clock.way(2.0), "fast": clock.way(1.0)}
    choices = Choices(ABOUT, tmp_path)
    choices.path.write_text(json.dumps({"about": ABOUT, "chosen": {"any": "slow"}, "measured": {}}))
    attend = choose(clock, tmp_path, ways)
    attend(*draw())
    assert only(attend.chosen) == "slow"
    assert not attend.trials
    # A device that holds no numbers: reading one would raise.
    assert attend(*(x.to("meta") for x in draw(learns=True))).is_meta


def test_several_writers_lose_nothing_and_the_first_choice_holds(tmp_path):
    def write(number):
        choices = Choices(ABOUT, tmp_path)
        choices.keep(f"kind {number}", "flash", "1 ms", ("flash", "cuDNN"))
        return choices.keep("same", ("flash", "cuDNN")[number % 2], "1 ms", ("flash", "cuDNN"))

    with ThreadPoolExecutor(4) as pool:
        same = set(pool.map(write, range(12)))
    found = json.loads(Choices(ABOUT, tmp_path).path.read_text())
    assert same == {found["chosen"]["same"]}
    assert len(found["chosen"]) == 13
    assert [path.name for path in tmp_path.iterdir()] == [Choices(ABOUT, tmp_path).path.name]


def text(**changes):
    return json.dumps({"about": ABOUT, "chosen": {"any": "slow"}, "measured": {}, **changes})


DAMAGED = {
    "empty": "",
    "cut": text()[:-9],
    "nested": "[" * 10_000,
    "a list": "[]",
    "foreign": text(about={"device": "another"}),
    "no names": text(chosen={"any": 3}),
    "no tables": text(measured=[]),
    "large": text(measured={"kind": "x" * 2**20}),
}


def test_a_damaged_file_is_said_set_aside_and_measured_again(tmp_path, caplog):
    for name, damage in DAMAGED.items():
        folder = tmp_path / name
        folder.mkdir()
        path = Choices(ABOUT, folder).path
        path.write_text(damage)
        clock = Clock()
        caplog.clear()
        attend = choose(clock, folder, {"slow": clock.way(2.0), "fast": clock.way(1.0)})
        attend(*draw())
        assert only(attend.chosen) == "fast", name
        assert str(path) in caplog.text, name
        assert only(json.loads(path.read_text())["chosen"]) == "fast", name
        assert path.with_name(f"damaged-{path.name}").read_text() == damage


def test_a_cache_that_cannot_be_written_costs_no_more_than_measuring(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    clock = Clock()
    ways = {"slow": clock.way(2.0), "fast": clock.way(1.0)}
    attend = choose(clock, tmp_path / "file" / "kernels", ways)
    attend(*draw())
    assert only(attend.chosen) == "fast"
    assert "for this process alone" in caplog.text


def test_first_use_in_a_block_that_is_recomputed_changes_nothing_but_the_choice(tmp_path):
    """Neither gradients, random numbers nor the caller's count of products."""
    clock = Clock()
    attend = choose(
        clock, tmp_path, {"slow": clock.way(2.0), "fast": clock.way(1.0, attend=blockwise)}
    )

    def loss(attend):
        qkv = draw(learns=True)
        with FlopCounterMode(display=False) as counter:
            (checkpoint(attend, *qkv, use_reentrant=False) ** 2).sum().backward()
        return [x.grad for x in qkv], counter.get_total_flops()

    torch.manual_seed(5)
    ours, flops = loss(attend)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert drawn.equal(torch.rand(3))
    assert only(attend.chosen) == "fast"
    theirs, same = loss(blockwise)
    assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))
    assert flops == same > 0


class _InBackward(torch.autograd.Function):
    """Attention that is computed in the backward pass alone."""

    @staticmethod
    def forward(ctx, x, attend):
        ctx.attend = attend
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        ctx.attend(*draw())
        return grad, None


def test_nothing_is_measured_in_a_backward_pass_deterministic_or_short(tmp_path):
    clock = Clock()
    ways = {"slow": clock.way(2.0), "fast": clock.way(1.0)}
    attend = choose(clock, tmp_path, ways)
    _InBackward.apply(torch.ones(1, requires_grad=True), attend).sum().backward()
    torch.use_deterministic_algorithms(True)
    try:
        attend(*draw())
    finally:
        torch.use_deterministic_algorithms(False)
    short = Chooser(CPU, ways, Choices(ABOUT, tmp_path), clock=clock, short=40 * 50 + 1)
    short(*draw())
    assert clock.now == 6
    assert not attend.chosen
    assert not short.chosen
    attend(*draw())
    assert only(attend.chosen) == "fast"


def test_nothing_is_measured_while_code_is_compiled(tmp_path):
    clock = Clock()
    attend = choose(clock, tmp_path, {"slow": Way(fused), "fast": clock.way(1.0)})
    qkv = draw()
    made = torch.compile(lambda *qkv: attend(*qkv), backend="eager", fullgraph=True)(*qkv)
    assert made.equal(fused(*qkv))
    assert not attend.chosen
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_of_a_cpu_is_right_and_short_of_the_bounds_a_wrong_one_breaks(dtype, learns):
    ways = ways_on(CPU)
    trial = try_ways(ways, Example(2, 64, 100, 150, dtype, learns), CPU)
    assert set(trial.times) == set(ways) == {"fused", "headwise", "blockwise"}
    assert trial.chosen in ways
    assert not trial.out


def test_a_card_s_ways_are_right_where_they_fit_and_fall_back_where_they_do_not(tmp_path):
    """A CPU has none of cuDNN's kernels: what torch takes by itself is left."""
    qkv = draw(learns=True)
    for hopper, first in ((True, "cuDNN"), (False, "torch's choice")):
        ways = card_ways(hopper)
        assert next(iter(ways)) == first
        assert set(ways) == {"cuDNN", "torch's choice", "flash", "memory efficient"}
        for way in ways.values():
            assert way.attend(*qkv).equal(fused(*qkv))
        attend = choose(Clock(), tmp_path / first, ways)
        assert attend(*qkv).equal(fused(*qkv))
        assert only(attend.chosen) == "torch's choice"
        (trial,) = attend.trials.values()
        assert {fault.why for fault in trial.out.values()} == {"cannot compute this"}


def test_a_kind_is_lengths_to_a_fifth_and_all_else_exactly():
    of = Example(24, 128, 4608, 4608, torch.bfloat16, False)
    same = kind_of(of)
    assert same == "bfloat16, 24 heads of 128, 4096 queries, 4096 keys, forward"
    assert kind_of(of._replace(queries=4700, keys=4096)) == same
    others = (
        {"queries": 6656},
        {"keys": 6656},
        {"learns": True},
        {"width": 136},
        {"heads": 8},
        {"dtype": torch.float32},
    )
    assert same not in {kind_of(of._replace(**other)) for other in others}
