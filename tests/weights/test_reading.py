"""Checkpoints of all kinds give their tensors, and none of them can run anything."""

import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from triptych.errors import TriptychError, UsageError
from triptych.weights import reading
from triptych.weights.reading import read_checkpoint

TENSORFLOW = Path(__file__).parent / "tensorflow"
WEIGHTS = OrderedDict(a=torch.arange(6.0).view(2, 3).T, b=torch.tensor([1, 2]), h=torch.ones(2, dtype=torch.bfloat16))


def _same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


class Namespace:
    """An object of a package that the reader does not know."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Runs:
    """What an attacker puts into a pickle: a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch_with_and_without_foreign_objects(tmp_path: Path, zipped: bool) -> None:
    plain, foreign = tmp_path / "plain.pth", tmp_path / "foreign.pt"
    shared = WEIGHTS | {"twice": WEIGHTS["a"]}
    torch.save(WEIGHTS, plain, _use_new_zipfile_serialization=zipped)
    content = {"cfg": Namespace(model=Namespace(depth=3)), "model": shared, "extra": [Namespace(), {"k": {1, 2}}]}
    torch.save(content, foreign, _use_new_zipfile_serialization=zipped)
    _same(read_checkpoint(plain))
    found = read_checkpoint(foreign)
    assert torch.equal(found.pop("twice"), WEIGHTS["a"])
    _same(found)


def test_arrays_of_caffe2(tmp_path: Path) -> None:
    arrays = {
        "conv1_w": np.arange(6, dtype=">f4").reshape(2, 3),
        "lr": np.float32(0.1),
        "t": np.asfortranarray(np.eye(3, 2)),
    }
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"blobs": arrays, "cfg": Namespace()}, protocol=2))
    found = read_checkpoint(path)
    assert found.keys() == {"conv1_w", "t"}
    assert torch.equal(found["conv1_w"], torch.arange(6.0).view(2, 3))
    assert torch.equal(found["t"], torch.eye(3, 2, dtype=torch.float64))


def test_arrays_that_python_2_has_pickled(tmp_path: Path) -> None:
    raw = np.array([1.5, -200.25], "<f4").tobytes()
    quoted = repr(raw)[1:].encode()
    text = (
        b"(dS'blobs'\n(dS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
        b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS" + quoted + b"\ntbss."
    )
    (tmp_path / "old.pkl").write_bytes(text)
    assert read_checkpoint(tmp_path / "old.pkl")["w"].tolist() == [1.5, -200.25]


