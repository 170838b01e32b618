"""What the tests of all families share: LoRA on a network, checks of a pass, short runs."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from iclora.adapter import Adapter, AdapterInfo, attach, remove
from iclora.errors import SettingsError
from iclora.making.session import generate
from iclora.models import flow
from iclora.models.attention import Shares, by_parts, isolated, parts_of
from iclora.models.base import Given, Panels
from iclora.models.outline import as_loaded
from iclora.models.passes import Levels, Shapes
from iclora.models.quantize import quantize
from iclora.settings import TrainSettings, read_settings
from iclora.train.run import train
from tests.conftest import CAPTION, FAST, encoded, write_dataset
from tests.making.helpers import STORY, carry_noise, prepared, told
from tests.train.test_costs import measured_peak, small_part

CPU = torch.device("cpu")


def tensors(x):
    """All tensors in a tensor, or in a tuple or list of them."""
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for one in x:
            yield from tensors(one)


# -- a network ----------------------------------------------------------------------------------


def with_lora(net, prefixes, targets=""):
    """The net with a LoRA of random numbers, float32, on the linear layers of its blocks."""
    modules = [
        name
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(prefixes) and targets in name
    ]
    net.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=modules), adapter_name="a")
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(parameter, std=0.2)
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return net


def _backward(out):
    """From a loss that weighs every number of the output otherwise."""
    (out.double() * torch.linspace(-1, 1, out.numel()).double().view_as(out)).sum().backward()


def exact_gradients(make, ours, theirs, inputs):
    """Compare float32 with diffusers and PEFT in float64, output and gradients.

    Args:
        make: makes the network, with a LoRA.
        ours, theirs: (net, inputs) to the output.
        inputs: of a number format.
    Returns: how many LoRA weights have a gradient, and both outputs in float64.
    """
    found, outs = [], []
    for run, dtype in ((ours, torch.float32), (theirs, torch.float64)):
        net = make().to(dtype)
        out = run(net, inputs(dtype=dtype))
        _backward(out)
        found.append({n: p.grad.double() for n, p in net.named_parameters() if p.grad is not None})
        outs.append(out.detach().double())
    assert found[0].keys() == found[1].keys()
    for name, mine in found[0].items():
        exact = found[1][name]
        # 0 where nothing reads what the last block writes.
        assert float((mine - exact).norm()) <= 1e-4 * float(exact.norm()), name
    return len(found[0]), outs


def near_in_bf16(make, ours, theirs, given):
    """Gradients in bf16 are as near to exact ones as those of diffusers and PEFT in bf16.

    Args:
        make: makes the network in bf16, with a LoRA.
        given: inputs in bf16.
    """
    found = []
    for run, dtype in ((theirs, torch.float64), (ours, torch.bfloat16), (theirs, torch.bfloat16)):
        net, own = make(), given
        if dtype == torch.float64:
            net.double()
            own = given._replace(z=given.z.double(), prompt=given.prompt.double())
        _backward(run(net, own))
        grads = [p.grad.double().flatten() for p in net.parameters() if p.grad is not None]
        found.append(torch.cat(grads))
    exact, mine, other = found
    error = float((mine - exact).norm() / exact.norm())
    assert error < 1.3 * float((other - exact).norm() / exact.norm())
    assert error < 0.1


def any_order(net, ours, given, rtol=1e-5):
    """Tokens may come in any order, and segments of one level are as one segment of it."""
    n = given.z.shape[1]
    order = torch.randperm(n)
    moved = given._replace(z=given.z[:, order], position_ids=given.position_ids[order])
    whole = ours(net, given)
    torch.testing.assert_close(ours(net, moved), whole[:, order], atol=1e-5, rtol=1e-5)
    sigma = given.levels.sigma.expand(-1, 3)
    same = given._replace(levels=Levels(sigma, (5, 7, n - 12)))
    torch.testing.assert_close(ours(net, same), whole, atol=1e-5, rtol=rtol)


def recomputed_keep_less(make, ours, given, blocks):
    """With recomputed blocks less is kept, and gradients are the same to the bit."""
    found, kept = [], []
    for count in (0, blocks):
        net, saved = make(), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        ):
            out = ours(net, given, recompute=count)
        out.square().sum().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
        kept.append(sum(saved))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert kept[1] < kept[0]


def spread_is_the_pass(network, net, add_lora, ours, given):
    """Over weights that are spread (FSDP2) a pass is the pass, and gradients flow.

    One process, as a group of its own; several are tested with FLUX.1.

    Returns: the LoRA's gradients.
    """
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        whole = ours(net, given)
        network.shard(net, init_device_mesh("cpu", (1,)))
        add_lora(net)
        spread = ours(net, given, recompute=1)
        spread.sum().backward()
        grads = [p.grad for p in net.parameters() if p.requires_grad]
        for parameter in net.parameters():
            parameter.data.zero_() if parameter.requires_grad else None
        assert torch.equal(ours(net, given), whole)
    finally:
        distributed.destroy_process_group()
    assert not torch.equal(spread, whole)
    return grads


LIMITS = {"int8": 0.03, "nf4": 0.4, "fp8": 0.2}
"""How far outputs with quantised blocks may be off, relative; gradients twice as far."""


def near_quantised(make, add_lora, prefixes, ours, given, kind, limit):
    """A pass over quantised blocks is as near to the pass in full as the codes to the weights."""
    found = []
    for precision in ("full", kind):
        net = add_lora(quantize(make(), precision, CPU, prefixes))
        out = ours(net, given, recompute=1)
        trained = [p for p in net.parameters() if p.requires_grad]
        grads = torch.autograd.grad(out.sum(), trained, allow_unused=True)
        grads = torch.cat([g.flatten() for g in grads if g is not None])
        found.append((out.detach(), grads))
    (out, grads), (rough, rough_grads) = found
    assert not torch.equal(out, rough)
    assert float((rough - out).norm() / out.norm()) < limit
    assert float((rough_grads - grads).norm() / grads.norm()) < 2 * limit


def told_apart(attend, given, clean, pads=0):
    """Attention of two panels that read texts of their own, and the input of such a pass.

    Args:
        clean: the last tokens, which see themselves alone.
        pads: tokens before the image that fill a canvas up.
    """
    texts, noisy = (2, given.prompt.shape[1] - 2), (9, given.z.shape[1] - 9 - clean)
    shares = Shares(texts, noisy, (0, clean))
    if pads:
        shares = Shares((0, *texts), (pads, *noisy), (0, 0, clean))
    rest = by_parts(attend, parts_of(shares, given_rows=False))
    return isolated(attend, clean, None, rest), given._replace(lengths=texts)


def compiled_is_the_pass(net, ours, counted):
    """Compiled blocks give the same output and gradients.

    Args:
        ours: (net, shapes) to the output.
    Returns: how many graphs were made.
    """
    began, found = counted(), []
    trained = [p for p in net.parameters() if p.requires_grad]
    for shapes in (None, Shapes()):
        out = ours(net, shapes=shapes)
        grads = torch.autograd.grad(out.square().sum(), trained, allow_unused=True)
        found.append((out, [grad for grad in grads if grad is not None]))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    return counted() - began


# -- what a run takes ---------------------------------------------------------------------------


class Real:
    """A real net of an outline, and a forward and backward pass of the training code.

    Args:
        model: its base, whose denoiser it becomes.
        words: tokens of a text.
        text: makes a text of so many tokens.
    """

    def __init__(self, model, precision, text, words=512):
        torch.manual_seed(0)
        # As of a run, texts are there before a step begins.
        self.model, self._text, self._words = model, cache(text), words
        model.precision = precision
        net = getattr(diffusers, model.network).from_config(model.config("transformer"))
        net = as_loaded(net.requires_grad_(False).eval(), model.dtype)
        model.denoiser = quantize(net, precision, CPU, model.block_prefixes)
        for parameter in attach(model, rank=4, alpha=16, targets="all", seed=0).values():
            parameter.grad = torch.zeros_like(parameter)

    def step(self, batch, recompute):
        torch.autograd.backward(self._loss(batch, recompute).sum())

    def _loss(self, batch, recompute):
        model = self.model
        model.recompute = recompute
        n = batch.width * batch.height // model.grid**2
        x0, eps = torch.randn(2, batch.count, n, model.channels).unbind()
        given, of, panels = None, None, None
        if batch.given:
            tokens = torch.arange(n).expand(batch.count, n) % 2 == 1
            given, of = Given(tokens, clean=True, isolated=batch.isolated), ~tokens
        if batch.texts > 1:
            panels = Panels(torch.arange(n) * batch.texts // n, (self._words,) * batch.texts)
        sigma = torch.full((batch.count,), 0.5)
        texts = [self._text(self._words * batch.texts)] * batch.count
        size = (batch.width, batch.height)
        z = flow.add_noise(x0, eps, sigma)
        v = model.velocity(z, sigma, texts, size, 1.0, given, None, panels)
        return flow.loss(v, x0, eps, of)


def peak_is_counted(net, costs, batch, recompute):
    """The counted peak of a step is within a twentieth of a real one's."""
    net.step(small_part(batch), recompute)
    measured = measured_peak(lambda: net.step(batch, recompute))
    counted = costs.step(batch, recompute) - costs.held
    print(f"\n{net.model.family}, {recompute} recomputed: {counted / measured - 1:+.1%}")
    assert counted == pytest.approx(measured, rel=0.05)


