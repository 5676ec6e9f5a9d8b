"""TensorFlow's checkpoints (``NAME.index`` and ``NAME.data-00000-of-00001``), read without TensorFlow.

The index is a sorted table of LevelDB's format from keys to entries (protocol buffers: kind, shape, shard, offset,
size), a shard the values one after another.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from triptych.errors import TriptychError

MAGIC = 0xDB4775248B80FB57
"""Last eight bytes of the index."""
FOOTER = 48
"""Bytes of its end, which say where the table of blocks lies."""
TRAILER = 5
"""Bytes behind a block: whether it is compressed, and a checksum."""
KINDS = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}
"""Kinds of numbers; entries of other kinds (text: the graph of objects) are passed over."""


def read_bundle(index: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by key.

    Raises:
        TriptychError: If a file is missing, cut off or damaged; it names the file.
    """
    try:
        entries = dict(_table(index.read_bytes()))
        header = dict(_fields(entries.pop(b"", b"")))
        shards = int(header.get(1, 1))
    except (OSError, ValueError, IndexError, struct.error, TypeError) as error:
        raise TriptychError(f"{index} is cut off, damaged, or no index of a checkpoint ({error}).") from error
    if header.get(2, 0):
        raise TriptychError(f"{index} was written by a machine of another byte order, which is not read.")
    tensors = {}
    for key, entry in entries.items():
        try:
            tensor = _tensor(index, entry, shards)
        except (OSError, ValueError, RuntimeError, IndexError, TypeError) as error:
            name = key.decode("utf-8", "replace")
            raise TriptychError(f"{index}: the values of '{name}' cannot be read ({error}).") from error
        if tensor is not None:
            tensors[key.decode("utf-8")] = tensor
    return tensors


def _tensor(index: Path, entry: bytes, shards: int) -> Tensor | None:
    """Return the values of an entry; None if it is none of ``KINDS``."""
    kind, number, offset, size, shape = 0, 0, 0, 0, b""
    for field, value in _fields(entry):
        match field, value:
            case 1, int():
                kind = value
            case 2, bytes():
                shape = value
            case 3, int():
                number = value
            case 4, int():
                offset = value
            case 5, int():
                size = value
            case 7, _:
                raise ValueError("it is stored in slices")
    if kind not in KINDS:
        return None
    sizes = [
        int(dict(_fields(size)).get(1, 0)) for field, size in _fields(shape) if field == 2 and isinstance(size, bytes)
    ]
    shard = index.with_name(f"{index.stem}.data-{number:05d}-of-{shards:05d}")
    with shard.open("rb") as file:
        file.seek(offset)
        data = bytearray(file.read(size))
    if len(data) != size:
        raise ValueError(f"{shard.name} is cut off")
    values = torch.frombuffer(data, dtype=KINDS[kind]) if data else torch.empty(0, dtype=KINDS[kind])
    return values.reshape(sizes)


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a sorted table."""
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("its last bytes are not those of a table")
    footer = data[-FOOTER:]
    at = 0
    for _ in range(2):  # where the table of tables lies, which is empty
        _, at = _number(footer, at)
    offset, at = _number(footer, at)
    size, _ = _number(footer, at)
    for _, handle in _block(data, offset, size):
        start, at = _number(handle, 0)
        yield from _block(data, start, _number(handle, at)[0])


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a block: each key shares its beginning with the one before."""
    if start + size + TRAILER > len(data):
        raise ValueError("a block lies beyond its end")
    if data[start + size]:
        raise ValueError("a block is compressed")
    block = data[start : start + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key = size - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = _number(block, at)
        own, at = _number(block, at)
        length, at = _number(block, at)
        if at + own + length > end:
            raise ValueError("an entry lies beyond its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        match tag & 7:
            case 0:
                value, at = _number(message, at)
                yield tag >> 3, value
            case 1:
                at += 8
            case 2:
                size, at = _number(message, at)
                yield tag >> 3, message[at : at + size]
                at += size
            case 5:
                at += 4
            case wire:
                raise ValueError(f"a field of the unknown kind {wire}")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
