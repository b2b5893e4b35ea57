"""Headless runs: the numbered notebooks through papermill into one run folder, one kernel each.

    python -m lib.engine.batch run configs/tiny.yaml --run runs/demo [--notebooks 01-05] [key=value ...]
    python -m lib.engine.batch params [word]

A key is a setting or a parameter that a chosen notebook declares; anything else is refused with the nearest name before
a kernel starts. A second call goes on with the first unfinished notebook (`lib.engine.ledger`), whose stages resume
from their checkpoints. status.json tells at any time how far it is; logs/<notebook>.log holds everything printed.

Exit codes: 0 finished · 1 a cell failed · 2 bad settings or parameters · 3 another process writes the folder ·
4 the kernel died · 5 disk full · 130 interrupted (Ctrl-C) · 143 terminated.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lib.config import ConfigError, describe, load_config
from lib.engine import locks, notebook_kernel
from lib.engine.exit_codes import Exit
from lib.engine.ledger import artifacts_since, first_unfinished, notebook_fingerprint
from lib.engine.parameters import COMMON, check_common, declared, split_assignments
from lib.engine.progress import HEADLESS
from lib.runs import Run, read_jsonl

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotebookFailed(RuntimeError):
    """A cell raised an error; the text is its traceback."""


class DiskFull(RuntimeError):
    """No room for results; the text says where."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a queueing system sends before it kills."""


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


def run_notebooks(
    config: str,
    run: str,
    notebooks: Sequence[Path],
    assignments: Sequence[str] = (),
    recompute: Sequence[str] = (),
    again: bool = False,
    verbose: bool = False,
) -> None:
    """Execute notebooks one after another into the run folder, from the first that is not finished.

    assignments: `key=value`, settings or notebook parameters. recompute: artefacts to replace if stale; it and `again`
    execute everything. Raises ConfigError, LockedError, NotebookFailed, KernelDied, DiskFull, KeyboardInterrupt.
    """
    overrides, own = split_assignments(assignments, notebooks)
    settings = load_config(config, overrides)
    if settings.data.root:
        notebooks = [notebook for notebook in notebooks if not notebook.stem.startswith("00")]  # no world to render
    for notebook in notebooks:
        check_common(notebook)
    shared = {
        "config": str(Path(config).resolve()),
        "run": str(Path(run).resolve()),
        "overrides": list(overrides),
        "recompute": list(recompute),
    }
    os.environ[HEADLESS] = "1"
    os.environ.setdefault("MPLBACKEND", "agg")
    record = Run(shared["run"])
    prints = [notebook_fingerprint(notebook, settings, own[notebook]) for notebook in notebooks]
    with locks.hold(record.root, "running notebooks"), _recorded(record):
        done = 0 if again or recompute else first_unfinished(record, notebooks, prints)
        if done:
            more = f"goes on with {notebooks[done].stem}" if done < len(notebooks) else "--again executes them again"
            print(f"== finished before: {', '.join(path.stem for path in notebooks[:done])}; {more}", flush=True)
        for notebook, wanted in list(zip(notebooks, prints, strict=True))[done:]:
            _execute(record, notebook, shared | own[notebook], wanted, verbose)
        entries = record.read_status().get("notebooks", {})
        record.record(record.root.name, seconds=round(sum(entry.get("seconds", 0) for entry in entries.values()), 1))


def _execute(record: Run, notebook: Path, parameters: dict[str, Any], wanted: str, verbose: bool) -> None:
    """One notebook, and its entry in status.json."""
    name, lines = notebook.stem, len(read_jsonl(record.root / "log.jsonl"))
    log = record.root / "logs" / f"{name}.log"
    print(f"== {name}", flush=True)
    _enter(record, name, state="running", log=str(log.relative_to(record.root)))
    cost = notebook_kernel.execute(
        notebook, record.root / notebook.name, parameters, log, cwd=NOTEBOOKS.parent, verbose=verbose
    )
    record.record(name, seconds=cost.seconds)
    made = {"fingerprint": wanted, "artifacts": artifacts_since(record, lines)}
    _enter(record, name, state="finished", seconds=cost.seconds, peak_memory=cost.peak_memory, **made)
    print(f"== {name}: {cost.seconds} s, {cost.peak_memory / 2**30:.1f} GiB", flush=True)


def _enter(record: Run, name: str, **entry: Any) -> None:
    notebooks = record.read_status().get("notebooks", {}) | {name: entry}
    record.write_status("running", name, notebooks=notebooks)


@contextmanager
def _recorded(record: Run) -> Iterator[None]:
    """status.json says how it ended, and errors leave in the runner's own words."""
    try:
        with _terminable():
            yield
    except BaseException as error:
        status = record.read_status()
        doing, notebooks = status.get("doing", ""), status.get("notebooks", {})
        running = next((name for name, entry in notebooks.items() if entry["state"] == "running"), None)
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        said = _in_our_words(error, record.root, running)
        if running:
            notebooks[running] |= {"state": state}
        with suppress(OSError):  # on a full disk the old file stays, whole
            text = said.args[0].splitlines()[0] if said.args else type(said).__name__
            record.write_status(state, doing, error=text, notebooks=notebooks)
        if said is error:
            raise
        raise said from None
    record.write_status("finished", record.read_status().get("doing", ""))


