"""A student that bridges with one network evaluation, by regression on its teacher (spec diffusion-bridge.md §8.4).

The walk is a deterministic map of the direction in which a feature enters. So walk many such directions once with the
teacher, keep (input, output) pairs, and fit a residual MLP with the loss 1 - cos on the sphere. The result is a bridge
like any other, of the solver `student`; it knows only the entry step it was distilled at, and its gradient is exact.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.bridge.architectures import build_denoiser
from lib.bridge.bundle import Bridge
from lib.bridge.geometry import normalise
from lib.bridge.samplers import sample
from lib.bridge.text_bank import tensor_sha256
from lib.bridge.training import SAMPLER_SETTINGS, Progress, choose_weights, optimise
from lib.engine.distributed import is_first, share, share_of_mean
from lib.runs import fingerprint, read_jsonl
from lib.settings import BridgeSettings

HELD_OUT = 0.1  # share of the pairs that is kept for the cosine to the teacher
COSINES = (0.2, 0.7)  # of noised texts to their text: what centred vision features show, and some more


def noised_texts(texts: Tensor, count: int, cosines: tuple[float, float] = COSINES, seed: int = 0) -> Tensor:
    """Vision-like directions [count, D]: random texts, turned away in a random direction by a random angle.

    texts: unit rows [N, D] in centred space (`Geometry.text`). cosines: range of the cosine of a row to its text.
    """
    generator = torch.Generator().manual_seed(seed)
    u = texts[torch.randint(len(texts), (count,), generator=generator).to(texts.device)]
    noise = torch.randn(u.shape, generator=generator).to(u)
    noise = normalise(noise - (noise * u).sum(dim=1, keepdim=True) * u)  # orthogonal to the text
    low, high = cosines
    cosine = (low + (high - low) * torch.rand(count, 1, generator=generator)).to(u)
    return cosine * u + (1 - cosine.square()).sqrt() * noise


def entering_directions(
    teacher: Bridge, count: int, features: Tensor | None = None, texts: Tensor | None = None, seed: int = 0
) -> Tensor:
    """`count` unit rows [count, D] as they enter the teacher: from raw features, from raw texts, or half of each.

    features: raw pair features [N, D] of the training split. A feature that is drawn again is turned by a small
    random angle (cosine 0.9 to 1), so that few features still make many pairs. texts: raw text rows [K, D].
    """
    if features is None and texts is None:
        raise ValueError("student: found neither features nor texts, expected one of them to learn from")
    parts = []
    share = count // 2 if features is not None and texts is not None else count
    if texts is not None:
        parts.append(noised_texts(teacher.geometry.text(texts), share, seed=seed))
    if features is not None:
        u = teacher.geometry.vision(features)[: count - sum(map(len, parts))]
        missing = count - sum(map(len, parts)) - len(u)
        parts += [u, noised_texts(u, missing, (0.9, 1.0), seed + 1)]
    return torch.cat(parts)


@torch.no_grad()
def walk(teacher: Bridge, u: Tensor, progress: Progress | None = None) -> Tensor:
    """The teacher's unit outputs [N, D] for entering directions u [N, D], `teacher.chunk` rows at a time."""
    settings = {name: getattr(teacher, name) for name in ("entry_step", "num_steps", "solver", "last_step")}
    parts: list[Tensor] = []
    for part in u.split(teacher.chunk):
        x0 = sample(teacher.denoiser, part, teacher.schedule, scale=teacher.geometry.scale, **settings)
        parts.append(normalise(x0))
        if progress:
            progress(sum(map(len, parts)), len(u), {})
    return torch.cat(parts)


def train_student(
    teacher: Bridge,
    settings: BridgeSettings,
    folder: Path | str,
    *,
    features: Tensor | None = None,
    texts: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Distil `teacher`, walked as it is set up, into one evaluation; save the student as a bridge in `folder`.

    features, texts: raw rows that inputs are made of, see `entering_directions`; `settings.student_pairs` of them
        are walked. settings: width, depth, steps, batch, lr, lr_decay, ema, precision of the student.
    Writes checkpoints (resumed when present, as in `train_bridge`), loss.jsonl and the bundle, which keeps the
    teacher's geometry, text space and entry step.

    Returns flat metrics; cosine_mean, cosine_p1: student to teacher on held-out inputs. Raises ValueError for a
    student as teacher, for no rows to learn from, and for a checkpoint of another teacher or settings.
    """
    folder, started = Path(folder), time.perf_counter()
    if teacher.solver == "student":
        raise ValueError("student: found a student as teacher, expected a denoiser; mend: load the teacher's bundle")
    if settings.student_pairs < 2:
        raise ValueError(f"bridge.student_pairs: found {settings.student_pairs}, expected at least 2")
    teacher = teacher.to(device)
    rows = {name: x.to(device) for name, x in (("features", features), ("texts", texts)) if x is not None}
    u = entering_directions(teacher, settings.student_pairs, seed=seed, **rows)
    order = torch.randperm(len(u), generator=torch.Generator().manual_seed(seed)).to(u.device)
    u = u[order]
    target = walk(teacher, u)
    held_out = max(1, round(HELD_OUT * len(u)))
    (test_u, u), (test_target, target) = (x.tensor_split([held_out]) for x in (u, target))

    entry_step, scale = teacher.entry_step, teacher.geometry.scale
    architecture = {"kind": "mlp", "width": settings.width, "depth": settings.depth}
    architecture |= {"variant": "student", "entry_step": entry_step}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = build_denoiser(architecture, teacher.dim, teacher.schedule, scale).to(device)

    def predict(network: nn.Module, directions: Tensor) -> Tensor:
        t = torch.full((len(directions),), entry_step - 1, device=directions.device)
        return normalise(network(scale * directions, t))

    def batch_loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        rows = share(torch.randint(len(u), (settings.batch,), generator=generator, device=u.device))
        return share_of_mean(1 - (predict(network, u[rows]) * target[rows]).sum(dim=1), settings.batch)

    @torch.no_grad()
    def validate(network: nn.Module) -> dict[str, float]:
        cosine = (torch.cat([predict(network, part) for part in test_u.split(4096)]) * test_target).sum(dim=1)
        return {"all": float(1 - cosine.mean()), "p1": float(cosine.double().quantile(0.01))}

    shaping = {name: value for name, value in asdict(settings).items() if name not in SAMPLER_SETTINGS}
    pairs = [tensor_sha256(u), tensor_sha256(target)]
    signature = fingerprint("student checkpoint", [shaping, architecture, seed, pairs])
    candidates = optimise(student, batch_loss, validate, settings, folder, signature, seed, progress)
    chosen, scores, metrics = choose_weights(candidates, validate)

    sampler = {name: getattr(teacher, name) for name in ("entry_step", "num_steps", "solver", "last_step")}
    provenance = teacher.provenance | {
        "weights": {"kind": chosen, "step": settings.steps},
        "student": {"teacher": sampler, "pairs": settings.student_pairs, "inputs": sorted(rows), "scores": scores},
    }
    bridge = replace(
        teacher,
        denoiser=candidates[chosen],
        architecture=architecture,
        num_steps=1,
        solver="student",
        provenance=provenance,
        fixed_outputs=None,  # were the teacher's
    )
    if is_first():
        bridge.save(folder)
    return metrics | {
        "loss_train": read_jsonl(folder / "loss.jsonl")[-1]["loss"],
        "cosine_mean": 1 - scores["all"],
        "cosine_p1": scores["p1"],
        "weights": chosen,
        "steps": settings.steps,
        "pairs": settings.student_pairs,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "seconds": time.perf_counter() - started,
    }
