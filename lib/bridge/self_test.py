"""What a bridge carries to prove that it still is itself and still meets its text (spec diffusion-bridge.md §7).

    FixedOutputs  predictions on fixed states: other weights or a library that computes otherwise change them
    TextProbes    sentences with the vectors they had: another text tower, mean or text distribution changes those

Both are written when a bridge is saved and compared when it is loaded or meets a classifier.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lib.bridge.diffusion import Schedule, denoising_loss
from lib.bridge.geometry import Geometry, normalise

if TYPE_CHECKING:
    from lib.bridge.text_bank import TextBank

DEPTHS = (0.1, 0.3, 0.5)  # timesteps of the tests as shares of the schedule: 100, 300, 500 of 1000
FIXED_ROWS = 4  # states a timestep
OUTPUT_TOLERANCE = 1e-3  # largest error of a prediction in units of the radius; float32 gives 1e-6
MAX_PROBES = 1000  # vectors kept: the mean of G over them is then 0.03 long
MAX_SENTENCES = 64  # sentences kept to be encoded again
LOSS_ROWS = 128  # texts in the denoising loss
MIN_COSINE = 0.999  # live text tower against stored probes
LOSS_RATIO_REFUSED, LOSS_RATIO_WARNED = 1.5, 1.2  # running texts against the bridge's own
LOSS_FLOOR = 0.01  # added to both sides of the ratio: below it a network knows its texts by heart
FIXED_POINT = 0.99  # least median cosine of net(c z, 0) and z


@dataclass(frozen=True, eq=False)
class FixedOutputs:
    """states [N, D] of length c, timesteps [N], and the predictions [N, D] made of them, all on the CPU."""

    states: Tensor
    timesteps: Tensor
    predictions: Tensor

    @classmethod
    def of(cls, denoiser: nn.Module, dim: int, schedule: Schedule, scale: float) -> FixedOutputs:
        """Predictions of `denoiser`, computed on the CPU in float32 so that no device's rounding enters."""
        noise = torch.randn(FIXED_ROWS * len(DEPTHS), dim, generator=torch.Generator().manual_seed(0))
        timesteps = torch.tensor([int(depth * len(schedule)) for depth in DEPTHS]).repeat_interleave(FIXED_ROWS)
        states = scale * normalise(noise)
        return cls(states, timesteps, _predict(denoiser, states, timesteps))

    def tensors(self) -> dict[str, Tensor]:
        return {"states": self.states, "timesteps": self.timesteps, "predictions": self.predictions}

    @property
    def digest(self) -> str:
        """12 hex digits that name the predictions in messages."""
        return hashlib.sha256(self.predictions.numpy().tobytes()).hexdigest()[:12]

    def mismatch(self, denoiser: nn.Module, scale: float) -> tuple[str, str, str] | None:
        """(what, found, expected) when `denoiser` on the sphere of radius `scale` is not the one that made these."""
        length = float(self.states.norm(dim=1).mean())
        if abs(length - scale) > 1e-3 * scale:
            return "scale", f"{scale:g}", f"{length:g}, the length of the states of the self-test"
        error = float((_predict(denoiser, self.states, self.timesteps) - self.predictions).norm(dim=1).max()) / scale
        if error <= OUTPUT_TOLERANCE:
            return None
        return (
            "denoiser self-test",
            f"predictions {error:.2g} radii off",
            f"those of {self.digest} to {OUTPUT_TOLERANCE:g}: other weights, or a library that computes otherwise",
        )


def _predict(denoiser: nn.Module, states: Tensor, timesteps: Tensor) -> Tensor:
    on_cpu = next(iter(denoiser.state_dict().values())).device.type == "cpu"
    network = denoiser if on_cpu else copy.deepcopy(denoiser).cpu()
    with torch.no_grad():
        return network(states, timesteps).float()


@dataclass(frozen=True, eq=False)
class TextProbes:
    """Raw vectors [n, D] of up to 1000 texts of the corpus, sentences of the first 64, and the classes' digest.

    classes_sha: of the ordered class sentences in the corpus, "" without any.
    """

    vectors: Tensor
    sentences: list[str]
    classes_sha: str = ""

    @classmethod
    def of(cls, bank: TextBank, rows: Tensor | None = None) -> TextProbes:
        """A fixed random choice among `rows` of the bank (best: those held out from training); all where None."""
        rows = torch.arange(len(bank)) if rows is None or len(rows) < MAX_SENTENCES else rows
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MAX_PROBES]
        chosen = rows[order]
        sentences = [bank.labels[row] for row in chosen[:MAX_SENTENCES].tolist()]
        return cls(bank.vectors[chosen].clone(), sentences, bank.classes_sha)

    def cosine(self, encode: Callable[[Sequence[str]], Tensor]) -> float:
        """Least cosine between the stored vectors and those of a live text tower."""
        live = encode(self.sentences).detach().float().cpu()
        if live.shape != self.vectors[: len(live)].shape:
            return -1.0
        return float((normalise(live) * normalise(self.vectors[: len(live)])).sum(dim=1).min())


def ordered_sha(sentences: Sequence[str]) -> str:
    """SHA-256 of sentences in their order; "" for none."""
    return hashlib.sha256("\n".join(sentences).encode()).hexdigest() if sentences else ""


@torch.no_grad()
def text_losses(denoiser: nn.Module, geometry: Geometry, schedule: Schedule, rows: Tensor) -> dict[str, float]:
    """How well a denoiser knows raw texts [N, D]: SNR-weighted loss at three timesteps, and `fixed_point`.

    fixed_point: median cosine of net(c z, 0) and z = G(text). The noise is the same for every call, so that two sets
    of texts are compared on equal terms.
    """
    device = geometry.text_mean.device
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:LOSS_ROWS]].to(device)
    z = geometry.text(rows)
    generator = torch.Generator().manual_seed(1)
    found = {}
    for depth in DEPTHS:
        t = torch.full((len(z),), int(depth * len(schedule)), device=device)
        noise = torch.randn(LOSS_ROWS, z.shape[1], generator=generator)[: len(z)].to(z)
        loss = denoising_loss(denoiser, geometry.scale * z, t, noise, schedule, geometry.scale)
        found[f"loss_t{int(t[0])}"] = float(loss.mean())
    first = denoiser(geometry.scale * z, torch.zeros(len(z), dtype=torch.long, device=device))
    return found | {"fixed_point": float((normalise(first) * z).sum(dim=1).median())}
