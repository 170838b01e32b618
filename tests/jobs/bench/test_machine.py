"""The machine as results name it."""

from __future__ import annotations

import os
import sys

from iclora.jobs.bench import machine

SMI = """#!/bin/sh
echo "NVIDIA H200, 580.159.03, 143771 MiB, 4 MiB, 9.0, 700.00 W"
"""


def on_path(monkeypatch, folder, text):
    (folder / "nvidia-smi").write_text(text)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_driver_names_the_card(monkeypatch, tmp_path):
    on_path(monkeypatch, tmp_path, SMI)
    (card,) = machine.driver()
    assert card["name"] == "NVIDIA H200"
    assert card["driver_version"] == "580.159.03"
    assert card["compute_cap"] == "9.0"


def test_a_driver_that_is_absent_or_broken_is_no_card(monkeypatch, tmp_path):
    on_path(monkeypatch, tmp_path, "#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert machine.driver() == []
    on_path(monkeypatch, tmp_path, "#!/bin/sh\necho 'something, else'\n")
    assert machine.driver() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert machine.driver() == []
    assert machine.commit_of(tmp_path) is None
    about = machine.describe(None)
    assert about["commit"] is None
    assert len(about["source"]) == 12


def test_figures_stand_beside_each_other_only_on_one_machine_with_one_software():
    about = machine.describe("abc")
    about["cards"] = [{"name": "X", "memory.used": "1 MiB"}]
    busy = {**about, "cards": [{"name": "X", "memory.used": "9 MiB"}], "commit": "other"}
    assert machine.same(about, busy)
    assert not machine.same(about, {**about, "torch": "1.0"})
    assert not machine.same(about, {**about, "cards": [{"name": "Y"}]})
    assert not machine.same(about, {**about, "source": "000000000000"})


def test_packages_are_looked_for_and_not_imported():
    found = machine.installed(frozenset({"diffusers", "no_such_package"}))
    assert found == {"diffusers"}
    assert machine.scripts() >= {"train_step.py", "sample_step.py"}
    assert "python" in sys.executable
