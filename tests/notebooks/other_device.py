"""Runs the notebooks with every tensor of the run's device apart from the CPU's, on a machine that has only a CPU.

    python tests/notebooks/other_device.py RUN [overrides ...]

`Elsewhere` is a tensor that says it is on the device `meta` and keeps its numbers on the CPU beside it. An operation on
tensors of both devices is refused as CUDA would refuse it, reading one as numpy without `.cpu()` too; the numbers come
out as on the CPU. So this finds forgotten `.to(device)` and `.cpu()`, and nothing else of what can go wrong on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import torch
import torch._dynamo  # before torch is changed below
from IPython.core.interactiveshell import InteractiveShell
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
OTHER, CPU = torch.device("meta"), torch.device("cpu")
MOVES = ("aten::_to_copy", "aten::to.", "aten::copy_")
INDEXES = ("aten::index", "aten::_index_put")  # take indices of either device, as CUDA does from the CPU


class Elsewhere(torch.Tensor):
    """A tensor on the other device; `numbers` holds what is in it."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> Elsewhere:
        layout = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset(), "dtype": numbers.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, numbers.size(), device=OTHER, **layout)

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def __getitem__(self, index: Any) -> torch.Tensor:
        return super().__getitem__(as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        value = value if isinstance(value, torch.Tensor) else Elsewhere(torch.tensor(value, dtype=self.dtype))
        super().__setitem__(as_tensors(index), value)

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.numbers.__reduce_ex__(protocol)  # checkpoints come back on the CPU

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None) -> Any:
        return carried_out(operation, args, kwargs or {})


def as_tensors(index: Any) -> Any:
    """An index whose lists are tensors: torch would make them on `meta`, without numbers."""
    if isinstance(index, tuple):
        return tuple(as_tensors(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


class TwoDevices(TorchDispatchMode):
    """Sees every operation, also those that make tensors out of nothing."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None) -> Any:
        return carried_out(operation, args, kwargs or {})


def carried_out(operation: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on the CPU's numbers; RuntimeError if its tensors are on both devices."""
    name, leaves = operation.name(), tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    if any(tensor.device == OTHER for tensor in tensors if not isinstance(tensor, Elsewhere)):
        raise NotImplementedError(f"{name}: a tensor on {OTHER} that has no numbers")
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]
    first_there = isinstance(args[0], Elsewhere) if args else False
    if there and here and not name.startswith(MOVES) and not (name.startswith(INDEXES) and first_there):
        shapes = [(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{name}: expected all tensors on one device, found {shapes}")
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    result_there = asked == OTHER if asked else first_there if name.startswith("aten::copy_") else bool(there)

    def on_cpu(leaf: Any) -> Any:
        return leaf.numbers if isinstance(leaf, Elsewhere) else CPU if isinstance(leaf, torch.device) else leaf

    changed = {id(tensor.numbers): tensor for tensor in there}  # in place

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in changed and result_there:
            return changed[id(leaf)]
        return Elsewhere(leaf) if result_there else leaf

    return tree_map(placed, operation(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs)))


class AnyGenerator(torch.Generator):
    """A generator for whatever device; that of the CPU draws."""

    def __new__(cls, device: Any = "cpu") -> AnyGenerator:
        return super().__new__(cls)


class AnyAutocast(torch.autocast):
    """The other device has no autocast of its own."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == OTHER.type else device_type, *args, **kwargs)


class PlainAdamW(torch.optim.AdamW):
    """The fused step knows real devices only."""

    def __init__(self, *args: Any, fused: bool | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def then_moved(make: Callable) -> Callable:
    """torch.tensor and torch.as_tensor leave out the numbers on `meta`; made here and moved."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        tensor = make(data, *args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


def code_of(notebook: Path, given: str) -> list[str]:
    """Its code cells, the one tagged `parameters` followed by `given`."""
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    return [
        f"{cell.source}\n{given}" if "parameters" in cell.metadata.get("tags", []) else cell.source for cell in cells
    ]


def main(run: str, *overrides: str) -> None:
    torch.tensor, torch.as_tensor = then_moved(torch.tensor), then_moved(torch.as_tensor)
    torch.Generator, torch.autocast, torch.optim.AdamW = AnyGenerator, AnyAutocast, PlainAdamW
    torch.inference_mode = torch.no_grad  # tensors of a subclass cannot be viewed in inference mode
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    given = f"config, run, overrides = 'tests/micro.yaml', {run!r}, {['device=meta', *overrides]!r}"
    shell = InteractiveShell.instance()
    with torch.autograd.set_multithreading_enabled(False), TwoDevices():
        for notebook in sorted(NOTEBOOKS.glob("0*.ipynb")):
            for source in code_of(notebook, given):
                shell.run_cell(source).raise_error()
            print(f"{notebook.stem}: went through", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
