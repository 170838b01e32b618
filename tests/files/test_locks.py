"""One process at a time; a lock ends with its process."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from iclora.errors import RunError, StorageError
from iclora.files.locks import LOCK, alone

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")


def test_the_second_is_refused_while_the_first_is_at_it_and_not_after(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with alone(folder / LOCK, folder, RunError):
            for _ in range(3):
                with (
                    pytest.raises(RunError, match=f"another process is writing {folder}"),
                    alone(folder / LOCK, folder, RunError),
                ):
                    pytest.fail("both are at it")
            with alone(tmp_path / "c" / LOCK, tmp_path / "c", RunError):
                pass
        assert not list(tmp_path.iterdir()), "nothing is left behind, no folder either"


def test_what_was_written_stays_and_an_error_inside_is_passed_on(tmp_path):
    def fail():
        with alone(tmp_path / "a" / LOCK, tmp_path / "a", RunError):
            (tmp_path / "a" / "x").touch()
            raise FileNotFoundError("mine")

    with pytest.raises(FileNotFoundError, match="mine"):
        fail()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x"]


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    process = os.fork()
    if process == 0:
        with alone(tmp_path / "a" / LOCK, tmp_path / "a", RunError):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert (tmp_path / "a" / LOCK).exists()
    with alone(tmp_path / "a" / LOCK, tmp_path / "a", RunError):
        pass
    assert not (tmp_path / "a" / LOCK).exists()


def test_a_lock_taken_over_between_two_calls_is_not_held_twice(tmp_path, monkeypatch):
    """The first process removes the file after the second has opened it, and a third makes one."""
    import fcntl

    real, third = fcntl.flock, []

    def late(held, how):
        if not third:
            (tmp_path / LOCK).unlink()
            third.append(os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT))
            real(third[0], how)
        real(held, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RunError), alone(tmp_path / LOCK, tmp_path, RunError):
        pass
    os.close(third[0])


def test_a_disk_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    import errno
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with alone(tmp_path / LOCK, tmp_path, RunError):
        pass


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError), alone(tmp_path / "file" / LOCK, tmp_path / "file", RunError):
        pass
    (tmp_path / LOCK).mkdir()
    with pytest.raises(StorageError), alone(tmp_path / LOCK, tmp_path, RunError):
        pass
