"""Reading pickles and torch files as numpy arrays and plain values. Nothing is executed; this module needs no torch.

It reads zip files of torch.save, its older streams, numpy arrays inside pickles, and the objects of NVIDIA's persistent
pickles and of legacy TensorFlow pickles (as dictionaries of their state).
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

from engine.checkpoints.pickle_machine import Call, PersistentId, Symbol, read_pickle
from engine.errors import CheckpointDamaged

MAX_FILE_BYTES = 4 * 2**30
MAX_EXPANDED = 2**20  # numbers of a tensor that is larger than its storage, because strides of 0 repeat some
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's older streams
STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
}  # fmt: skip
UNUSED = {  # symbols that some checkpoints name and no layout needs: a call of one becomes None
    ("torch", "device"), ("torch", "Size"), ("torch", "float32"), ("torch", "float16"), ("torch", "float64"),
    ("torch", "contiguous_format"), ("torch", "channels_last"), ("builtins", "set"), ("__builtin__", "set"),
}  # fmt: skip


@dataclass(frozen=True)
class PickledObject:
    """An object of a checkpoint, such as a module: the name of its class, and its attributes."""

    class_name: str
    state: dict[str, Any]


@dataclass(frozen=True)
class TensorStorage:
    """The numbers behind one or more tensors."""

    values: np.ndarray  # one-dimensional


def is_allowed(symbol: Symbol) -> bool:
    """Tell whether a pickle may name the symbol."""
    key = (symbol.module, symbol.name)
    is_storage = symbol.module == "torch" and symbol.name in STORAGES
    return key in CONSTRUCTORS or key in UNUSED or is_storage or is_torch_module(symbol)


def is_torch_module(symbol: Symbol) -> bool:
    """Tell whether the symbol is one of torch's layers, whose state is read and whose code is never needed."""
    return symbol.module.startswith("torch.nn.modules.") and symbol.name.isidentifier()


StorageSource = Callable[[str, np.dtype[Any], int], np.ndarray]  # key, element type, count -> values


