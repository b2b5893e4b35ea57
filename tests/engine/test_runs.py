"""Runs: reuse, resume, refuse; atomic writes; settings that cannot be misspelt."""

import json
from pathlib import Path

import pytest

from lib.config import ConfigError, describe, load_config
from lib.engine.checkpoints import load_checkpoint, rng_state, save_checkpoint, seed_everything, set_rng_state
from lib.runs import Artifact, Run, StaleArtifactError, atomic_write, fingerprint, read_jsonl, table_of_runs, write_json


def maker(calls):
    def make(folder: Path):
        calls.append(folder.name)
        (folder / "data.txt").write_text("x")
        return {"rows": 1}

    return make


def test_a_complete_artefact_is_reused(tmp_path):
    calls = []
    first = Run(tmp_path).artifact("thing", {"a": 1}, maker(calls))
    second = Run(tmp_path).artifact("thing", {"a": 1}, maker(calls))
    assert calls == ["thing"] and first == second and second.info == {"rows": 1}
    assert [line["event"] for line in read_jsonl(tmp_path / "log.jsonl")] == ["made", "reused"]


def test_other_settings_are_refused_with_both_sides(tmp_path):
    Run(tmp_path).artifact("thing", {"a": {"b": 1}, "c": 2}, maker([]))
    with pytest.raises(StaleArtifactError) as error:
        Run(tmp_path).artifact("thing", {"a": {"b": 5}, "c": 2}, maker([]))
    assert "a.b: on disk 1, asked for 5" in str(error.value) and "recompute" in str(error.value)


def test_other_parents_are_refused(tmp_path):
    run = Run(tmp_path)
    run.artifact("child", {}, maker([]), parents=["one"])
    with pytest.raises(StaleArtifactError, match="other parents"):
        run.artifact("child", {}, maker([]), parents=["two"])


def test_recompute_replaces_a_stale_artefact(tmp_path):
    calls = []
    Run(tmp_path).artifact("thing", {"a": 1}, maker(calls))
    Run(tmp_path, recompute=["thing"]).artifact("thing", {"a": 2}, maker(calls))
    assert calls == ["thing", "thing"]


def test_an_unfinished_artefact_is_resumed_with_what_it_left(tmp_path):
    def killed(folder):
        (folder / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path).artifact("thing", {"a": 1}, killed)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"
    with pytest.raises(RuntimeError, match="partial"):
        Artifact.load(tmp_path / "thing")
    seen = []
    Run(tmp_path).artifact("thing", {"a": 1}, lambda folder: seen.append((folder / "half").read_text()))
    assert seen == ["done"]


def test_an_unfinished_artefact_of_other_settings_starts_afresh(tmp_path):
    def killed(folder):
        (folder / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path).artifact("thing", {"a": 1}, killed)
    Run(tmp_path).artifact("thing", {"a": 2}, lambda folder: {"fresh": not (folder / "half").exists()})
    assert Artifact.load(tmp_path / "thing").info == {"fresh": True}


def test_missing_stage_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="make run"):
        Run(tmp_path).existing("ezhoi")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})

    def fail(stream):
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, fail)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_a_cut_log_line_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a": 2')
    assert read_jsonl(tmp_path / "log.jsonl") == [{"a": 1}]


def test_fingerprints_see_every_part():
    base = fingerprint("k", {"a": 1, "b": 2}, ["p"])
    assert base == fingerprint("k", {"b": 2, "a": 1}, ["p"])
    others = [("j", {"a": 1, "b": 2}, ["p"]), ("k", {"a": 1, "b": 3}, ["p"]), ("k", {"a": 1, "b": 2}, ["q"])]
    assert len({base, *(fingerprint(*other) for other in others)}) == 4


def test_metrics_merge_and_runs_are_listed(tmp_path):
    run = Run(tmp_path / "one", load_config())
    run.record("ezhoi", mAP_full=12.345)
    run.record("bridge", mAP_full=11.0)
    run.write_status("finished", "05")
    assert run.metrics == {"bridge/mAP_full": 11.0, "ezhoi/mAP_full": 12.345}
    assert "12.3" in table_of_runs(tmp_path) and "finished" in table_of_runs(tmp_path)


# ---------------------------------------------------------------- settings


def test_yaml_then_overrides(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 4\nezhoi:\n  epochs: 3\n")
    config = load_config(tmp_path / "c.yaml", ["ezhoi.epochs=5", "evaluation.step_budgets=[1,2]"])
    assert (config.seed, config.ezhoi.epochs, config.evaluation.step_budgets) == (4, 5, [1, 2])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ezhoi.epoch=3", "did you mean 'ezhoi.epochs'"),
        ("epochs=3", "did you mean .*'ezhoi.epochs'"),
        ("ezhoi.epochs=many", r"ezhoi\.epochs.*expected int"),
        ("ezhoi.epochs", "expected key=value"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_bad_yaml_keys_name_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("bridge:\n  num_step: 3\n")
    with pytest.raises(
        ConfigError, match=r"c\.yaml: unknown setting 'bridge.num_step'; did you mean 'bridge.num_steps'"
    ):
        load_config(path)


def test_every_setting_is_described():
    rows = list(describe())
    assert len({key for key, *_ in rows}) == len(rows) > 60
    undocumented = [key for key, _, _, comment in rows if not comment]
    assert undocumented == []


def test_shipped_configs_load():
    for path in Path("configs").glob("*.yaml"):
        load_config(path)
        assert path.read_text().startswith("#"), f"{path}: its head says what it runs"


# ---------------------------------------------------------------- checkpoints


def test_random_streams_are_restored(tmp_path):
    import random

    import numpy as np
    import torch

    seed_everything(3)
    save_checkpoint(tmp_path / "c.pt", {"rng": rng_state()})
    draw = lambda: (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: E731, NPY002
    expected = draw()
    set_rng_state(load_checkpoint(tmp_path / "c.pt")["rng"])
    assert draw() == expected


def test_a_malicious_checkpoint_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    (tmp_path / "c.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RuntimeError, match="no plain checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "pwned").exists()