# -- a base -------------------------------------------------------------------------------------


@contextmanager
def without_adapter(model):
    """The base without any adapter, before and after."""
    remove(model)
    yield model
    remove(model)


def short_runs(base, tmp_path, encodings):
    """What makes settings of short runs of a base on a small dataset."""
    data = write_dataset(tmp_path / "data")

    def make(out="run", **more):
        own = {
            "base": base,
            "data": str(data),
            "out": str(tmp_path / out),
            "steps": 2,
            "targets": "all",
            "resolutions": (64,),
            "cache": encodings,
        }
        return read_settings(TrainSettings, None, {**FAST, **own, **more})

    return make


def alike(made, other):
    """True if a picture is the pipeline's, (height, width, 3) from 0 to 1, but for rounding."""
    return np.abs(np.asarray(made.composite) / 255 - other).max() <= 0.5 / 255 + 1e-4


def random_lora(model, modules=None, rank=2):
    """Weights on these linear layers, by default on all that a run adapts."""
    rng = torch.Generator().manual_seed(0)
    truth = {}
    for module in modules or model.lora_targets("all"):
        tall, wide = model.names.linears[module]
        truth[f"{module}.lora_A.weight"] = torch.randn(rank, wide, generator=rng)
        truth[f"{module}.lora_B.weight"] = torch.randn(tall, rank, generator=rng)
    return truth


