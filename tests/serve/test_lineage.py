import json

import pytest

from iclora.serve import lineage
from iclora.serve.lineage import family
from iclora.serve.store import Store


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "serve.sqlite")
    yield found
    found.close()


def add(store, job, made, told, kind="reroll", client="", status="succeeded"):
    with store.change() as db:
        db.execute(
            "INSERT INTO jobs (id, kind, status, priority, place, client, tag, exact, adapter,"
            " input, settings, folder, created, result) VALUES"
            " (?, ?, ?, 0, 0, ?, '', 0, '', ?, '{}', '', 0, ?)",
            (job, kind, status, client, json.dumps(told), json.dumps({"sets": made})),
        )


def relations(found):
    return {each.id: each.relation for each in found}


def test_a_family_holds_every_ancestor_and_descendant_and_what_lies_beside(store):
    add(store, "1", ["a"], {"prompt": ["x"]}, kind="generate")
    add(store, "2", ["b"], {"set": "a", "panel": [2]})
    add(store, "3", ["c"], {"set": "b", "panel": [1, 3]})
    add(store, "4", ["d"], {"set": "a", "panel": [1]})
    add(store, "5", ["e"], {"request": "c"}, kind="generate")
    add(store, "6", [], {"set": "c", "panel": [1]}, status="failed")
    found = family(store, "b")
    wanted = {"a": "ancestor", "b": "self", "d": "beside", "c": "descendant", "e": "descendant"}
    assert relations(found) == wanted
    by_id = {each.id: each for each in found}
    assert (by_id["c"].source, by_id["c"].panels, by_id["c"].whole) == ("b", (1, 3), False)
    assert (by_id["e"].source, by_id["e"].panels, by_id["e"].whole) == ("c", (), True)
    assert [each.source for each in found if each.id == "a"] == [None]


def test_a_family_is_of_one_client_and_a_circle_in_a_damaged_record_ends(store):
    add(store, "1", ["b"], {"set": "a", "panel": [1]}, client="me")
    add(store, "2", ["c"], {"set": "a", "panel": [1]}, client="other")
    assert relations(family(store, "a", "me")) == {"a": "self", "b": "descendant"}
    add(store, "3", ["a"], {"set": "b", "panel": "?"}, client="me")
    assert set(relations(family(store, "a", "me"))) == {"a", "b"}


def test_a_family_is_found_by_indexes_however_many_jobs_there_are(store):
    plan = store.rows(f"EXPLAIN QUERY PLAN {lineage._LINKS}", "a", "")
    steps = [row["detail"] for row in plan if "jobs" in row["detail"]]
    assert len(steps) == 3
    assert all("USING INDEX jobs_by_" in step for step in steps)
