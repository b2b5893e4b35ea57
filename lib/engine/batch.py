"""Headless runs: the numbered notebooks through papermill into one run folder.

    python -m lib.engine.batch run configs/tiny.yaml --run runs/demo [--notebooks 01-05] [key=value ...]

Every notebook gets the same three parameters (config, run, overrides). Settings are checked before a kernel starts; a
failed notebook is kept, executed up to the failing cell; the exit code is 1 then, and 2 for bad settings.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lib.config import ConfigError, load_config
from lib.engine.progress import HEADLESS
from lib.runs import Run

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def select_notebooks(selection: str, folder: Path = NOTEBOOKS) -> list[Path]:
    """`00-05`, `02`, `01,04-05` or `all` -> notebooks in order. Raises ConfigError for a number without one."""
    numbered = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if selection == "all":
        return list(numbered.values())
    chosen: list[Path] = []
    for part in selection.split(","):
        match = re.fullmatch(r"(\d\d)(?:-(\d\d))?", part)
        numbers = [n for n in numbered if match and match[1] <= n <= (match[2] or match[1])]
        if not numbers:
            raise ConfigError(f"--notebooks {part!r}: expected two-digit numbers among {list(numbered)}, such as 01-05")
        chosen += [numbered[n] for n in numbers]
    return chosen


def check_parameters(notebook: Path, parameters: Sequence[str]) -> None:
    """Refuse a parameter that the notebook's parameters cell does not declare (papermill only warns)."""
    from papermill import inspect_notebook

    declared = inspect_notebook(str(notebook))
    unknown = [name for name in parameters if name not in declared]
    if unknown:
        raise ConfigError(f"{notebook}: unknown parameters {unknown}; its parameters cell declares {list(declared)}")


def run_notebooks(
    config: str, run: str, notebooks: Sequence[Path], overrides: Sequence[str] = (), recompute: Sequence[str] = ()
) -> None:
    """Execute notebooks one after another into the run folder; raises papermill's error of the first that fails."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    settings = load_config(config, overrides)  # refuses bad settings before a kernel starts
    if settings.data.root:
        notebooks = [notebook for notebook in notebooks if not notebook.stem.startswith("00")]  # no world to render
    parameters = {
        "config": str(Path(config).resolve()),
        "run": str(Path(run).resolve()),
        "overrides": list(overrides),
        "recompute": list(recompute),
    }
    for notebook in notebooks:
        check_parameters(notebook, list(parameters))
    os.environ[HEADLESS] = "1"
    os.environ.setdefault("MPLBACKEND", "agg")
    record, begun = Run(run), time.perf_counter()
    for notebook in notebooks:
        started = time.perf_counter()
        print(f"== {notebook.stem}", flush=True)
        record.write_status("running", notebook.stem)
        try:
            papermill.execute_notebook(
                str(notebook),
                str(record.root / notebook.name),
                parameters,
                cwd=str(NOTEBOOKS.parent),
                kernel_name="python3",
                progress_bar=False,
                log_output=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                kernel_manager_class=_ipc_manager(),
            )
        except PapermillExecutionError as error:
            record.write_status("failed", notebook.stem, error=f"{error.ename}: {error.evalue}")
            print(f"== {notebook.stem} failed; executed so far: {record.root / notebook.name}", flush=True)
            raise
        seconds = round(time.perf_counter() - started, 1)
        record.record(notebook.stem, seconds=seconds)
        print(f"== {notebook.stem}: {seconds} s", flush=True)
    record.record(record.root.name, seconds=round(time.perf_counter() - begun, 1))
    record.write_status("finished", notebooks[-1].stem)


def _ipc_manager() -> type:
    """Kernel manager over Unix sockets: no ports to clash or to be blocked (TCP where the platform has none)."""
    from jupyter_client import AsyncKernelManager

    class IpcKernelManager(AsyncKernelManager):
        def __init__(self, **settings: object) -> None:
            super().__init__(**settings)
            if os.name == "posix":
                self.transport = "ipc"

    return IpcKernelManager


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.engine.batch", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run"], help="run notebooks headlessly")
    parser.add_argument("config", help="settings file, such as configs/tiny.yaml")
    parser.add_argument("--run", help="run folder; default runs/<name of the settings file>")
    parser.add_argument("--notebooks", default="all", help="numbers, such as 01-05 (default: all)")
    parser.add_argument("--recompute", default="", help="artefacts to replace if stale: all, or names with commas")
    parser.add_argument("overrides", nargs="*", help="settings, such as ezhoi.epochs=3")
    options = parser.parse_intermixed_args(arguments)
    run = options.run or f"runs/{Path(options.config).stem}"
    recompute = [kind for kind in options.recompute.split(",") if kind]
    try:
        run_notebooks(options.config, run, select_notebooks(options.notebooks), options.overrides, recompute)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        if type(error).__name__ != "PapermillExecutionError":
            raise
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
