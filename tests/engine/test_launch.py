"""Launching: results and progress come back, failures name their rank, nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from lib.engine.launch import WorkerError, launch, main
from lib.errors import FoundExpected
from lib.runs import read_jsonl
from lib.settings import LaunchSettings
from lib.stages.by_name import find_stage

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)  # started processes inherit it
import launched_jobs as jobs  # noqa: E402

TWO = LaunchSettings(processes=2)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Started processes and notebooks import the project and the jobs."""
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}{os.pathsep}{HERE}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_one_process_is_this_one():
    assert launch(os.getpid, settings=LaunchSettings()) == [os.getpid()]


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"nodes": 2}, "cpu", "launch.rendezvous: found '', expected host:port for 2 machines"),
        ({"processes": 2, "backend": "mpi"}, "cpu", "launch.backend: found 'mpi', expected auto, nccl or gloo"),
        ({"processes": 2}, "cuda:1", "device: found cuda:1, expected cuda or auto"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(settings, device, message):
    with pytest.raises(FoundExpected, match=message):
        launch(jobs.add, 1.0, settings=LaunchSettings(**settings), device=device)


def test_a_lost_process_is_restarted_from_the_last_checkpoint(tmp_path, capsys):
    """Killed in step 13 of 20: everybody goes on from step 10, to the result of one process."""
    ((_, _, loss, weight),) = launch(jobs.fit_line, tmp_path / "one", settings=LaunchSettings())
    found = launch(jobs.fit_line, tmp_path / "two", 13, settings=LaunchSettings(processes=2, max_restarts=1))
    assert [row[:2] for row in found] == [(0, 1), (1, 1)] and found[0][2:] == found[1][2:]
    assert found[0][2:] == pytest.approx((loss, weight), rel=1e-5) and 1 < weight < 3
    steps = [[row["step"] for row in read_jsonl(tmp_path / name / "history.jsonl")] for name in ("one", "two")]
    assert steps[0] == steps[1] == [*range(1, 21)]
    assert "line: 20/20" in capsys.readouterr().out.splitlines()[-1]  # the first process's progress, shown here


def test_a_failure_comes_back_with_rank_and_traceback():
    with pytest.raises(WorkerError) as caught:
        launch(jobs.fail, settings=TWO)
    text = str(caught.value)
    assert "rank 1 of 2" in text and 'raise ValueError("bad luck")' in text and "launched_jobs.py" in text
    assert "torch/distributed/elastic" not in text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # as it was
    left = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert all("resource_tracker" in command for command in left)  # Python's own; it ends with the tests


WAITING = """
import sys
import launched_jobs as jobs
from lib.engine.launch import launch
from lib.settings import LaunchSettings
if __name__ == "__main__":
    try:
        launch(jobs.wait, sys.argv[1], settings=LaunchSettings(processes=2))
    except KeyboardInterrupt as error:
        print(error)
"""


def test_interrupt_and_kill_leave_no_orphan(tmp_path, monkeypatch):
    """Ctrl-C to one launcher, SIGKILL to another: the processes of both are gone seconds later."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed launcher leaves its folder of output files
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    launchers = []
    for name in ("interrupted", "killed"):
        (tmp_path / name).mkdir()
        command = [sys.executable, str(script), str(tmp_path / name)]
        launchers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    assert _until(lambda: len(list(tmp_path.glob("*ed/*"))) == 4, 120)
    pids = [int(path.name) for path in tmp_path.glob("*ed/*")]
    assert all(map(_alive, pids))
    launchers[0].send_signal(signal.SIGINT)
    launchers[1].kill()
    assert "interrupted; its processes have ended" in launchers[0].communicate(timeout=60)[0]
    assert launchers[0].returncode == 0 and launchers[1].wait(timeout=60) == -signal.SIGKILL
    assert _until(lambda: not any(map(_alive, pids)), 60)


def _alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _until(fulfilled, seconds):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if fulfilled():
            return True
        time.sleep(0.1)
    return False


NODE = """
import sys
import launched_jobs as jobs
from lib.engine.launch import launch
from lib.settings import LaunchSettings
if __name__ == "__main__":
    settings = LaunchSettings(processes=1, nodes=2, rendezvous=sys.argv[1])
    print("found", launch(jobs.add, 1.0, settings=settings))
"""


def test_two_machines(tmp_path):
    """Two node groups of one process each, that meet at a port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "node.py"
    script.write_text(NODE)
    command = [sys.executable, str(script), f"127.0.0.1:{port}"]
    nodes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = sorted(node.communicate(timeout=120)[0].splitlines()[-1] for node in nodes)
    assert told == ["found [(0, 2, 3.0)]", "found [(1, 2, 3.0)]"]


CELLS = """
import torch
x = torch.randn(64, 64, requires_grad=True)
(x @ x).sum().backward()
if torch.cuda.is_available():
    torch.ones(1, device="cuda")
---
import launched_jobs as jobs
from lib.engine.launch import WorkerError, launch, main
from lib.settings import LaunchSettings
one = launch(jobs.fit_line, folder + "/one", settings=LaunchSettings())
two = launch(jobs.fit_line, folder + "/two", settings=LaunchSettings(processes=2))
assert [row[0] for row in two] == [0, 1] and two[0][2:] == two[1][2:]
assert torch.allclose(torch.tensor(one[0][2:]), torch.tensor(two[0][2:]), rtol=0, atol=1e-6), (one, two)
---
def inside(): pass
try:
    launch(inside, settings=LaunchSettings(processes=2))
except ValueError as error:
    print(error)
"""


def test_from_a_notebook_that_has_used_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("HOI_HEADLESS", "1")
    cells = [f"folder = {str(tmp_path)!r}", *CELLS.split("---\n")]
    book = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}}
    ).execute()
    text = "".join(output.get("text", "") for cell in book.cells for output in cell.outputs)
    assert "found the function inside of this notebook" in text and "move it into a module" in text
    assert text.count("line: 20/20") == 2  # of one process, and of the first of two


def test_stages_have_names():
    stage, words = find_stage("pairs:test")
    assert (stage.__module__, stage.__name__, words) == ("lib.stages.detector", "pairs", ["test"])
    assert find_stage("recognition.detections:own:block")[1] == ["own", "block"]
    for name, message in {
        "ezhio": "found 'ezhio', expected .*ezhoi",
        "detections:test": "found 'detections', expected inputs.detections or recognition.detections",
        "pairs": "found 'pairs', expected 'pairs:<which>'",
    }.items():
        with pytest.raises(FoundExpected, match=f"stage: {message}"):
            find_stage(name)


def test_the_command_refuses_with_an_exit_code(tmp_path, capsys):
    arguments = ["configs/tiny.yaml", str(tmp_path / "run"), "ezhoi"]
    assert main([*arguments, "launch.proceses=2"]) == 2 and "did you mean 'launch.processes'" in capsys.readouterr().err
    assert main([*arguments[:-1], "ezhio"]) == 2 and "stage: found 'ezhio'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
