"""One training step of EZ-HOI against the step of the public program: loss, gradients, clipping, AdamW.

    python -m benchmarks.ezhoi_training --json training.json

CLIP ViT-B/16 with random weights, K = 212 class texts, 8 images of 30 pairs, read from disk. Both sides start from
image files and cached detections and end behind the optimiser, whose learning rate is 0 here so that every repeat does
the same. The baseline is `ezhoi_baseline`. Chance (flip, crop, jitter, dropout) is off on both sides: loss and
gradients are compared. The text that ours does not compute again is encoded once, when the model is built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.ezhoi_baseline import PublicProgram
from benchmarks.ezhoi_case import STILL, EzHoiCase, make_case
from benchmarks.measure import Comparison, arguments, compare, report
from lib.ezhoi.batches import collate
from lib.ezhoi.train import backward_step

Step = tuple[float, list[Tensor]]  # loss, gradients in the order of the parameters
TOLERANCE = {"fp32": 2e-3, "bf16": 0.2}  # relative error of all gradients together


def our_step(case: EzHoiCase, precision: str, optimiser: torch.optim.Optimizer) -> Step:
    """What `train_ezhoi` does with a batch."""
    settings = replace(STILL, precision=precision)
    batch = collate([case.samples[i] for i in range(len(case.samples))]).to(case.device)
    optimiser.zero_grad(set_to_none=True)
    terms = backward_step(case.model.train(), [batch], case.valid.to(case.device), settings)
    return _finish(case.model, optimiser, terms["loss"])


def public_step(program: PublicProgram, optimiser: torch.optim.Optimizer) -> Step:
    """The same from the baseline's loss."""
    program.model.train()
    optimiser.zero_grad(set_to_none=True)
    loss = program.loss(list(range(len(program.case.samples))), STILL.alpha, STILL.gamma)
    loss.backward()
    return _finish(program.model, optimiser, loss.detach())


def _finish(model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor) -> Step:
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    norm = nn.utils.clip_grad_norm_(model.parameters(), STILL.clip_norm)
    if not bool(torch.isfinite(torch.stack([loss, norm])).all()):
        raise FloatingPointError(f"loss {float(loss)}, gradient {float(norm)}")
    optimiser.step()
    return float(loss), gradients


def same_step(precision: str, found: dict[str, float]) -> Callable[[Step, Step], None]:
    """Raises unless losses and gradients agree; notes in `found` how well."""

    def check(ours: Step, baseline: Step) -> None:
        allowed = TOLERANCE[precision]
        mine, other = (torch.cat([gradient.flatten() for gradient in side[1]]) for side in (ours, baseline))
        error = float((mine - other).norm() / other.norm())
        found["relative difference of the gradients"] = error
        assert abs(ours[0] - baseline[0]) <= allowed * abs(baseline[0]), f"losses {ours[0]} and {baseline[0]}"
        assert error < allowed, f"gradients are {error:.2e} apart, allowed {allowed}"

    return check


def steps(case: EzHoiCase, repeats: int, precisions: list[str]) -> list[Comparison]:
    """One comparison a precision of ours; the baseline is fp32, as published."""
    program = PublicProgram(case)
    mine = torch.optim.AdamW(case.model.parameters(), lr=0.0, weight_decay=STILL.weight_decay, fused=True)
    theirs = torch.optim.AdamW(
        [*case.model.parameters(), *program.text_adapter.parameters()], lr=0.0, weight_decay=STILL.weight_decay
    )
    rows = []
    for precision in precisions:
        found: dict[str, float] = {}
        rows.append(
            compare(
                f"step of {len(case.samples)} images, {precision}",
                lambda precision=precision: our_step(case, precision, mine),
                lambda: public_step(program, theirs),
                same_step(precision, found),
                repeats,
                numbers=found,
            )
        )
    return rows


def main() -> None:
    options = arguments(__doc__, repeats=2, images=8, rows=212, clip="random:ViT-B-16-quickgelu", precisions="fp32")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="ezhoi-training-") as name:
        case = make_case(Path(name), options.clip, device, options.images, options.rows)
        rows = steps(case, options.repeats, options.precisions.split(","))
    report(f"EZ-HOI training on {device} against the public program's step, K = {options.rows}", rows, options.json)


if __name__ == "__main__":
    main()
