import json
import os
import signal
import subprocess
import sys
import time

import pytest

from iclora.errors import SettingsError, StorageError
from iclora.serve.engine import Outcome
from iclora.serve.jobs import Busy, Full, NewJob, NoSuchJob
from iclora.serve.order import AHEAD
from iclora.serve.queue import Queue
from iclora.serve.store import Store, new_id

DONE = Outcome("succeeded", {"sets": ["0001"]})


@pytest.fixture
def folder(tmp_path):
    return tmp_path


_stores = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    while _stores:
        _stores.pop().close()


def store_of(folder):
    _stores.append(Store(folder / "serve.sqlite"))
    return _stores[-1]


def opened(folder, owner="here", **limits):
    return Queue(store_of(folder), owner, **limits)


@pytest.fixture
def queue(folder):
    return opened(folder)


def new(**more):
    job = more.pop("id", None) or new_id()
    known = {"kind": "generate", "input": {"prompt": "a"}, "settings": {"seed": 7}}
    return NewJob(job, **{**known, "folder": f"/out/{job}", **more})


def put(queue, **more):
    return queue.submit(new(**more))[0]


def test_ids_sort_by_time_and_none_is_given_twice():
    ids = [new_id() for _ in range(2000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 2000


def test_what_a_job_says_is_kept_by_nobody_once_it_was_read(queue):
    job = put(queue, input={"prompt": "a fox in a wood"})
    first, again = (queue.get(job.id).input["prompt"] for _ in range(2))
    assert first == again
    assert first is not again


def test_a_job_goes_from_queued_over_running_to_succeeded(queue):
    job = put(queue)
    assert job.status == "queued"
    taken = queue.claim("cpu")
    assert (taken.id, taken.status, taken.attempt) == (job.id, "running", 1)
    assert queue.finish(taken, DONE).status == "succeeded"
    found = queue.get(job.id)
    assert found.result == {"sets": ["0001"]}
    assert found.settings == {"seed": 7}
    assert found.started <= found.ended


def test_two_workers_never_claim_the_same_job(queue):
    made = {put(queue).id for _ in range(3)}
    taken = [queue.claim("a"), queue.claim("b"), queue.claim("a")]
    assert {job.id for job in taken} == made
    assert queue.claim("b") is None


def test_higher_priority_is_claimed_first_and_equal_ones_in_order(queue):
    first, second, high = put(queue), put(queue), put(queue, priority=5)
    assert [queue.claim("w").id for _ in range(3)] == [high.id, first.id, second.id]


def test_a_job_for_the_loaded_adapter_overtakes_32_others_but_not_33(queue):
    others = [put(queue, adapter="a") for _ in range(33)]
    near = put(queue, adapter="b")
    assert queue.claim("w", loaded="b").id == others[0].id
    assert queue.claim("w", loaded="b").id == near.id


def test_no_job_is_overtaken_more_than_32_times(queue):
    waiting = put(queue, adapter="a")
    for _ in range(32):
        put(queue, adapter="b")
        assert queue.claim("w", loaded="b").adapter == "b"
    put(queue, adapter="b")
    assert queue.claim("w", loaded="b").id == waiting.id


def test_the_loaded_adapter_does_not_overtake_a_higher_priority(queue):
    high = put(queue, adapter="a", priority=1)
    put(queue, adapter="b")
    assert queue.claim("w", loaded="b").id == high.id


def test_clients_of_equal_priority_take_turns(queue):
    many = [put(queue, client="ana") for _ in range(3)]
    one = put(queue, client="bob")
    turns = [many[0].id, one.id, many[1].id, many[2].id]
    assert [queue.claim("w").id for _ in range(4)] == turns


def test_a_claim_reads_indexes_and_never_the_whole_table(queue):
    from iclora.serve import order

    plan = queue._store.rows(f"EXPLAIN QUERY PLAN {order._NEXT}", 0, "", 33)
    said = " ".join(row["detail"] for row in plan)
    assert "USING INDEX" in said
    assert "SCAN" not in said
    assert "TEMP B-TREE" not in said


def test_the_same_key_and_body_give_the_same_job(queue):
    first, fresh = queue.submit(new(), "key-1", "body")
    second, again = queue.submit(new(), "key-1", "body")
    assert (fresh, again) == (True, False)
    assert first.id == second.id
    assert len(queue.page()) == 1


def test_the_same_key_with_another_body_is_refused(queue):
    queue.submit(new(), "key-1", "body")
    with pytest.raises(SettingsError, match="another request"):
        queue.submit(new(), "key-1", "other")
    assert queue.submit(new(client="bob"), "key-1", "other")[1]


def test_cancelling_one_waiting_job_leaves_the_running_one_alone(queue):
    put(queue)
    waiting = put(queue)
    running = queue.claim("w")
    assert queue.cancel(waiting.id).status == "cancelled"
    assert queue.get(running.id).status == "running"


def test_a_cancelled_job_cancels_none_that_comes_later(queue):
    put(queue)
    running = queue.claim("w")
    assert queue.cancel(running.id).status == "cancelling"
    assert queue.finish(running, Outcome("cancelled")).status == "cancelled"
    later = put(queue)
    taken = queue.claim("w")
    assert (taken.id, taken.status) == (later.id, "running")
    assert queue.finish(taken, DONE).status == "succeeded"


def test_cancelling_what_has_ended_changes_nothing(queue):
    put(queue)
    queue.finish(done := queue.claim("w"), DONE)
    assert queue.cancel(done.id).status == "succeeded"


def test_clearing_the_queue_cancels_what_waits_and_not_what_runs(queue):
    put(queue)
    running = queue.claim("w")
    waiting = [put(queue).id for _ in range(3)]
    assert [job.id for job in queue.cancel_waiting()] == waiting
    assert queue.get(running.id).status == "running"


def test_a_job_whose_worker_died_is_tried_five_times_then_fails_with_the_signal(queue):
    job = put(queue)
    for attempt in range(1, 6):
        taken = queue.claim("w")
        assert (taken.id, taken.attempt) == (job.id, attempt)
        queue.give_back(taken, "SIGKILL")
    failed = queue.get(job.id)
    assert failed.status == "failed"
    assert "SIGKILL" in failed.error["problem"]
    assert queue.claim("w") is None


def test_a_job_given_back_keeps_its_place_folder_and_seeds(queue):
    first = put(queue)
    put(queue)
    queue.give_back(queue.claim("w"), "SIGKILL")
    again = queue.claim("w")
    assert (again.id, again.folder, again.settings) == (first.id, first.folder, first.settings)


def test_a_job_that_was_being_cancelled_when_its_worker_died_is_cancelled(queue):
    put(queue)
    taken = queue.claim("w")
    queue.cancel(taken.id)
    assert queue.give_back(taken, "SIGKILL").status == "cancelled"


def test_a_lease_that_was_taken_back_ends_nothing(queue):
    put(queue)
    stale = queue.claim("w")
    queue.give_back(stale, "SIGKILL")
    fresh = queue.claim("other")
    assert queue.finish(stale, DONE) is None
    assert queue.get(fresh.id).status == "running"


def test_another_process_takes_back_leases_and_counts_the_attempt(folder, queue):
    job = put(queue)
    queue.claim("w")
    later = opened(folder, "later")
    assert [each.id for each in later.recover()] == [job.id]
    assert later.claim("w").attempt == 2


def test_a_run_stays_with_its_worker_however_often_its_server_is_restarted(folder, queue):
    put(queue, kind="train")
    run = queue.claim("cuda:1")
    for number in range(5):
        queue = opened(folder, f"server-{number}")
        workers = ["cuda:0", "cuda:1"]
        ((worker, taken),) = queue.take_over(workers)
        assert queue.recover() == []
        assert (worker, taken.id, taken.attempt) == ("cuda:1", run.id, 1)
    assert queue.take_over(["cuda:0"]) == []
    assert queue.finish(run, DONE) is None
    assert queue.finish(taken, DONE).status == "succeeded"


def test_a_server_that_goes_down_in_order_takes_no_attempt(queue):
    put(queue)
    queue.release(queue.claim("w"))
    assert queue.claim("w").attempt == 1


@pytest.mark.parametrize(
    "damage",
    ["input='{'", "settings='[]'", "result='3'", "error='x'", "status='odd'", "input='[[[[['"],
)
def test_a_damaged_record_of_a_job_costs_that_job_alone(folder, queue, damage):
    one, other = put(queue), put(queue)
    with queue._store.change() as db:
        db.execute(f"UPDATE jobs SET {damage} WHERE id=?", (one.id,))
    _stores.pop().close()
    again = opened(folder)
    found = {each.id: again.get(each.id) for each in (one, other)}
    assert found[one.id].status == "failed"
    assert "damaged" in found[one.id].error["problem"]
    assert found[other.id].status == "queued"
    assert again.claim("cpu").id == other.id


def test_a_pause_holds_over_a_restart(folder, queue):
    put(queue)
    queue.pause(True)
    assert queue.claim("w") is None
    later = opened(folder)
    assert later.paused
    assert later.claim("w") is None
    later.pause(False)
    assert later.claim("w")


def test_a_failed_job_is_retried_with_its_folder_and_seeds(queue):
    job = put(queue)
    error = {"code": "ModelError", "problem": "p", "advice": "a", "setting": None}
    queue.finish(queue.claim("w"), Outcome("failed", error=error))
    assert queue.get(job.id).error == error
    again = queue.retry(job.id)
    assert (again.status, again.error, again.folder) == ("queued", None, job.folder)
    assert queue.claim("w").attempt == 1


def test_what_runs_or_succeeded_is_not_retried(queue):
    put(queue)
    running = queue.claim("w")
    with pytest.raises(Busy, match="running"):
        queue.retry(running.id)
    queue.finish(running, DONE)
    with pytest.raises(Busy, match="succeeded"):
        queue.retry(running.id)


def test_a_job_is_moved_before_another_however_often(queue):
    first, second, last = put(queue), put(queue), put(queue)
    for _ in range(25):  # Fifty times: more often than a place can be halved.
        queue.move(last.id, before=second.id)
        queue.move(second.id, before=last.id)
    order = sorted(queue.positions(), key=queue.positions().get)
    assert order == [first.id, second.id, last.id]
    assert queue.position(queue.get(last.id)) == 2


def test_the_queue_refuses_more_than_its_limit_and_says_when_to_ask_again(folder):
    queue = opened(folder, most=2)
    put(queue)
    put(queue)
    with pytest.raises(Full) as refused:
        put(queue)
    assert refused.value.retry_after >= 1
    queue.claim("w")
    put(queue)


def test_one_key_cannot_fill_the_queue(folder):
    queue = opened(folder, most_of_one=1)
    put(queue, client="ana")
    with pytest.raises(Full):
        put(queue, client="ana")
    put(queue, client="bob")


def test_two_jobs_do_not_write_one_folder(queue):
    put(queue, kind="train", folder="/runs/a")
    with pytest.raises(Busy):
        put(queue, kind="train", folder="/runs/a")
    queue.finish(queue.claim("w"), DONE)
    put(queue, kind="train", folder="/runs/a")


def test_another_clients_job_is_not_found(queue):
    job = put(queue, client="ana")
    for act in (queue.get, queue.cancel, queue.retry, queue.move):
        with pytest.raises(NoSuchJob):
            act(job.id, "bob")
    assert queue.page(client="bob") == []
    assert queue.get(job.id).status == "queued"


def test_pages_are_newest_first_and_leave_nothing_out(queue):
    made = [put(queue).id for _ in range(7)]
    seen, before = [], None
    while page := queue.page(before=before, limit=3):
        seen += [job.id for job in page]
        before = page[-1].id
    assert seen == made[::-1]
    assert [job.id for job in queue.page(status="running")] == []


def test_watchers_hear_of_every_transition(queue):
    heard = []
    queue.watchers.append(lambda job: heard.append(job.status))
    put(queue)
    queue.finish(queue.claim("w"), DONE)
    assert heard == ["queued", "running", "succeeded"]


def test_a_file_of_a_newer_version_is_refused(folder):
    with store_of(folder).change() as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StorageError, match="newer"):
        Store(folder / "serve.sqlite")


def test_a_damaged_file_is_refused_in_plain_words(folder):
    (folder / "serve.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="cannot use"):
        Store(folder / "serve.sqlite")


WRITER = """
import json, sys
from iclora.serve.jobs import NewJob
from iclora.serve.queue import Queue
from iclora.serve.store import Store, new_id
from pathlib import Path
queue = Queue(Store(Path(sys.argv[1])), "writer")
while True:
    job = new_id()
    queue.submit(NewJob(job, "generate", {}, {}, f"/out/{job}"))
    print(job, flush=True)
    queue.claim("w")
"""


def test_a_killed_process_loses_no_acknowledged_job(folder):
    path = folder / "serve.sqlite"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    acknowledged = [writer.stdout.readline().strip() for _ in range(20)]
    time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += writer.communicate()[0].split()
    queue = opened(folder, "after")
    queue.recover()
    found = {job.id: job.status for job in queue.page(limit=100_000)}
    assert {found.get(job) for job in acknowledged} == {"queued"}


def test_inputs_are_kept_as_they_were_written(queue):
    asked = {"prompt": "Å \u2603 [SCENE-1]", "given": {"1": "f" * 64}, "seed": 2**62}
    job = put(queue, input=json.loads(json.dumps(asked)))
    assert queue.get(job.id).input == asked


def test_jobs_that_differ_in_words_seeds_and_pictures_alone_share_a_batch(queue):
    def ask(n, **more):
        told = {"prompt": [f"words {n}"], "seed": n, "out": f"/{n}", "steps": 20}
        return put(queue, settings={**told, **more.pop("settings", {})}, **more)

    first, other = ask(1), ask(2, settings={"steps": 4})
    alike = [ask(3), ask(4), ask(5)]
    ask(6, exact=True)
    ask(7, settings={"best_of": 2, "score": "toyland"})
    ask(8, kind="complete", settings={"given": {"1": "a.png"}})
    taken = queue.claim("w")
    assert taken.id == first.id
    assert [job.id for job in queue.claim_beside(taken, "w", 2)] == [job.id for job in alike[:2]]
    assert {queue.get(job.id).status for job in alike[:2]} == {"running"}
    assert [job.id for job in queue.claim_beside(taken, "w", 9)] == [alike[2].id]
    # What was tried before runs alone, as does what asks for it.
    for job in alike[:2]:
        queue.give_back(queue.get(job.id), "SIGKILL")
    assert queue.claim_beside(taken, "w", 9) == []
    assert queue.claim("w").id == other.id
    for _ in range(2):
        assert queue.claim_beside(queue.claim("w"), "w", 9) == []


def test_no_job_is_overtaken_by_batches_for_ever(queue):
    told = {"prompt": ["a"], "steps": 20}
    put(queue, settings=told)
    waiting = put(queue, settings=told | {"steps": 4})
    taken = queue.claim("w")
    for _ in range(AHEAD):
        mate = put(queue, settings=told)
        assert [job.id for job in queue.claim_beside(taken, "w", 3)] == [mate.id]
    put(queue, settings=told)
    assert queue.claim_beside(taken, "w", 3) == []
    assert queue.claim("w").id == waiting.id
