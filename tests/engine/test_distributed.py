"""Shares come together as if there were one process."""

import numpy as np
import torch
from torch import nn

from lib.engine.distributed import (
    from_first,
    gathered,
    gathered_in_turn,
    hand_out,
    lead_or_serve,
    processes,
    share,
    share_of_mean,
    sum_gradients,
    summed,
    weights_of_first,
)
from lib.engine.loop import epoch_steps, in_steps, own_parts


def test_one_process_has_the_whole():
    assert processes() == (0, 1) and list(share([1, 2, 3])) == gathered_in_turn([1, 2, 3]) == [1, 2, 3]
    assert from_first("a") == "a" and gathered(4) == [4] and hand_out(int, "7") == [7]
    assert share_of_mean(torch.tensor([1.0, 3.0]), 2) == 2


def _shares():
    rank, world = processes()
    torch.manual_seed(rank)
    model = nn.Linear(3, 1)
    weights_of_first(model)
    unused, mine = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    x = torch.arange(15.0).view(5, 3)
    own = share(x)
    loss = share_of_mean(model(own).square(), len(x)) + (mine.sum() if rank == 1 else 0)
    loss.backward()
    sum_gradients([*model.parameters(), unused, mine])
    return {
        "weight": model.weight.detach(),
        "gradient": model.weight.grad,
        "unused": unused.grad,
        "mine": mine.grad,
        "loss": float(summed(loss)),
        "turns": gathered_in_turn([str(int(row[0])) for row in own]),
        "first": from_first(rank),
    }


def test_shares_add_up_to_the_whole(in_ranks):
    one = nn.Linear(3, 1)
    first, *others = in_ranks(3, _shares)
    with torch.no_grad():
        one.weight.copy_(first["weight"])
        torch.manual_seed(0)
        one.bias.copy_(nn.Linear(3, 1).bias)
    x = torch.arange(15.0).view(5, 3)
    loss = one(x).square().mean()
    loss.backward()
    for found in (first, *others):
        torch.testing.assert_close(found["gradient"], one.weight.grad)
        assert torch.equal(found["weight"], first["weight"]) and torch.equal(found["gradient"], first["gradient"])
        assert found["unused"] is None and found["mine"].tolist() == [1, 1]
        assert abs(found["loss"] - loss.item() - 2) < 1e-3
        assert found["turns"] == ["0", "3", "6", "9", "12"] and found["first"] == 0


def _led(folder):
    def lead():
        assert processes() == (0, 1)  # alone between two pieces of shared work
        told = [hand_out(_piece, 10), hand_out(_piece, 20)]
        torch.save(told, folder / "told")

    lead_or_serve(lead)
    return processes()


def _piece(number):
    rank, world = processes()
    assert hand_out(int, "1") == [1]  # shared work inside shared work stays here
    return number + rank, float(summed(torch.tensor(1.0 + rank))), world


def test_the_first_leads_and_the_others_serve(in_ranks, tmp_path):
    assert in_ranks(2, _led, tmp_path) == [(0, 2), (1, 2)]
    assert torch.load(tmp_path / "told") == [[(10, 3.0, 2), (11, 3.0, 2)], [(20, 3.0, 2), (21, 3.0, 2)]]


def _parts(steps):
    own = own_parts(steps)
    loaded = [sum(part) for step in own for part in step]
    return own, list(in_steps(loaded, own))


def test_a_step_is_shared_out_whole(in_ranks):
    steps = epoch_steps(9, 4, 2, seed=1, epoch=0)
    assert [[len(batch) for batch in step] for step in steps] == [[4, 4], [1]]
    assert sorted(np.concatenate(sum(steps, []))) == [*range(9)]
    assert [b.tolist() for b in steps[0]] != [b.tolist() for b in epoch_steps(9, 4, 2, 1, 1)[0]]
    found = in_ranks(2, _parts, steps)
    together = sorted(i for own, _ in found for step in own for part in step for i in part)
    assert together == [*range(9)] and [len(step) for step in found[1][0]] == [2, 0]  # nothing left for the second
    for own, loaded in found:
        assert loaded == [[sum(part) for part in step] for step in own]
