"""Schedule constants, the two forms of the training loss, and the loss per bucket."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch

from lib.bridge.denoisers import PrototypeDenoiser, ResidualMlp
from lib.bridge.diffusion import BUCKETS, Schedule, bucket_losses, denoising_loss, network_input, noisy_state

# t: abar, kappa, tau, s_t (512), cos phi (512), beta (512), cos phi (768, c=5); table of the method page, §3.2
TABLE = {
    0: ".99996 155.6 5.74 5.00 .9996 6e5 .9994",
    19: ".99825 23.9 3.87 5.08 .982 1.45e4 .974",
    49: ".99201 11.1 3.11 5.38 .926 3349 .895",
    99: ".97209 5.90 2.48 6.21 .794 1097 .729",
    119: ".96089 4.96 2.30 6.64 .739 832 .667",
    199: ".89871 2.98 1.81 8.62 .550 403 .473",
    299: ".78691 1.92 1.41 11.3 .391 236 .328",
    399: ".64748 1.36 1.11 14.0 .287 160 .238",
    599: ".34081 .719 .668 18.6 .157 82 .129",
    799: ".09405 .322 .317 21.6 .071 37 .058",
}


@pytest.mark.parametrize("t", TABLE)
def test_schedule_table(schedule: Schedule, t: int) -> None:
    tables = (
        schedule.abar,
        schedule.kappa,
        schedule.tau,
        schedule.state_norm(512, 5.0),
        schedule.cos_phi(512, 5.0),
        schedule.inverse_temperature(512, 5.0),
        schedule.cos_phi(768, 5.0),
    )
    for table, expected in zip(tables, map(Decimal, TABLE[t].split()), strict=True):
        last_digit = 1.0 * 10.0 ** expected.as_tuple().exponent
        assert float(table[t]) == pytest.approx(float(expected), abs=last_digit)


def test_schedule_is_float64_and_monotone(schedule: Schedule) -> None:
    assert schedule.abar.dtype == torch.float64 and len(schedule) == 1000
    assert float(schedule.snr[0]) == pytest.approx(24221, abs=1)
    assert (schedule.tau.diff() < 0).all() and float(schedule.betas.max()) <= 0.999
    torch.testing.assert_close(schedule.a**2 + schedule.sigma**2, torch.ones(1000, dtype=torch.float64))


@pytest.mark.parametrize(("dim", "cosine", "t"), [(512, 0.5, 226), (512, 0.4, 292), (512, 0.3, 384), (512, 0.25, 445)])
def test_matching_entry_step(schedule: Schedule, dim: int, cosine: float, t: int) -> None:
    assert schedule.matching_entry_step(cosine, dim, 5.0) == pytest.approx(t + 1, abs=1)


def test_noisy_state_is_on_the_sphere_at_the_typical_cosine(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = 5 * torch.nn.functional.normalize(torch.randn(4000, 128, generator=generator))
    for t in (50, 300, 700):
        noise = torch.randn(x0.shape, generator=generator)
        x = noisy_state(x0, torch.full((4000,), t), noise, schedule, 5.0)
        torch.testing.assert_close(x.norm(dim=1), torch.full((4000,), 5.0))
        cosine = torch.cosine_similarity(x, x0).mean()
        assert float(cosine) == pytest.approx(float(schedule.cos_phi(128, 5.0)[t]), abs=5e-3)


def test_vp_states_keep_their_length(schedule: Schedule) -> None:
    """A vp network sees (c / s_t)(a x0 + sigma eps): about c long, with the deviation that sphere takes away."""
    generator = torch.Generator().manual_seed(0)
    x0 = 5 * torch.nn.functional.normalize(torch.randn(4000, 128, generator=generator))
    noise, t = torch.randn(x0.shape, generator=generator), torch.full((4000,), 300)
    x = noisy_state(x0, t, noise, schedule, 5.0, "vp")
    lengths = x.norm(dim=1)
    assert float(lengths.square().mean().sqrt()) == pytest.approx(5, rel=1e-2) and float(lengths.std()) > 0.1
    plain = schedule.a[300] * x0 + schedule.sigma[300] * noise
    torch.testing.assert_close(x, (5 / schedule.state_norm(128, 5.0)[300] * plain).float())
    torch.testing.assert_close(
        torch.nn.functional.normalize(x), torch.nn.functional.normalize(noisy_state(x0, t, noise, schedule, 5.0))
    )
    assert not torch.allclose(network_input(2 * plain, t, schedule, 5.0, "vp").float(), x)


@pytest.mark.parametrize("variant", ["sphere", "vp"])
def test_preconditioned_loss_equals_the_plain_one(schedule: Schedule, variant: str) -> None:
    torch.manual_seed(0)
    net = ResidualMlp(32, schedule.cos_phi(32, 5.0), 5.0, width=24, depth=2).double()
    net.cos_phi, net.sin_phi = schedule.cos_phi(32, 5.0), (1 - schedule.cos_phi(32, 5.0) ** 2).sqrt()
    torch.nn.init.normal_(net.outlet[1].weight, std=0.1)
    x0 = 5 * torch.nn.functional.normalize(torch.randn(300, 32, dtype=torch.float64))
    noise, t = torch.randn(300, 32, dtype=torch.float64), torch.randint(0, 1000, (300,))

    def without_type(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return net(x, t)

    net.variant = without_type.variant = variant
    stable = denoising_loss(net, x0, t, noise, schedule, 5.0)
    plain = denoising_loss(without_type, x0, t, noise, schedule, 5.0)
    torch.testing.assert_close(stable, plain, rtol=1e-6, atol=1e-9)


def test_bucket_losses_are_repeatable_and_average_to_all(schedule: Schedule) -> None:
    x0 = 5 * torch.nn.functional.normalize(torch.randn(50, 32, generator=torch.Generator().manual_seed(0)))
    net = PrototypeDenoiser(x0, schedule.inverse_temperature(32, 5.0), 5.0)
    losses = bucket_losses(net, x0, schedule, 5.0)
    assert losses == bucket_losses(net, x0, schedule, 5.0)
    assert losses != bucket_losses(net, x0, schedule, 5.0, seed=1)
    spans = [high - low for low, high in zip(BUCKETS[:-1], BUCKETS[1:], strict=True)]
    *buckets, total = losses.values()
    assert total == pytest.approx(sum(b * s for b, s in zip(buckets, spans, strict=True)) / 1000)
    # a denoiser that knows its vectors by heart errs less on them than the guess without data
    ignorant = bucket_losses(lambda x, t: schedule.cos_phi(32, 5.0).float()[t, None] * x, x0, schedule, 5.0)
    assert losses["all"] < 0.5 * ignorant["all"]
