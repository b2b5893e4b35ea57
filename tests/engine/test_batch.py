"""The batch runner: selection, strict parameters, resuming, and every way to end."""

import json
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from lib.config import ConfigError
from lib.engine import batch, dead_process, locks
from lib.engine.exit_codes import Exit
from lib.engine.parameters import check_common, declared, split_assignments
from lib.runs import Run


def status(tmp_path):
    return json.loads((tmp_path / "run" / "status.json").read_text())


def test_selection(write_notebook, tmp_path):
    for name in ("00_a", "01_b", "02_c", "05_d"):
        write_notebook(name)
    pick = lambda text: [path.stem for path in batch.select_notebooks(text, tmp_path / "books")]  # noqa: E731
    assert pick("all") == ["00_a", "01_b", "02_c", "05_d"]
    assert pick("01-05") == ["01_b", "02_c", "05_d"]
    assert pick("00,02") == ["00_a", "02_c"]
    with pytest.raises(ConfigError, match="expected two-digit numbers"):
        pick("03")
    with pytest.raises(ConfigError, match="expected two-digit numbers"):
        pick("one")


# ---------------------------------------------------------------- parameters

OWN = """
top_k = 5  # how many = are "shown"
threshold: float = 0.5
name = "stick"
flags = [1, 2]
note = None
"""


def test_a_parameters_cell_is_read_with_types_and_help(write_notebook):
    found = declared(write_notebook("07_mine", parameters=OWN))
    kinds = {name: parameter.kind for name, parameter in found.items()}
    assert kinds == dict(config="str", run="str", overrides="list", recompute="list") | dict(
        top_k="int", threshold="float", name="str", flags="list", note="NoneType"
    )
    assert found["top_k"].default == 5 and found["top_k"].help == 'how many = are "shown"'
    with pytest.raises(ConfigError, match="line 5: found compute\\(\\), expected a literal"):
        declared(write_notebook("08_mine", parameters="top_k = compute()"))


def test_assignments_are_settings_or_notebook_parameters(write_notebook):
    one, two = write_notebook("07_mine", parameters=OWN), write_notebook("08_other", parameters="top_k = 1")
    found = split_assignments(["ezhoi.epochs=3", "top_k=9", "threshold=1e-3", "name=3", "note=[a, 2]"], [one, two])
    assert found[0] == ["ezhoi.epochs=3"]
    assert found[1] == {one: {"top_k": 9, "threshold": 0.001, "name": "3", "note": ["a", 2]}, two: {"top_k": 9}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("topk=3", r"unknown parameter 'topk'; did you mean 'top_k' of 07_mine\?"),
        ("ezhoi.epoch=3", "did you mean 'ezhoi.epochs'"),
        ("ezhoi.epochs=three", r"ezhoi.epochs: .*expected int \(default 12\)"),
        ("top_k=three", "top_k=three: found str, expected int"),
        ("top_k=true", "top_k=true: found bool, expected int"),
        ("threshold=low", "threshold=low: found str, expected float"),
        ("flags=3", "flags=3: found int, expected list"),
        ("run=elsewhere", "mend: use --run FOLDER"),
        ("top_k", "expected key=value"),
    ],
)
def test_a_bad_assignment_stops_before_a_kernel_starts(assignment, message, write_notebook, command, tmp_path, capsys):
    write_notebook("07_mine", parameters=OWN)
    assert batch.main([*command, assignment]) == Exit.SETTINGS
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_notebooks_that_cannot_be_given_parameters_are_refused(tmp_path, write_notebook):
    with pytest.raises(ConfigError, match=r"parameters \['seed'\] have names of settings"):
        check_common(write_notebook("07_mine", parameters="seed = 3"))
    path = write_notebook("08_mine")
    book = nbformat.read(path, 4)
    book.cells[0]["source"] = "config = ''"
    nbformat.write(book, path)
    with pytest.raises(ConfigError, match=r"unknown parameters \['run', 'overrides', 'recompute'\]"):
        check_common(path)
    book.cells[0]["metadata"]["tags"] = []
    nbformat.write(book, path)
    with pytest.raises(ConfigError, match="found 0 cells tagged parameters"):
        check_common(path)


