"""Progress as work reports it, and cancelling."""

from __future__ import annotations

import pytest

from iclora.progress import Cancelled, Event, Progress


def test_events_carry_what_a_person_and_what_a_program_reads():
    seen = []
    Progress(seen.append)("training", 1, 3, "loss 0.5", loss=0.5)
    assert seen == [Event("training", 1, 3, "loss 0.5", {"loss": 0.5})]


def test_cancelled_work_ends_behind_the_step_that_it_reports():
    seen = []
    progress = Progress(seen.append)

    def work():
        for step in range(1, 10):
            if step == 4:
                progress.cancel()
            progress("painting", step, 9)

    with pytest.raises(Cancelled):
        work()
    assert [event.done for event in seen] == [1, 2, 3, 4]


def test_no_handler_of_errors_swallows_a_cancellation():
    progress = Progress()
    progress.cancel()

    def work():
        try:
            progress("painting", 1, 2)
        except Exception:
            pytest.fail("swallowed")

    with pytest.raises(Cancelled):
        work()
