"""Numbers reach every backend, offline, and can be read back; each backend in a process of its own."""

import itertools
import json
import sqlite3
import struct
import subprocess
import sys
from importlib.util import find_spec

import pytest

from lib.engine import tracking
from lib.engine.progress import Progress
from lib.runs import Run, read_jsonl
from lib.settings import TrackingSettings

# two loops and a result through the ordinary calls; the second process resumes the first loop at step 2
CODE = """
import sys
from pathlib import Path
from lib.engine import tracking
from lib.engine.progress import Progress
from lib.runs import Run
from lib.settings import TrackingSettings

backend, folder, start = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
tracking.start(TrackingSettings(backends=[backend], project="test"), folder, {"seed": 3, "ezhoi": {"epochs": 2}})
with Progress("EZ-HOI", 4, start=start, history=folder / "history.jsonl") as progress:
    for step in range(start + 1, start + 4):
        progress.step()
        progress.record(loss=10.0 * step, word="no number")
with Progress("bridge", 1) as progress:
    progress.step()
    progress.record(loss=0.5)
Run(folder).record("ezhoi", mAP_full=31.5)
"""


def track(backend, folder):
    """Steps 1-3, then, resumed, 3-5; what the processes printed."""
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    said = []
    for start in ("0", "2"):
        done = subprocess.run(
            [sys.executable, "-c", CODE, backend, str(folder), start],
            capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    assert [row["loss"] for row in read_jsonl(folder / "history.jsonl")] == [10, 20, 30, 30, 40, 50]  # always
    return said


def test_tensorboard(tmp_path):
    track("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(loop):
        events = EventAccumulator(str(tmp_path / "tracking" / "tensorboard" / loop))
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    assert read("EZ-HOI") == {"EZ-HOI/loss": [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]}  # 3 was not doubled
    assert read("bridge")["bridge/loss"][-1] == (1, 0.5)
    assert read("results") == {"results/ezhoi/mAP_full": [(0, 31.5)]}


def test_trackio(tmp_path):
    track("trackio", tmp_path)
    database = tmp_path / "tracking" / "trackio" / "test.db"
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by id").fetchall()
    losses = [(step, found["EZ-HOI/loss"]) for step, text in rows if "EZ-HOI/loss" in (found := json.loads(text))]
    assert sorted(set(losses)) == [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]
    assert any(json.loads(text).get("ezhoi/mAP_full") == 31.5 for _, text in rows)


def wandb_records(path):
    """Records of an offline file: a LevelDB log (blocks of 32 KiB of checksum, length, kind, data) of protobufs."""
    from wandb.proto import wandb_internal_pb2

    data, at, held = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = struct.unpack_from("<HB", data, at + 4)
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(held)
            held = b""


def test_wandb(tmp_path):
    said = track("wandb", tmp_path)
    assert not any("http" in text for text in said)
    files = sorted((tmp_path / "tracking" / "wandb").rglob("run-*.wandb"))
    assert len(files) == 2
    losses, results, runs = [], {}, set()
    for record in itertools.chain(*map(wandb_records, files)):
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        losses += [(row["EZ-HOI/step"], row["EZ-HOI/loss"])] if "EZ-HOI/loss" in row else []
        results |= {"/".join(item.nested_key) or item.key: item.value_json for item in record.summary.update}
        runs |= {record.run.run_id} - {""}
    assert losses == [(1, 10), (2, 20), (3, 30), (3, 30), (4, 40), (5, 50)]
    assert results["ezhoi/mAP_full"] == "31.5" and len(runs) == 1  # both processes wrote one run


def test_nothing_is_opened_without_numbers_or_for_other_ranks(tmp_path, monkeypatch):
    tracking.start(TrackingSettings(backends=["tensorboard"]), tmp_path, {})
    Run(tmp_path).record("a", name="text only")
    tracking.stop()
    monkeypatch.setenv("RANK", "1")
    tracking.start(TrackingSettings(backends=["tensorboard"]), tmp_path, {})
    with Progress("loop", 1) as progress:
        progress.record(loss=1.0)
    assert not (tmp_path / "tracking").exists()


def test_a_wrong_or_absent_backend_is_refused(tmp_path, monkeypatch):
    with pytest.raises(tracking.TrackingError, match=r"found 'tensorbord'.*\n  mend: write tensorboard"):
        tracking.start(TrackingSettings(backends=["tensorbord"]), tmp_path, {})
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(tracking.TrackingError, match=r"pip install 'hoi-workbench\[wandb\]'"):
        tracking.start(TrackingSettings(backends=["wandb"]), tmp_path, {})
