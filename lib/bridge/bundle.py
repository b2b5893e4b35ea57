"""The bridge as one object and one folder (spec diffusion-bridge.md §7).

    bridge = Bridge.load(folder).with_vision_mean(modality_mean(training_pair_features))
    bridged = bridge(pair_features)  # raw [P, D] -> unit [P, D], to be compared with bridge.geometry.text(rows)

The folder holds weights.safetensors, means.safetensors, probes.safetensors (what the checks of `self_test` compare)
and bridge.json; the bridge is never part of a detector's weights. Whatever does not belong together is refused with
both sides and a command that mends it: inside the folder by `Bridge.load`, with a detector by `check_compatible`.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib.bridge.architectures import build_denoiser
from lib.bridge.diffusion import SCHEDULE_ID, Schedule, variant_of
from lib.bridge.geometry import TRANSFORM_ID, Geometry, modality_mean, moving_mean, normalise
from lib.bridge.samplers import check_denoiser, check_sampler, sample
from lib.bridge.self_test import (
    FIXED_POINT,
    LOSS_FLOOR,
    LOSS_RATIO_REFUSED,
    LOSS_RATIO_WARNED,
    MIN_COSINE,
    FixedOutputs,
    TextProbes,
    ordered_sha,
    text_losses,
)
from lib.bridge.text_bank import tensor_sha256
from lib.clip.text_space import TextSpace
from lib.engine.compiled import compile_module
from lib.runs import atomic_write, code_revision, file_sha256, write_json
from lib.settings import BridgeSettings

SCHEMA = 2
MAX_TEXT_OFFSET = 0.05  # length of the mean of G(text) around the right mean, less that of a random draw
MAX_VISION_OFFSET = 0.1  # the same of vision features held out
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class Bridge:
    """A denoiser with the geometry it was trained in and the way it is walked.

    architecture: record for `build_denoiser`. text_space: of the texts the denoiser learnt.
    entry_step, num_steps, solver, last_step: see `samplers.sample`. provenance: corpus, training and
        weights records.
    chunk: rows that go through the network at once. pad_to_bucket: few batch sizes, for a compiled or captured
        network (`samplers.pad_rows`). precision: float32, or bfloat16 (autocast) for the network's matrix products.
    """

    denoiser: nn.Module
    architecture: dict[str, Any]
    geometry: Geometry
    schedule: Schedule
    text_space: TextSpace
    entry_step: int = 600
    num_steps: int = 12
    solver: str = "sphere_pc"
    last_step: int = 20
    provenance: dict[str, Any] = field(default_factory=dict)
    probes: TextProbes | None = None
    fixed_outputs: FixedOutputs | None = None
    chunk: int = 4096
    pad_to_bucket: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"bridge.walk_precision: found {self.precision!r}, expected one of {', '.join(PRECISIONS)}"
            )
        check_sampler(self.solver, self.entry_step, self.num_steps, len(self.schedule))
        check_denoiser(self.denoiser, self.solver, self.entry_step)
        self.denoiser.eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        return self.geometry.dim

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(iter(self.denoiser.state_dict().values())).device

    def __call__(self, features: Tensor) -> Tensor:
        """Raw vision features [P, D] -> their bridged unit vectors [P, D] float32, in centred space.

        Takes the pairs of any number of images at once; each row is bridged by itself, on the network's device.
        Gradients flow to `features` when they ask for them. Raises ValueError on a wrong dimension or on rows that were
        transformed before.
        """
        x = self.geometry.vision(features)  # (P, D)
        settings = {"entry_step": self.entry_step, "num_steps": self.num_steps, "solver": self.solver}
        settings |= {"last_step": self.last_step, "scale": self.geometry.scale, "pad_to_bucket": self.pad_to_bucket}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            parts = [
                sample(self.denoiser, part.to(self.device), self.schedule, **settings) for part in x.split(self.chunk)
            ]
        return normalise(torch.cat(parts)).to(x.device)

    def with_vision_mean(self, mean: Tensor) -> Bridge:
        """The same bridge for features with this mean (`modality_mean` of the training split's pair features)."""
        return replace(self, geometry=self.geometry.with_vision_mean(mean.to(self.geometry.text_mean)))

    def with_center(self, center: str) -> Bridge:
        """The same bridge with another mean taken off vision features: own | text | none."""
        return replace(self, geometry=replace(self.geometry, center=center))

    def with_sampler(self, **settings: int | str) -> Bridge:
        """The same bridge walked otherwise: entry_step, num_steps, solver, last_step.

        An entry_step without num_steps keeps the evaluations, but makes no more of them than there are timesteps.
        """
        if "num_steps" not in settings and settings.get("solver", self.solver) != "public":
            settings["num_steps"] = min(self.num_steps, settings.get("entry_step", self.entry_step))
        return replace(self, **settings)

    def with_settings(self, settings: BridgeSettings) -> Bridge:
        """The same bridge centred and walked as a run's settings say; evaluations beyond the depth are left out."""
        steps = settings.num_steps if settings.solver == "public" else min(settings.num_steps, settings.entry_step)
        return self.with_center(settings.center).with_sampler(
            entry_step=settings.entry_step, num_steps=steps, solver=settings.solver, last_step=settings.last_step,
            precision=settings.walk_precision,
        )  # fmt: skip

    def track_vision_mean(self, features: Tensor, decay: float = 0.99) -> Bridge:
        """The same bridge with its vision mean moved towards a batch of raw pair features [P, D]."""
        if self.geometry.vision_mean is None:
            return self.with_vision_mean(modality_mean(features.detach()))
        return self.with_vision_mean(moving_mean(self.geometry.vision_mean, features, decay))

    def to(self, device: torch.device | str) -> Bridge:
        return replace(self, denoiser=self.denoiser.to(device), geometry=self.geometry.to(device))

    def walking_on(self, device: torch.device | str, compile_mode: str = "") -> Bridge:
        """The same bridge, its network on a device and compiled (`compile_module`): a copy, where that is a change.

        The means stay where they are, and so do the features that it takes and gives.
        """
        if not compile_mode and self.device == torch.device(device):
            return self
        network = copy.deepcopy(self.denoiser).to(device)
        compile_module(network, compile_mode)
        return replace(self, denoiser=network, pad_to_bucket=bool(compile_mode))

    # ------------------------------------------------------------ folder

    def save(self, folder: Path | str) -> None:
        """Write the bundle; bridge.json comes last, so that a folder with it is whole."""
        folder = Path(folder)
        if not self.provenance.get("weights", {}).get("kind"):
            raise ValueError(
                f"{folder}: found no provenance['weights']['kind'], expected which weights these are (raw | ema | ...);"
                " mend: Bridge(..., provenance={'weights': {'kind': 'raw'}})"
            )
        means = {"text_mean": self.geometry.text_mean}
        if self.geometry.vision_mean is not None:
            means["vision_mean"] = self.geometry.vision_mean
        fixed = FixedOutputs.of(self.denoiser, self.dim, self.schedule, self.geometry.scale)
        probes = fixed.tensors() | ({"texts": self.probes.vectors} if self.probes else {})
        tensors = {"weights": self.denoiser.state_dict(), "means": means, "probes": probes}
        for name, group in tensors.items():
            blob = save({key: value.detach().cpu().contiguous() for key, value in group.items()})
            atomic_write(folder / f"{name}.safetensors", lambda stream, blob=blob: stream.write(blob))
        record = {
            "schema": SCHEMA,
            "text_space": self.text_space.to_json(),
            "dim": self.dim,
            "transform": TRANSFORM_ID,
            "center": self.geometry.center,
            "scale": self.geometry.scale,
            "means": {
                name: {"norm": float(mean.norm()), "sha256": tensor_sha256(mean)} for name, mean in means.items()
            },
            "schedule": {"id": SCHEDULE_ID, "timesteps": len(self.schedule)},
            "objective": "x0",
            "architecture": self.architecture,
            "parameters": sum(parameter.numel() for parameter in self.denoiser.parameters()),
            "sampler": {
                "entry_step": self.entry_step,
                "num_steps": self.num_steps,
                "solver": self.solver,
                "last_step": self.last_step,
            },
            "self_test": fixed.digest,
            "probes": {
                "sentences": self.probes.sentences if self.probes else [],
                "classes_sha256": self.probes.classes_sha if self.probes else "",
            },
            "files": {name: file_sha256(folder / f"{name}.safetensors") for name in tensors},
            "code": code_revision(),
            "provenance": self.provenance,
        }
        write_json(folder / "bridge.json", record)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Bridge:
        """Read a bundle and check that its parts belong together; raises ValueError naming all that do not."""
        folder = Path(folder)
        path = folder / "bridge.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: found no file, expected a trained bridge; mend: run notebook 03, or import a public one"
                " (python -m lib.bridge.released --help)"
            )
        record = json.loads(path.read_text())
        _refuse(path, [("schema", record["schema"], SCHEMA)])
        checks = [
            ("transform", record["transform"], TRANSFORM_ID),
            ("schedule", record["schedule"]["id"], SCHEDULE_ID),
            ("objective", record["objective"], "x0"),
        ]
        for name, sha in record["files"].items():
            checks.append((f"sha256 of {name}.safetensors", file_sha256(folder / f"{name}.safetensors"), sha))
        _refuse(path, checks)

        means, probes = (load_file(folder / f"{name}.safetensors") for name in ("means", "probes"))
        checks = [
            (f"sha256 of the {name.replace('_', ' ')}", tensor_sha256(means[name]), told["sha256"])
            for name, told in record["means"].items()
        ]
        checks.append(("dim", record["dim"], len(means["text_mean"])))
        _refuse(path, checks)
        geometry = Geometry(
            means["text_mean"], means.get("vision_mean"), center=record["center"], scale=record["scale"]
        )
        schedule = Schedule.cosine(record["schedule"]["timesteps"])
        denoiser = build_denoiser(record["architecture"], geometry.dim, schedule, geometry.scale)
        denoiser.load_state_dict(load_file(folder / "weights.safetensors"))
        texts = record["probes"]
        bridge = cls(
            denoiser,
            record["architecture"],
            geometry,
            schedule,
            TextSpace.from_json(record["text_space"], str(path)),
            **record["sampler"],
            provenance=record["provenance"],
            probes=TextProbes(probes["texts"], texts["sentences"], texts["classes_sha256"])
            if "texts" in probes
            else None,
            fixed_outputs=FixedOutputs(*(probes[name] for name in ("states", "timesteps", "predictions"))),
        )
        bridge.verify(path)
        return bridge.to(device)

    def verify(self, where: Path | str = "bridge") -> None:
        """Check the bridge against what it carries: predictions as when saved, and the mean of its own texts.

        `load` does it; call it again after anything that might have written into the denoiser, such as a detector
        that was resumed. Raises ValueError naming all that differs.
        """
        checks = []
        if self.fixed_outputs and (different := self.fixed_outputs.mismatch(self.denoiser, self.geometry.scale)):
            checks.append(different)
        if self.probes:
            left = self.geometry.offset(self.probes.vectors.to(self.geometry.text_mean), "text")
            if left > MAX_TEXT_OFFSET:
                checks.append(
                    ("text mean", f"a mean that leaves its own texts {left:.3f} off centre", f"<= {MAX_TEXT_OFFSET}")
                )
        _refuse(where, checks)


