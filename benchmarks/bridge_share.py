"""What the bridge adds to detection: its whole cost as a share of one detection forward.

    python -m benchmarks.bridge_share --json share.json

Here the two sides are not two ways to one result but two parts of one image's work, so nothing is compared but time:
`ours` is the bridge (default network and evaluations, 30 pairs an image), `baseline` the forward of DETR-R50 at
800 x 1066. The ratio is their quotient and the share its inverse. Time does not depend on the weights: they are random.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import DetrConfig, DetrForObjectDetection

from benchmarks.bridge import PAIRS, made_bridge, made_features, made_texts
from benchmarks.measure import Comparison, arguments, compare, report
from lib.bridge.bundle import Bridge
from lib.settings import BridgeSettings


def share(bridge: Bridge, detr: torch.nn.Module, images: int, size: tuple[int, int], repeats: int) -> Comparison:
    """Bridge of `images` images in one call against one forward of the detector (its share of theirs)."""
    device = bridge.geometry.text_mean.device
    features = made_features(made_texts(bridge.dim), images * PAIRS).to(device)
    picture = torch.randn(1, 3, *size, device=device)

    @torch.inference_mode()
    def detect() -> torch.Tensor:
        return detr(pixel_values=picture).logits

    row = compare(
        f"{images} image(s), {bridge.num_steps} evaluations",
        lambda: bridge(features),
        detect,
        lambda *_: None,
        repeats,
        baseline_share=1 / images,
    )
    row.numbers["bridge / detection forward"] = 1 / row.ratio
    return row


def main() -> None:
    options = arguments(__doc__, repeats=3, images=8, dim=512, width=1024, depth=3, height=800, image_width=1066)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = BridgeSettings(width=options.width, depth=options.depth, steps=2, batch=8, held_out=0)
    with tempfile.TemporaryDirectory(prefix="bridge-share-") as name:
        bridge = made_bridge(Path(name), device, options.dim, settings)
    detr = DetrForObjectDetection(DetrConfig(num_labels=80, backbone="resnet50")).eval().to(device)
    size = (options.height, options.image_width)
    rows = [share(bridge, detr, images, size, options.repeats) for images in (1, options.images)]
    report(f"Bridge as a share of one DETR-R50 forward on {device}", rows, options.json)


if __name__ == "__main__":
    main()