def test_all_parameters_are_listed(capsys):
    assert batch.main(["params"]) == 0
    listed = capsys.readouterr().out
    for words in (("recompute", "list", "[]", "given by the runner"), ("ezhoi.epochs", "int", "12", "passes over")):
        assert any(all(word in line for word in words) for line in listed.splitlines())
    assert batch.main(["params", "nms_iou"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["detector.nms_iou", "float", "0.5"]
    assert batch.main(["runn"]) == Exit.SETTINGS


# ---------------------------------------------------------------- running and resuming


def test_a_failed_notebook_is_kept_and_the_batch_resumes_there(write_notebook, command, tmp_path, capfd):
    write_notebook("00_good", "open(run + '/parameters', 'a').write(f'{overrides} {top_k};')", parameters="top_k = 1")
    bad = ["print('before', 1.5)", "raise ValueError('no such thing')", "print('after')"]
    write_notebook("01_bad", *bad)
    write_notebook("02_last", "open(run + '/parameters', 'a').write('last;')")
    run = tmp_path / "run"
    assert batch.main([*command, "seed=3", "top_k=7"]) == Exit.FAILED
    assert (run / "parameters").read_text() == "['seed=3'] 7;"
    assert "no such thing" in capfd.readouterr().err
    executed = json.loads((run / "01_bad.ipynb").read_text())
    assert any("before" in str(cell.get("outputs")) for cell in executed["cells"])
    assert not any("after" in str(cell.get("outputs")) for cell in executed["cells"])
    assert "before 1.5" in (run / "logs" / "01_bad.log").read_text()
    assert not (run / "02_last.ipynb").exists()
    found = status(tmp_path)
    assert found["state"] == "failed" and "no such thing" in found["error"] and found["doing"] == "01_bad"
    assert {name: entry["state"] for name, entry in found["notebooks"].items()} == {
        "00_good": "finished",
        "01_bad": "failed",
    }
    assert locks.read(run) is None

    write_notebook("01_bad", "print('mended')")
    assert batch.main([*command, "seed=3", "top_k=7"]) == Exit.FINISHED
    assert "finished before: 00_good; goes on with 01_bad" in capfd.readouterr().out
    assert (run / "parameters").read_text() == "['seed=3'] 7;last;"
    assert status(tmp_path)["state"] == "finished"
    assert batch.main([*command, "seed=3", "top_k=7"]) == Exit.FINISHED  # nothing left
    assert (run / "parameters").read_text() == "['seed=3'] 7;last;"
    assert batch.main([*command, "seed=3", "top_k=8"]) == Exit.FINISHED  # another parameter: from the start
    assert (run / "parameters").read_text() == "['seed=3'] 7;last;['seed=3'] 8;last;"


def test_a_notebook_counts_as_finished_while_its_artefacts_stand(write_notebook, command, tmp_path):
    cell = "from lib.runs import Run; Run(run).artifact('x', {}, lambda f: open(run + '/made', 'a').write('x') and {})"
    write_notebook("00_a", cell)
    assert batch.main(command) == Exit.FINISHED
    assert batch.main(command) == Exit.FINISHED
    assert (tmp_path / "run" / "made").read_text() == "x"
    (tmp_path / "run" / "x" / "artifact.json").unlink()
    assert batch.main(command) == Exit.FINISHED
    assert (tmp_path / "run" / "made").read_text() == "xx"
    entry = status(tmp_path)["notebooks"]["00_a"]
    assert list(entry["artifacts"]) == ["x"] and entry["seconds"] > 0


def test_the_console_gets_few_lines_and_the_log_all(write_notebook, command, tmp_path, capfd):
    write_notebook("00_a", "for i in range(300):\n    print('row', i)\nprint('bar 1\\rbar 2')")
    assert batch.main(command) == Exit.FINISHED
    assert capfd.readouterr().out.count("row ") <= 3
    log = (tmp_path / "run" / "logs" / "00_a.log").read_text()
    assert log.count("row ") == 300
    assert batch.main([*command, "--again", "--verbose"]) == Exit.FINISHED
    out = capfd.readouterr().out
    assert out.count("row ") == 300 and "bar 2" in out and "bar 1" not in out


# ---------------------------------------------------------------- every way to end


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("print('step 7'); time.sleep(1); os.kill(os.getpid(), 9)", ["signal 9", "line: step 7", "resumes"]),
        ("import ctypes; print('then', flush=True); ctypes.string_at(0)", ["signal 11 (SIGSEGV)", "compiled code"]),
        ("os._exit(7)", ["exit code 7"]),
    ],
    ids=["killed", "crashed", "left"],
)
def test_a_dead_kernel_is_explained(cell, words, write_notebook, command, tmp_path, capsys):
    write_notebook("00_a", "import os, time", cell)
    assert batch.main(command) == Exit.KERNEL_DIED
    error = capsys.readouterr().err
    assert all(word in error for word in ["00_a: the kernel died", *words]), error
    assert status(tmp_path)["state"] == "failed" and "kernel died" in status(tmp_path)["error"]
    if "SIGSEGV" in error:
        assert "Segmentation fault" in (tmp_path / "run" / "logs" / "00_a.log").read_text()


