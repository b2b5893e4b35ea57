"""Denoisers: shape of the public U-Net, the preconditioned MLP, and the closed form."""

from __future__ import annotations

import math

import pytest
import torch

from lib.bridge.architectures import architecture_of, build_denoiser
from lib.bridge.denoisers import PrototypeDenoiser, ResidualMlp
from lib.bridge.diffusion import Schedule, variant_of
from lib.bridge.unet1d import Unet1d
from lib.settings import BridgeSettings


@pytest.mark.parametrize(("dim", "parameters"), [(512, 4_037_313), (768, 4_070_081), (1024, 4_102_849)])
def test_unet_has_the_public_parameters_and_keys(dim: int, parameters: int) -> None:
    with torch.device("meta"):
        net = Unet1d(dim)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert len(shapes) == 238
    for name, shape in {
        "init_conv.weight": (32, 1, 7),
        "time_mlp.1.weight": (128, dim),
        "downs.1.3.weight": (64, 32, 4),
        "downs.3.3.weight": (256, 128, 3),
        "downs.0.2.fn.fn.to_out.1.g": (1, 32, 1),
        "mid_attn.fn.norm.g": (1, 256, 1),
        "mid_attn.fn.fn.to_qkv.weight": (384, 256, 1),
        "ups.0.0.res_conv.weight": (256, 384, 1),
        "ups.2.3.1.weight": (32, 64, 3),
        "ups.3.3.weight": (32, 32, 3),
        "final_res_block.block1.proj.weight": (32, 64, 3),
        "final_conv.weight": (1, 32, 1),
    }.items():
        assert shapes[name] == shape, name
    assert "downs.0.0.res_conv.weight" not in shapes


def test_unet_is_row_wise_and_checks_its_dimension() -> None:
    torch.manual_seed(0)
    net = Unet1d(32, base=8, mults=(1, 2)).eval()
    x, t = torch.randn(3, 32), torch.tensor([0, 500, 999])
    single = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t), single, atol=1e-5, rtol=1e-5)
    assert net(x[:0], t[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match=r"expected \[B, 32\]"):
        net(torch.randn(3, 64), t)
    with pytest.raises(ValueError, match="multiple of 8"):
        Unet1d(100)


def test_mlp_starts_as_the_best_guess_without_data(schedule: Schedule) -> None:
    net = ResidualMlp(16, schedule.cos_phi(16, 5.0), 5.0, width=32, depth=2)
    x, t = torch.randn(4, 16), torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(net(x, t), schedule.cos_phi(16, 5.0).float()[t, None] * x)


def test_mlp_residual_target_inverts_the_preconditioning(schedule: Schedule) -> None:
    net = ResidualMlp(16, schedule.cos_phi(16, 5.0), 5.0, width=32, depth=1)
    x, x0, t = torch.randn(4, 16), torch.randn(4, 16), torch.tensor([5, 100, 500, 999])
    net.residual = lambda x, t: net.residual_target(x, x0, t)
    torch.testing.assert_close(net(x, t), x0, atol=1e-4, rtol=1e-4)


def test_prototypes_by_hand() -> None:
    prototypes = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    net = PrototypeDenoiser(prototypes, torch.tensor([math.log(3), 1e6]), scale=5.0)
    x = torch.tensor([[7.0, 0.0]])  # cosines 1 and 0 -> weights 3/4 and 1/4 at t = 0, all on the first at t = 1
    torch.testing.assert_close(net(x, torch.tensor([0])), torch.tensor([[3.75, 1.25]]))
    torch.testing.assert_close(net(x, torch.tensor([1])), torch.tensor([[5.0, 0.0]]))


def test_prototypes_are_the_posterior_mean(schedule: Schedule) -> None:
    """Against Bayes' rule on an actual noisy state, not yet put on the sphere."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.nn.functional.normalize(torch.randn(6, 64, generator=generator, dtype=torch.float64))
    t, scale = 400, 5.0
    x = schedule.a[t] * scale * prototypes[2] + schedule.sigma[t] * torch.randn(
        64, generator=generator, dtype=torch.float64
    )
    x = x / x.norm() * schedule.state_norm(64, scale)[t]  # the typical length, which the closed form assumes
    distance = (x - schedule.a[t] * scale * prototypes).square().sum(1)
    posterior = torch.softmax(-distance / (2 * schedule.sigma[t] ** 2), dim=0) @ (scale * prototypes)
    net = PrototypeDenoiser(prototypes, schedule.inverse_temperature(64, scale), scale)
    torch.testing.assert_close(net(x[None], torch.tensor([t]))[0], posterior)


def test_record_tells_what_a_network_was_trained_for(schedule: Schedule) -> None:
    for denoiser in ("mlp", "unet1d"):
        for variant in ("sphere", "vp"):
            record = architecture_of(BridgeSettings(denoiser=denoiser, variant=variant, width=8, depth=1))
            assert variant_of(build_denoiser(record, 16, schedule, 5.0)) == record["variant"] == variant
    assert variant_of(build_denoiser({"kind": "mlp", "width": 8, "depth": 1}, 16, schedule, 5.0)) == "sphere"
    with pytest.raises(ValueError, match="bridge.variant: found 've', expected one of sphere, vp"):
        architecture_of(BridgeSettings(variant="ve"))
    with pytest.raises(ValueError, match="architecture: found kind 'rnn', expected mlp, unet1d or prototype"):
        build_denoiser({"kind": "rnn"}, 16, schedule, 5.0)
