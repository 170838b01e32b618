"""Frozen linear layers in few bits: ours beside those of torchao, bitsandbytes and quanto.

A base's layer is read forward, and backward for its input alone: its weight is never trained.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from iclora.errors import SettingsError
from iclora.jobs.bench.measuring import clear, median, seconds
from iclora.jobs.bench.telling import Bench
from iclora.models.quantize import Frozen, check_precision
from iclora.settings import Precision

__all__ = ["kinds"]

_TRUE = (3072, 12288, 6656)
"""Inputs, outputs and rows: FLUX.1-dev's largest layers, a canvas of 1024x1536 with its text."""
_SMALL = (768, 3072, 608)

_OURS = ("bf16", "int8, iclora", "nf4, iclora", "fp8, iclora")
"""What must not fail, unless the card has no such products."""

Make = Callable[[nn.Linear, torch.device], nn.Module]


def kinds(bench: Bench) -> None:
    """Time each way to keep a layer, in turns, and tell how far its product lies from the exact."""
    device = torch.device(bench.device)
    width, out, rows = _TRUE if device.type == "cuda" else _SMALL
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator) * width**-0.5
    x = torch.randn(rows, width, generator=generator).to(device)
    exact = x @ weight.to(device).T
    read = x.bfloat16()
    with warnings.catch_warnings():
        # Others' packages warn of what does not concern a figure.
        warnings.simplefilter("ignore")
        layers = _layers(bench, weight, device)
        for name, layer in list(layers.items()):
            if (found := _tried(bench, name, layer, read)) is None:
                del layers[name]
                continue
            away = (found.float() - exact).square().mean() / exact.square().mean()
            bench.tell(
                f"{name}, error", float(away.sqrt()), "of the exact product, root mean square"
            )
        passes = {"forward": _forward, "both passes": _both}
        works = {"forward": 2 * exact.numel() * width, "both passes": 4 * exact.numel() * width}
        for way, run in passes.items():
            _tell_rates(
                bench, way, {n: run(layer, read) for n, layer in layers.items()}, works[way]
            )
    clear(device)


def _layers(bench: Bench, weight: Tensor, device: torch.device) -> dict[str, nn.Module]:
    """The same layer in every way that can be made here; of the others it is told why not."""
    made: dict[str, nn.Module] = {}
    for name, (package, make) in _ways().items():
        if package and find_spec(package) is None:
            bench.tell(name, None, note=f"{package} is not installed")
            continue
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
        linear.weight.data = weight.bfloat16()
        try:
            made[name] = make(linear, device)
        except SettingsError as error:
            bench.tell(name, None, note=error.problem)
        except Exception as error:
            # Others' code fails in its own ways: that costs its figure alone.
            _failed(bench, name, error)
    return made


def _tried(bench: Bench, name: str, layer: nn.Module, x: Tensor) -> Tensor | None:
    """Its product, or None if it has none forward or backward, which is told."""
    try:
        found: Tensor = _forward(layer, x)()
        _both(layer, x)()
    except Exception as error:
        _failed(bench, name, error)
        return None
    return found


def _failed(bench: Bench, name: str, error: Exception) -> None:
    told = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
    bench.tell(name, None, note=told)
    if name in _OURS:
        bench.fail(name, told)


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            found: Tensor = layer(x)
        return found

    return run


def _both(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()

    def run() -> object:
        y = layer(leaf)
        return torch.autograd.grad(y, leaf, y.detach())

    return run


def _tell_rates(
    bench: Bench, way: str, runs: Mapping[str, Callable[[], object]], work: int
) -> None:
    """Time them in turns, so that a slow moment of the machine strikes all alike."""
    device = torch.device(bench.device)
    calls = 20 if device.type == "cuda" else 1
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(7):
        for name, run in runs.items():
            times[name] += seconds(run, device, 1, calls=calls)
    for name, found in times.items():
        note = f"{1000 * median(found):.4g} ms"
        bench.tell(f"{name}, {way}", work / median(found) / 1e12, "TFLOP/s", note=note, all=found)


def _ways() -> dict[str, tuple[str | None, Make]]:
    """Each way by name: the package it needs beside torch, and how it makes its layer."""
    return {
        "bf16": (None, lambda linear, device: linear.to(device)),
        "int8, iclora": (None, _ours("int8")),
        "int8, torchao": ("torchao", _torchao("Int8WeightOnlyConfig")),
        "int8, bitsandbytes": ("bitsandbytes", _bitsandbytes_int8),
        "int8, quanto": ("optimum", _quanto("qint8")),
        "nf4, iclora": (None, _ours("nf4")),
        "nf4, bitsandbytes": ("bitsandbytes", _bitsandbytes_nf4),
        "fp8, iclora": (None, _ours("fp8")),
        "fp8 weights, torchao": ("torchao", _torchao("Float8WeightOnlyConfig")),
        "fp8, torchao": ("torchao", _torchao("Float8DynamicActivationFloat8WeightConfig", True)),
        "fp8 weights, quanto": ("optimum", _quanto("qfloat8")),
    }


def _ours(kind: Precision) -> Make:
    def make(linear: nn.Linear, device: torch.device) -> nn.Module:
        check_precision(kind, device)
        return Frozen(linear, kind, device)

    return make


def _torchao(config: str, by_row: bool = False) -> Make:
    def make(linear: nn.Linear, device: torch.device) -> nn.Module:
        ao = importlib.import_module("torchao.quantization")
        # Our scales are a row's as well.
        told = {"granularity": ao.PerRow()} if by_row else {}
        net = nn.Sequential(linear.to(device))
        ao.quantize_(net, getattr(ao, config)(**told))
        return net

    return make


def _bitsandbytes_int8(linear: nn.Linear, device: torch.device) -> nn.Module:
    bnb = importlib.import_module("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=False, has_fp16_weights=False
    )
    return _filled(layer, linear, device)


def _bitsandbytes_nf4(linear: nn.Linear, device: torch.device) -> nn.Module:
    bnb = importlib.import_module("bitsandbytes")
    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
    )
    return _filled(layer, linear, device)


def _filled(layer: nn.Module, linear: nn.Linear, device: torch.device) -> nn.Module:
    """It quantises when it is moved to its device."""
    layer.load_state_dict(linear.state_dict())
    return layer.to(device)


def _quanto(kind: str) -> Make:
    def make(linear: nn.Linear, device: torch.device) -> nn.Module:
        quanto = importlib.import_module("optimum.quanto")
        net = nn.Sequential(linear.to(device))
        quanto.quantize(net, weights=getattr(quanto, kind))
        quanto.freeze(net)
        return net

    return make