def test_memory_is_named_where_the_system_tells(monkeypatch):
    monkeypatch.setattr(dead_process, "oom_kills", lambda: 4)
    told = dead_process.explain(-signal.SIGKILL, 3 * 2**30, 3, "EZ-HOI: 3/9")
    assert told.startswith("out of memory") and "3.0 of" in told and "last line: EZ-HOI: 3/9" in told
    assert "batch_size" in told
    assert "somebody's kill -9" in dead_process.explain(-signal.SIGKILL, 0, 4)


def test_a_full_disk_is_explained_and_nothing_is_half_written(write_notebook, command, tmp_path, capsys):
    """The kernel may write files of 1 MB at most; then a device that is always full."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))"
    write = "from lib.runs import write_text; write_text(run + '/big', 'new' * 10**6)"
    write_notebook("00_a", limit, write)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "big").write_text("old")
    assert batch.main(command) == Exit.DISK_FULL
    assert "MiB free, expected room" in capsys.readouterr().err
    assert (tmp_path / "run" / "big").read_text() == "old"
    assert not list((tmp_path / "run").glob(".*.tmp"))
    write_notebook("00_a", "stream = open('/dev/full', 'w')\nstream.write('x')\nstream.flush()")
    assert batch.main(command) == Exit.DISK_FULL
    assert "No space left on device while 00_a ran" in capsys.readouterr().err
    assert status(tmp_path)["state"] == "failed"


def test_a_small_file_system_that_fills_up(write_notebook, command, tmp_path):
    """4 MB in a file system of its own: kernel and runner both meet the full disk; room comes back, the run resumes."""
    fill = "from pathlib import Path\nfrom lib.runs import Run, write_text\n"
    fill += "write_text(run + '/big', 'x' * (size * 10**6)); Run(run).record('a', size=size)"
    write_notebook("00_a", fill, parameters="size = 8")
    (tmp_path / "run").mkdir()
    inside = f"mount -t tmpfs -o size=4m tmpfs {tmp_path / 'run'} || exit 77\n"
    line = f"{sys.executable} -m lib.engine.batch {' '.join(command)}"
    inside += f"{line}; echo first=$?; {line} size=1; echo second=$?; cd {tmp_path}/run; ls -A; cat *.json"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", inside], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()[:80]}")
    assert "first=5" in done.stdout and "second=0" in done.stdout, done.stdout + done.stderr
    assert "room" in done.stderr and '"a/size": 1' in done.stdout and ".tmp" not in done.stdout


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_batch_leaves_no_kernel(number, code, write_notebook, command, tmp_path):
    write_notebook("00_a", "import os, time; open(run + '/pid', 'w').write(str(os.getpid()) + ' ')\ntime.sleep(60)")
    run = tmp_path / "run"
    line = [sys.executable, "-m", "lib.engine.batch", *command]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as runner:
        try:
            wait_for(lambda: (run / "pid").is_file() and (run / "pid").read_text().endswith(" "))
            kernel = psutil.Process(int((run / "pid").read_text()))
            assert batch.main(command) == Exit.LOCKED  # a second runner is refused meanwhile
            assert locks.read(run)["pid"] == runner.pid
            runner.send_signal(number)
            assert runner.wait(60) == code
            assert "the same command resumes" in runner.stderr.read()
        finally:
            runner.kill()
    assert not kernel.is_running()
    assert status(tmp_path)["state"] == "interrupted" and locks.read(run) is None
    assert status(tmp_path)["notebooks"]["00_a"]["state"] == "interrupted"


def test_two_batches_at_once_do_not_meet(write_notebook, command, tmp_path):
    """Two runners of one project, each with a kernel of its own, whose output goes to its own log."""
    write_notebook("00_a", "import time\nfor i in range(20):\n    print(run, i)\n    time.sleep(0.05)")
    line = [sys.executable, "-m", "lib.engine.batch", *command]
    folders = [tmp_path / "one", tmp_path / "two"]
    runners = [subprocess.Popen([*line, "--run", str(folder)], stdout=subprocess.DEVNULL) for folder in folders]
    assert [runner.wait() for runner in runners] == [0, 0]
    for folder in folders:
        assert (folder / "logs" / "00_a.log").read_text().count(f"{folder} ") == 20


def test_status_is_readable_at_any_time(tmp_path):
    """Read as fast as possible while another process replaces it."""
    code = (
        "import sys, time; from lib.runs import Run; run = Run(sys.argv[1]); end = time.time() + 1\n"
        "while time.time() < end: run.write_status('running', 'x' * 500)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as writer:
        wait_for((tmp_path / "status.json").is_file)
        reads = 0
        while writer.poll() is None:
            assert Run(tmp_path).read_status()["doing"] == "x" * 500
            reads += 1
    assert reads > 50 and writer.returncode == 0
