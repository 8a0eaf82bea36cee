"""Tensors out of pickles and torch files, as numpy arrays; nothing is executed and torch is not needed.

Reads zip files of torch.save, its older streams, numpy arrays inside pickles, and the objects of NVIDIA's persistent
pickles and of legacy TensorFlow ones (as plain dictionaries of their state).
"""

import io
import math
import mmap
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.checkpoints.pickle_machine import Call, Persistent, Symbol, read_pickle
from engine.errors import CheckpointDamaged

MAX_FILE_BYTES = 4 * 2**30
MAX_EXPANDED = 2**20  # numbers of a tensor that repeats fewer
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's older streams
STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
}  # fmt: skip
INERT = {  # named by checkpoints of the wild, never needed: kept as they stand
    ("torch", "device"), ("torch", "Size"), ("torch", "float32"), ("torch", "float16"), ("torch", "float64"),
    ("torch", "contiguous_format"), ("torch", "channels_last"), ("builtins", "set"), ("__builtin__", "set"),
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    """An object of a checkpoint: its class's name and what it held."""

    class_name: str
    state: dict[str, Any]


@dataclass(frozen=True)
class Storage:
    """The numbers behind one or more tensors."""

    values: np.ndarray  # one-dimensional


def allowed(symbol: Symbol) -> bool:
    key = (symbol.module, symbol.name)
    return key in MEANINGS or key in INERT or (symbol.module == "torch" and symbol.name in STORAGES) or is_module(symbol)


def is_module(symbol: Symbol) -> bool:
    """Classes whose state we read and whose code we never need."""
    return symbol.module.startswith("torch.nn.modules.") and symbol.name.isidentifier()


StorageSource = Callable[[str, np.dtype[Any], int], np.ndarray]  # key, element type, count -> values


class Resolver:
    """Gives the values of a pickle their meaning."""

    done: dict[int, Any]  # by identity: a value that is mentioned twice is resolved once

    def __init__(self, storage_source: StorageSource | None = None) -> None:
        self.storage_source = storage_source
        self.done = {}
        self.alive: list[Any] = []  # what the identities belong to

    def resolve(self, value: Any) -> Any:
        if isinstance(value, (str, int, float, bool, bytes, type(None), Symbol, set)):
            return value
        if id(value) not in self.done:
            self.alive.append(value)
            self.done[id(value)] = self.meaning(value)
        return self.done[id(value)]

    def meaning(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.resolve(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self.resolve(item) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, Persistent):
            return self.storage(self.resolve(value.id))
        if isinstance(value, Call):
            return self.result(value)
        return value

    def result(self, call: Call) -> Any:
        key = (call.function.module, call.function.name)
        arguments = [self.resolve(argument) for argument in call.arguments]
        state = self.resolve(call.state)
        if key in MEANINGS:
            stateful: Meaning = STATEFUL.get(key, with_state)
            value = MEANINGS[key](*arguments) if state is None else stateful(arguments, state)
        elif is_module(call.function):
            return Module(call.function.name, state if isinstance(state, dict) else {})
        else:
            value = None
        if call.items and isinstance(value, dict):
            value |= {item: self.resolve(content) for item, content in call.items}
        return value

    def storage(self, id_: Any) -> Storage:
        if self.storage_source is None:
            raise ValueError("a reference outside the file")
        kind, count = storage_shape(id_)
        return Storage(self.storage_source(str(id_[2]), kind, count))


def rebuild_tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    values = storage.values
    if len(size) != len(stride) or any(number < 0 for number in (offset, *size, *stride)):
        raise ValueError("a tensor of impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > max(len(values), MAX_EXPANDED) or (0 not in size and last >= len(values)):
        raise ValueError("a tensor larger than its storage")
    steps = tuple(step * values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def load_from_bytes(data: bytes) -> Storage:
    value = read_stream(io.BytesIO(data))
    if not isinstance(value, Storage):
        raise ValueError("an embedded stream without a storage")
    return value


def persistent_object(meta: dict[str, Any]) -> Module:
    return Module(str(meta["class_name"]), dict(meta["state"]))


def numpy_scalar(kind: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(to_bytes(data), dtype=plain_type(kind), count=1)[0].item()


def plain_type(kind: Any) -> np.dtype[Any]:
    if not isinstance(kind, np.dtype) or kind.hasobject or kind.kind not in "fiub":
        raise ValueError("an array of something else than numbers")
    return kind


def numpy_array(_: list[Any], state: tuple[Any, ...]) -> np.ndarray:
    *_, shape, kind, fortran, data = state
    values = np.frombuffer(to_bytes(data), dtype=plain_type(kind))
    return values.reshape(shape, order="F" if fortran else "C")


def to_bytes(data: bytes | str) -> bytes:
    """Python 2 and protocol 2 wrote bytes as latin-1 text."""
    return data.encode("latin1") if isinstance(data, str) else data


def numpy_type(arguments: list[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    kind = np.dtype(str(arguments[0]))
    return kind.newbyteorder(">") if len(state) > 1 and state[1] == ">" else kind


def with_state(arguments: list[Any], state: Any) -> Any:
    return dict(state) if isinstance(state, dict) else state


def network(arguments: list[Any], state: dict[str, Any]) -> Module:
    return Module("Network", state)


def nothing(*_: Any) -> None:
    """An object that is made first and given its state afterwards."""


def pairs_to_dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs)


Meaning = Callable[..., Any]
MEANINGS: dict[tuple[str, str], Meaning] = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.storage", "_load_from_bytes"): load_from_bytes,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_object,
    ("collections", "OrderedDict"): pairs_to_dict,
    ("dnnlib.util", "EasyDict"): lambda *_: {},
    ("dnnlib", "EasyDict"): lambda *_: {},
    ("argparse", "Namespace"): lambda *_: {},
    ("dnnlib.tflib.network", "Network"): lambda *_: Module("Network", {}),
    ("numpy", "dtype"): lambda name, *_: np.dtype(str(name)),
    ("numpy", "ndarray"): nothing,
    ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
    ("numpy.core.multiarray", "scalar"): numpy_scalar,
    ("numpy._core.multiarray", "scalar"): numpy_scalar,
    ("numpy.core.multiarray", "_reconstruct"): nothing,
    ("numpy._core.multiarray", "_reconstruct"): nothing,
}
STATEFUL: dict[tuple[str, str], Meaning] = {
    ("numpy", "dtype"): numpy_type,
    ("dnnlib.tflib.network", "Network"): network,
    ("numpy.core.multiarray", "_reconstruct"): numpy_array,
    ("numpy._core.multiarray", "_reconstruct"): numpy_array,
}


MALFORMED = (  # what a damaged file makes of reading it
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError, EOFError,
    RuntimeError,  # RecursionError, NotImplementedError, and zipfile's word for a member that claims to be encrypted
    zipfile.BadZipFile,
)  # fmt: skip


def read_checkpoint_file(path: Path) -> Any:
    """The value stored in a checkpoint of any layout: dictionaries, lists, Modules and numpy arrays.

    Raises:
        CheckpointDamaged: too large, cut short, malformed, or naming something that no checkpoint needs.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointDamaged(f"the file has {size} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        if zipfile.is_zipfile(path):
            return read_zip(path)
        # a map, not a file: reading more bytes than there are must not allocate them first
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return read_stream(content)
    except MALFORMED as error:
        raise CheckpointDamaged(f"the file is malformed: {error}") from error


def read_zip(path: Path) -> Any:
    """What torch.save has written since version 1.6: a pickle and one member for each storage, stored uncompressed."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}

        def storage(key: str, kind: np.dtype[Any], count: int) -> np.ndarray:
            member = archive.getinfo(names[f"data/{key}"])
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != count * kind.itemsize:
                raise ValueError(f"storage {key} has {member.file_size} bytes, its pickle says {count * kind.itemsize}")
            return np.frombuffer(archive.read(member), dtype=kind)

        data = archive.getinfo(names["data.pkl"])
        if data.compress_type != zipfile.ZIP_STORED:
            raise ValueError("the pickle is compressed")
        return Resolver(storage).resolve(read_pickle(io.BytesIO(archive.read(data)), allowed))


def read_stream(file: IO[bytes] | mmap.mmap) -> Any:
    """A plain pickle, or torch's older stream: magic, protocol, system, value, keys, then every storage's numbers."""
    first = read_pickle(file, allowed)
    if first != MAGIC:
        return Resolver().resolve(first)
    if read_pickle(file, allowed) != 1001:
        raise ValueError("a stream of unknown protocol")
    read_pickle(file, allowed)  # the writing machine's sizes
    value, keys = read_pickle(file, allowed), read_pickle(file, allowed)
    described = {id_[2]: storage_shape(id_) for id_ in storage_ids(value)}
    values: dict[str, np.ndarray] = {}
    for key in keys:
        kind, count = described[key]
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(f"storage {key} has another length than its pickle says")
        values[key] = np.frombuffer(file.read(count * kind.itemsize), dtype=kind, count=count)
    return Resolver(lambda key, kind, count: values[key]).resolve(value)


def storage_ids(value: Any) -> Iterator[Any]:
    """The ids of all storages that a value refers to."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Persistent):
            yield value.id
        elif isinstance(value, Call):
            waiting += [*value.arguments, value.state, *(item for _, item in value.items)]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value


def storage_shape(id_: Any) -> tuple[np.dtype[Any], int]:
    """Element type and count of a storage's id: ("storage", class, key, location, count, ...)."""
    if not (isinstance(id_, tuple) and len(id_) >= 5 and id_[0] == "storage" and isinstance(id_[1], Symbol)):
        raise ValueError("a reference that is no storage")
    if id_[1].name not in STORAGES or not (isinstance(id_[4], int) and id_[4] >= 0):
        raise ValueError("a storage of unknown kind")
    return np.dtype(STORAGES[id_[1].name]), id_[4]