def trained_elsewhere(model, settings, pipeline, theirs, caplog):
    """Train an adapter, and load it in stock diffusers: no word, the same modules and picture.

    Args:
        theirs: (pipeline, made) to the pipeline's picture of a made set.
    Returns: the adapter, and the names of the modules that diffusers adapted.
    """
    result = train(settings, model)
    assert result.finished
    adapter = Adapter.load(result.adapter)
    made = generate(model, CAPTION, adapter=adapter, seed=4, **told(steps=2))
    plain = generate(model, CAPTION, seed=4, **told(steps=2))
    assert np.abs(np.asarray(made.composite).astype(int) - np.asarray(plain.composite)).max() > 3
    # What opening the pipeline said is not asked here.
    caplog.clear()
    try:
        with caplog.at_level("WARNING"):
            pipeline.load_lora_weights(str(result.adapter.parent), weight_name=result.adapter.name)
        assert caplog.text == ""
        loaded = {n for n, m in pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
        assert loaded == {key.rsplit(".lora_", 1)[0] for key in adapter.weights}
        other = theirs(pipeline, made)
    finally:
        pipeline.unload_lora_weights()
    assert alike(made, other)
    return adapter, loaded


def loss_by_formula(model, settings, tmp_path, velocity, unread=0):
    """The loss of two samples against the objective by its formula.

    Args:
        velocity: what diffusers' own pass gives, of (z (n, c), sigma (1,), text, layout).
        unread: LoRA weights without a gradient, for nothing reads what their layers give.
    """
    from iclora.train.objective import Sample, accumulate

    data = encoded(model, settings, tmp_path / "cache")
    remove(model)
    carry_noise(model)
    samples = [Sample(20, 0, 0), Sample(21, 1, 0)]
    loss = accumulate(model, data, samples, settings)
    trained = [p for p in model.denoiser.parameters() if p.requires_grad]
    assert sum(p.grad is None for p in trained) == unread
    expected = 0.0
    for sample in samples:
        entry = data.sets[sample.set]
        layout, x0 = entry.layouts[sample.size], entry.latents(sample.size)
        key = (settings.seed, sample.number)
        eps = torch.randn(x0.shape, generator=flow.generator("noise", *key))
        sigma = torch.sigmoid(torch.randn(1, generator=flow.generator("sigma", *key)))
        (text,) = entry.texts()
        with torch.no_grad():
            v = velocity((1 - sigma) * x0 + sigma * eps, sigma, text, layout)
        expected += float((v - (eps - x0)).square().mean()) / 2
    assert loss == pytest.approx(expected, rel=1e-5)


def trained_only_if_said(model, settings):
    """A distilled base is refused for training, unless `distilled` is set."""
    base, steps = str(model.folder), model.sampling.steps
    says = f"was distilled to {steps} steps, which training undoes"
    with pytest.raises(SettingsError, match=says):
        train(settings(base=base), model)
    assert train(settings(base=base, distilled=True, steps=1), model).finished
    remove(model)


def asked_with_adapter_of(trained, model, family, steps, guidance):
    """A request on a base with an adapter of another one; the adapter, and what is said of it."""
    info = AdapterInfo(
        base=trained,
        family=family,
        rank=1,
        alpha=1,
        targets="all",
        steps=1,
        recipe=STORY.sampled(steps, guidance),
        layout=STORY.canvas.to_json(),
    )
    adapter = Adapter({}, info)
    request, notes = prepared(model, CAPTION, adapter=adapter)
    return request, adapter, [note for note in notes if "adapter was trained on" in note]
