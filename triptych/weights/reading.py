"""Tensors of a checkpoint file, whatever wrote it; nothing in the file is ever run.

safetensors; PyTorch's files, also those that hold objects of other packages (fairseq); pickles of numpy arrays
(Caffe2); and TensorFlow's, see ``tensorflow``. Where a file names a class or function, an inert placeholder takes its
place: only tensors, arrays and plain containers are built.
"""

import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from triptych.errors import TriptychError, UsageError
from triptych.weights.tensorflow import read_bundle

PARTS = ("model", "state_dict", "model_state_dict", "model_state", "blobs", "net")
"""Keys under which the weights lie in many files, the likelier first."""
LEGACY = 0x1950A86A20F9469CFC6C
"""Number that PyTorch's files before version 1.6 begin with."""
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    RuntimeError,
    OverflowError,
    MemoryError,
)
"""What reading a broken pickle may raise."""


def read_checkpoint(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    Args:
        path: A ``.safetensors`` file, a file of PyTorch or a pickle of arrays (whatever its ending), or a checkpoint of
            TensorFlow (its ``.index`` file, or the name without it).
        part: Key of the part that holds the weights, dots between keys; found by itself where None.

    Raises:
        UsageError: If there is no such file or part, or the file has several parts and none is named.
        TriptychError: If the file is damaged, or holds no tensors.
    """
    path = Path(path)
    index = path if path.suffix == ".index" else path.with_name(path.name + ".index")
    if index.is_file():
        content: Any = read_bundle(index)
    elif not path.is_file():
        raise UsageError(f"{path}: there is no such checkpoint.")
    elif path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TriptychError(f"{path} is damaged or no safetensors file: {error}.") from error
    else:
        content = _read_pickle(path)
    tensors = _choose(content, part, path)
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _choose(content: Any, part: str | None, path: Path) -> dict[str, Tensor]:
    """Return the tensors of the part that was named, or of the only one that can be meant."""
    for key in part.split(".") if part else ():
        if not isinstance(content, Mapping) or key not in content:
            known = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no parts"
            raise UsageError(f"{path} has no part '{key}' of '{part}'; there are {known}.")
        content = content[key]
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        inner = {str(name): value for name, value in content.items() if _holds_tensors(value)}
        likely = [name for name in PARTS if name in inner]
        if not inner or (tensors and (part or not likely)):
            if tensors:
                return tensors
            break
        if not likely and len(inner) > 1:
            raise UsageError(f"{path} has several parts with tensors, {', '.join(inner)}: name one with --part.")
        content = inner[likely[0] if likely else next(iter(inner))]
    raise TriptychError(f"{path} holds no tensors by name.")


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    if not isinstance(value, Mapping) or not depth:
        return False
    return any(isinstance(inner, Tensor) or _holds_tensors(inner, depth - 1) for inner in value.values())


# ---------------------------------------------------------------- pickles


class Placeholder:
    """Stands for an object of a class that is not built: it takes whatever a pickle does to it, and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> "Placeholder":
        """Ignore how the object was to be made."""
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Ignore how the object was to be made."""

    def __setstate__(self, state: Any) -> None:
        """Ignore what it was to hold."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an entry."""

    def append(self, value: Any) -> None:
        """Ignore an element."""

    def extend(self, values: Any) -> None:
        """Ignore elements."""


class _DType(Placeholder):
    """A kind of number, from numpy's pickled form."""

    def __init__(self, code: str = "", *arguments: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def build(self) -> np.dtype[Any]:
        if self.code[:1] not in ("f", "i", "u", "b"):
            raise ValueError(f"arrays of the kind '{self.code}' are not read")
        return np.dtype(self.code).newbyteorder("=" if self.order == "|" else self.order)  # type: ignore[arg-type]


class _Array(Placeholder):
    """An array, from numpy's pickled form; ``value`` is the tensor."""

    value: Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if isinstance(kind, _DType) and isinstance(raw, str | bytes) and kind.code[:1] in ("f", "i", "u", "b"):
            data = raw.encode("latin1") if isinstance(raw, str) else raw
            array = np.frombuffer(data, kind.build()).reshape(shape, order="F" if fortran else "C")
            self.value = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes that Python 3 has pickled for Python 2."""
    return text.encode("latin1")


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


class _Dictionary(dict[Any, Any]):
    """An ordered dictionary; what else is set on it is ignored."""

    def __setstate__(self, state: Any) -> None:
        pass


BUILDERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dictionary,
    ("collections", "defaultdict"): lambda *_: _Dictionary(),
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("numpy", "dtype"): _DType,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
}
"""What a pickle may build, by the names it uses; everything else becomes a placeholder."""

Storages = Callable[[str, torch.dtype, int], Tensor]
"""From the key, kind and number of values of a storage to a flat tensor."""


class _Reader(pickle.Unpickler):
    """An unpickler that looks up nothing: names lead to ``BUILDERS``, or to placeholders."""

    def __init__(self, file: BufferedIOBase, storages: Storages | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return type(name, (Placeholder,), {"dtype": STORAGES[name]})
        builder = BUILDERS.get((module, name), Placeholder)
        if isinstance(builder, type):
            return type(name.rpartition(".")[2], (builder,), {})
        return lambda *arguments: builder(*arguments)  # a new one each time: a pickle may set attributes of what it has

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor."""
        kind, storage, key, _, count = pid[:5]
        dtype = getattr(storage, "dtype", None)
        if self.storages is None or kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"a storage of an unknown kind: {kind} {storage}")
        if not isinstance(count, int) or count < 0:
            raise pickle.UnpicklingError(f"a storage of {count} values")
        return self.storages(str(key), dtype, count)


def _read_pickle(path: Path) -> Any:
    """Return what a file of PyTorch or a plain pickle holds; arrays as tensors.

    Raises:
        TriptychError: If it is damaged, or no such file.
    """
    try:
        if zipfile.is_zipfile(path):
            return _arrays(_read_zip(path))
        with path.open("rb") as file:
            first = _Reader(file).load()
            if first == LEGACY:
                return _arrays(_read_legacy(file, path.stat().st_size))
            return _arrays(first)
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TriptychError(f"{path} is cut off, damaged, or no checkpoint ({reason}); download it again.") from error


def _read_zip(path: Path) -> Any:
    """Read a file of PyTorch since version 1.6: by PyTorch, or as it is where it holds other objects than tensors."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        pass
    with zipfile.ZipFile(path) as archive:
        pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if pickled is None:
            raise ValueError("an archive without data.pkl")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != sys.byteorder.encode():
            raise ValueError("written by a machine of another byte order")
        found: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in found:
                data = bytearray(archive.read(f"{root}data/{key}"))
                found[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return found[key]

        return _Reader(BytesIO(archive.read(pickled)), storage).load()


def _read_legacy(file: BufferedIOBase, size: int) -> Any:
    """Read a file of PyTorch before version 1.6, whose first number was read: the values of storages come last."""
    for _ in range(2):  # version of the format, and facts about the machine
        _Reader(file).load()
    found: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if count * dtype.itemsize > size:
            raise ValueError(f"a storage of {count} values in a file of {size} bytes")
        return found.setdefault(key, torch.empty(count, dtype=dtype))

    content = _Reader(file, storage).load()
    for key in _Reader(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        target = found[str(key)]
        data = bytearray(file.read(count * target.dtype.itemsize))
        if count != len(target) or len(data) != count * target.dtype.itemsize:
            raise EOFError(f"the values of storage {key} are not all there")
        if count:
            target.copy_(torch.frombuffer(data, dtype=target.dtype))
    return content


def _arrays(value: Any) -> Any:
    """Return nested containers with arrays as tensors."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, Mapping):
        return {name: _arrays(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_arrays(inner) for inner in value]
    return cast(Any, value)
