"""How time and memory grow with pairs, classes, images and detections: three sizes each and the exponent that fits.

    python -m benchmarks.growth --json growth.json

An exponent of 1 is linear, 2 quadratic; fixed costs pull it below 1. Quadratic by the method: attention among the pairs
of one image. Everything else has to stay near 1, and is marked where it does not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.bridge import made_bridge, made_features, made_texts
from benchmarks.ezhoi_case import EzHoiCase, class_rows, made_proposals, make_case
from benchmarks.hico_det_evaluation import made_predictions, made_truth
from benchmarks.measure import arguments, machine, measured_on, timed
from lib.clip.text import encode_text
from lib.data.hico_classes import OFFICIAL
from lib.evaluation.hico_det import hico_det_ap
from lib.ezhoi.batches import collate
from lib.ezhoi.pairs import Instances, enumerate_pairs
from lib.ezhoi.train import pair_supervision
from lib.features.store import FeatureStore
from lib.features.writer import FeatureWriter
from lib.runs import write_json
from lib.settings import BridgeSettings

STEEP = 1.35  # an exponent above this is no longer linear


@dataclass(frozen=True)
class Growth:
    """Median seconds and peak MB (resident, or GPU memory on CUDA) at three sizes. quadratic: by the method."""

    name: str
    of: str
    sizes: list[int]
    seconds: list[float]
    peak_mb: list[float]
    quadratic: bool = False

    @property
    def exponent(self) -> float:
        """Slope of log seconds over log size."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])

    @property
    def memory_exponent(self) -> float:
        """The same of the peak; nan where a run added less than 10 MB, which the allocator decides."""
        if min(self.peak_mb) < 10:
            return float("nan")
        return float(np.polyfit(np.log(self.sizes), np.log(self.peak_mb), 1)[0])

    @property
    def steep(self) -> bool:
        """Whether it grows faster than the method asks for."""
        return max(self.exponent, np.nan_to_num(self.memory_exponent)) > STEEP + self.quadratic


def grown(
    name: str, of: str, counts: Sequence[int], work: Callable[[int], Callable[[], object]], quadratic: bool = False
) -> Growth:
    """Time `work(size)()` at every size."""
    seconds, peaks = [], []
    for size in counts:
        taken, peak = timed(work(size))
        seconds.append(taken)
        peaks.append(peak["peak_gpu_mb"] or peak["peak_mb"])
    return Growth(name, of, list(counts), seconds, peaks, quadratic)


def pair_part(case: EzHoiCase, pairs: Sequence[int], images: Sequence[int]) -> list[Growth]:
    """RoIAlign, fusion, pair adapter and logits: over the pairs of one image, and over images of 30 pairs."""
    grid, dim, text = case.clip.spec.grid, case.clip.spec.embed_dim, case.model.text.class_text()

    def scored(humans: int, others: int, count: int) -> Callable[[], object]:
        rng = np.random.default_rng(0)
        found = [made_proposals(rng, humans, others) for _ in range(count)]
        items = [(each.boxes * case.model.size, each.scores, each.labels, humans) for each in found]
        instances = Instances.collate(items).to(case.device)
        maps = torch.randn(count, dim, grid, grid, device=case.device)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            return case.model.logits(case.model.pair_features(maps, instances, enumerate_pairs(instances)), text)

        return run

    def of_pairs(count: int) -> Callable[[], object]:
        return scored(10, max(round(count / 10) - 9, 1), 1)  # ten people: P = 10 (9 + others)

    case.model.eval()
    return [
        grown("pair part of EZ-HOI", "pairs of one image", pairs, of_pairs, quadratic=True),
        grown("pair part of EZ-HOI", "images of 30 pairs", images, lambda count: scored(3, 8, count)),
    ]


def class_part(case: EzHoiCase, classes: Sequence[int], rows: Sequence[int]) -> list[Growth]:
    """Labels and prior of a batch over scored classes, and the text tower over class sentences."""
    batch = collate([case.samples[i] for i in range(len(case.samples))]).to(case.device)
    pairs, sentences = enumerate_pairs(batch.instances), OFFICIAL.class_sentences()

    def supervised(count: int) -> Callable[[], object]:
        valid = torch.rand(len(OFFICIAL.objects), count, device=case.device) < 0.1
        return lambda: pair_supervision(batch, pairs, valid)

    def encoded(count: int) -> Callable[[], object]:
        chosen = [sentences[i] for i in class_rows(OFFICIAL, count)]
        return lambda: encode_text(case.clip, chosen)

    return [
        grown("labels and prior", "classes", classes, supervised),
        grown("class texts", "sentences", rows, encoded),
    ]