class ObjectBuilder:
    """Builds arrays and plain values of what read_pickle returns: symbols, calls and persistent ids."""

    def __init__(self, storage_source: StorageSource | None = None) -> None:
        """Take what reads the numbers of storages; None: the file has none."""
        self.storage_source = storage_source
        self.built: dict[int, Any] = {}  # by the id() of the value: one that occurs twice is built once
        self.sources: list[Any] = []  # the values, which must live as long as their id() is used

    def build(self, value: Any) -> Any:
        """Build a value and all that it contains."""
        if isinstance(value, (str, int, float, bool, bytes, type(None), Symbol, set)):
            return value
        if id(value) not in self.built:
            self.sources.append(value)
            self.built[id(value)] = self.build_new(value)
        return self.built[id(value)]

    def build_new(self, value: Any) -> Any:
        """Build a value that has not been built before."""
        if isinstance(value, dict):
            return {key: self.build(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self.build(item) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, PersistentId):
            return self.build_storage(self.build(value.id))
        if isinstance(value, Call):
            return self.build_call(value)
        return value

    def build_call(self, call: Call) -> Any:
        """Build what a call constructs; None for a symbol that no layout needs."""
        key = (call.function.module, call.function.name)
        arguments = [self.build(argument) for argument in call.arguments]
        state = self.build(call.state)
        if key in CONSTRUCTORS:
            construct_with_state: Constructor = STATE_CONSTRUCTORS.get(key, copy_state)
            value = CONSTRUCTORS[key](*arguments) if state is None else construct_with_state(arguments, state)
        elif is_torch_module(call.function):
            return PickledObject(call.function.name, state if isinstance(state, dict) else {})
        else:
            value = None
        if call.items and isinstance(value, dict):
            value |= {item: self.build(content) for item, content in call.items}
        return value

    def build_storage(self, id_: Any) -> TensorStorage:
        """Read the storage of a persistent id."""
        if self.storage_source is None:
            raise ValueError("a reference outside the file")
        kind, count = storage_type(id_)
        return TensorStorage(self.storage_source(str(id_[2]), kind, count))


def rebuild_tensor(storage: TensorStorage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """Return a read-only view of a storage; offset and stride count numbers.

    Raises:
        ValueError: the view reaches beyond the storage, or is far larger than it.
    """
    values = storage.values
    if len(size) != len(stride) or any(number < 0 for number in (offset, *size, *stride)):
        raise ValueError("a tensor of impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > max(len(values), MAX_EXPANDED) or (0 not in size and last >= len(values)):
        raise ValueError("a tensor larger than its storage")
    steps = tuple(step * values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def load_from_bytes(data: bytes) -> TensorStorage:
    """Read a storage that torch wrote as a stream of its own inside a pickle."""
    value = read_stream(io.BytesIO(data))
    if not isinstance(value, TensorStorage):
        raise ValueError("an embedded stream without a storage")
    return value


def persistent_object(meta: dict[str, Any]) -> PickledObject:
    """Build an object of NVIDIA's persistent classes."""
    return PickledObject(str(meta["class_name"]), dict(meta["state"]))


def numpy_scalar(kind: np.dtype[Any], data: bytes) -> Any:
    """Build a numpy scalar as a number of Python."""
    return np.frombuffer(to_bytes(data), dtype=require_numeric(kind), count=1)[0].item()


def require_numeric(kind: Any) -> np.dtype[Any]:
    """Return the element type if its elements are numbers.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(kind, np.dtype) or kind.hasobject or kind.kind not in "fiub":
        raise ValueError("an array of something else than numbers")
    return kind


def numpy_array(_: list[Any], state: tuple[Any, ...]) -> np.ndarray:
    """Build an array of the state that numpy's __reduce__ gives it."""
    *_, shape, kind, fortran, data = state
    values = np.frombuffer(to_bytes(data), dtype=require_numeric(kind))
    return values.reshape(shape, order="F" if fortran else "C")


def to_bytes(data: bytes | str) -> bytes:
    """Return bytes that Python 2 or protocol 2 may have written as latin-1 text."""
    return data.encode("latin1") if isinstance(data, str) else data


def numpy_type(arguments: list[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    """Build an element type with the byte order of its state."""
    kind = np.dtype(str(arguments[0]))
    return kind.newbyteorder(">") if len(state) > 1 and state[1] == ">" else kind


def copy_state(arguments: list[Any], state: Any) -> Any:
    """Take the state as the object, whatever its class."""
    return dict(state) if isinstance(state, dict) else state


def tensorflow_network(arguments: list[Any], state: dict[str, Any]) -> PickledObject:
    """Build a network of the legacy TensorFlow pickles."""
    return PickledObject("Network", state)


def no_object(*_: Any) -> None:
    """Build nothing: the pickle sets the state afterwards, and STATE_CONSTRUCTORS builds the object of it."""


def pairs_to_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Build a dictionary of (key, value) pairs."""
    return dict(pairs)


Constructor = Callable[..., Any]
CONSTRUCTORS: dict[tuple[str, str], Constructor] = {  # by module and name of what a pickle calls; they take its arguments
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.storage", "_load_from_bytes"): load_from_bytes,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_object,
    ("collections", "OrderedDict"): pairs_to_dict,
    ("dnnlib.util", "EasyDict"): lambda *_: {},
    ("dnnlib", "EasyDict"): lambda *_: {},
    ("argparse", "Namespace"): lambda *_: {},
    ("dnnlib.tflib.network", "Network"): lambda *_: PickledObject("Network", {}),
    ("numpy", "dtype"): lambda name, *_: np.dtype(str(name)),
    ("numpy", "ndarray"): no_object,
    ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
    ("numpy.core.multiarray", "scalar"): numpy_scalar,
    ("numpy._core.multiarray", "scalar"): numpy_scalar,
    ("numpy.core.multiarray", "_reconstruct"): no_object,
    ("numpy._core.multiarray", "_reconstruct"): no_object,
}
STATE_CONSTRUCTORS: dict[tuple[str, str], Constructor] = {  # for calls whose object gets a state; (arguments, state) -> object
    ("numpy", "dtype"): numpy_type,
    ("dnnlib.tflib.network", "Network"): tensorflow_network,
    ("numpy.core.multiarray", "_reconstruct"): numpy_array,
    ("numpy._core.multiarray", "_reconstruct"): numpy_array,
}


READ_ERRORS = (  # what reading a damaged file may raise
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError, EOFError,
    RuntimeError,  # RecursionError, NotImplementedError, and what zipfile raises for a member that claims to be encrypted
    zipfile.BadZipFile,
)  # fmt: skip


def read_checkpoint_file(path: Path) -> Any:
    """Return the value of a checkpoint of any layout: dictionaries, lists, PickledObjects and numpy arrays.

    Raises:
        CheckpointDamaged: the file is too large, cut short or malformed, or names something that no checkpoint needs.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointDamaged(f"the file has {size} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        if zipfile.is_zipfile(path):
            return read_zip(path)
        # mapped into memory: reading more bytes than the file has must not allocate them first
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return read_stream(content)
    except READ_ERRORS as error:
        raise CheckpointDamaged(f"the file is malformed: {error}") from error


def read_zip(path: Path) -> Any:
    """Read what torch.save has written since version 1.6: a pickle and one member for each storage, all uncompressed."""
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
        return ObjectBuilder(storage).build(read_pickle(io.BytesIO(archive.read(data)), is_allowed))


def read_stream(file: IO[bytes] | mmap.mmap) -> Any:
    """Read a plain pickle, or torch's older stream: magic, protocol, system, value, keys, then the numbers of all storages."""
    first = read_pickle(file, is_allowed)
    if first != MAGIC:
        return ObjectBuilder().build(first)
    if read_pickle(file, is_allowed) != 1001:
        raise ValueError("a stream of unknown protocol")
    read_pickle(file, is_allowed)  # the sizes of numbers on the machine that wrote it
    value, keys = read_pickle(file, is_allowed), read_pickle(file, is_allowed)
    storage_types = {id_[2]: storage_type(id_) for id_ in storage_ids(value)}
    values: dict[str, np.ndarray] = {}
    for key in keys:
        kind, count = storage_types[key]
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(f"storage {key} has another length than its pickle says")
        values[key] = np.frombuffer(file.read(count * kind.itemsize), dtype=kind, count=count)
    return ObjectBuilder(lambda key, kind, count: values[key]).build(value)


def storage_ids(value: Any) -> Iterator[Any]:
    """Yield the ids of all storages that a value refers to."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, PersistentId):
            yield value.id
        elif isinstance(value, Call):
            waiting += [*value.arguments, value.state, *(item for _, item in value.items)]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value


def storage_type(id_: Any) -> tuple[np.dtype[Any], int]:
    """Return the element type and the count of a storage.

    Args:
        id_: ("storage", class, key, location, count, ...).

    Raises:
        ValueError: it is no such id.
    """
    if not (isinstance(id_, tuple) and len(id_) >= 5 and id_[0] == "storage" and isinstance(id_[1], Symbol)):
        raise ValueError("a reference that is no storage")
    if id_[1].name not in STORAGES or not (isinstance(id_[4], int) and id_[4] >= 0):
        raise ValueError("a storage of unknown kind")
    return np.dtype(STORAGES[id_[1].name]), id_[4]
