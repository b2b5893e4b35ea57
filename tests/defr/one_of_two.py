"""One of two processes of `test_two_processes_make_the_step_of_one`: python one_of_two.py <folder> <rank>."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from lib.clip.load import load_clip
from lib.config import load_config
from lib.defr.model import build_defr
from lib.defr.pictures import Frame, RecognitionImages
from lib.defr.predict import predict_logits
from lib.defr.train import train_defr


def main(folder: Path, rank: int) -> None:
    """Train on the folder's pictures, score five of them, leave what came out in <rank>.pt."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    settings = load_config(folder / "settings.yaml").defr
    labels, frame = np.load(folder / "labels.npy"), Frame(settings.image_size, (0.5,) * 3, (0.25,) * 3)
    paths = [folder.parent / line for line in (folder / "paths.txt").read_text().splitlines()]
    images = RecognitionImages(paths, labels, frame, augment=settings, seed=5)
    clip = load_clip("random:configs/clip/tiny-clip.json", seed=1)
    model = build_defr(settings, labels.shape[1], clip=clip, seed=rank)  # other rows: those of the first process count
    result = train_defr(model, images, settings, folder, seed=1, device="cpu")
    logits = predict_logits(model, RecognitionImages(paths[:5], labels[:5], frame), batch_size=2)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.save({"result": result, "weights": weights, "logits": torch.from_numpy(logits)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
