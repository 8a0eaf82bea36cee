"""Reading pickles and torch files as numpy arrays and plain values. Nothing is executed; this module needs no torch.

It reads zip files of torch.save, its older streams, numpy arrays inside pickles, and the objects of NVIDIA's persistent
pickles and of legacy TensorFlow pickles (as dictionaries of their state).
"""

import errno
import io
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.checkpoints.budget import MAX_DIRECTORY_BYTES, ReadingBudget, check_depth
from engine.checkpoints.pickle_machine import Call, PersistentId, Symbol, check_key, read_pickle
from engine.checkpoints.values import (
    PickledObject,
    TensorStorage,
    expect_dict,
    expect_integer,
    expect_integers,
    expect_text,
    mismatch,
)
from engine.errors import CheckpointDamaged
from engine.printable import quote

MAX_FILE_BYTES = 4 * 2**30
MAX_EXPANDED = 2**20  # numbers of a tensor that is larger than its storage, because strides of 0 repeat some
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's older streams
STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
}  # fmt: skip
NUMERIC_TYPE = r"[<>=|]?(b1|\?|[iu][1248]|f[248])"  # numpy's codes of element types that are numbers
UNUSED = {  # symbols that some checkpoints name and no layout needs: a call of one becomes None
    ("torch", "device"), ("torch", "Size"), ("torch", "float32"), ("torch", "float16"), ("torch", "float64"),
    ("torch", "contiguous_format"), ("torch", "channels_last"), ("builtins", "set"), ("__builtin__", "set"),
}  # fmt: skip
EMBEDDED_STREAM = ("torch.storage", "_load_from_bytes")


def is_allowed(symbol: Symbol) -> bool:
    """Tell whether a pickle may name the symbol."""
    key = (symbol.module, symbol.name)
    is_storage = symbol.module == "torch" and symbol.name in STORAGES
    return key in CONSTRUCTORS or key in UNUSED or key == EMBEDDED_STREAM or is_storage or is_torch_module(symbol)


def is_torch_module(symbol: Symbol) -> bool:
    """Tell whether the symbol is one of torch's layers, whose state is read and whose code is never needed."""
    return symbol.module.startswith("torch.nn.modules.") and symbol.name.isidentifier()


StorageSource = Callable[[str, np.dtype[Any], int], np.ndarray]  # key, element type, count -> values


class ObjectBuilder:
    """Builds arrays and plain values of what read_pickle returns: symbols, calls and persistent ids."""

    def __init__(self, budget: ReadingBudget, storage_source: StorageSource | None = None, *, is_embedded: bool = False) -> None:
        """Build nothing yet.

        Args:
            budget: what building is taken off.
            storage_source: reads the numbers of storages; None: the file has none.
            is_embedded: whether the values are of a stream inside a pickle, which has no further streams in it.
        """
        self.budget = budget
        self.storage_source = storage_source
        self.is_embedded = is_embedded
        self.depth = 0
        self.built: dict[int, Any] = {}  # by the id() of the value: one that occurs twice is built once
        self.sources: list[Any] = []  # the values, which must live as long as their id() is used
        self.storages: dict[str, TensorStorage] = {}  # by key

    def build(self, value: Any) -> Any:
        """Build a value and all that it contains. Raises CheckpointDamaged when that is too much or nested too deep."""
        if isinstance(value, (str, int, float, bool, bytes, type(None), Symbol, set)):
            return value
        if id(value) not in self.built:
            self.sources.append(value)
            self.depth += 1
            check_depth(self.depth)
            self.built[id(value)] = self.build_new(value)
            self.depth -= 1
        return self.built[id(value)]

    def build_new(self, value: Any) -> Any:
        """Build a value that has not been built before."""
        self.budget.spend_operations(1 + count_items(value))
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
        self.spend_on_call([*arguments, state])
        value: Any = None
        if key in CONSTRUCTORS:
            construct_with_state: Constructor = STATE_CONSTRUCTORS.get(key, copy_state)
            value = CONSTRUCTORS[key](*arguments) if state is None else construct_with_state(arguments, state)
        elif key == EMBEDDED_STREAM:
            value = self.build_embedded(*arguments)
        elif is_torch_module(call.function):
            value = PickledObject(call.function.name, state if isinstance(state, dict) else {})
        if call.items and isinstance(value, dict):
            value |= {item: self.build(content) for item, content in call.items}
        return value

    def spend_on_call(self, values: list[Any]) -> None:
        """Take off what a construction may do with its arguments and state: copy each item and each text of them.

        The same value may be an argument of any number of calls: each pays.
        """
        for value in values:
            self.budget.spend_operations(count_items(value))
            for part in (value, *(value if isinstance(value, tuple) else ())):  # numpy has the numbers in a tuple of state
                if isinstance(part, (str, bytes, bytearray)):
                    self.budget.spend_bytes(len(part))

    def build_embedded(self, data: Any) -> TensorStorage:
        """Read a storage that torch wrote as a stream of its own inside a pickle."""
        if self.is_embedded or not isinstance(data, bytes):
            raise mismatch("an embedded stream", "bytes in the file's own pickle", data)
        value = read_stream(io.BytesIO(data), self.budget, is_embedded=True)
        if not isinstance(value, TensorStorage):
            raise mismatch("an embedded stream", "a storage", value)
        return value

    def build_storage(self, id_: Any) -> TensorStorage:
        """Read the storage of a persistent id; one that is named again is the same."""
        if self.storage_source is None:
            raise ValueError("a reference outside the file")
        key, kind, count = storage_type(id_)
        if key not in self.storages:
            self.storages[key] = TensorStorage(self.storage_source(key, kind, count))
        known = self.storages[key].values
        if (known.dtype, len(known)) != (kind, count):
            raise ValueError(f"storage {key} is of two kinds")
        return self.storages[key]


