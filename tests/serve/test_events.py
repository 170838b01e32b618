import asyncio
import json
from types import SimpleNamespace

import pytest

from iclora.serve.events import Bus
from iclora.serve.problems import Refused


def run(work):
    return asyncio.run(asyncio.wait_for(work, 200))


async def read(bus, client="", job=None, last=None, count=1):
    """Some events of a new stream, as (id, type, data)."""
    stream = bus.stream(bus.listen(client, job), last)
    found = []
    async for raw in stream:
        lines = dict(line.split(": ", 1) for line in raw.decode().strip().split("\n"))
        if "event" in lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
        if len(found) == count:
            break
    await stream.aclose()
    return found


def test_a_stream_tells_what_happens_from_another_thread():
    async def work():
        bus = Bus()
        reading = asyncio.create_task(read(bus, count=2))
        await asyncio.sleep(0)
        await asyncio.to_thread(bus.tell, "job", {"id": "a"}, "", "a")
        await asyncio.to_thread(bus.tell, "queue", {"paused": True})
        return await reading

    assert [event[1:] for event in run(work())] == [
        ("job", {"id": "a"}),
        ("queue", {"paused": True}),
    ]


def test_a_stream_goes_on_where_it_was_cut():
    async def work():
        bus = Bus()
        bus.tell("job", {"n": 0})
        bus.tell("job", {"n": 1})
        first = await read(bus, last="other-0", count=1)
        assert first[0][1] == "reset"
        seen = first[0][0]
        assert seen == bus.last
        bus.tell("job", {"n": 2})
        bus.tell("job", {"n": 3})
        return await read(bus, last=seen, count=2)

    assert [data["n"] for _, _, data in run(work())] == [2, 3]


@pytest.mark.parametrize("last", ["", "x", "abcd-1", "-", "-1", "٣-٣"])
def test_an_id_of_another_process_begins_with_a_reset(last):
    async def work():
        bus = Bus()
        bus.tell("job", {})
        return await read(bus, last=last)

    assert run(work())[0][1] == "reset"


def test_what_is_too_old_begins_with_a_reset():
    async def work():
        bus = Bus()
        for n in range(2000):
            bus.tell("job", {"n": n})
        return await read(bus, last=f"{bus._boot}-3")

    assert run(work())[0][1] == "reset"


def test_progress_is_told_four_times_a_second_and_its_end_always(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("iclora.serve.events.time", SimpleNamespace(monotonic=lambda: now[0]))

    async def work():
        bus = Bus()
        reading = asyncio.create_task(read(bus, count=6))
        await asyncio.sleep(0)
        for done in range(101):
            now[0] = done / 100  # s
            bus.tell("progress", {"done": done, "total": 100}, "", "a")
        bus.tell("progress", {"done": 100, "total": 100}, "", "a")
        return await reading

    assert [data["done"] for _, _, data in run(work())] == [0, 25, 50, 75, 100, 100]


def test_a_stream_of_one_job_or_client_hears_of_no_other():
    async def work():
        bus = Bus()
        of_job = asyncio.create_task(read(bus, job="b"))
        of_client = asyncio.create_task(read(bus, client="bob", count=2))
        await asyncio.sleep(0)
        bus.tell("job", {"id": "a"}, "ana", "a")
        bus.tell("job", {"id": "b"}, "bob", "b")
        bus.tell("queue", {})
        return await of_job, await of_client

    of_job, of_client = run(work())
    assert [data.get("id") for _, _, data in of_job] == ["b"]
    assert [data.get("id") for _, _, data in of_client] == ["b", None]


def test_the_33rd_stream_is_told_to_poll():
    async def work():
        bus = Bus()
        listeners = [bus.listen("") for _ in range(32)]
        with pytest.raises(Refused, match="32 streams"):
            bus.listen("")
        bus.leave(listeners[0])
        bus.listen("")

    run(work())


def test_streams_end_when_the_server_goes_down():
    async def work():
        bus = Bus()
        reading = asyncio.create_task(read(bus))
        await asyncio.sleep(0)
        bus.close()
        return await reading

    assert run(work()) == []


def test_a_reader_that_is_too_slow_is_sent_away_to_come_back():
    async def work():
        bus = Bus()
        listener = bus.listen("")
        for n in range(1100):
            bus.tell("job", {"n": n})
        await asyncio.sleep(0.05)
        heard = []
        while (event := await listener.next(10)) is not None:
            heard.append(event.number)
        return heard

    assert len(run(work())) < 1100
