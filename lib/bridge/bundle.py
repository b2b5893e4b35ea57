"""The bridge as one object and one folder (spec diffusion-bridge.md §7).

    bridge = Bridge.load(folder).with_vision_mean(modality_mean(training_pair_features))
    bridged = bridge(pair_features)  # raw [P, D] -> unit [P, D], to be compared with bridge.geometry.text(rows)

The folder holds weights.safetensors, means.safetensors and bridge.json; the bridge is never part of a
detector's weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib.bridge.architectures import build_denoiser
from lib.bridge.diffusion import SCHEDULE_ID, Schedule
from lib.bridge.geometry import TRANSFORM_ID, Geometry, normalise
from lib.bridge.samplers import check_sampler, sample
from lib.bridge.text_bank import tensor_sha256
from lib.clip.text_space import TextSpace
from lib.runs import atomic_write, code_revision, file_sha256, write_json

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Bridge:
    """A denoiser with the geometry it was trained in and the way it is walked.

    architecture: record for `build_denoiser`. text_space: of the texts the denoiser learnt.
    entry_step, num_steps, solver, last_step: see `samplers.sample`. provenance: corpus, training and
        weights records.
    chunk: rows that go through the network at once.
    """

    denoiser: nn.Module
    architecture: dict[str, Any]
    geometry: Geometry
    schedule: Schedule
    text_space: TextSpace
    entry_step: int = 600
    num_steps: int = 6
    solver: str = "sphere_2m"
    last_step: int = 20
    provenance: dict[str, Any] = field(default_factory=dict)
    chunk: int = 4096

    def __post_init__(self) -> None:
        check_sampler(self.solver, self.entry_step, self.num_steps, len(self.schedule))
        self.denoiser.eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        return self.geometry.dim

    def __call__(self, features: Tensor) -> Tensor:
        """Raw vision features [P, D] -> their bridged unit vectors [P, D] float32, in centred space.

        Takes the pairs of any number of images at once; each row is bridged by itself. Gradients flow to
        `features` when they ask for them. Raises ValueError on a wrong dimension or on rows that were
        transformed before.
        """
        x = self.geometry.vision(features)  # (P, D)
        settings = {"entry_step": self.entry_step, "num_steps": self.num_steps, "solver": self.solver}
        settings |= {"last_step": self.last_step, "scale": self.geometry.scale}
        parts = [sample(self.denoiser, part, self.schedule, **settings) for part in x.split(self.chunk)]
        return normalise(torch.cat(parts))

    def with_vision_mean(self, mean: Tensor) -> Bridge:
        """The same bridge for features with this mean (`modality_mean` of the training split's pair features)."""
        return replace(self, geometry=self.geometry.with_vision_mean(mean.to(self.geometry.text_mean)))

    def with_center(self, center: str) -> Bridge:
        """The same bridge with another mean taken off vision features: own | text | none."""
        return replace(self, geometry=replace(self.geometry, center=center))

    def with_sampler(self, **settings: int | str) -> Bridge:
        """The same bridge walked otherwise: entry_step, num_steps, solver, last_step."""
        return replace(self, **settings)

    def to(self, device: torch.device | str) -> Bridge:
        return replace(self, denoiser=self.denoiser.to(device), geometry=self.geometry.to(device))

    # ------------------------------------------------------------ folder

    def save(self, folder: Path | str) -> None:
        """Write the bundle; bridge.json comes last, so that a folder with it is whole."""
        folder = Path(folder)
        means = {"text_mean": self.geometry.text_mean}
        if self.geometry.vision_mean is not None:
            means["vision_mean"] = self.geometry.vision_mean
        tensors = {"weights": self.denoiser.state_dict(), "means": means}
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
            "files": {name: file_sha256(folder / f"{name}.safetensors") for name in tensors},
            "code": code_revision(),
            "provenance": self.provenance,
        }
        write_json(folder / "bridge.json", record)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Bridge:
        """Read a bundle and check that its parts belong together; raises ValueError naming what does not."""
        folder = Path(folder)
        path = folder / "bridge.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: found no file, expected a trained bridge; mend: run notebook 03")
        record = json.loads(path.read_text())
        _expect(path, "schema", record["schema"], SCHEMA)
        _expect(path, "transform", record["transform"], TRANSFORM_ID)
        _expect(path, "schedule", record["schedule"]["id"], SCHEDULE_ID)
        for name, sha in record["files"].items():
            file = folder / f"{name}.safetensors"
            _expect(file, "sha256", file_sha256(file), sha)

        means = load_file(folder / "means.safetensors")
        geometry = Geometry(
            means["text_mean"], means.get("vision_mean"), center=record["center"], scale=record["scale"]
        )
        _expect(path, "dim", record["dim"], geometry.dim)
        schedule = Schedule.cosine(record["schedule"]["timesteps"])
        denoiser = build_denoiser(record["architecture"], geometry.dim, schedule, geometry.scale)
        denoiser.load_state_dict(load_file(folder / "weights.safetensors"))
        bridge = cls(
            denoiser,
            record["architecture"],
            geometry,
            schedule,
            TextSpace.from_json(record["text_space"], str(path)),
            **record["sampler"],
            provenance=record["provenance"],
        )
        return bridge.to(device)


def _expect(path: Path, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(
            f"{path}: found {what} {found!r}, expected {expected!r}; mend: train the bridge again (notebook 03)"
        )


def check_compatible(
    bridge: Bridge,
    classifier_space: TextSpace,
    dim: int,
    *,
    center: str | None = None,
    scale: float | None = None,
    allow_mismatch: bool = False,
    command: str = "run notebook 03 on the classifier's own texts with the settings shown",
) -> bool:
    """Refuse a bridge that does not fit the classifier whose features it will carry.

    classifier_space: text space of the classifier's text rows. dim: their width.
    center, scale: those of the run's settings, compared when given.
    command: what makes a matching bridge, printed in the error.

    Returns True when there is a mismatch that `allow_mismatch` (bridge.allow_text_space_mismatch) permits, to be
    recorded with the metrics; False for a match. A wrong dimension is never permitted. Raises ValueError.
    """
    sides = {name: (value, getattr(classifier_space, name)) for name, value in vars(bridge.text_space).items()}
    sides = {f"text space, {name}": pair for name, pair in sides.items()} | {
        "bridge.center": (bridge.geometry.center, bridge.geometry.center if center is None else center),
        "bridge.scale": (bridge.geometry.scale, bridge.geometry.scale if scale is None else scale),
        "dimension": (bridge.dim, dim),
    }
    different = {name: pair for name, pair in sides.items() if pair[0] != pair[1]}
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
