"""The batch runner: selection, strict parameters, failed notebooks kept."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from lib.config import ConfigError
from lib.engine import batch


def notebook(path, *cells, parameters='config = ""\nrun = ""\noverrides = []\nrecompute = []'):
    first = new_code_cell(parameters)
    first["metadata"]["tags"] = ["parameters"]
    book = new_notebook(cells=[first, *map(new_code_cell, cells)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


@pytest.fixture
def books(tmp_path):
    for name in ("00_a", "01_b", "02_c", "05_d"):
        notebook(tmp_path / f"{name}.ipynb")
    return tmp_path


def test_selection(books):
    pick = lambda text: [path.stem for path in batch.select_notebooks(text, books)]  # noqa: E731
    assert pick("all") == ["00_a", "01_b", "02_c", "05_d"]
    assert pick("01-05") == ["01_b", "02_c", "05_d"]
    assert pick("00,02") == ["00_a", "02_c"]
    with pytest.raises(ConfigError, match="expected two-digit numbers"):
        pick("03")
    with pytest.raises(ConfigError, match="expected two-digit numbers"):
        pick("one")


def test_unknown_parameters_are_refused(tmp_path):
    path = notebook(tmp_path / "00_a.ipynb", parameters="config = ''")
    with pytest.raises(ConfigError, match=r"unknown parameters \['run'\]"):
        batch.check_parameters(path, ["config", "run"])


def test_bad_settings_stop_before_a_kernel_starts(tmp_path, capsys):
    assert batch.main(["run", "configs/tiny.yaml", "--run", str(tmp_path / "r"), "ezhoi.epoch=2"]) == 2
    assert "did you mean 'ezhoi.epochs'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_failed_notebook_is_kept_and_the_rest_not_run(tmp_path, monkeypatch, capfd):
    notebook(tmp_path / "00_good.ipynb", "open(run + '/parameters', 'w').write(repr(overrides))")
    notebook(tmp_path / "01_bad.ipynb", "print('before')", "raise ValueError('no such thing')", "print('after')")
    notebook(tmp_path / "02_never.ipynb")
    monkeypatch.setattr(batch, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(batch, "select_notebooks", lambda _, keep=batch.select_notebooks: keep("all", tmp_path))
    run = tmp_path / "run"
    assert batch.main(["run", "configs/tiny.yaml", "--run", str(run), "seed=3"]) == 1
    assert (run / "parameters").read_text() == "['seed=3']"
    executed = json.loads((run / "01_bad.ipynb").read_text())
    assert any("before" in str(cell.get("outputs")) for cell in executed["cells"])
    assert not any("after" in str(cell.get("outputs")) for cell in executed["cells"])
    assert not (run / "02_never.ipynb").exists()
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed" and "no such thing" in status["error"]
    assert "01_bad failed" in capfd.readouterr().out
