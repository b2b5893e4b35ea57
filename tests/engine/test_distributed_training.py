"""Results do not depend on the number of processes, and a killed training ends where the whole one does."""

import importlib.util
import multiprocessing
import os
import random
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lib.clip.tokens import encode_image, preprocess
from lib.engine.checkpoints import Checkpoints
from lib.engine.distributed import processes
from lib.engine.loop import NonFiniteLoss
from lib.ezhoi.predict import predict_pairs
from lib.ezhoi.train import train_ezhoi
from lib.features.extract import extract_features
from lib.runs import read_jsonl
from lib.settings import CheckpointSettings


def _training_tests():
    """The neighbouring module, for its world of ten pictures."""
    path = Path(__file__).parents[1] / "ezhoi/test_training.py"
    spec = importlib.util.spec_from_file_location("small_world", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


small = _training_tests()
clip, world = small.clip, small.world
STILL = replace(small.STILL, batch_size=8, epochs=1)  # no dropout: its numbers belong to a process


def train(clip, world, settings, folder, **options):
    """Weights, info and history of a training in whatever process group there is."""
    built = small.model(clip, settings)
    if not settings.roi_dropout:
        small.without_dropout(built)
    given = small.samples(world, clip, settings)
    folder.mkdir(exist_ok=True)
    info = train_ezhoi(built, given, small.VALID, settings, folder, seed=3, device="cpu", **options)
    return small.weights(built), info, read_jsonl(folder / "history.jsonl")


def test_ezhoi_on_one_two_and_four_processes(in_ranks, clip, world, tmp_path):
    """10 images: a step of 8 and one of 2, as 1 x 8, 2 x 4, 4 x 2, and gathered from batches of 2 on two processes."""
    augmented = replace(STILL, flip=0.5, jitter=0.4, crop=0.5, ema=0.5)  # by image and epoch, whoever draws it
    whole, info, rows = train(clip, world, augmented, tmp_path / "one")
    ways = [(2, augmented), (4, augmented), (2, replace(augmented, batch_size=2, accumulate=4))]
    for processes_, settings in ways:
        found = in_ranks(processes_, train, clip, world, settings, tmp_path / f"{processes_}{settings.batch_size}")
        assert all(each[1] == found[0][1] for each in found)
        weights, again, lines = found[0]
        for each in found[1:]:
            assert all(torch.equal(value, weights[name]) for name, value in each[0].items())
        for name, value in whole.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5, msg=f"{processes_} processes: {name}")
        assert again == pytest.approx(info, rel=1e-5)
        assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in rows], rel=1e-5)
        assert [line["positives"] for line in lines] == [line["positives"] for line in rows]
        assert not torch.equal(whole["vis_fuse.0.weight"], small.weights(small.model(clip))["vis_fuse.0.weight"])


def test_a_killed_training_on_two_processes_resumes_bit_for_bit(in_ranks, clip, world, tmp_path):
    """With dropout: every process has its own random stream, and finds it again."""
    settings = replace(small.SETTINGS, batch_size=4, epochs=2)
    kept = CheckpointSettings(steps=1)
    whole = in_ranks(2, train, clip, world, settings, tmp_path / "whole")
    assert in_ranks(2, _train_and_stop, clip, world, settings, tmp_path / "cut", kept) == ["stopped", "stopped"]
    again = in_ranks(2, train, clip, world, settings, tmp_path / "cut")
    assert again[0][1:] == whole[0][1:]
    assert all(torch.equal(value, again[0][0][name]) for name, value in whole[0][0].items())


def _train_and_stop(clip, world, settings, folder, kept):
    """Stops in the second epoch, behind its first step."""
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    register_optimizer_step_pre_hook(stop)
    try:
        train(clip, world, settings, folder, checkpoints=kept)
    except KeyboardInterrupt:
        return "stopped"


def test_pairs_are_the_same(in_ranks, clip, world):
    """To the last bits: in those a matrix product depends on where in memory its numbers lie."""
    built, given = small.model(clip), small.samples(world, clip, augment=None)

    def table():
        return predict_pairs(built, given, batch_size=3, workers=0, device="cpu")

    one = table()
    for found in in_ranks(2, table):
        assert found.frame.equals(one.frame)
        assert np.array_equal(found.labels, one.labels)
        for name in ("features", "logits"):
            np.testing.assert_allclose(getattr(found, name), getattr(one, name), rtol=1e-5, atol=1e-6)


