"""Settings of the bridge; plain types only, so that OmegaConf can nest them in the configuration tree."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class BridgeSettings:
    """How the denoiser is trained and how the bridge is walked (spec diffusion-bridge.md §3.3, §8.2, §11)."""

    # geometry
    center: str = "own"  # mean taken off vision features: own (their own) | text (as the fork does) | none
    scale: float = 5.0  # radius c of the sphere, > 0; 5·sqrt(D/512) keeps the noise schedule of D = 512

    # denoiser
    denoiser: str = "mlp"  # mlp (preconditioned residual MLP) | unet1d (the public network, 25x dearer)
    width: int = 1024  # hidden width of the mlp, >= 2; twice the embedding dimension is a good start
    depth: int = 3  # residual blocks of the mlp, >= 1

    # training
    steps: int = 20_000  # optimiser steps, >= 1
    batch: int = 512  # rows a step, >= 1
    lr: float = 1e-3  # peak learning rate of Adam (.9, .99); the public U-Net recipe: 8e-5
    lr_decay: str = "cosine"  # cosine (to zero at `steps`) | constant (the public recipe)
    ema: float = 0.995  # decay of the averaged weights, 0 (no averaging) to below 1; updated every 10 steps
    held_out: float = 0.02  # share of distinct texts kept for the validation loss, 0 (none) to below 1
    log_every: int = 100  # steps between two lines of the loss history
    validate_every: int = 1000  # steps between two validation losses and checkpoints

    # walking the bridge: entry depth and number of evaluations are two different things (§4.2)
    entry_step: int = 600  # M: the feature enters as the state of timestep M-1; 1 to 1000; 50-100 changes least
    num_steps: int = 6  # S: network evaluations, 1 to entry_step; the public program's "600" is M, its S is 5
    solver: str = "sphere_2m"  # sphere_2m (second order, tau grid) | reference (public loop, uniform grid)
    last_step: int = 20  # last timestep sphere_2m evaluates: 20 for 5-8 evaluations, 5 from 10 up, 0 for parity

    # use in a detector
    allow_text_space_mismatch: bool = False  # true runs a bridge of another text space on purpose ("wrong order")
