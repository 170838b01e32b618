"""workshop.toyland.completing: the table of modes, and the command that fills it."""

import json

import pytest
import torch

from iclora.evaluate.figures import Table
from iclora.models import packed
from iclora.models.base import Given
from iclora.models.flux import model as flux
from workshop.toyland import completing
from workshop.toyland.completing import ARMS, MAKING, table


def entered(**arms):
    """A table with these shares of what each set carried, by arm."""
    found = Table()
    for arm, right in arms.items():
        for number, value in enumerate(right):
            key = f"set {number}"
            found.add("toyland carried all", "", arm.replace("_", " "), key, key, value)
            found.add("toyland carried kind", "", arm.replace("_", " "), key, key, 1.0)
    return found


def test_an_arm_is_compared_with_sdedit_set_by_set():
    shares = {"adapter + sdedit": (0.0, 1.0, 0.0, 1.0), "dual adapter + clean": (1.0,) * 4}
    text = table(entered(**shares), None)
    rows = {
        line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if "+" in line
    }
    assert rows["adapter + sdedit"][3].strip() == ""
    assert rows["dual adapter + clean"][3].strip().startswith("50% (")
    assert rows["dual adapter + clean"][4].strip() == "100%"


@pytest.mark.parametrize(("module", "to"), [(flux, 1), (packed, 10)])
def test_given_tokens_move_along_the_first_axis_alone(module, to):
    ids = torch.tensor([[0, row, column] for row in (0, 1) for column in range(4)]).float()
    z, sigma = ids[None], torch.ones(1)
    given = Given(torch.tensor([True, False, False, True] * 2), clean=True)
    before = module.placed(z, ids, sigma, given, None)
    with completing.given_axis():
        after = module.placed(z, ids, sigma, given, None)
        assert torch.equal(module.placed(z, ids, sigma, None, None).position_ids, ids)
    assert after.position_ids[:, 0].tolist() == [0] * 4 + [to] * 4
    assert torch.equal(after.position_ids[:, 1:], before.position_ids[:, 1:])
    assert torch.equal(after.z, before.z)
    assert torch.equal(module.placed(z, ids, sigma, given, None).position_ids, before.position_ids)


def test_arms_have_names_of_their_own():
    assert not set(ARMS) & set(MAKING)


@pytest.mark.machine
def test_the_command_measures_the_arms_that_are_asked_for(tmp_path, capsys):
    words = "--task sandstorm-effect --count 2 --prompts 1 --sampling-steps 1 --threads 1"
    arms = ("--arm", "base + sdedit", "--arm", "base")
    completing.main(["--out", str(tmp_path), *words.split(), *arms])
    home = tmp_path / "sandstorm-effect"
    carried, same = (
        json.loads((home / f"{name}.json").read_text()) for name in ("completing", "generating")
    )
    all_of, rest = (
        carried[f"toyland carried {name}"]["arms"]["base + sdedit"]["values"]
        for name in ("all", "all but pose")
    )
    assert len(all_of) == 2
    assert all(all_of[key] <= rest[key] for key in all_of)
    assert len(same["toyland same all"]["arms"]["base"]["values"]) == 3
    assert "base + sdedit" in capsys.readouterr().out
    assert (home / "base-+-sdedit.png").is_file()
    assert "| base |" in (home / "table.md").read_text()
