"""Shared fixtures. Nothing here touches the network."""

import multiprocessing
import os
import signal
import traceback
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_project(monkeypatch):
    """Tests run from the project folder, so that configs/ and notebooks/ are found."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def shared():
    """Folder with real photos and annotations beside the project; skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder with real photos and annotations beside the project")
    return folder


@pytest.fixture
def in_ranks(tmp_path):
    """`in_ranks(2, fn, *args)`: results of fn in a gloo group of forked processes, by rank (quick; no CUDA)."""
    context, calls = multiprocessing.get_context("fork"), iter(range(99))

    def run(world, fn, *args):
        import torch

        folder = tmp_path / f"ranks{next(calls)}"
        folder.mkdir()
        ranks = [context.Process(target=_rank, args=(folder, rank, world, fn, args)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        found = [torch.load(folder / str(rank), weights_only=False) for rank in range(world)]
        problems = [each["error"] for each in found if "error" in each]
        assert not problems, problems[0]
        return [each["result"] for each in found]

    return run


def _rank(folder, rank, world, fn, args):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
        told = {"result": fn(*args)}
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        told = {"error": traceback.format_exc()}
    torch.save(told, folder / str(rank))
    os._exit(0)  # not through pytest's own way out
