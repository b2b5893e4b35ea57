"""The centred sphere on which the bridge works (spec diffusion-bridge.md §2).

Vision and text embeddings of CLIP sit in two cones separated by a constant gap. Taking each modality's own
mean off removes the gap; what is left is compared on the unit sphere:

    G(e; mu) = N(N(e) - mu),   N(x) = x / |x|,   mu = mean of N(e) over the modality (not normalised again)

The diffusion works on the sphere of radius `scale`, where the state is scale · G. The mean is never added
back, so a bridged feature may be compared with G(text; mu_text) only.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CENTER_MODES = ("own", "text", "none")
TRANSFORM_ID = "N-mu-N-scale/v1"


def normalise(x: Tensor) -> Tensor:
    """N(x): rows of [..., D] on the unit sphere, in float32 at least."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def centre(e: Tensor, mean: Tensor) -> Tensor:
    """G(e; mean) = N(N(e) - mean) for raw encoder rows e [..., D] and a mean [D]. Not idempotent."""
    return normalise(normalise(e) - mean)


def uncentre(centred: Tensor, mean: Tensor) -> Tensor:
    """N(e) from g = G(e; mean), both [..., D]: what old files keep as scale · g is raw again, but for its length.

    N(e) = mean + s g with |N(e)| = 1 has one positive solution, s = sqrt((mean·g)² + 1 - |mean|²) - mean·g.
    """
    g = normalise(centred)
    along = (g * mean).sum(dim=-1, keepdim=True)
    return mean + ((along.square() + 1 - mean.square().sum()).sqrt() - along) * g


def modality_mean(rows: Tensor) -> Tensor:
    """Mean [D] float32 of the *normalised* rows of [N, D], summed in float64; its length is left as it is.

    Raises ValueError when the rows cannot be raw embeddings of one modality (see `check_mean`).
    """
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"found rows of shape {tuple(rows.shape)}, expected [N, D] with at least two raw embeddings")
    mean = normalise(rows).mean(dim=0, dtype=torch.float64).float()
    check_mean(mean)
    return mean


