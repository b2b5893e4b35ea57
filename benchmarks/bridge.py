"""The bridge over 64 images of 30 pairs against the literal walk of the public programs: 600 evaluations an image.

    python -m benchmarks.bridge --json bridge.json [--run runs/demo]

Network: the default residual MLP at D = 512, trained for a short while on made-up texts (objects and verbs as
directions). Both sides walk the same network from the same features; the baseline goes image by image, as both public
programs do, and takes one image where ours takes 64.

    entry 600           the default: depth 600, `--steps` evaluations of sphere_pc against 600 of the literal loop
    entry 600, bf16     the same in bfloat16 (`bridge.walk_precision`)
    entry 600, fewer    five sixths as many
    entry 100           the fork's `test` branch: 600 evaluations, 500 of which repeat a timestep; ours a quarter
    stick world         with --run: predictions of the run's detector and matching bridge, checked by their mAP

The public programs walk a U-Net that costs 25 times the MLP; what its 600 evaluations would take is told as a number,
since another network is not the same result.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Comparison, arguments, compare, report
from lib.bridge.bundle import Bridge
from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import modality_mean, normalise
from lib.bridge.text_bank import TextBank
from lib.bridge.training import train_bridge
from lib.bridge.unet1d import Unet1d
from lib.clip.text_space import TextSpace
from lib.settings import BridgeSettings

LITERAL = 600
PAIRS = 30
WORLD_MAP = 0.05  # mAP points that predictions of the stick world may differ by


def made_texts(dim: int, count: int = 4000, seed: int = 0) -> Tensor:
    """Raw text rows [count, D]: a common direction, one of 60 objects, one of 10 verbs, and something of their own."""
    generator = torch.Generator().manual_seed(seed)

    def directions(number: int) -> Tensor:
        return F.normalize(torch.randn(number, dim, generator=generator), dim=1)

    objects, verbs = (directions(number)[torch.randint(number, (count,), generator=generator)] for number in (60, 10))
    return 10 * (0.8 * directions(1) + 0.45 * objects + 0.4 * verbs + 0.2 * directions(count))


def made_features(texts: Tensor, count: int, seed: int = 1) -> Tensor:
    """Raw vision rows [count, D]: around another common direction, leaning towards a text."""
    generator = torch.Generator().manual_seed(seed)
    towards = F.normalize(texts - texts.mean(0), dim=1)[torch.randint(len(texts), (count,), generator=generator)]
    common, own = (F.normalize(torch.randn(n, texts.shape[1], generator=generator), dim=1) for n in (1, count))
    return 0.8 * common + 0.25 * towards + 0.45 * own


def made_bridge(folder: Path, device: str, dim: int, settings: BridgeSettings) -> Bridge:
    """A bridge of the default kind, trained on `made_texts`."""
    texts = made_texts(dim)
    space = TextSpace("benchmark", "gelu", "none", "{}")
    bank = TextBank(texts, [f"text {i}" for i in range(len(texts))], space, "made up")
    train_bridge(bank, settings, folder, device=device)
    features = made_features(texts, 2000)
    return Bridge.load(folder, device).with_vision_mean(modality_mean(features)).with_settings(settings)


@torch.no_grad()
def literal_walk(bridge: Bridge, features: Tensor, owner: Tensor, entry_step: int, evaluations: int) -> Tensor:
    """Unit outputs [P, D] of the public loop, image by image; owner [P] image of each pair."""
    grid = torch.linspace(-1, entry_step - 1, evaluations + 1).int().flip(0).tolist()
    abar = Schedule.cosine().abar.float().to(features.device)
    start, scale = bridge.geometry.vision(features), bridge.geometry.scale
    moved = torch.empty_like(start)
    for image in range(int(owner[-1]) + 1):
        x = scale * start[owner == image]
        for t, following in zip(grid[:-1], grid[1:], strict=True):
            x = scale * normalise(x)
            x0 = bridge.denoiser(x, torch.full((len(x),), t, device=x.device, dtype=torch.long))
            if following < 0:
                break
            noise = (x - abar[t].sqrt() * x0) / (1 - abar[t]).sqrt()
            x = abar[following].sqrt() * x0 + (1 - abar[following]).sqrt() * noise
        moved[owner == image] = normalise(x0)
    return moved


def close_to(least: float, found: dict[str, float]) -> Callable[[Tensor, Tensor], None]:
    """Raises unless the mean cosine of the rows that both walked is at least `least`; notes it in `found`."""

    def check(ours: Tensor, baseline: Tensor) -> None:
        cosine = (ours[: len(baseline)] * baseline).sum(dim=1).double()
        found.update({"cosine, mean": float(cosine.mean()), "cosine, worst row": float(cosine.min())})
        assert cosine.mean() >= least, f"mean cosine {float(cosine.mean()):.5f}, expected at least {least}"

    return check


def walks(
    bridge: Bridge, features: Tensor, images: int, repeats: int, evaluations: int = LITERAL, least: float = 0.999
) -> list[Comparison]:
    """The four comparisons on features [images * PAIRS, D]; evaluations: of the literal loop."""
    steps, owner = bridge.num_steps, torch.zeros(PAIRS, dtype=torch.long, device=features.device)
    own = bridge.entry_step
    cases = [(own, steps, ""), (own, steps, ", bf16"), (own, steps * 5 // 6, ""), (100, steps // 4, "")]
    rows = []
    for entry_step, ours, note in cases:
        walked, found = bridge.with_sampler(entry_step=entry_step, num_steps=ours), {}
        walked = replace(walked, precision="bfloat16" if note else "float32")
        rows.append(
            compare(
                f"entry {entry_step}, {ours} evaluations{note}, {images} images",
                lambda walked=walked: walked(features),
                lambda entry_step=entry_step: literal_walk(bridge, features[:PAIRS], owner, entry_step, evaluations),
                close_to(least, found),
                repeats,
                numbers=found,
                baseline_share=1 / images,
            )
        )
    return rows


@torch.no_grad()
def unet_seconds(dim: int, device: str, evaluations: int = 3) -> float:
    """Seconds that 600 evaluations of the public U-Net would take for one image, from a few of them."""
    network = Unet1d(dim).to(device).eval()
    x, t = torch.randn(PAIRS, dim, device=device), torch.full((PAIRS,), 99, device=device)
    network(x, t)
    started = time.perf_counter()
    for _ in range(evaluations):
        float(network(x, t).sum())
    return (time.perf_counter() - started) / evaluations * LITERAL


def world_walk(run_folder: str, repeats: int, images: int = 4) -> Comparison:
    """The bridge of a finished run on all pairs of its test images; the baseline takes the first `images` of them.

    mAP of the blended predictions is compared with that of the literal walk of all images, made once and untimed in one
    batch (the batch changes the time, not the result).
    """
    from lib.config import load_config
    from lib.runs import Run
    from lib.stages.bridging import class_cosines_of, fit_on_seen, load_bridge, workplace
    from lib.stages.detector import classes_of, evaluate, hoi_predictions
    from lib.stages.inputs import dataset

    cfg = load_config(str(Path(run_folder) / "config.yaml"))
    run = Run(run_folder, cfg)
    place = workplace(cfg, run)
    bridge, _ = load_bridge(cfg, run, "adapted", place)
    literal = bridge.with_sampler(solver="reference", num_steps=min(LITERAL, bridge.entry_step))
    features = torch.from_numpy(place.test.features)
    owner = torch.tensor(place.test.frame["image"].to_numpy())
    part = int((owner < images).sum())

    def map_of(walked: Bridge) -> float:
        blend = fit_on_seen(place, class_cosines_of(place, place.fit, walked))
        logits = blend(torch.from_numpy(place.test.logits), class_cosines_of(place, place.test, walked))
        classes = classes_of(cfg, dataset(cfg, run, "test"))
        return evaluate(cfg, run, hoi_predictions(place.test.frame, logits, classes, cfg.ezhoi.prior_power))["mAP_full"]

    found = {"mAP, ours": map_of(bridge), "mAP, literal": map_of(literal)}
    assert abs(found["mAP, ours"] - found["mAP, literal"]) <= WORLD_MAP, found
    return compare(
        f"stick world, entry {bridge.entry_step}, {bridge.num_steps} evaluations, {len(features)} pairs",
        lambda: bridge(features),
        lambda: literal_walk(bridge, features[:part], owner[:part], bridge.entry_step, LITERAL),
        close_to(0.99, found),
        repeats,
        numbers=found,
        baseline_share=part / len(features),
    )


def main() -> None:
    options = arguments(
        __doc__, repeats=2, images=64, dim=512, width=1024, depth=3, training=150, steps=12, run="", least=0.999
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = BridgeSettings(
        width=options.width, depth=options.depth, steps=options.training, batch=256, num_steps=options.steps
    )
    with tempfile.TemporaryDirectory(prefix="bridge-") as name:
        bridge = made_bridge(Path(name), device, options.dim, settings)
    features = made_features(made_texts(options.dim), options.images * PAIRS, seed=2).to(device)
    rows = walks(bridge, features, options.images, options.repeats, least=options.least)
    unet = unet_seconds(options.dim, device) * options.images
    rows[0].numbers["600 evaluations of the public U-Net / ours"] = unet / min(rows[0].ours)
    if options.run:
        rows.append(world_walk(options.run, options.repeats))
    report(f"Bridge on {device} against the literal walk, image by image", rows, options.json)


if __name__ == "__main__":
    main()
