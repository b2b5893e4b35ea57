"""Epochs of steps that survive a kill: the loop behind the trainings of EZ-HOI and DEFR, on any number of processes.

What a step does is the training's own business. The loop counts, records, checkpoints, and goes on where a killed one
stopped: on the CPU with the same numbers, bit for bit, wherever the kill fell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lib.engine.checkpoints import Checkpoints, checkpoint_folder, rng_state, set_rng_state
from lib.engine.distributed import gathered, is_first, processes, share, wait_for_all
from lib.engine.progress import Progress
from lib.runs import read_jsonl, write_text
from lib.settings import CheckpointSettings

Terms = dict[str, Tensor | float]  # named numbers of one step; `loss` is among them


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or not a number; the weights are those of the step before."""


class Stateful(Protocol):
    """What a checkpoint holds: a model, an optimiser, a schedule, averaged weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class Loop:
    """A training of `epochs` times `steps` steps in `folder`.

    parts: what a checkpoint holds, by name. result: which of them holds the weights that training is about. best:
    number whose best epoch is the result: `loss` (of an epoch; lowest), or one that `after_epoch` returns (highest);
    empty = the last epoch.
    """

    title: str
    folder: Path
    epochs: int
    steps: int
    parts: Mapping[str, Stateful]
    log_every: int = 10
    result: str = "model"
    best: str = ""
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)

    def run(
        self,
        batches: Callable[[int, int], Iterable[Any]],
        step: Callable[[int, int, Any], Terms],
        after_epoch: Callable[[int], dict[str, float]],
    ) -> dict[str, float]:
        """Run what is left. Returns the mean loss of the first and last epoch, and which epoch was best.

        batches: (epoch, first step) -> what the steps from there on get, one each. step: (epoch, number in it, batch)
        -> numbers, the same on all processes. after_epoch: called on all processes; its numbers go to the history.
        """
        kept, history = self._kept(), self.folder / "history.jsonl"
        state = kept.newest() or {"step": 0, "parts": {}, "epoch_losses": [], "best": None}
        for name, part in state["parts"].items():
            self.parts[name].load_state_dict(part)
        epoch_losses, best = state["epoch_losses"], state["best"]
        losses = list(state.get("losses", ()))  # of the epoch that was cut
        streams = _own(state.get("rng", ()))
        if is_first():
            cut_history(history, state["step"])
        told = {"history": history if is_first() else None, "curve": "loss"}
        with Progress(self.title, self.steps * self.epochs, start=state["step"], **told) as progress:
            for epoch in range(len(epoch_losses), self.epochs):
                first = len(losses)
                if first == 0:
                    streams = _restored(streams)
                for number, batch in enumerate(batches(epoch, first), start=first):
                    streams = _restored(streams)  # within an epoch: behind what the loader drew to start
                    terms = step(epoch, number, batch)
                    losses.append(terms["loss"])
                    progress.step(epoch=epoch + 1)
                    if number % self.log_every == 0 or number == self.steps - 1:
                        progress.record(**{name: float(value) for name, value in terms.items()})
                    if self._due(number):
                        kept.save(progress.done, self._state(progress.done, epoch_losses, best, losses))
                epoch_losses.append(float(torch.stack([loss.to(losses[-1]) for loss in losses]).mean()))
                losses = []
                numbers = after_epoch(epoch)
                if numbers:
                    progress.record(epoch=epoch + 1, **numbers)
                value = self._measured({"loss": epoch_losses[-1]} | numbers, last=epoch + 1 == self.epochs)
                better = value is not None and (best is None or self._beats(value, best["value"]))
                if better:
                    best = {"epoch": epoch + 1, "value": value}
                state = self._state(progress.done, epoch_losses, best)
                kept.save(progress.done, state, best={"result": state["parts"][self.result]} if better else None)
        found = {"loss_first_epoch": epoch_losses[0], "loss_last_epoch": epoch_losses[-1]} if epoch_losses else {}
        if best is None:
            return found
        wait_for_all()
        self.parts[self.result].load_state_dict(kept.best()["result"])
        return found | {"best_epoch": best["epoch"], f"best_{self.best}": best["value"]}

    def stop_if_not_finite(self, terms: Terms, blame: Callable[[], str], mend: str) -> None:
        """Call with `loss` and `gradient` before the weights move. blame: which images; called on all processes.

        One wait for the device a step: small beside those for pair counts and loss masks. Raises NonFiniteLoss.
        """
        if bool(torch.isfinite(torch.stack([terms["loss"], terms["gradient"]])).all()):
            return
        numbers = {name: float(value) for name, value in terms.items()}
        raise NonFiniteLoss(
            f"{self.title}: found {numbers}, expected finite numbers; {blame()}; the weights were not touched,"
            f" {self._kept().describe()}\n  mend: {mend}"
        )

    def _kept(self) -> Checkpoints:
        return Checkpoints(checkpoint_folder(self.folder), self.checkpoints.keep)

    def _due(self, number: int) -> bool:
        """Whether a checkpoint belongs behind this step, inside an epoch."""
        every = self.checkpoints.steps
        return every > 0 and (number + 1) % every == 0 and number < self.steps - 1

    def _state(
        self, step: int, epoch_losses: Sequence[float], best: dict | None, losses: Sequence[Tensor] = ()
    ) -> dict[str, Any]:
        return {
            "step": step,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "epoch_losses": list(epoch_losses),
            "losses": [loss.cpu() for loss in losses],
            "best": best,
            "rng": gathered(rng_state()),
        }

    def _measured(self, numbers: dict[str, float], last: bool) -> float | None:
        if not self.best:
            return None
        if self.best not in numbers and (last or len(numbers) > 1):
            raise ValueError(
                f"{self.title}: found checkpoints for the best {self.best!r}, expected one of {sorted(numbers)}"
                "\n  mend: name one of them in the section checkpoints, or leave it empty for the last epoch"
            )
        return numbers.get(self.best)

    def _beats(self, value: float, other: float) -> bool:
        return value < other if self.best == "loss" else value > other


def _own(streams: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """This process's random streams among those of a checkpoint; None where fewer processes wrote it."""
    rank = processes()[0]
    return streams[rank] if rank < len(streams) else None


def _restored(streams: dict[str, Any] | None) -> None:
    if streams is not None:
        set_rng_state(streams)


def cut_history(history: Path, step: int) -> None:
    """Drop lines of steps that ran past the checkpoint: they will be run, and written, again."""
    if history.is_file():  # always: a line that a kill cut would spoil the next one
        rows = [row for row in read_jsonl(history) if row["step"] <= step]
        write_text(history, "".join(f"{json.dumps(row)}\n" for row in rows))


def epoch_steps(count: int, batch_size: int, accumulate: int, seed: int, epoch: int) -> list[list[np.ndarray]]:
    """Positions of every step of an epoch over all processes: up to `accumulate` batches each, by (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]


def own_parts(steps: Sequence[Sequence[np.ndarray]]) -> list[list[list[int]]]:
    """What of every step's batches this process computes; a small batch may leave it nothing."""
    parts = [[share(batch).tolist() for batch in step] for step in steps]
    return [[part for part in step if part] for step in parts]


def in_steps(loaded: Iterable[Any], parts: Sequence[Sequence[Any]]) -> Iterator[list[Any]]:
    """The loaded batches as lists, one a step of `own_parts`."""
    batches = iter(loaded)
    for step in parts:
        yield list(islice(batches, len(step)))
