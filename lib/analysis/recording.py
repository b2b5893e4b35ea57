"""What any layer of a model says, without a change of its code: forward hooks.

with recorded(model, ["vis_fuse"]) as kept:
    model(...)
kept["vis_fuse"]      # a list, one output a call
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib.errors import FoundExpected


@contextmanager
def recorded(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what modules give out while the context is open -> {name: its outputs, one a call, detached, on the CPU}.

    layers: names as in `model.named_modules()`; an empty name is the model itself. Of a tuple the first tensor is kept.
    A compiled model runs as it is written meanwhile: compiled code does not see hooks that came after it. Raises
    FoundExpected for a name that the model does not have.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        children = ", ".join(name for name, _ in model.named_children())
        where, mend = type(model).__name__, "see model.named_modules()"
        raise FoundExpected(where, f"no module {unknown[0]!r}", f"one of {children} or inside them", mend)
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [modules[name].register_forward_hook(_keeping(kept[name])) for name in layers]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keeping(outputs: list[Tensor]):
    def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        outputs.append(first.detach().cpu())

    return hook
