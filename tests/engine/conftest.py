"""Small notebooks for the batch runner."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

PARAMETERS = 'config = ""\nrun = ""\noverrides = []\nrecompute = []\n'

# forty steps with a checkpoint after each: the final value depends on every one of them
WORK = """
import json, time
from lib.runs import Run, write_json

def make(folder):
    kept = folder / "state.json"
    state = json.loads(kept.read_text()) if kept.is_file() else {"step": 0, "value": 1.0}
    while state["step"] < 40:
        state = {"step": state["step"] + 1, "value": state["value"] * 1.01 + state["step"] ** 0.5}
        write_json(kept, state)
        time.sleep(0.02)
    return state

work = Run(run).artifact("work", {}, make)
Run(run).record("work", value=work.info["value"])
"""


@pytest.fixture
def write_notebook(tmp_path):
    """`write_notebook("01_b", *cells, parameters=...)` -> path in <tmp>/books, with the runner's own parameters."""

    def write(name, *cells, parameters=""):
        first = new_code_cell(PARAMETERS + parameters)
        first["metadata"]["tags"] = ["parameters"]
        book = new_notebook(cells=[first, *map(new_code_cell, cells)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (tmp_path / "books").mkdir(exist_ok=True)
        nbformat.write(book, tmp_path / "books" / f"{name}.ipynb")
        return tmp_path / "books" / f"{name}.ipynb"

    return write


@pytest.fixture
def command(tmp_path):
    """Arguments of the batch runner for the small notebooks, on the run folder <tmp>/run."""
    return ["run", "configs/tiny.yaml", "--run", str(tmp_path / "run"), "--folder", str(tmp_path / "books")]


@pytest.fixture
def work_cell():
    """A cell that makes the artefact `work` in forty steps of 20 ms with a checkpoint after each."""
    return WORK