def count_items(value: Any) -> int:
    """Return how many items a value has within it, or how many a call sets."""
    return len(value.items) if isinstance(value, Call) else len(value) if isinstance(value, (dict, list, tuple, set)) else 0


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """Return a read-only view of a storage; offset and stride count numbers.

    Raises:
        CheckpointDamaged, ValueError: the view reaches beyond the storage, or is far larger than it.
    """
    if not isinstance(storage, TensorStorage):
        raise mismatch("the storage of a tensor", "a storage", storage)
    values, offset = storage.values, expect_integer("the offset of a tensor", offset)
    size, stride = expect_integers("the size of a tensor", size), expect_integers("the strides of a tensor", stride)
    if len(size) != len(stride):
        raise ValueError("a tensor of impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > max(len(values), MAX_EXPANDED) or (0 not in size and last >= len(values)):
        raise ValueError("a tensor larger than its storage")
    steps = tuple(step * values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def persistent_object(meta: Any) -> PickledObject:
    """Build an object of NVIDIA's persistent classes."""
    meta = expect_dict("what describes a persistent object", meta)
    if not isinstance(meta["state"], dict):
        raise mismatch("the state of a persistent object", "a dictionary", meta["state"])
    return PickledObject(expect_text("class_name", meta["class_name"]), meta["state"])  # not copied: any number may share it


def numpy_scalar(kind: Any, data: Any) -> Any:
    """Build a numpy scalar as a number of Python."""
    return np.frombuffer(to_bytes(data), dtype=require_numeric(kind), count=1)[0].item()


def require_numeric(kind: Any) -> np.dtype[Any]:
    """Return the element type if its elements are numbers.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(kind, np.dtype):
        raise ValueError("an array of something else than numbers")
    return kind


def numpy_array(_: list[Any], state: Any) -> np.ndarray:
    """Build an array of the state that numpy's __reduce__ gives it."""
    *_, shape, kind, fortran, data = state
    shape = expect_integers("the shape of an array", shape)
    values = np.frombuffer(to_bytes(data), dtype=require_numeric(kind))
    return values.reshape(shape, order="F" if fortran is True else "C")


def to_bytes(data: Any) -> bytes:
    """Return bytes that Python 2 or protocol 2 may have written as latin-1 text."""
    if not isinstance(data, (bytes, bytearray, str)):
        raise mismatch("the numbers of an array", "bytes", data)
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def encode_text(text: Any, *_: Any) -> bytes:
    """Return text as latin-1, as protocol 2 keeps bytes."""
    if not isinstance(text, str):
        raise mismatch("what is encoded", "a text", text)
    return text.encode("latin1")


def numpy_type(arguments: list[Any], state: Any) -> np.dtype[Any] | None:
    """Build an element type with the byte order of its state; None if its elements are no numbers."""
    kind = plain_type(*arguments)
    return kind.newbyteorder(">") if kind is not None and len(state) > 1 and state[1] == ">" else kind


def plain_type(name: Any, *_: Any) -> np.dtype[Any] | None:
    """Build an element type; None if its elements are no numbers."""
    return np.dtype(name) if re.fullmatch(NUMERIC_TYPE, expect_text("an element type", name)) else None


def copy_state(arguments: list[Any], state: Any) -> Any:
    """Take the state as the object, whatever its class."""
    return dict(state) if isinstance(state, dict) else state


def tensorflow_network(arguments: list[Any], state: Any) -> PickledObject:
    """Build a network of the legacy TensorFlow pickles."""
    return PickledObject("Network", expect_dict("a network's state", state))


def no_object(*_: Any) -> None:
    """Build nothing: the pickle sets the state afterwards, and STATE_CONSTRUCTORS builds the object of it."""


def pairs_to_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Build a dictionary of (key, value) pairs."""
    made: dict[Any, Any] = {}
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        check_key(key)
        made[key] = value
    return made


Constructor = Callable[..., Any]
CONSTRUCTORS: dict[tuple[str, str], Constructor] = {  # by module and name of what a pickle calls; they take its arguments
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_object,
    ("collections", "OrderedDict"): pairs_to_dict,
    ("dnnlib.util", "EasyDict"): lambda *_: {},
    ("dnnlib", "EasyDict"): lambda *_: {},
    ("argparse", "Namespace"): lambda *_: {},
    ("dnnlib.tflib.network", "Network"): lambda *_: PickledObject("Network", {}),
    ("numpy", "dtype"): plain_type,
    ("numpy", "ndarray"): no_object,
    ("_codecs", "encode"): encode_text,
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
    RuntimeError,  # NotImplementedError, and what zipfile raises for a member that claims to be encrypted
    zipfile.BadZipFile, struct.error,
)  # fmt: skip


def read_checkpoint_file(path: Path, budget: ReadingBudget) -> Any:
    """Return the value of a checkpoint of any layout: dictionaries, lists, PickledObjects and numpy arrays.

    Raises:
        CheckpointDamaged: the file is too large, cut short or malformed, names something that no checkpoint needs, or takes
            more than the budget has.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointDamaged(f"the file has {size} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        if zipfile.is_zipfile(path):
            return read_zip(path, budget)
        # mapped into memory: reading more bytes than the file has must not allocate them first
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return read_stream(content, budget)
    except (MemoryError, *READ_ERRORS) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            raise CheckpointDamaged("reading the file takes more memory than it may") from error
        raise CheckpointDamaged(f"the file is malformed: {error}") from error


class DirectoryReader(io.FileIO):
    """A zip file whose list of members is limited: zipfile reads the list whole, whatever length the file says it has."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.limit = MAX_DIRECTORY_BYTES  # of one read

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does. Raises ValueError when that is more than the limit."""
        if size is not None and size > self.limit:
            raise ValueError(f"the archive's list of members has {size} bytes, at most {self.limit} are read")
        return super().read(-1 if size is None else size) or b""


def read_zip(path: Path, budget: ReadingBudget) -> Any:
    """Read what torch.save has written since version 1.6: a pickle and one member for each storage, all uncompressed."""
    with DirectoryReader(path) as file, zipfile.ZipFile(file) as archive:
        file.limit = path.stat().st_size
        budget.spend_operations(len(archive.filelist))
        names = {name.partition("/")[2]: name for name in archive.namelist()}

        def read_member(name: str) -> bytes:
            member = archive.getinfo(names[name])
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > file.limit:
                raise ValueError(f"{quote(name)} is compressed, or larger than the file")
            budget.spend_bytes(member.file_size)
            return archive.read(member)

        def storage(key: str, kind: np.dtype[Any], count: int) -> np.ndarray:
            data = read_member(f"data/{key}")
            if len(data) != count * kind.itemsize:
                raise ValueError(f"storage {quote(key)} has {len(data)} bytes, its pickle says {count * kind.itemsize}")
            return np.frombuffer(data, dtype=kind)

        value = read_pickle(io.BytesIO(read_member("data.pkl")), is_allowed, budget)
        return ObjectBuilder(budget, storage).build(value)


def read_stream(file: IO[bytes] | mmap.mmap, budget: ReadingBudget, *, is_embedded: bool = False) -> Any:
    """Read a plain pickle, or torch's older stream: magic, protocol, system, value, keys, then the numbers of all storages."""
    first = read_pickle(file, is_allowed, budget)
    if first != MAGIC:
        return ObjectBuilder(budget, is_embedded=is_embedded).build(first)
    if read_pickle(file, is_allowed, budget) != 1001:
        raise ValueError("a stream of unknown protocol")
    read_pickle(file, is_allowed, budget)  # the sizes of numbers on the machine that wrote it
    value, keys = read_pickle(file, is_allowed, budget), read_pickle(file, is_allowed, budget)
    kinds = {key: (kind, count) for key, kind, count in map(storage_type, storage_ids(value, budget))}
    values: dict[str, np.ndarray] = {}
    for key in keys:
        kind, count = kinds[expect_text("the key of a storage", key)]
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(f"storage {quote(key)} has another length than its pickle says")
        budget.spend_bytes(count * kind.itemsize)
        values[key] = np.frombuffer(file.read(count * kind.itemsize), dtype=kind, count=count)
    return ObjectBuilder(budget, lambda key, kind, count: values[key], is_embedded=is_embedded).build(value)


def storage_ids(value: Any, budget: ReadingBudget) -> Iterator[Any]:
    """Yield the ids of all storages that a value refers to."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        budget.spend_operations(1)
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


def storage_type(id_: Any) -> tuple[str, np.dtype[Any], int]:
    """Return the key, the element type and the count of a storage.

    Args:
        id_: ("storage", class, key, location, count, ...).

    Raises:
        CheckpointDamaged, ValueError: it is no such id.
    """
    if not (isinstance(id_, tuple) and len(id_) >= 5 and id_[0] == "storage" and isinstance(id_[1], Symbol)):
        raise ValueError("a reference that is no storage")
    if id_[1].name not in STORAGES:
        raise ValueError("a storage of unknown kind")
    key, count = expect_text("the key of a storage", id_[2]), expect_integer("the length of a storage", id_[4])
    return key, np.dtype(STORAGES[id_[1].name]), count