def test_a_checkpoint_that_tensorflow_has_written() -> None:
    for name in ("ckpt-5", "ckpt-5.index"):
        found = read_checkpoint(TENSORFLOW / name)
        bare = {key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): tensor for key, tensor in found.items()}
        assert len(bare) == 7
        for number in range(3):
            assert torch.equal(bare[f"model/layers/{number}"], torch.arange(6.0).view(2, 3) + number)
        assert torch.equal(bare["model/half"], torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
        assert bare["model/whole"].tolist() == [0, 1, 2, 3] and bare["model/whole"].dtype == torch.int64
        assert float(bare["model/scalar"]) == 3.0 and bare["model/empty"].shape == (0, 2)


def test_prefix_of_data_parallel_and_part_are_found(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    teacher = {"a": torch.zeros(1)}
    torch.save({"state_dict": {f"module.{n}": t for n, t in WEIGHTS.items()}, "ema": {"teacher": teacher}}, path)
    _same(read_checkpoint(path))
    assert read_checkpoint(path, "ema.teacher").keys() == {"a"}
    with pytest.raises(UsageError, match=r"has no part 'student' of 'ema.student'; there are teacher"):
        read_checkpoint(path, "ema.student")
    torch.save({"one": teacher, "other": teacher}, path)
    with pytest.raises(UsageError, match="several parts with tensors, one, other: name one with --part"):
        read_checkpoint(path)
    torch.save({"loss": torch.tensor(1.0), "model": WEIGHTS}, path)
    _same(read_checkpoint(path))


@pytest.mark.parametrize("how", ["zip", "legacy", "plain"])
def test_nothing_in_a_file_is_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "bad.pt", tmp_path / "was-run"
    code = f"open({str(mark)!r}, 'w').close()"
    attacks = [
        Runs(exec, code),
        Runs(eval, code),
        Runs(__import__("os").system, f"touch {mark}"),
        Runs(getattr, Runs(__import__, "os"), "system"),
        Runs(type, "X", (), {}),
    ]
    content = {"model": dict(WEIGHTS), "cfg": attacks}
    if how == "plain":
        path.write_bytes(pickle.dumps({"blobs": {"a": np.ones(2)}, "cfg": attacks}))
        assert read_checkpoint(path)["a"].tolist() == [1.0, 1.0]
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
        _same(read_checkpoint(path))
    assert not mark.exists()


def test_a_pickle_cannot_change_what_later_ones_are_read_with(tmp_path: Path) -> None:
    # BUILD sets attributes of whatever a name leads to: here of the function that decodes bytes, and of a class.
    before = {name: dict(vars(builder)) for name, builder in reading.BUILDERS.items()}
    for attack in (b"c_codecs\nencode\n(N(dS'mine'\nI1\nstb.", b"cnumpy\ndtype\n(N(dS'mine'\nI1\nstb."):
        (tmp_path / "attack.pkl").write_bytes(attack)
        with pytest.raises(TriptychError):
            read_checkpoint(tmp_path / "attack.pkl")
    assert {name: dict(vars(builder)) for name, builder in reading.BUILDERS.items()} == before


def test_broken_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.pt: there is no such checkpoint"):
        read_checkpoint(tmp_path / "none.pt")
    path = tmp_path / "model.pt"
    for zipped in (True, False):
        torch.save({"model": WEIGHTS, "cfg": Namespace()}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in (0, 10, len(whole) // 2, len(whole) - 10):
            path.write_bytes(whole[:size])
            with pytest.raises(TriptychError, match=r"model.pt is cut off, damaged, or no checkpoint"):
                read_checkpoint(path)
    path.write_bytes(b"hello, I am a text")
    with pytest.raises(TriptychError, match=r"model.pt is cut off, damaged"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(TriptychError, match=r"model.pt holds no tensors by name"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(TriptychError, match=r"an archive without data.pkl"):
        read_checkpoint(path)
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors")["a"].tolist() == [1, 1, 1]
    (tmp_path / "a.safetensors").write_bytes(b"\x08")
    with pytest.raises(TriptychError, match=r"a.safetensors is damaged"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_broken_checkpoint_of_tensorflow_is_told(tmp_path: Path) -> None:
    index, shard = "ckpt-5.index", "ckpt-5.data-00000-of-00001"
    whole, values = (TENSORFLOW / index).read_bytes(), (TENSORFLOW / shard).read_bytes()
    (tmp_path / index).write_bytes(whole)
    with pytest.raises(TriptychError, match=r"ckpt-5.index: the values of '.*' cannot be read .*No such file"):
        read_checkpoint(tmp_path / index)
    (tmp_path / shard).write_bytes(values[:40])
    with pytest.raises(TriptychError, match=r"ckpt-5.data-00000-of-00001 is cut off"):
        read_checkpoint(tmp_path / index)
    (tmp_path / shard).write_bytes(values)
    for broken in (whole[:-1], whole[:30], whole[:20] + whole[60:], b""):
        (tmp_path / index).write_bytes(broken)
        with pytest.raises(TriptychError, match=r"ckpt-5.index"):
            read_checkpoint(tmp_path / index)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_bytes_change_the_reader_says_so_or_reads(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.pkl"
    blob = bytearray(pickle.dumps({"blobs": {"a": np.ones(2), "cfg": Namespace(x=1)}}, protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(blob)
    modules = set(sys.modules)
    try:
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_checkpoint(path).values())
    except TriptychError as error:
        assert str(path) in str(error)
    assert set(sys.modules) == modules
