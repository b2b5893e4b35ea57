"""torch.compile as a switch (`compile` in the settings): fused kernels, and CUDA graphs, behind the same modules.

What it changes is speed and the last bits of results, so it is no part of any fingerprint. Compiled are the image
towers (extraction, EZ-HOI, DEFR) and the bridge's denoiser: where the arithmetic is, and where shapes repeat. Dropout
draws from torch's own stream as without it, so that a compiled training is the plain one.
"""

from __future__ import annotations

import os
import shutil

from torch import nn

from lib.errors import FoundExpected

MODES = ("default", "reduce-overhead", "max-autotune")


def compile_module(module: nn.Module, mode: str) -> None:
    """Compile the forward pass of a module in place, at its first call; weights and their names stay as they are.

    mode: empty (nothing is done) | default | reduce-overhead (CUDA graphs on a GPU: every call but the first few is one
        launch; a result must be used before the next call, or copied) | max-autotune (tries kernels out, minutes).
    Raises FoundExpected for another mode, and where there is no C++ compiler to compile with.
    """
    if not mode:
        return
    if mode not in MODES:
        raise FoundExpected("compile", repr(mode), f"one of {', '.join(MODES)}, or nothing", "compile=default")
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        mend = "install g++, name a compiler in the environment variable CXX, or leave compile empty"
        raise FoundExpected("compile", f"no program {compiler}", "a C++ compiler", mend)
    from torch._inductor import config  # seconds to import, for those who compile

    config.fallback_random = True
    module.compile(mode=mode)
