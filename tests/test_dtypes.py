"""MPS has no float64: source code may make one on the CPU only."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

ALLOWED = {
    "models/quantize.py": "nf4's levels, a constant that is computed on the CPU",
    "models/trials.py": "what a CUDA card's attention kernels are held against, on that card",
}
WIDE = ("float64", "double")


def wide(source: str) -> list[int]:
    """Lines that make a float64 tensor of what may lie on an accelerator."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            on_cpu = (
                isinstance(of, ast.Call)
                and isinstance(of.func, ast.Attribute)
                and of.func.attr == "cpu"
            )
            if node.func.attr == "double" and not on_cpu:
                found.append(node.lineno)
        if (
            isinstance(node, ast.Attribute)
            and node.attr in WIDE
            and isinstance(node.value, ast.Name)
            and node.value.id == "torch"
        ):
            found.append(node.lineno)
    return found


def test_no_float64_is_made_on_an_accelerator():
    src = ROOT / "src" / "iclora"
    found = {
        path.relative_to(src).as_posix(): lines
        for path in src.rglob("*.py")
        if (lines := wide(path.read_text(encoding="utf-8")))
    }
    assert found.keys() <= ALLOWED.keys(), found


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("torch.stack(rows).view(2, -1).double().cpu()", True),
        ("torch.stack(rows).view(2, -1).cpu().double()", False),
        ("torch.tensor(x, device=d, dtype=torch.float64)", True),
        ("x.to(torch.double)", True),
        ("pixels.astype(np.float64)", False),
    ],
)
def test_the_rule_notices_what_would_fail_on_mps(line, bad):
    assert bool(wide(line)) == bad
