"""Writes pickles, zip files and torch's older streams opcode by opcode, so that they can hold what no pickler writes."""

import io
import struct
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.checkpoints.torch_files import MAGIC, PickledObject

CONTAINERS = ("plain", "zip", "stream", "embedded")  # where the numbers lie: in arrays, members, behind the pickle, in streams
TYPES = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "<i8": "LongStorage", "|u1": "ByteStorage"}


@dataclass(eq=False)
class Raw:
    """Opcodes that push a value."""

    code: bytes


@dataclass(eq=False)
class Called:
    """A call that the pickle makes; each one is written anew, and its arguments are memoized."""

    module: str
    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(eq=False)
class Persistent:
    """A persistent id."""

    id: Any


@dataclass
class Writer:
    """Writes one pickle in a container."""

    container: str
    layout: str = ""
    memo: dict[int, int] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    storages: list[bytes] = field(default_factory=list)

    def code(self, value: Any) -> bytes:
        """Return opcodes that push the value; the same object is pushed from the memo the second time."""
        if id(value) in self.memo:
            return b"j" + struct.pack("<I", self.memo[id(value)])
        written = self.new_code(value)
        if isinstance(value, (dict, list, tuple, str, bytes, np.ndarray, PickledObject)):
            self.kept.append(value)
            self.memo[id(value)] = len(self.memo)
            written += b"r" + struct.pack("<I", self.memo[id(value)])
        return written

    def new_code(self, value: Any) -> bytes:  # noqa: C901  # one case for each type
        match value:
            case Raw():
                return value.code
            case Called():
                call = self.symbol(value.module, value.name) + self.code(value.arguments) + b"R"
                return call if value.state is None else call + self.code(value.state) + b"b"
            case Persistent():
                return self.code(value.id) + b"Q"
            case None | True | False:
                return {None: b"N", True: b"\x88", False: b"\x89"}[value]
            case int():
                data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                return b"\x8a" + bytes([len(data)]) + data if len(data) < 256 else b"\x8b" + struct.pack("<I", len(data)) + data
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                data = value.encode("utf-8", "surrogatepass")
                return b"X" + struct.pack("<I", len(data)) + data
            case bytes():
                return b"B" + struct.pack("<I", len(value)) + value
            case list():
                return b"](" + b"".join(map(self.code, value)) + b"e"
            case tuple():
                return b"(" + b"".join(map(self.code, value)) + b"t"
            case set():
                return b"\x8f(" + b"".join(map(self.code, value)) + b"\x90"
            case dict():
                return b"}(" + b"".join(self.code(key) + self.code(item) for key, item in value.items()) + b"u"
            case PickledObject():
                return self.object_code(value)
            case np.ndarray():
                return self.array_code(value)
        raise TypeError(type(value))

    def symbol(self, module: str, name: str) -> bytes:
        return f"c{module}\n{name}\n".encode()

    def object_code(self, value: PickledObject) -> bytes:
        if self.layout == "tensorflow":
            return self.symbol("dnnlib.tflib.network", "Network") + b")\x81" + self.code(value.state) + b"b"
        meta = {"type": "class", "version": 6, "module_src": "", "class_name": value.class_name, "state": value.state}
        return self.code(Called("torch_utils.persistence", "_reconstruct_persistent_obj", (meta,)))

    def array_code(self, array: np.ndarray) -> bytes:
        array = np.ascontiguousarray(array)
        if self.container == "plain":
            kind = Called("numpy", "dtype", (array.dtype.str[1:], False, True), (3, "<", None, None, None, -1, -1, 0))
            state = (1, array.shape, kind, False, array.tobytes())
            return self.code(Called("numpy.core.multiarray", "_reconstruct", (Called("numpy", "ndarray", ()), (0,), b"b"), state))
        return self.code(tensor(self.storage(array), array.shape))

    def storage(self, array: np.ndarray) -> Any:
        """Return what stands for a storage in the pickle, which is stored where the container has its numbers."""
        kind, data = TYPES[array.dtype.str], array.tobytes()
        if self.container == "embedded":
            return Called("torch.storage", "_load_from_bytes", (stream_of(kind, data, array.size),))
        self.storages.append(struct.pack("<Q", array.size) + data if self.container == "stream" else data)
        return Persistent(storage_id(kind, str(len(self.storages) - 1), array.size))

    def file(self, value: Any) -> bytes:
        """Return a file with this value."""
        pickled = pickle_of(self.code(value))
        if self.container == "zip":
            return zip_of({"data.pkl": pickled} | {f"data/{key}": data for key, data in enumerate(self.storages)})
        if self.container != "stream":
            return pickled
        keys = [str(key) for key in range(len(self.storages))]
        head = [MAGIC, 1001, {"little_endian": True}]
        parts = [*(pickle_of(Writer("plain").code(part)) for part in head), pickled, pickle_of(Writer("plain").code(keys))]
        return b"".join([*parts, *self.storages])


def stream_of(kind: str, data: bytes, count: int) -> bytes:
    """Return a stream whose value is a storage."""
    writer = Writer("stream")
    writer.storages.append(struct.pack("<Q", count) + data)
    return writer.file(Persistent(storage_id(kind, "0", count)))


def storage_id(kind: str, key: Any, count: Any) -> tuple[Any, ...]:
    return ("storage", Raw(f"ctorch\n{kind}\n".encode()), key, "cpu", count, None)


def tensor(storage: Any, shape: Any, stride: Any = None, offset: Any = 0) -> Called:
    """Return the call that makes a tensor of a storage."""
    if stride is None:
        stride = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return Called("torch._utils", "_rebuild_tensor_v2", (storage, offset, shape, stride, False, {}))


def pickle_of(code: bytes) -> bytes:
    return b"\x80\x04" + code + b"."


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()
