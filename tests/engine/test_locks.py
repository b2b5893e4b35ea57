"""Locks: one writer, and no dead holder keeps a folder."""

import json
import os
import subprocess
import sys
import time

import pytest

from lib.engine import locks
from lib.runs import Run

HOLD = (
    "import sys, time; from lib.engine import locks\n"
    "with locks.hold(sys.argv[1], 'sleeping'):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)"
)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_and_told_who_the_first_is(other, tmp_path):
    with pytest.raises(locks.LockedError) as error, locks.hold(tmp_path, "mine"):
        pass
    for word in (
        str(tmp_path),
        f"process {other.pid} on",
        "sleeping since",
        f"kill -INT {other.pid}",
        "another run folder",
    ):
        assert word in str(error.value)
    assert locks.holder(tmp_path)["pid"] == other.pid
    with pytest.raises(locks.LockedError):
        Run(tmp_path).artifact("thing", {}, lambda folder: {})
    assert not (tmp_path / "thing").exists()


def test_the_lock_of_a_dead_process_is_taken_over(other, tmp_path, capsys):
    other.kill()
    other.wait()
    assert locks.holder(tmp_path) is None
    with locks.hold(tmp_path, "mine"):
        assert locks.read(tmp_path)["pid"] == os.getpid()
    assert f"took over the lock of process {other.pid}" in capsys.readouterr().out
    assert locks.read(tmp_path) is None


def test_a_process_id_that_was_given_away_again_is_another_process(tmp_path):
    with locks.hold(tmp_path, "mine"):
        found = locks.read(tmp_path)
    (tmp_path / locks.NAME).write_text(json.dumps(found | {"started": found["started"] - 1000}))
    assert locks.holder(tmp_path) is None


def test_another_machine_counts_as_alive_until_it_falls_silent(tmp_path, capsys):
    with locks.hold(tmp_path, "mine"):
        found = locks.read(tmp_path)
    lock = tmp_path / locks.NAME
    lock.write_text(json.dumps(found | {"host": "node7", "place": "node7 boot pid:[1]"}))
    refused = pytest.raises(locks.LockedError, match="on node7; its lock is free 120 s after its last sign of life")
    with refused, locks.hold(tmp_path, "mine"):
        pass
    silent = time.time() - locks.SILENT_SECONDS - 5
    os.utime(lock, (silent, silent))
    with locks.hold(tmp_path, "mine"):
        pass
    assert "node7: no sign of life for 12" in capsys.readouterr().out


def test_holders_may_hold_again_and_so_may_what_they_start(tmp_path):
    code = f"folder = {str(tmp_path)!r}\nfrom lib.engine import locks\n"
    code += "with locks.hold(folder, 'child'): print(locks.held_by_parent(folder))"
    with locks.hold(tmp_path, "outer"), locks.hold(tmp_path, "inner"):
        assert not locks.held_by_parent(tmp_path)
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout == "True\n"
        assert locks.read(tmp_path)["doing"] == "outer"
    assert locks.read(tmp_path) is None and not os.environ.get(locks.HELD)


def test_other_ranks_of_a_job_take_no_lock(other, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with locks.hold(tmp_path, "rank 1"):
        assert locks.read(tmp_path)["pid"] == other.pid


def test_the_heartbeat_renews_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    with locks.hold(tmp_path, "mine"):
        os.utime(tmp_path / locks.NAME, (1, 1))
        end = time.monotonic() + 5
        while (tmp_path / locks.NAME).stat().st_mtime < 2:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_newcomers_do_not_both_take_over_a_dead_lock(tmp_path):
    """Eight processes find the lock of a dead one at once and wait for each other: the first alone holds it."""
    with locks.hold(tmp_path, "mine"):
        found = locks.read(tmp_path)
    (tmp_path / locks.NAME).write_text(json.dumps(found | {"started": 0}))
    code = (
        "import sys; from lib.engine import locks\n"
        "try:\n"
        "    with locks.hold(sys.argv[1], 'x'): print('held', flush=True); sys.stdin.read()\n"
        "except locks.LockedError: print('refused', flush=True)"
    )
    line = [sys.executable, "-c", code, str(tmp_path)]
    racers = [
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]  # the holder keeps the lock until its input ends, after all have spoken
    said = [racer.stdout.read(4) for racer in racers]
    for racer in racers:
        racer.communicate()
    assert said.count("refu") == 7  # the eighth said what it took over, or that it held
