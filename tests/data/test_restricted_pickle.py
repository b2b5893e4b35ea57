"""Foreign pickles: data in every protocol comes out whole, nothing of a file runs, broken files are named."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.data.restricted_pickle import PickleError, read_pickle


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Pickles an object and returns the file."""

    def put(content: Any, protocol: int = 4, name: str = "old.pkl") -> Path:
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        return tmp_path / name

    return put


@pytest.mark.parametrize("protocol", range(6))
def test_plain_content_survives_every_protocol(put: Callable[..., Path], protocol: int) -> None:
    content = {
        "tensor": torch.randn(2, 3).T,
        "half": torch.randn(4).half(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "array": np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32),
        "number": np.float32(2.5),
        "names": np.array(["ride", "hold"]),
        "plain": [1, 2.5, "x", None, True, (3, {4}), b"bytes"],
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list, b=[2]),
        "size": torch.zeros(2, 3).shape,
    }
    found = read_pickle(put(content, protocol))
    assert found.keys() == content.keys()
    for name in ("tensor", "half", "parameter"):
        assert torch.equal(found[name], content[name]) and found[name].device.type == "cpu"
    for name in ("array", "number", "names"):
        assert np.array_equal(found[name], content[name])
    for name in ("plain", "ordered", "default", "size"):
        assert found[name] == content[name]


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_read_too(tmp_path: Path, zipped: bool) -> None:
    content = {"mean": torch.full((4,), 0.3), "array": np.arange(3, dtype=np.float32), "n": np.int64(7), "names": ["a"]}
    torch.save(content, tmp_path / "mean.pkl", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "mean.pkl")
    assert torch.equal(found["mean"], content["mean"]) and np.array_equal(found["array"], content["array"])
    assert (found["n"], found["names"]) == (7, ["a"])


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_of_a_gpu_come_to_the_cpu(put: Callable[..., Path]) -> None:
    """The bytes of a CUDA tensor differ in the name of its device: 'cpu' becomes 'cuda:0', one length byte apart."""
    tensor = torch.arange(5.0)
    blob = io.BytesIO()
    torch.save(tensor.storage(), blob, _use_new_zipfile_serialization=False)
    cuda = blob.getvalue().replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert cuda != blob.getvalue()

    class Storage:
        def __reduce__(self) -> tuple:
            return torch.storage._load_from_bytes, (cuda,)

    class Cuda:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (5,), (1,), False, OrderedDict())

    found = read_pickle(put({"text_mean": Cuda()}))["text_mean"]
    assert found.device.type == "cpu" and torch.equal(found, tensor)


class Calls:
    """An object whose pickle calls something."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def test_nothing_in_a_pickle_runs(put: Callable[..., Path], tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    command = f"touch {trap}"
    inner = io.BytesIO()
    torch.save(Calls(os.system, command), inner, _use_new_zipfile_serialization=False)
    for content in (
        Calls(os.system, command),
        {"text_mean": Calls(os.system, command)},
        Calls(eval, f"open({str(trap)!r}, 'w')"),
        Calls(subprocess.check_output, ["touch", str(trap)]),
        Calls(getattr, "x", "upper"),
        Calls(torch.load, str(trap)),
        Calls(torch.storage._load_from_bytes, inner.getvalue()),  # what a tensor's pickle calls, with other bytes
        Calls(np.load, str(trap)),
    ):
        with pytest.raises(PickleError, match="expected tensors, arrays and plain containers"):
            read_pickle(put(content))
        assert not trap.exists()
    torch.save({"x": Calls(os.system, command)}, tmp_path / "zip.pkl")
    with pytest.raises(PickleError):
        read_pickle(tmp_path / "zip.pkl")
    assert not trap.exists()
    with pytest.raises(PickleError, match="calls posix.system, which could run any program"):
        read_pickle(put(Calls(os.system, command)))
    pickle.loads(pickle.dumps(Calls(os.system, command)))  # the trap does work
    assert trap.exists()


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_every_truncation_is_named(tmp_path: Path, write: Callable) -> None:
    whole, part = tmp_path / "whole.pkl", tmp_path / "part.pkl"
    with whole.open("wb") as stream:
        write({"text_mean": torch.zeros(3), "names": ["ride"] * 3}, stream)
    size = whole.stat().st_size
    for length in range(1, size, size // 20):
        part.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(PickleError, match="found a file that is no whole pickle"):
            read_pickle(part)


def test_broken_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.pkl"
    for content, found in (
        (b"", r"an empty file \(0 bytes\)"),
        (b"\xff\xd8\xff\xe0 JFIF", "no whole pickle"),
        (b'{"text_mean": [1, 2]}', "no whole pickle"),
    ):
        file.write_bytes(content)
        with pytest.raises(PickleError, match=found):
            read_pickle(file)
    with pytest.raises(PickleError, match="found no file"):
        read_pickle(tmp_path / "absent.pkl")


def test_a_stand_in_takes_the_place_of_a_named_class(put: Callable[..., Path]) -> None:
    class Record(dict):
        pass

    with pytest.raises(PickleError, match="Template, which could run any program"):
        read_pickle(put(Template(a=1)))
    found = read_pickle(put(Template(a=1)), {"Template": Record})
    assert type(found) is Record and found == {"a": 1}


class Template(dict):
    """Stands for a class of a public program."""
