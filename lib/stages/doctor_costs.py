"""How much disk and memory a configuration will take, by formulae; only plain numbers go in and out.

    features     images x (L + 1) x D x 2 bytes (4 for float32)                    exact, lib/features/writer.py
    training     batch x layers x tokens x (a W + b) x element                     saved for the backward pass

The constants were measured on this code: activations by counting what autograd saves for random CLIPs of width 128
and 768 (they fit `a W + b` exactly), inference by the peak of resident memory, tables by their size a row in the demo.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lib.clip.load import ClipSpec
from lib.settings import Config

PAIRS_AN_IMAGE = 30  # typical under EZ-HOI's proposal rule (spec ez-hoi.md §11); at most 435
BYTES_A_BOX = 75  # a row of detections.parquet
BYTES_A_PAIR = 26  # a row of pairs.parquet
BYTES_A_PREDICTION = 13  # a row of a predictions parquet
PREDICTION_TABLES = 25  # baselines and bridge variants of notebooks 02 and 04
INFERENCE = 31  # numbers a token and channel at the peak of a frozen tower's forward
ADAPTED = {"fp32": (15.7, 1840), "bf16": (8.9, 1034)}  # a, b of EZ-HOI's training, in units of 4 bytes
FULL_TOWER = 22  # numbers a token and channel that training of a whole tower keeps (DEFR)
SENTENCE = 16  # tokens of a class sentence with its prompts
DETR_IMAGE = 310e6  # bytes of one image of 800 x 1333 in DETR R50
DETR_R50 = 166e6  # bytes of its weights
CONTEXT = 0.6e9  # bytes that torch, and CUDA on a GPU, take before any tensor


@dataclass(frozen=True)
class Sizes:
    """What the formulae need to know. queries: boxes a detector gives an image. texts: sentences of a text bank."""

    train: int
    test: int
    hois: int
    objects: int
    classes: int
    queries: int
    fit: int
    texts: int


def parameters(spec: ClipSpec) -> int:
    """Weights of both towers of a CLIP: 12 W^2 a block, patch and token tables (vocabulary 49,408)."""
    vision = spec.vision_layers * 12 * spec.vision_width**2 + 3 * spec.patch_size**2 * spec.vision_width
    text = spec.text_layers * 12 * spec.text_width**2 + 49_408 * spec.text_width
    return vision + text + spec.tokens * spec.vision_width


def trainable(cfg: Config, spec: ClipSpec) -> int:
    """Parameters that EZ-HOI trains: instance adapters, visual prompts, fusion, pair adapter (to 3 %)."""
    depth = min(cfg.ezhoi.prompt_depth, spec.vision_layers)
    adapters = spec.vision_layers * (128 * spec.vision_width + 43_000)
    return adapters + depth * spec.vision_width * spec.text_width + 3 * spec.embed_dim**2 + 800_000


def disk(cfg: Config, spec: ClipSpec, sizes: Sizes) -> dict[str, float]:
    """Bytes of every artefact folder that notebooks 01 to 04 write."""
    element = 4 if cfg.features.dtype == "float32" else 2
    record = 0 if cfg.features.source else (spec.tokens + 1) * spec.embed_dim * element
    pair = spec.embed_dim * 4 + sizes.classes * 5 + BYTES_A_PAIR
    predictions = sizes.hois / sizes.objects * BYTES_A_PREDICTION  # a pair has the classes of its object
    return {
        "features/train": sizes.train * record,
        "features/test": sizes.test * record,
        "detections/train": sizes.train * sizes.queries * BYTES_A_BOX,
        "detections/test": sizes.test * sizes.queries * BYTES_A_BOX,
        "ezhoi": 4 * 4 * trainable(cfg, spec),  # weights; weights and two moments in the checkpoint
        "pairs/fit": sizes.fit * PAIRS_AN_IMAGE * pair,
        "pairs/test": sizes.test * PAIRS_AN_IMAGE * pair,
        "predictions": PREDICTION_TABLES * sizes.test * PAIRS_AN_IMAGE * predictions,
        "text_bank": 2 * sizes.texts * (4 * spec.embed_dim + 60),
    }


def extraction_memory(cfg: Config, spec: ClipSpec) -> float:
    """Bytes of notebook 01: frozen CLIP with a batch of images, or DETR with its batch."""
    tokens = (spec.tokens + 1) * spec.vision_width * 4 * INFERENCE
    detr = DETR_R50 + cfg.detector.batch_size * DETR_IMAGE if cfg.detector.source else 0
    return CONTEXT + 4 * parameters(spec) + max(cfg.clip.batch_size * tokens, detr)


def processes_of(cfg: Config) -> int:
    """Processes of a launch; 0 in the settings means one a GPU."""
    return cfg.launch.nodes * (cfg.launch.processes or torch.cuda.device_count() or 1)


def training_memory(cfg: Config, spec: ClipSpec, rows: int, processes: int = 1) -> float:
    """Bytes of notebook 02: CLIP, four copies of what is trained, activations (live text included), a tenth on top.

    rows: class sentences behind the logits. processes: that share the images of a step. DETR comes on top where it
    detects live.
    """
    a, b = ADAPTED.get(cfg.ezhoi.precision, ADAPTED["fp32"])
    image = spec.vision_layers * (spec.tokens + 1 + cfg.ezhoi.prompt_length) * (a * spec.vision_width + b) * 4
    text = spec.text_layers * rows * SENTENCE * a * spec.text_width * 4 if cfg.ezhoi.text_prompts == "prefix" else 0
    batch = -(-cfg.ezhoi.batch_size // processes)
    live = DETR_R50 + batch * DETR_IMAGE if cfg.ezhoi.detections == "live" and cfg.detector.source else 0
    fixed = CONTEXT + 4 * parameters(spec) + 16 * trainable(cfg, spec)
    return fixed + 1.1 * (batch * image + text) + live


def recognition_memory(cfg: Config, spec: ClipSpec, processes: int = 1) -> float:
    """Bytes of notebook 06, which trains a whole tower at its own resolution."""
    tokens = (cfg.defr.image_size // spec.patch_size) ** 2 + 1
    element = 2 if cfg.defr.precision == "bf16" else 4
    image = spec.vision_layers * tokens * spec.vision_width * FULL_TOWER * element
    return CONTEXT + 16 * parameters(spec) + 1.1 * -(-cfg.defr.batch_size // processes) * image


def gigabytes(count: float) -> str:
    """`7.6 GB`, `120 MB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 0.95e9 else f"{max(count / 1e6, 1):.0f} MB"
