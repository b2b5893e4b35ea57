"""Parameters of a notebook: what its parameters cell declares, and `key=value` read strictly against it.

Papermill warns about a parameter that no cell declares and goes on with the default; hours later the numbers are those
of the default. Here such a name is an error that names the nearest one, and so is a value of another type.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.config import ConfigError, describe

COMMON = ("config", "run", "overrides", "recompute")  # what the batch runner itself gives to every notebook


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    kind: str  # int, float, str, bool, list, dict, or NoneType where the default is None: any value
    default: Any
    help: str


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook's parameters cell declares, in order.

    Raises ConfigError for a notebook without that cell and for a default that is no literal.
    """
    cells = json.loads(notebook.read_text())["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ConfigError(f"{notebook}: found {len(tagged)} cells tagged parameters, expected one")
    source = "".join(tagged[0]["source"])
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            name = node.target.id
        else:
            continue
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ConfigError(
                f"{notebook}: parameters cell, line {node.lineno}: found {ast.unparse(node.value)}, expected a literal"
                " (number, text, True, list); mend: compute it in the next cell"
            ) from None
        found[name] = Parameter(name, type(default).__name__, default, comments.get(node.end_lineno or 0, ""))
    return found


def check_common(notebook: Path) -> None:
    """Refuse a notebook that does not declare what the batch runner gives (papermill would only warn)."""
    names = declared(notebook)
    unknown = [name for name in COMMON if name not in names]
    if unknown:
        raise ConfigError(f"{notebook}: unknown parameters {unknown}; its parameters cell declares {list(names)}")
    shadowed = [name for name in names if name in {key for key, *_ in describe()}]
    if shadowed:
        raise ConfigError(f"{notebook}: parameters {shadowed} have names of settings; mend: rename them in that cell")


def split_assignments(
    assignments: Sequence[str], notebooks: Sequence[Path]
) -> tuple[list[str], dict[Path, dict[str, Any]]]:
    """`key=value` texts -> overrides of settings, and values of notebook parameters by notebook.

    A name that a notebook declares goes to every chosen notebook that declares it; everything else must be a setting.
    Raises ConfigError for a name that is neither, naming the nearest, and for a value of the wrong type.
    """
    known = {notebook: declared(notebook) for notebook in notebooks}
    own = {name for names in known.values() for name in names if name not in COMMON}
    settings = {key for key, *_ in describe()}
    overrides, values = [], {notebook: {} for notebook in notebooks}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if key in COMMON and equals:
            option = {"run": "--run FOLDER", "recompute": "--recompute NAMES"}.get(key, "the command's own arguments")
            raise ConfigError(f"{assignment!r}: {key} is given to every notebook; mend: use {option}")
        if key in own and equals:
            for notebook, names in known.items():
                if key in names:
                    values[notebook][key] = read_value(names[key], text, notebook)
            continue
        near = difflib.get_close_matches(key, sorted(own), n=1, cutoff=0.7)
        if equals and near and key not in settings:
            where = ", ".join(path.stem for path, names in known.items() if near[0] in names)
            raise ConfigError(
                f"{assignment!r}: unknown parameter {key!r}; did you mean {near[0]!r} of {where}?"
                " (python -m lib.engine.batch params lists all)"
            )
        overrides.append(assignment)
    return overrides, values


def read_value(parameter: Parameter, text: str, notebook: Path) -> Any:
    """The text as a value of the parameter's type; whole numbers serve as float, nothing else is bent."""
    if parameter.kind == "str":
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if parameter.kind == "float" and type(value) in (int, str):
        try:
            value = float(value)  # YAML reads 1e-3 as text
        except ValueError:
            value = text
    if parameter.kind not in (type(value).__name__, "NoneType"):
        raise ConfigError(
            f"{parameter.name}={text}: found {type(value).__name__}, expected {parameter.kind}"
            f" (default {parameter.default!r}; {notebook.name}: {parameter.help or 'no help'})"
        )
    return value