def _refuse(where: Path | str, checks: list[tuple[str, Any, Any]]) -> None:
    """Raise ValueError with every (what, found, expected) that differs."""
    lines = [f"found {what} {found!r}, expected {expected!r}" for what, found, expected in checks if found != expected]
    if lines:
        raise ValueError(
            f"{where}: {len(lines)} parts do not belong together\n  "
            + "\n  ".join(lines)
            + "\n  mend: copy the folder again, train the bridge again (notebook 03), or import it again"
            " (python -m lib.bridge.released)"
        )


def check_compatible(
    bridge: Bridge,
    classifier_space: TextSpace,
    dim: int,
    *,
    center: str | None = None,
    scale: float | None = None,
    entry_step: int | None = None,
    weights: str | None = None,
    classes: Sequence[str] = (),
    text_rows: Tensor | None = None,
    encode: Callable[[Sequence[str]], Tensor] | None = None,
    features: Tensor | None = None,
    allow_mismatch: bool = False,
    command: str = "run notebook 03 on the classifier's own texts with the settings shown",
) -> bool:
    """Refuse a bridge that does not fit the classifier whose features it will carry (spec §7.2, §7.3).

    classifier_space: text space of the classifier's text rows. dim: their width.
    center, scale, weights (raw | ema): those of the run's settings, compared when given. entry_step: the depth at
        which the detector was trained with a bridge. classes: its ordered class sentences.
    text_rows: the classifier's raw text rows [K, D]; the denoiser must know them as well as its own texts.
    encode: the live text tower, with the bank's templates; must give the stored probes their vectors.
    features: raw pair features [P, D], held out; far off the vision mean they give a warning.
    command: what makes a matching bridge, printed in the error.

    Returns True when there is a mismatch that `allow_mismatch` (bridge.allow_text_space_mismatch) permits, to be
    recorded with the metrics; False for a match. A wrong dimension is never permitted. Raises ValueError.
    """
    sides = {name: (value, getattr(classifier_space, name)) for name, value in vars(bridge.text_space).items()}
    sides = {f"text space, {name}": pair for name, pair in sides.items()} | {
        "dimension": (bridge.dim, dim),
    }
    kind = bridge.provenance.get("weights", {}).get("kind")
    asked = {
        "bridge.center": (bridge.geometry.center, center),
        "bridge.scale": (bridge.geometry.scale, scale),
        "bridge.entry_step": (bridge.entry_step, entry_step),
        "weights": (kind, weights),
    }
    sides |= {name: pair for name, pair in asked.items() if pair[1] is not None}
    probes = bridge.probes
    if probes and classes and probes.classes_sha:
        sides["class sentences, in order"] = (probes.classes_sha[:12], ordered_sha(classes)[:12])
    different = {name: pair for name, pair in sides.items() if pair[0] != pair[1]}
    if bridge.dim == dim:
        if probes and encode and (cosine := probes.cosine(encode)) < MIN_COSINE:
            different["vectors of the probe sentences"] = ("cosine 1", f"cosine {cosine:.4f} at least")
        if probes and text_rows is not None and variant_of(bridge.denoiser) != "student":
            different |= _text_mismatch(bridge, probes, text_rows)
        if features is not None and bridge.geometry.center == "own":
            _warn_off_centre(bridge.geometry, features)
    if not different:
        return False
    if allow_mismatch and "dimension" not in different:
        return True
    lines = [
        f"  {name}: the bridge has {ours!r}, the classifier {theirs!r}" for name, (ours, theirs) in different.items()
    ]
    mend = f"  mend: {command}"
    if "dimension" not in different:
        mend += "\n  or run it on purpose (recorded in the metrics): bridge.allow_text_space_mismatch=true"
    raise ValueError(
        f"the bridge (text space {bridge.text_space.id}) does not fit the classifier (text space"
        f" {classifier_space.id}):\n" + "\n".join([*lines, mend])
    )


