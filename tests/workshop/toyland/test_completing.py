"""workshop.toyland.completing: the table of modes, and the command that fills it."""

import json

from iclora.toyland.evaluate import Score
from workshop.toyland import completing
from workshop.toyland.completing import ARMS, MAKING, difference, table


def score(*right):
    rows = [{"carried all": r, "carried kind": 1.0} for r in right]
    mean = sum(right) / len(right)
    return Score({"carried all": mean, "carried kind": 1.0, "seconds": 0.5}, [], rows)


def test_an_arm_is_compared_with_sdedit_set_by_set():
    plain, clean = score(0.0, 1.0, 0.0, 1.0), score(1.0, 1.0, 1.0, 1.0)
    gain = difference(plain, clean, "carried all")
    assert gain.mean == 0.5
    assert difference(clean, plain, "carried all").mean == -0.5
    text = table({"adapter + sdedit": plain, "dual adapter + clean": clean}, {})
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "+" in line}
    assert rows["adapter + sdedit"].split("|")[3].strip() == ""
    assert rows["dual adapter + clean"].split("|")[3].strip().startswith("50% (")


def test_arms_have_names_of_their_own():
    assert not set(ARMS) & set(MAKING)


def test_the_command_measures_the_arms_that_are_asked_for(tmp_path, capsys):
    completing.main(
        [
            "--out",
            str(tmp_path),
            "--task",
            "sandstorm-effect",
            "--count",
            "2",
            "--prompts",
            "1",
            "--sampling-steps",
            "2",
            "--threads",
            "1",
            "--arm",
            "base + sdedit",
            "--arm",
            "base",
        ]
    )
    home = tmp_path / "sandstorm-effect"
    kept = json.loads((home / "rows.json").read_text())
    assert {name: len(rows) for name, rows in kept.items()} == {
        "base + sdedit completing": 2,
        "base generating": 3,
    }
    for row in kept["base + sdedit completing"]:
        assert row["carried all"] <= row["carried all but pose"]
    assert "base + sdedit" in capsys.readouterr().out
    assert (home / "base-+-sdedit.png").is_file()
    assert "| base |" in (home / "table.md").read_text()