def moving_mean(mean: Tensor, rows: Tensor, decay: float = 0.99) -> Tensor:
    """`mean` [D] moved towards the normalised raw rows [N, D] of one batch, without gradient.

    Keeps the vision mean up to date while what makes the features still learns (spec §2.2, §10.1 B).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"moving mean: found decay {decay}, expected 0 to below 1")
    return torch.lerp(normalise(rows.detach()).mean(dim=0).to(mean), mean, decay) if len(rows) else mean


def check_mean(mean: Tensor, name: str = "modality mean") -> None:
    """Raise or warn when a mean is implausible as the average of normalised raw CLIP rows (spec §7.2).

    The squared length of such a mean is the mean pairwise cosine of the rows: 0.6-0.9 long for captions, up
    to 0.95 for a templated class list. Averaging rows that were centred before gives about 0.02, raw rows
    give more than 1.
    """
    length = float(mean.norm())
    if not 0.1 < length < 1 - 1e-6:
        raise ValueError(
            f"{name}: found length {length:.4f}, expected between 0.3 and 0.98: it was taken over rows"
            " that were already centred (about 0), not normalised (above 1) or all alike (1)"
            "\n  mend: pass raw encoder outputs to modality_mean"
        )
    if not 0.3 < length < 0.98:
        warnings.warn(f"{name}: length {length:.3f} is outside the usual 0.3 to 0.98", stacklevel=3)


@dataclass(frozen=True)
class Geometry:
    """Means, centring mode and radius of one bridge.

    text_mean: [D], mean of the normalised text bank.
    vision_mean: [D], mean of the normalised *pair features that are bridged*, training split only; needed for
        center="own" and added when the detector is known (`with_vision_mean`).
    center: what is taken off vision features: own | text | none. Text is always centred by its own mean.
    scale: radius c of the diffusion sphere.
    """

    text_mean: Tensor
    vision_mean: Tensor | None = None
    center: str = "own"
    scale: float = 5.0

    def __post_init__(self) -> None:
        if self.center not in CENTER_MODES:
            raise ValueError(f"bridge.center: found {self.center!r}, expected one of {', '.join(CENTER_MODES)}")
        if not self.scale > 0:
            raise ValueError(f"bridge.scale: found {self.scale}, expected a radius above 0")
        check_mean(self.text_mean, "text mean")
        if self.vision_mean is not None:
            if self.vision_mean.shape != self.text_mean.shape:
                raise ValueError(
                    f"vision mean: found shape {tuple(self.vision_mean.shape)}, expected that of the text"
                    f" mean, {tuple(self.text_mean.shape)}; mend: take it over features of the same encoder"
                )
            check_mean(self.vision_mean, "vision mean")
            if self.center == "own" and torch.allclose(self.vision_mean, self.text_mean, rtol=0, atol=1e-6):
                raise ValueError(
                    "vision mean: found the text mean, expected that of the pair features that are bridged"
                    "\n  mend: with_vision_mean(modality_mean(training pair features)); to centre vision by the text"
                    " mean on purpose, as the public fork does, set bridge.center=text"
                )

    @property
    def dim(self) -> int:
        return len(self.text_mean)

    def with_vision_mean(self, mean: Tensor) -> Geometry:
        """The same geometry with the mean of the features that will be bridged."""
        return replace(self, vision_mean=mean)

    def to(self, device: torch.device | str) -> Geometry:
        vision_mean = None if self.vision_mean is None else self.vision_mean.to(device)
        return replace(self, text_mean=self.text_mean.to(device), vision_mean=vision_mean)

    def text(self, rows: Tensor) -> Tensor:
        """G of raw text rows [N, D] -> [N, D] on the unit sphere."""
        self._check_raw(rows, self.text_mean)
        return centre(rows, self.text_mean)

    def vision(self, features: Tensor) -> Tensor:
        """G of raw vision features [P, D] -> [P, D] on the unit sphere, centred as `center` says."""
        if self.center == "none":
            self._check_raw(features, None)
            return normalise(features)
        mean = self.text_mean if self.center == "text" else self.vision_mean
        if mean is None:
            raise ValueError(
                "bridge.center is 'own' but the bridge holds no vision mean; mend: bridge ="
                " bridge.with_vision_mean(modality_mean(training pair features)), or set bridge.center=text"
            )
        self._check_raw(features, mean if self.center == "own" else None)
        return centre(features, mean)

    def offset(self, rows: Tensor, modality: str) -> float:
        """Length of the mean of G over raw rows [N, D] of `modality` (text | vision): about 0 around their own mean.

        A mean of other texts, of another encoder or of other features leaves 0.3 and more (spec §7.2); N rows drawn
        at random leave about 1 / sqrt(N), which is taken off here.
        """
        length = float((self.text if modality == "text" else self.vision)(rows).mean(dim=0).norm())
        return max(0.0, length - 1 / math.sqrt(len(rows)))

    def _check_raw(self, rows: Tensor, own_mean: Tensor | None) -> None:
        """Reject rows of another width and rows that went through the transform before (spec §7.2).

        Rows scaled to the sphere of radius c betray themselves by their length. Unit rows are legal input,
        but raw ones average to |mu|² along their own mean and centred ones to about nothing. One row alone
        may have length c by chance and few rows may average to anything, hence the counts.
        """
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(
                f"found rows of shape {tuple(rows.shape)}, expected [N, {self.dim}], the dimension of the"
                " bridge; mend: use a bridge trained on text of the same CLIP model"
            )
        if len(rows) < 2:
            return
        lengths = rows.detach().float().norm(dim=1)
        on_sphere = ((lengths - self.scale).abs() < 1e-3).float().mean() > 0.5
        centred = torch.zeros((), dtype=torch.bool, device=rows.device)
        if own_mean is not None and len(rows) >= 8:
            along_mean = (normalise(rows.detach()) @ own_mean).mean()
            centred = ((lengths - 1).abs() < 1e-3).all() & (along_mean.abs() < 0.2 * own_mean.square().sum())
        if bool(on_sphere | centred):
            raise ValueError(
                f"found {len(rows)} rows of mean length {float(lengths.mean()):.4f} that were transformed"
                f" before (centred to length 1, or scaled to {self.scale:g}); expected raw encoder outputs"
                "\n  mend: pass the features as the encoder gives them; the bridge centres and scales itself"
            )
