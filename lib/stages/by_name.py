"""Stages by name, for the shell: `ezhoi`, `pairs:test`, `recognition.detections:language_sign:block`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import lib.stages
from lib.errors import FoundExpected
from lib.stages import inputs

Stage = Callable[..., Any]  # (cfg, run, *words) -> Artifact


def run_stages(config: str, run: str, stages: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Stages by name, one after another, as a notebook would call them. Raises FoundExpected for an unknown one."""
    chosen = [find_stage(stage) for stage in stages]
    cfg, record = inputs.open_run(config, run, overrides)
    for name, (stage, words) in zip(stages, chosen, strict=True):
        print(f"== {name}", flush=True)
        stage(cfg, record, *words)


def find_stage(name: str) -> tuple[Stage, list[str]]:
    """`pairs:test`, or `detector.pairs:test`, as the function of `lib/stages` with its words.

    Raises FoundExpected for a name that no stage has, or several, and for a wrong number of words.
    """
    name, *words = name.split(":")
    known = _stages()
    fitting = [full for full in known if name in (full, full.rpartition(".")[2])]
    if len(fitting) != 1:
        near = fitting or difflib.get_close_matches(name, [*known, *(full.rpartition(".")[2] for full in known)], 3, 0)
        raise FoundExpected("stage", repr(name), " or ".join(near), "name a function of lib/stages, with its module")
    stage = known[fitting[0]]
    wanted = list(inspect.signature(stage).parameters.values())[2:]
    if not sum(each.default is each.empty for each in wanted) <= len(words) <= len(wanted):
        form = ":".join([name, *(f"<{each.name}>" for each in wanted)])
        raise FoundExpected("stage", repr(":".join([name, *words])), repr(form), f"see {fitting[0]} in lib/stages")
    return stage, words


def _stages() -> dict[str, Stage]:
    """Functions that make an artefact, by `module.name`."""
    found = {}
    for module in pkgutil.iter_modules(lib.stages.__path__):
        members = vars(importlib.import_module(f"{lib.stages.__name__}.{module.name}"))
        for name, value in members.items():
            own = inspect.isfunction(value) and value.__module__.endswith(f".{module.name}")
            if own and value.__annotations__.get("return") == "Artifact" and name[0] != "_":
                found[f"{module.name}.{name}"] = value
    return found
