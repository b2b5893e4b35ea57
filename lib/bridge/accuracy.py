"""Solver accuracy against cost: every way to walk a bridge beside the literal walk (spec diffusion-bridge.md §8.3).

    python -m lib.bridge.accuracy BUNDLE [FEATURES.npy] [--texts BANK] [--student BUNDLE] [--out CSV]

BUNDLE: folder of a trained bridge. FEATURES.npy: raw pair features [N, D], best those of held-out images; without them
noised texts of the bank stand in. BANK: folder of a text bank, or raw text rows [K, D] as .npy, among which nearest
texts are counted. The reference makes 600 evaluations, or one at each timestep below a smaller entry step. A solver
agrees with it or does not; which of two maps detects better is for mAP to say, not for this table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.bridge.bundle import Bridge
from lib.bridge.diffusion import variant_of
from lib.bridge.geometry import modality_mean, normalise
from lib.bridge.samplers import SOLVERS, sample
from lib.bridge.student import noised_texts
from lib.bridge.text_bank import TextBank
from lib.runs import atomic_write

REFERENCE_CALLS = 600
BUDGETS = (1, 2, 3, 5, 6, 8, 10, 12, 20, 50)


class CallCounter(nn.Module):
    """Counts the rows that go through a denoiser."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.variant, self.rows = denoiser, variant_of(denoiser), 0
        self.entry_step = getattr(denoiser, "entry_step", None)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows += len(x)
        return self.denoiser(x, t)


@torch.no_grad()
def accuracy_table(
    bridge: Bridge,
    u: Tensor,
    *,
    texts: Tensor | None = None,
    student: Bridge | None = None,
    budgets: Sequence[int] = BUDGETS,
) -> pd.DataFrame:
    """One row a way to walk, `default` first.

    u: unit directions [N, D] as they enter (`Geometry.vision` of raw features). texts: unit text rows [K, D] in the
        same space. student: distilled from this bridge at the same entry step.

    Columns: name, solver, num_steps, last_step; calls (denoiser evaluations a row, counted), share (of the
    reference's); cosine_mean, cosine_p1 (first percentile) and cosine_min to the reference; flips (share of rows whose
    nearest text differs from the reference's, NaN without texts); us_per_row (wall clock, after a warm-up).
    """
    reference_solver = "ddim" if variant_of(bridge.denoiser) == "vp" else "reference"
    reference_steps = min(REFERENCE_CALLS, bridge.entry_step)
    literal = bridge.with_sampler(solver=reference_solver, num_steps=reference_steps)
    reference, literal_calls, literal_us = _walked(literal, u)

    rows = []
    for name, walked in _candidates(bridge, student, budgets):
        out, calls, us = (u, 0.0, 0.0) if walked is None else _walked(walked, u)
        cosine = (out * reference).sum(dim=1).double()
        sampler = {} if walked is None else {key: getattr(walked, key) for key in ("solver", "num_steps", "last_step")}
        rows.append(
            {"name": name, **({"solver": "", "num_steps": 0, "last_step": 0} | sampler)}
            | {"calls": calls, "share": calls / literal_calls, "cosine_mean": float(cosine.mean())}
            | {"cosine_p1": float(cosine.quantile(0.01)), "cosine_min": float(cosine.min())}
            | {"flips": _flips(out, reference, texts), "us_per_row": us}
        )
    exact = {"cosine_mean": 1.0, "cosine_p1": 1.0, "cosine_min": 1.0, "flips": 0.0 if texts is not None else np.nan}
    sampler = {"solver": reference_solver, "num_steps": reference_steps, "last_step": 0}
    rows.append(
        {"name": "literal"} | sampler | {"calls": literal_calls, "share": 1.0} | exact | {"us_per_row": literal_us}
    )
    return pd.DataFrame(rows)


def _candidates(bridge: Bridge, student: Bridge | None, budgets: Iterable[int]) -> Iterable[tuple[str, Bridge | None]]:
    yield "default", bridge
    yield "none (centring only)", None
    if student is not None:
        yield "student", student
    for solver, variants in SOLVERS.items():
        if variant_of(bridge.denoiser) not in variants or solver == "public":
            continue
        for num_steps in (budget for budget in budgets if budget <= bridge.entry_step):
            yield f"{solver} {num_steps}", bridge.with_sampler(solver=solver, num_steps=num_steps)


def _walked(bridge: Bridge, u: Tensor) -> tuple[Tensor, float, float]:
    """Unit outputs [N, D], denoiser evaluations a row, microseconds a row."""
    counter = CallCounter(bridge.denoiser)
    settings = {name: getattr(bridge, name) for name in ("entry_step", "num_steps", "solver", "last_step")}

    def run(rows: Tensor) -> Tensor:
        walk = [
            sample(counter, part, bridge.schedule, scale=bridge.geometry.scale, **settings)
            for part in rows.split(bridge.chunk)
        ]
        return normalise(torch.cat(walk))

    run(u[:2])
    counter.rows = 0
    out, seconds = _timed(lambda: run(u), u.device)
    return out, counter.rows / len(u), 1e6 * seconds / len(u)


def _timed(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    started = time.perf_counter()
    out = work()
    synchronise()
    return out, time.perf_counter() - started


def _flips(out: Tensor, reference: Tensor, texts: Tensor | None) -> float:
    if texts is None:
        return float("nan")
    parts = [
        (a @ texts.T).argmax(dim=1) != (b @ texts.T).argmax(dim=1)
        for a, b in zip(out.split(1024), reference.split(1024), strict=True)
    ]
    return float(torch.cat(parts).float().mean())


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Read the files, print the table, write it where asked."""
    parser = argparse.ArgumentParser("python -m lib.bridge.accuracy", description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, help="folder of a trained bridge")
    parser.add_argument("features", type=Path, nargs="?", help="raw pair features [N, D], .npy")
    parser.add_argument("--texts", type=Path, help="folder of a text bank, or raw text rows [K, D] as .npy")
    parser.add_argument("--student", type=Path, help="folder of a student distilled from the bridge")
    parser.add_argument("--rows", type=int, default=2000, help="inputs compared, the first of the features")
    parser.add_argument("--cosine", type=float, default=0.4, help="of noised texts to their text, without features")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args(arguments)
    if options.features is None and options.texts is None:
        parser.error("found neither FEATURES.npy nor --texts, expected at least one of them")

    bridge = Bridge.load(options.bundle, options.device)
    texts = None if options.texts is None else bridge.geometry.text(_rows(options.texts).to(options.device))
    if options.features is None:
        u = noised_texts(texts, options.rows, (options.cosine, options.cosine))
    else:
        features = _rows(options.features).to(options.device)
        if bridge.geometry.center == "own" and bridge.geometry.vision_mean is None:
            bridge = bridge.with_vision_mean(modality_mean(features))
        u = bridge.geometry.vision(features)[: options.rows]
    student = None if options.student is None else Bridge.load(options.student, options.device)
    table = accuracy_table(bridge, u, texts=texts, student=student)
    print(
        f"{len(u)} inputs, entry step {bridge.entry_step}, {'noised texts' if options.features is None else 'features'}"
    )
    print(table.to_string(index=False, float_format=lambda value: f"{value:.5g}"))
    if options.out is not None:
        atomic_write(options.out, lambda stream: stream.write(table.to_csv(index=False).encode()))
    return table


def _rows(path: Path) -> Tensor:
    if path.is_dir():
        return TextBank.load(path).vectors
    return torch.from_numpy(np.load(path, allow_pickle=False)).float()


if __name__ == "__main__":
    main(sys.argv[1:])