def _text_mismatch(bridge: Bridge, probes: TextProbes, rows: Tensor) -> dict[str, tuple[str, str]]:
    """What the denoiser finds strange in the classifier's rows; warns where it is in doubt (spec §7.3)."""
    own, running = (text_losses(bridge.denoiser, bridge.geometry, bridge.schedule, x) for x in (probes.vectors, rows))
    ratios = {name: (running[name] + LOSS_FLOOR) / (own[name] + LOSS_FLOOR) for name in own if name != "fixed_point"}
    worst = max(ratios, key=ratios.get)
    ratio = ratios[worst]
    told = (f"{worst} {own[worst]:.4g} on its own texts", f"{running[worst]:.4g}, {ratio:.2f} times that")
    different = {"denoising loss": told} if ratio > LOSS_RATIO_REFUSED else {}
    if not different and ratio > LOSS_RATIO_WARNED:
        warnings.warn(f"the classifier's texts are strange to the bridge: {told[0]}, {told[1]}", stacklevel=3)
    if running["fixed_point"] < FIXED_POINT:
        different["texts are fixed points at t=0"] = (
            f"cosine {own['fixed_point']:.4f}",
            f"{running['fixed_point']:.4f}, expected {FIXED_POINT} at least",
        )
    return different


def _warn_off_centre(geometry: Geometry, features: Tensor) -> None:
    left = geometry.offset(features.detach().to(geometry.text_mean), "vision")
    if left > MAX_VISION_OFFSET:
        warnings.warn(
            f"the vision mean leaves these pair features {left:.3f} off centre, expected {MAX_VISION_OFFSET} at most:"
            " it is of other features; mend: bridge.with_vision_mean(modality_mean(training pair features))",
            stacklevel=3,
        )
