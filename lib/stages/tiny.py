"""Are the tiny CLIP and DETR good enough to stand in for the real ones? (notebook 00)"""

from __future__ import annotations

from pathlib import Path

from lib.runs import Run, write_json
from lib.settings import Config
from lib.stages import inputs
from lib.stages.tiny_quality import clip_quality, detr_quality

IMAGES = 200  # test images that are measured


def model_quality(cfg: Config, run: Run) -> dict[str, float]:
    """Zero-shot accuracy on true crops, modality gap, detection recall on the test images; computed once."""
    parents = [run.existing("world"), run.existing("models")]

    def make(folder: Path) -> dict[str, float]:
        clip = clip_quality(inputs.clip_model(cfg, run), parents[0].path, limit=IMAGES)
        detr = detr_quality(inputs.detector(cfg, run), parents[0].path, limit=IMAGES)
        quality = {f"clip_{name}": value for name, value in clip.items()}
        quality |= {f"detr_{name}": value for name, value in detr.items()}
        write_json(folder / "quality.json", quality)
        return quality

    return run.artifact("quality", {"images": IMAGES}, make, parents).info