def _in_our_words(error: BaseException, root: Path, running: str | None) -> BaseException:
    name, value = getattr(error, "ename", ""), str(getattr(error, "evalue", ""))  # papermill's error of a failed cell
    number = error.errno if isinstance(error, OSError) else 0
    number = number or next((code for code in FULL if name == "OSError" and f"[Errno {code}]" in value), 0)
    if number in FULL:
        free = shutil.disk_usage(root).free / 2**20
        where = f" while {running} ran" if running else ""
        return DiskFull(
            f"{root}: {os.strerror(number)}{where}: found {free:.0f} MiB free, expected room ({value or error})"
            "\n  mend: free some space or raise the quota, then give the same command: it resumes; what was being"
            " written is not half there, its old version stands"
        )
    if name:
        kept = f"{root / f'{running}.ipynb'}\n  log: {root / 'logs' / f'{running}.log'}"
        return NotebookFailed(f"{name}: {value}\n{error}\n== {running} failed; executed so far: {kept}")
    return error


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, where signals can be handled (the main thread)."""

    def stop(*_: object) -> None:
        raise Terminated("terminated")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def list_parameters(word: str = "", folder: Path = NOTEBOOKS) -> str:
    """Parameters of the notebooks and settings whose name or help holds `word`: type, default, help."""
    rows = []
    books = [declared(path) for path in select_notebooks("all", folder)]
    for parameter in {name: parameter for names in books for name, parameter in names.items()}.values():
        given = "given by the runner; " if parameter.name in COMMON else ""
        rows.append((parameter.name, parameter.kind, repr(parameter.default), given + parameter.help))
    rows += [tuple(row) for row in describe()]
    rows = [row for row in rows if word.lower() in f"{row[0]} {row[3]}".lower()]
    return "\n".join(f"{key:36} {kind:10} {default:44} {text}" for key, kind, default, text in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code (`Exit`)."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("run", "params"):
        return run_command(rest) if command == "run" else params_command(rest)
    print(__doc__, file=sys.stdout if command in ("-h", "--help") else sys.stderr)
    return Exit.FINISHED if command in ("-h", "--help") else Exit.SETTINGS


def params_command(arguments: Sequence[str]) -> Exit:
    """`params [word]`."""
    parser = argparse.ArgumentParser(prog="python -m lib.engine.batch params", description=list_parameters.__doc__)
    parser.add_argument("word", nargs="?", default="", help="only those whose name or help holds this word")
    print(list_parameters(parser.parse_args(arguments).word))
    return Exit.FINISHED


def run_command(arguments: Sequence[str]) -> Exit:
    """`run CONFIG [options] [key=value ...]`."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.engine.batch run",
        description="Run notebooks headlessly.",
        epilog=__doc__[__doc__.index("Exit codes") :],
    )
    parser.add_argument("config", help="settings file, such as configs/tiny.yaml")
    parser.add_argument("--run", help="run folder; default runs/<name of the settings file>")
    parser.add_argument("--notebooks", default="all", help="numbers, such as 01-05 (default: all)")
    parser.add_argument("--folder", type=Path, default=NOTEBOOKS, help="folder of the numbered notebooks")
    parser.add_argument("--recompute", default="", help="artefacts to replace if stale: all, or names with commas")
    parser.add_argument("--again", action="store_true", help="execute finished notebooks again; artefacts are reused")
    parser.add_argument("--verbose", action="store_true", help="print every line, not one every few seconds")
    parser.add_argument("assignments", nargs="*", help="settings and notebook parameters, such as ezhoi.epochs=3")
    options = parser.parse_intermixed_args(arguments)
    begun, target = time.perf_counter(), options.run or f"runs/{Path(options.config).stem}"
    try:
        notebooks = select_notebooks(options.notebooks, options.folder)
        recompute = [kind for kind in options.recompute.split(",") if kind]
        run_notebooks(options.config, target, notebooks, options.assignments, recompute, options.again, options.verbose)
    except tuple(CODES) as error:
        print(error, file=sys.stderr)
        return next(code for kind, code in CODES.items() if isinstance(error, kind))
    except KeyboardInterrupt as error:
        code = Exit.TERMINATED if isinstance(error, Terminated) else Exit.INTERRUPTED
        print(f"\n== {code.name.lower()}: the kernel is stopped; the same command resumes", file=sys.stderr)
        return code
    print(f"== {target}: finished in {time.perf_counter() - begun:.0f} s", flush=True)
    return Exit.FINISHED


CODES = {
    ConfigError: Exit.SETTINGS,
    locks.LockedError: Exit.LOCKED,
    notebook_kernel.KernelDied: Exit.KERNEL_DIED,
    DiskFull: Exit.DISK_FULL,
    NotebookFailed: Exit.FAILED,
}


if __name__ == "__main__":
    sys.exit(main())