def _extract(clip, world, folder):
    images = world[0].images
    rank, count = processes()
    extract_features(
        lambda batch: encode_image(clip, batch), [image.path for image in images], [image.name for image in images],
        folder, {"test": 1}, preprocess=preprocess(clip), batch_size=4, shard_size=3, rank=rank, world=count,
    )  # fmt: skip


def test_features_are_the_same_bytes(in_ranks, clip, world, tmp_path):
    _extract(clip, world, tmp_path / "one")
    in_ranks(2, _extract, clip, world, tmp_path / "two")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.npy")} for name in ("one", "two"))
    assert one == two and len(one) == 8


def _broken(clip, world, folder):
    built = small.model(clip)
    with torch.no_grad():
        built.logit_scale_HO.fill_(float("nan"))
    try:
        train_ezhoi(built, small.samples(world, clip), small.VALID, small.SETTINGS, folder, seed=3, device="cpu")
    except NonFiniteLoss as error:
        return str(error)


def test_a_non_finite_loss_names_the_images_of_all_processes(in_ranks, clip, world, tmp_path):
    first, second = in_ranks(2, _broken, clip, world, tmp_path)
    assert first == second and first.count(".png") == 4 and "'interaction': nan" in first


# ---------------------------------------------------------------- killed


def test_killed_at_five_moments_it_ends_where_the_whole_one_does(clip, world, tmp_path):
    """SIGKILL at moments that nobody chose; checkpoints after every step make the repeated part short."""
    settings, kept = replace(small.SETTINGS, epochs=4, batch_size=2), CheckpointSettings(steps=2)
    begun = time.monotonic()
    whole, info, rows = train(clip, world, settings, tmp_path / "whole")
    seconds, kills, moments = time.monotonic() - begun, 0, random.Random(0)
    context = multiprocessing.get_context("fork")
    options = {"checkpoints": kept}
    while kills < 5:
        child = context.Process(target=train, args=(clip, world, settings, tmp_path / "cut"), kwargs=options)
        child.start()
        child.join(moments.uniform(0.05, 0.2) * seconds)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        if child.exitcode == 0:
            break
    assert kills >= 3
    again, same, lines = train(clip, world, settings, tmp_path / "cut")
    assert same == info and all(torch.equal(value, again[name]) for name, value in whole.items())
    assert lines == rows
    assert len(list((tmp_path / "cut" / "checkpoints").glob("[0-9]*.pt"))) == 2


def test_an_unreadable_checkpoint_gives_way_to_the_one_before(clip, world, tmp_path):
    settings = replace(small.SETTINGS, epochs=3)
    whole, info, _ = train(clip, world, settings, tmp_path / "whole")
    train(clip, world, replace(settings, epochs=2), tmp_path / "cut")
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"(?s)no plain checkpoint.*Trying the checkpoint before it"):
        again, same, _ = train(clip, world, settings, tmp_path / "cut")
    assert same == info and all(torch.equal(value, again[name]) for name, value in whole.items())
    kept = Checkpoints(tmp_path / "cut" / "checkpoints")
    for path in kept.folder.glob("*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="no plain checkpoint"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept.newest()


def test_the_best_epoch_is_the_result(clip, world, tmp_path):
    settings, scores = replace(small.SETTINGS, epochs=4, ema=0.5), iter([0.1, 0.7, 0.3, 0.2])
    seen = []

    def evaluate(model):
        seen.append(small.weights(model))
        return {"mAP_seen": next(scores)}

    best = CheckpointSettings(ezhoi="mAP_seen")
    plain = replace(settings, ema=0.0)
    weights, info, rows = train(clip, world, plain, tmp_path / "a", evaluate=evaluate, checkpoints=best)
    assert (info["best_epoch"], info["best_mAP_seen"]) == (2, 0.7)
    assert all(torch.equal(value, seen[1][name]) for name, value in weights.items())
    assert [row["mAP_seen"] for row in rows if "mAP_seen" in row] == [0.1, 0.7, 0.3, 0.2]
    with pytest.raises(ValueError, match=r"found checkpoints for the best 'mAP_seen', expected one of \['loss'\]"):
        train(clip, world, replace(settings, epochs=1), tmp_path / "b", checkpoints=best)
    _, info, rows = train(clip, world, settings, tmp_path / "c", checkpoints=CheckpointSettings(ezhoi="loss"))
    assert info["best_loss"] == min(info["loss_first_epoch"], info["loss_last_epoch"], info["best_loss"])