def sizes(first: int, factor: int = 4) -> list[int]:
    """Three of them."""
    return [first, first * factor, first * factor**2]


def bridge_part(folder: Path, device: str, dim: int, width: int, pairs: Sequence[int]) -> Growth:
    """The bridge over pairs."""
    bridge = made_bridge(folder, device, dim, BridgeSettings(width=width, steps=2, batch=8, held_out=0))
    features = made_features(made_texts(dim), max(pairs)).to(device)
    return grown("bridge, 12 evaluations", "pairs", pairs, lambda n: lambda: bridge(features[:n]))


def evaluation_part(size: int) -> list[Growth]:
    """HICO-DET evaluation over detections, over images and over classes."""

    def over(images: int, detections: int, classes: int = 600) -> Callable[[], object]:
        rng = np.random.default_rng(0)
        truth = made_truth(images, rng)
        predictions = made_predictions(truth, detections, rng)
        return lambda: hico_det_ap(predictions, truth, classes)

    return [
        grown("HICO-DET evaluation", "detections", sizes(size), lambda n: over(2000, n)),
        grown("HICO-DET evaluation", "images", sizes(size // 16), lambda n: over(n, 4 * size)),
        grown("HICO-DET evaluation", "classes", sizes(600), lambda c: over(2000, 4 * size, c)),
    ]


def store_part(folder: Path, counts: Sequence[int]) -> Growth:
    """Opening a store and looking a thousand names up, over images (tiny records: the index is what grows)."""

    def work(images: int) -> Callable[[], object]:
        names, place = [f"HICO_train2015_{i:08d}.jpg" for i in range(images)], folder / str(images)
        writer = FeatureWriter(place, {"L": 1, "D": 4}, names, shard_size=1024)
        for k in range(writer.num_shards):
            count = len(writer.shard_ids(k))
            writer.write_shard(k, np.ones((count, 1, 4), np.float16), np.ones((count, 4), np.float16))
        writer.finish()
        return lambda: FeatureStore.open(place).ids(names[:: max(images // 1000, 1)])

    return grown("opening a feature store", "images", counts, work)


def show(rows: Sequence[Growth], json_path: Path | None) -> None:
    """Print a line a growth; write JSON if asked."""
    print(f"\nGrowth\n{machine()}; median of 3 at each of three sizes\n")
    print(f"{'':24} {'of':20} {'sizes':22} {'seconds':26} {'time':>6} {'memory':>7}")
    for row in rows:
        seconds = " ".join(f"{value:.3g}" for value in row.seconds)
        counts = " ".join(f"{size:,}" for size in row.sizes)
        note = "  grows too fast" if row.steep else "  quadratic by the method" if row.quadratic else ""
        times = f"{row.exponent:6.2f} {row.memory_exponent:7.2f}"
        print(f"{row.name:24} {row.of:20} {counts:22} {seconds:26} {times}{note}")
    print("\ntime, memory: exponent of the size (1 is linear); memory nan where a run adds less than 10 MB\n")
    if json_path:
        found = [
            asdict(row) | {"exponent": row.exponent, "memory_exponent": row.memory_exponent, "steep": row.steep}
            for row in rows
        ]
        write_json(json_path, {"title": "Growth", "environment": measured_on(), "growth": found})


def main() -> None:
    options = arguments(__doc__, clip="random:ViT-B-16-quickgelu", dim=512, width=1024, scale=16, rows=150)
    device, scale = "cuda" if torch.cuda.is_available() else "cpu", options.scale
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        case = make_case(folder, options.clip, device, max(scale // 2, 1), 117)
        rows = pair_part(case, sizes(10 * scale, 2), sizes(scale, 2))
        rows += class_part(case, sizes(600), sizes(options.rows, 2))
        rows.append(bridge_part(folder / "bridge", device, options.dim, options.width, sizes(30 * scale)))
        rows += evaluation_part(3000 * scale)
        rows.append(store_part(folder / "stores", sizes(600 * scale)))
    show(rows, options.json)


if __name__ == "__main__":
    main()
