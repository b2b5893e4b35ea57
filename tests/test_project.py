"""The project's own rules: one dependency source, clean notebooks, no literals of a particular CLIP."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


def names(requirements):
    return {re.split(r"[<>=!\[ ]", line)[0].lower().replace("_", "-") for line in requirements}


def test_conda_users_get_the_same_dependencies():
    environment = yaml.safe_load(Path("environment.yml").read_text())
    python = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip == ["--constraint constraints.txt", "--editable .[dev]"]
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert "python=3.11" in python and project["requires-python"] == ">=3.11"


def test_every_dependency_has_a_locked_version_without_address():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = names(project["dependencies"] + project["optional-dependencies"]["dev"])
    lines = Path("constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+-]+", line) for line in lines)
    assert wanted <= names(lines)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean_and_thin(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    source = "\n".join("".join(cell["source"]) for cell in code)
    assert not re.search(r"^\s*class ", source, re.MULTILINE)
    assert path.stat().st_size < 12_000
    assert cells[0]["cell_type"] == "markdown" and "?" in "".join(cells[0]["source"])


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == ["00", "01", "02", "03", "04", "05", "06"]


def test_no_width_of_a_particular_clip_in_the_library():
    """Grids, tokens and widths are read from the model (ClipSpec); only text about published models may name them."""
    found = []
    for path in Path("lib").rglob("*.py"):
        if path.name in {"published.py", "unet1d.py"} or path.name.startswith("stick_"):
            continue
        code = re.sub(r'""".*?"""|#.*|"[^"\n]*"', "", path.read_text(), flags=re.DOTALL)
        found += [f"{path}: {n}" for n in re.findall(r"(?<![\w.])(196|512|768|224|336)(?![\w.])", code)]
    allowed = {"lib/ezhoi/batches.py"}
    assert [line for line in found if line.split(":")[0] not in allowed] == []
