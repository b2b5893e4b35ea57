"""Tasks on processes: order, failures, deaths, GPUs, and no process left."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lib.engine import pool
from lib.engine.pool import TaskFailed, run_tasks
from lib.errors import FoundExpected

# tasks are imported by the started processes, so they are ordinary functions of modules


def test_every_task_comes_back_with_its_number():
    found = dict(run_tasks(divmod, [(7, 2), (9, 4), (5, 0)], jobs=2))
    assert found[0] == (3, 1) and found[1] == (2, 1)
    assert isinstance(found[2], TaskFailed) and "ZeroDivisionError" in str(found[2])


def test_a_task_whose_process_dies_takes_no_other_with_it():
    """The first task kills its process; the second and third run in its successor."""
    found = dict(run_tasks(exec, [("import os; os._exit(3)",), ("4 + 1",), ("5 + 1",)], jobs=1))
    assert "exit code 3" in str(found[0]) and found[1] is None and found[2] is None


def test_tasks_see_the_gpus_that_they_were_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert dict(run_tasks(os.getenv, [("CUDA_VISIBLE_DEVICES",)] * 2, jobs=1, gpus=1)) == {0: "4", 1: "4"}
    assert dict(run_tasks(os.getenv, [("CUDA_VISIBLE_DEVICES",)], jobs=1, gpus=2)) == {0: "4,6"}
    assert pool._devices(0.5) == ["4", "6", "4", "6"]  # two tasks a GPU
    with pytest.raises(FoundExpected, match="found 2 GPUs here, expected 3 a task"):
        list(run_tasks(abs, [(1,)], gpus=3))


def test_an_unknown_place_is_refused():
    with pytest.raises(FoundExpected, match="found 'slurm'"):
        list(run_tasks(abs, [(1,)], on="slurm"))


def test_waiting_is_told(monkeypatch):
    monkeypatch.setattr(pool, "TICK_SECONDS", 0.05)
    ticks = []
    list(run_tasks(time.sleep, [(0.3,)], tick=lambda: ticks.append(1)))
    assert ticks


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_no_process_outlives_its_pool(number):
    """The child starts two sleeping tasks, tells their process ids, and is killed or interrupted."""
    code = (
        "import os, time\n"
        "from lib.engine.pool import run_tasks\n"
        "from multiprocessing import active_children\n"
        "import threading\n"
        "def tell():\n"
        "    time.sleep(2)\n"
        "    print(*[child.pid for child in active_children()], flush=True)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=tell, daemon=True).start()\n"
        "    list(run_tasks(time.sleep, [(600,), (600,)], jobs=2))\n"
    )
    line = [sys.executable, "-c", code]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        workers = [int(pid) for pid in it.stdout.readline().split()]
        it.send_signal(number)
    assert len(workers) == 2
    end = time.monotonic() + 60
    while any(map(_alive, workers)):
        assert time.monotonic() < end
        time.sleep(0.1)


def _alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
