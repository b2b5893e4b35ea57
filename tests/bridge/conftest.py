"""Fixtures of the bridge's tests: an ideal denoiser with a known answer, and a small text bank."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import normalise
from lib.bridge.text_bank import TextBank
from lib.clip.text_space import TextSpace

torch.set_num_threads(1)


class SmoothMixture:
    """Exact posterior mean for clean vectors drawn from K Gaussians around c·cos_within·p_k (float64).

    Unlike bare prototypes it has some spread within a class, as real captions do, and so does not snap.
    """

    def __init__(self, classes: int, dim: int, schedule: Schedule, scale: float, cos_within: float, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        topics = normalise(torch.randn(classes // 5, dim, generator=generator, dtype=torch.float64))
        own = normalise(torch.randn(classes, dim, generator=generator, dtype=torch.float64))
        self.prototypes = normalise(topics.repeat_interleave(5, dim=0) + own)  # cosine 0.5 within a topic of five
        self.means = scale * cos_within * self.prototypes
        self.variance = scale**2 * (1 - cos_within**2) / dim
        self.schedule, self.scale, self.dim = schedule, scale, dim
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        a, sigma = self.schedule.a[t, None], self.schedule.sigma[t, None]
        x = x.double() / self.scale * self.schedule.state_norm(self.dim, self.scale)[t, None]
        spread = a.square() * self.variance + sigma.square()  # (B, 1), variance of x around a component
        weight = torch.softmax(-torch.cdist(x / a, self.means).square() * a.square() / (2 * spread), dim=-1)
        mean = weight @ self.means  # (B, D)
        return mean + a * self.variance / spread * (x - a * mean)

    def inputs(self, count: int, cosine: float, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Unit vectors at the given cosine to a random class: (vectors [count, D], class numbers)."""
        generator = torch.Generator().manual_seed(seed)
        label = torch.randint(len(self.prototypes), (count,), generator=generator)
        p = self.prototypes[label]
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        noise = normalise(noise - (noise * p).sum(1, keepdim=True) * p)
        return cosine * p + math.sqrt(1 - cosine**2) * noise, label


@pytest.fixture(scope="session")
def schedule() -> Schedule:
    return Schedule.cosine()


@pytest.fixture(scope="session")
def mixture(schedule: Schedule) -> SmoothMixture:
    return SmoothMixture(classes=100, dim=512, schedule=schedule, scale=5.0, cos_within=0.8)


@pytest.fixture
def space() -> TextSpace:
    return TextSpace("c0ffee", "gelu", "open_clip", "a photo of {}")


def make_raw_text(count: int, dim: int, seed: int = 0) -> Tensor:
    """Raw encoder-like rows: lengths between 7 and 10, mean of the normalised rows about 0.7 long."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randn(12, dim, generator=torch.Generator().manual_seed(99))
    common = torch.zeros(dim).index_fill_(0, torch.tensor([0]), math.sqrt(dim))
    rows = common + 0.8 * topics[torch.randint(12, (count,), generator=generator)]
    rows = rows + 0.5 * torch.randn(count, dim, generator=generator)
    return normalise(rows) * (7 + 3 * torch.rand(count, 1, generator=generator))


@pytest.fixture
def raw_text() -> Callable[..., Tensor]:
    """`raw_text(count, dim, seed=0)` -> raw encoder-like rows [count, dim]."""
    return make_raw_text


@pytest.fixture
def bank(space: TextSpace) -> TextBank:
    return TextBank(make_raw_text(400, 16), [f"sentence {i}" for i in range(400)], space, "made for a test")
