"""workshop.toyland.figures: every task's table, by the base and an adapter tuned for it."""

import json

import pytest

from workshop.toyland import figures


@pytest.mark.machine
def test_a_small_run_fills_the_table_of_a_task(tmp_path):
    sizes = "--prompts 1 --seeds 2 --sampling-steps 1 --sets 3 --steps 1 --batch 1 --threads 1"
    figures.main(["--out", str(tmp_path), "--task", "visual-identity", *sizes.split()])
    row = json.loads((tmp_path / "figures.json").read_text())["visual-identity"]
    assert set(row["base full captions"]) == {"stated shape", "stated colour", "stated carrier"}
    assert set(row["base"]) == set(row["adapter"]) >= {"same all", "stated carrier", "diversity"}
    assert set(row["base completing"]) == {"carried shape", "carried colour", "carried all"}
    assert all(0 <= share <= 1 for name in ("base", "adapter") for share in row[name].values())
    text = (tmp_path / "table.md").read_text()
    assert "| visual-identity | painted as told, full captions: shape " in text
    assert (tmp_path / "visual-identity" / "adapter-completing.png").is_file()
