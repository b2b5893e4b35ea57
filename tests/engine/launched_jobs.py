"""Functions that test_launch.py starts in other processes, which import this file."""

import os
import signal
import time
from pathlib import Path

import torch

from lib.engine.distributed import processes, share, sum_gradients, summed
from lib.engine.loop import Loop, epoch_steps


def add(number):
    rank, world = processes()
    return rank, world, float(summed(torch.tensor(number + rank)))


def fail():
    if processes()[0] == 1:
        raise ValueError("bad luck")
    summed(torch.ones(1))


def wait(folder):
    """Leaves its process id and waits."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(300)


def fit_line(folder, lose=0):
    """Rank, restarts, loss and weight of a line fitted in 4 epochs of 5 steps; step `lose` loses the last process."""
    rank, world = processes()
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    x = torch.linspace(-1, 1, 10)
    weight = torch.nn.Parameter(torch.zeros(1))
    model = torch.nn.ParameterList([weight])
    optimiser = torch.optim.Adam(model, lr=0.1)

    def step(epoch, number, positions):
        if lose and restarts == 0 and rank == world - 1 and epoch * 5 + number == lose:
            os.kill(os.getpid(), signal.SIGKILL)
        own = x[torch.from_numpy(share(positions))]
        optimiser.zero_grad()
        loss = (weight * own - 3 * own).square().sum() / len(positions)
        loss.backward()
        sum_gradients(model)
        optimiser.step()
        return {"loss": summed(loss)}

    def batches(epoch, first):
        return [batch for (batch,) in epoch_steps(10, 2, 1, 0, epoch)[first:]]

    loop = Loop("line", Path(folder), 4, 5, {"model": model, "optimiser": optimiser}, log_every=1)
    info = loop.run(batches, step, lambda epoch: {})
    return rank, restarts, info["loss_last_epoch"], weight.item()
