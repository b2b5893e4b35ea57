"""The public variants of the bridge as they were executed (spec diffusion-bridge.md §4.2; ez-hoi.md §9.2).

    bridge = apply(bridge, "fork_test")             # walked and centred as that program does in evaluation
    text = text_rows(bridge, "fork_test", rows)     # and what it compares the bridged features with

Depth and number of evaluations are apart here; the programs' own names for them ("inference_step",
"sampling_timesteps", "diffusion_inference_steps") confuse the two. The tables are the programs' float32 ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lib.bridge.bundle import Bridge

MODES = ("evaluate", "train")


@dataclass(frozen=True)
class Walk:
    """entry_step: depth M. num_steps: network evaluations as executed, repeated timesteps included."""

    entry_step: int
    num_steps: int


@dataclass(frozen=True)
class Preset:
    """One public variant.

    source: what runs it. evaluate, train: its walks; train is None where the bridge is left out of training.
    center: mean taken off vision features (`Geometry.center`). text: geometric (G with the text mean) | raw (as the
        classifier has it, neither normalised nor centred). gradient: what reaches the vision side in training.
    cheap: settings of equal result at a fraction of the calls.
    """

    source: str
    evaluate: Walk
    train: Walk | None
    center: str
    text: str
    gradient: str
    cheap: str


PRESETS = {
    "cvpr": Preset(
        source="Diffusion Bridge (CVPR 2025), scripts for COCO; Flickr30k enters at 400",
        evaluate=Walk(600, 5),
        train=None,
        center="own",
        text="geometric",
        gradient="none",
        cheap="is cheap: 5 evaluations; num_steps 12, solver sphere_pc is nearer to the limit of its own walk",
    ),
    "fork_main": Preset(
        source="EZ-HOI fork, branch main: detector trained without, evaluated with the bridge",
        evaluate=Walk(600, 600),
        train=None,
        center="text",
        text="raw",
        gradient="none",
        cheap="num_steps 12, solver sphere_pc; and G on the text, which this variant forgets",
    ),
    "fork_test": Preset(
        source="EZ-HOI fork, branch test: trained at depth 100 with 600 evaluations, 500 of them repeats, at 600 after",
        evaluate=Walk(600, 600),
        train=Walk(100, 600),
        center="text",
        text="geometric",
        gradient="none",
        cheap="num_steps 12, solver sphere_pc, and one depth for training and evaluation",
    ),
}


def preset_of(name: str) -> Preset:
    """Raises ValueError, naming the choices, for an unknown preset."""
    if name not in PRESETS:
        raise ValueError(f"bridge preset: found {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def apply(bridge: Bridge, name: str, mode: str = "evaluate") -> Bridge:
    """The same denoiser and means, centred and walked as a public program does, with its float32 rounding.

    mode: evaluate | train. Raises ValueError for an unknown name or mode, and for training with a preset that leaves
    the bridge out of it. `cvpr` needs the bridge to hold the vision mean before it is called.
    """
    preset = preset_of(name)
    if mode not in MODES:
        raise ValueError(f"bridge preset, mode: found {mode!r}, expected one of {', '.join(MODES)}")
    walk = preset.train if mode == "train" else preset.evaluate
    if walk is None:
        raise ValueError(f"bridge preset {name}: the bridge takes no part in its training; mend: mode='evaluate'")
    geometry = replace(bridge.geometry, center=preset.center)
    return replace(bridge, geometry=geometry, entry_step=walk.entry_step, num_steps=walk.num_steps, solver="public")


def text_rows(bridge: Bridge, name: str, rows: Tensor) -> Tensor:
    """What the program multiplies bridged features with, for the classifier's text rows [K, D] -> [K, D]."""
    return bridge.geometry.text(rows) if preset_of(name).text == "geometric" else rows
