"""The processes of one launch: who am I, what is my share, how do shares come together.

Everything also works without a process group: then there is one process, and the whole is its share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
BUCKET = 2**24  # gradient entries that travel together


def processes() -> tuple[int, int]:
    """(rank, number of processes) of the initialised process group; (0, 1) without one."""
    if not dist.is_initialized() or _leading is not None:
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def device_named(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA when there is one. In a launch `cuda` is the process's own GPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def is_first() -> bool:
    """True on the one process that writes what all of them share."""
    return processes()[0] == 0


_leading: Any = None  # group over which this process hands out work, while it works alone


def lead_or_serve(lead: Callable[..., Any], *args: Any) -> None:
    """In every process of a group: the first one runs lead(*args) alone, the others do what it hands out meanwhile.

    So a program of many steps runs in a group although only some of its steps can be shared.
    """
    global _leading
    post = dist.new_group(backend="gloo", timeout=timedelta(days=30))  # a step of the leader alone may take long
    if dist.get_rank() == 0:
        _leading = post
        lead(*args)
        _leading = None
        _posted(None, post)
        return
    while job := _posted(None, post):
        fn, given = job
        gathered(fn(*given))


def hand_out(fn: Callable[..., T], *args: Any) -> list[T]:
    """fn(*args) in every process of this one's group, called by the process that leads; results in order of rank."""
    global _leading
    if _leading is None:  # already inside shared work
        return [fn(*args)]
    post, _leading = _leading, None
    _posted((fn, args), post)
    found = gathered(fn(*args))
    _leading = post
    return found


def _posted(job: Any, post: Any) -> Any:
    """The first process's job in every process."""
    box = [job]
    dist.broadcast_object_list(box, src=0, group=post)
    return box[0]


def wait_for_all() -> None:
    """Return when every process has come here."""
    if processes()[1] > 1:
        dist.barrier()


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a list, array or tensor that is the same everywhere: every world-th item."""
    rank, world = processes()
    return items if world == 1 else items[rank::world]


def share_of_mean(losses: Tensor, count: int) -> Tensor:
    """What this process's losses [n] add to the mean over `count` of all processes; a scalar."""
    return losses.mean() if processes()[1] == 1 else losses.sum() / count


def gathered(part: T) -> list[T]:
    """Every process's object in order of rank, on every process."""
    world = processes()[1]
    if world == 1:
        return [part]
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, part)
    return parts


def gathered_in_turn(part: Sequence[T]) -> list[T]:
    """The list of which every process holds its `share`, on every process."""
    missing = object()
    turns = zip_longest(*gathered(list(part)), fillvalue=missing)
    return [item for turn in turns for item in turn if item is not missing]


def from_first(value: T) -> T:
    """The first process's object on every process."""
    box = [value]
    if processes()[1] > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def summed(value: Tensor) -> Tensor:
    """Sum over the processes of a tensor of one shape; without gradient."""
    value = value.detach().clone()
    if processes()[1] > 1:
        dist.all_reduce(value)
    return value


def weights_of_first(model: nn.Module) -> None:
    """The first process's parameters and kept buffers everywhere: random starts need not agree across machines."""
    if processes()[1] > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place.

    A process without a part in some parameter adds nothing; one that has no gradient anywhere keeps None, so that
    optimisers skip it as they would in a single process.
    """
    if processes()[1] == 1:
        return
    parameters = list(parameters)
    device = parameters[0].device
    owners = summed(torch.tensor([float(p.grad is not None) for p in parameters], device=device))
    used = [p for p, count in zip(parameters, owners.tolist(), strict=True) if count]
    for p in used:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    travelling = []
    for bucket in _buckets([p.grad for p in used]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        travelling.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, handle in travelling:
        handle.wait()
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, total in zip(bucket, parts, strict=True):
            gradient.copy_(total.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one type, up to BUCKET entries together."""
    found: list[list[Tensor]] = []
    for gradient in gradients:
        last = found[-1] if found else []
        size = sum(map(Tensor.numel, last)) + gradient.numel()
        if last and last[0].dtype == gradient.dtype and size <= BUCKET:
            last.append(gradient)
        else:
            found.append([gradient])
    return found
