"""Forward process and training loss of the bridge's diffusion (spec diffusion-bridge.md §3.2).

The clean vectors x0 lie on the sphere of radius c. A noisy state is put back on that sphere before the
network sees it, so the network learns to turn a direction u at timestep t into the clean vector:

    x_t = c · N(a_t x0 + sigma_t eps),   eps ~ N(0, I_D),   a = sqrt(abar), sigma = sqrt(1 - abar)
    loss = SNR_t · mean_d (net(x_t, t) - x0)²,   SNR = abar / (1 - abar)

That is the `sphere` variant of the public programs. In the `vp` variant the state keeps its length, which the network
may read as well; it is handed over as (c / s_t) x_t, s_t the typical length, so that both variants feed a network
vectors of about length c and take the same architectures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lib.bridge.denoisers import ResidualMlp
from lib.bridge.geometry import normalise

VARIANTS = ("sphere", "vp")
SCHEDULE_ID = "cosine-s0.008-beta0.999"
BUCKETS = (0, 50, 100, 200, 300, 400, 600, 800, 1000)  # edges of the timestep buckets of the validation loss


@dataclass(frozen=True)
class Schedule:
    """Noise schedule in float64; index t = 0 .. T-1.

    betas: [T]. abar: [T], cumulative product of 1 - beta. With a = sqrt(abar) and sigma = sqrt(1 - abar):
    kappa = a / sigma (square root of the SNR) and tau = asinh(kappa), the natural time of the sampler (§4.3).
    """

    betas: Tensor

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008) -> Schedule:
        """The cosine schedule of Nichol & Dhariwal with beta clipped to 0.999."""
        i = torch.linspace(0, steps, steps + 1, dtype=torch.float64)
        f = torch.cos((i / steps + s) / (1 + s) * math.pi / 2).square()
        f = f / f[0]
        return cls((1 - f[1:] / f[:-1]).clamp(0, 0.999))

    def __len__(self) -> int:
        return len(self.betas)

    def to(self, device: torch.device | str) -> Schedule:
        return Schedule(self.betas.to(device))

    @cached_property
    def abar(self) -> Tensor:
        return torch.cumprod(1 - self.betas, dim=0)

    @cached_property
    def a(self) -> Tensor:
        return self.abar.sqrt()

    @cached_property
    def sigma(self) -> Tensor:
        return (1 - self.abar).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        return self.abar / (1 - self.abar)

    @cached_property
    def kappa(self) -> Tensor:
        return self.snr.sqrt()

    @cached_property
    def tau(self) -> Tensor:
        return torch.asinh(self.kappa)

    def state_norm(self, dim: int, scale: float) -> Tensor:
        """s_t [T] = sqrt(c² abar + D (1 - abar)), the typical length of a x0 + sigma eps."""
        return (scale**2 * self.abar + dim * (1 - self.abar)).sqrt()

    def cos_phi(self, dim: int, scale: float) -> Tensor:
        """cos(phi_t) [T] = c a / s_t, the typical cosine between a noisy state and its clean vector."""
        return scale * self.a / self.state_norm(dim, scale)

    def inverse_temperature(self, dim: int, scale: float) -> Tensor:
        """beta_t [T] = c a s_t / sigma²: how sharply a direction at t picks among prototypes (§6.3)."""
        return scale * self.a * self.state_norm(dim, scale) / (1 - self.abar)

    def matching_entry_step(self, cosine: float, dim: int, scale: float) -> int:
        """The depth M at which a noised text has the given cosine to its clean vector.

        Feed it the measured centred cosine of vision features to their texts: a feature enters the diffusion
        where it is as far from text as the noise would have put it (§3.2, "Choosing M").
        """
        return int((self.cos_phi(dim, scale) - cosine).abs().argmin()) + 1


def variant_of(denoise: Callable[[Tensor, Tensor], Tensor]) -> str:
    """What a network was trained for: sphere (also any plain callable) | vp | student. `build_denoiser` notes it."""
    return getattr(denoise, "variant", "sphere")


def network_input(x: Tensor, t: Tensor, schedule: Schedule, scale: float, variant: str) -> Tensor:
    """What a network of this variant is shown of states x [B, D] at timesteps t [B]: about length c, [B, D].

    sphere: the direction alone, c N(x). vp: (c / s_t) x, which keeps how the length deviates from the typical one.
    """
    if variant == "vp":
        return x * (scale / schedule.state_norm(x.shape[1], scale)).to(x)[t, None]
    return scale * normalise(x)


def noisy_state(
    x0: Tensor, t: Tensor, noise: Tensor, schedule: Schedule, scale: float, variant: str = "sphere"
) -> Tensor:
    """a_t x0 + sigma_t noise, for x0, noise [B, D] and t [B] int, as a network of the variant sees it: [B, D]."""
    a = schedule.a.to(x0)[t, None]  # (B, 1)
    sigma = schedule.sigma.to(x0)[t, None]
    return network_input(a * x0 + sigma * noise, t, schedule, scale, variant)


def denoising_loss(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: Schedule,
    scale: float,
) -> Tensor:
    """SNR-weighted squared error of the predicted x0, one number a row [B], on states of the network's variant.

    For the preconditioned network the same number is computed as cos²(phi) · MSE(F, F*), whose factors stay
    bounded where SNR reaches 24,221 (spec §3.2): safe in half precision, equal in exact arithmetic.
    """
    x = noisy_state(x0, t, noise, schedule, scale, variant_of(denoise))  # (B, D)
    if isinstance(denoise, ResidualMlp):
        target = denoise.residual_target(x, x0, t)
        weight = denoise.cos_phi[t].square()
        return weight * (denoise.residual(x, t) - target).square().mean(dim=1)
    return schedule.snr.to(x0)[t] * (denoise(x, t) - x0).square().mean(dim=1)


@torch.no_grad()
def bucket_losses(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    schedule: Schedule,
    scale: float,
    *,
    rows: int = 1024,
    seed: int = 0,
) -> dict[str, float]:
    """Validation loss per bucket of timesteps and over all of them ("all", the training objective).

    x0: held-out clean vectors [N, D] on the sphere of radius `scale`; they are cycled to at least `rows`
        rows a bucket.
    seed: of the timesteps and the noise, so that two networks are compared on the same noisy states.
    """
    generator = torch.Generator().manual_seed(seed)
    training = isinstance(denoise, nn.Module) and denoise.training
    if training:
        denoise.eval()
    losses, spans = {}, []
    x0 = x0.repeat(math.ceil(rows / len(x0)), 1)[: max(rows, len(x0))]
    for low, high in zip(BUCKETS[:-1], BUCKETS[1:], strict=True):
        total = torch.zeros((), dtype=torch.float64, device=x0.device)
        for chunk in x0.split(2048):
            t = torch.randint(low, high, (len(chunk),), generator=generator).to(x0.device)
            noise = torch.randn(chunk.shape, generator=generator).to(x0.device)
            total += denoising_loss(denoise, chunk, t, noise, schedule, scale).double().sum()
        losses[f"t{low}-{high - 1}"] = float(total) / len(x0)
        spans.append(high - low)
    if training:
        denoise.train()
    losses["all"] = sum(loss * span for loss, span in zip(losses.values(), spans, strict=True)) / sum(spans)
    return losses
