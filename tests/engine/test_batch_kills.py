"""kill -9 of the kernel and of the runner at random moments, then the same command: numbers of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from lib.engine import batch, locks
from lib.engine.exit_codes import Exit

KILLS = 5
TELL = "import os; open(run + '/kernels', 'a').write(f'{os.getpid()} ')"


@pytest.fixture
def expected():
    """What forty steps of the work cell give, computed here."""
    value = 1.0
    for step in range(40):
        value = value * 1.01 + step**0.5
    return {"work/value": value, "last/twice": 2 * value}


@pytest.fixture
def books(write_notebook, work_cell):
    write_notebook("00_first", TELL)
    write_notebook("01_work", TELL, work_cell)
    last = "from lib.runs import Run; Run(run).record('last', twice=2 * Run(run).metrics['work/value'])"
    write_notebook("02_last", TELL, last)


def metrics(run):
    found = json.loads((run / "metrics.json").read_text())
    return {name: found[name] for name in ("work/value", "last/twice")}


def kernels(run):
    return [int(pid) for pid in (run / "kernels").read_text().split()] if (run / "kernels").is_file() else []


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_a_kernel_killed_at_random_moments(books, command, expected, tmp_path):
    run, moments = tmp_path / "run", random.Random()
    assert batch.main([*command, "--notebooks", "00"]) == Exit.FINISHED
    for kill in range(KILLS):
        started = len(kernels(run))

        def strike(known=started):
            wait_for(lambda: len(kernels(run)) > known)
            time.sleep(moments.uniform(0, 0.15))  # five of these are less than the forty steps take
            os.kill(kernels(run)[-1], signal.SIGKILL)

        striker = threading.Thread(target=strike)
        striker.start()
        assert batch.main(command) == Exit.KERNEL_DIED, f"kill {kill}"
        striker.join()
        assert locks.read(run) is None
    assert batch.main(command) == Exit.FINISHED
    assert metrics(run) == expected
    assert len(kernels(run)) == 1 + KILLS + 2  # the finished first notebook was never executed again


def test_a_runner_killed_at_random_moments(books, command, expected, tmp_path):
    run, moments = tmp_path / "run", random.Random()
    line = [sys.executable, "-m", "lib.engine.batch", *command]
    for _ in range(KILLS):
        runner = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(
            lambda pid=runner.pid: (locks.read(run) or {}).get("pid") == pid or psutil.Process(pid).status() == "zombie"
        )
        time.sleep(moments.uniform(0, 1.2))
        runner.kill()
        runner.wait()
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in kernels(run)), seconds=30)  # no kernel outlives it
        for path in [*run.glob("*.json"), *run.glob("*.ipynb")]:
            json.loads(path.read_text())
    assert subprocess.run(line, stdout=subprocess.DEVNULL, check=False).returncode == Exit.FINISHED
    assert metrics(run) == expected and locks.read(run) is None
