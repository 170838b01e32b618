"""What a run at work is asked for by files in its folder."""

from __future__ import annotations

from pathlib import Path

from iclora.progress import Progress
from iclora.train.asked import NAMES, ask, asked_of
from iclora.train.run import train


def asking(run, when):
    """Progress that asks a run for things once it has taken so many steps."""

    def show(event):
        if event.what == "training":
            for name in when.get(event.done, ()):
                ask(run, name)

    return Progress(show)


def test_a_run_does_what_it_is_asked_for_and_ends_as_one_that_nobody_asked(
    clean, config, unstopped
):
    """Also: what was asked while no process was at it is forgotten, and does not stop the next."""
    settings, drawn, said = config("asked", save_every=100, preview_every=100), [], []
    run = Path(settings.out)
    result = train(
        settings,
        clean,
        progress=asking(run, {1: ("save", "preview"), 2: ("stop",)}),
        make_preview=lambda _: lambda step, write: drawn.append(step),
    )
    assert (result.finished, result.step, drawn) == (False, 3, [2])
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000003"]
    assert asked_of(run) == set()
    for name in NAMES:
        ask(run, name)
    again = train(
        settings.model_copy(update={"preview_every": 0}),
        clean,
        resume=True,
        progress=asking(run, {4: ("preview",)}),
        warn=said.append,
    )
    assert again.finished
    assert any("no previews are drawn" in text for text in said)
    assert again.adapter.read_bytes() == unstopped()["adapter.safetensors"]
