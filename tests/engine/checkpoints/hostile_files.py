"""Checkpoints made by hand to stop, crash or flood whoever reads them: families, each in variants over layouts and containers.

python -m tests.engine.checkpoints.hostile_files FOLDER    # writes them all
"""

import copy
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoints.budget import ReadingBudget
from engine.checkpoints.torch_files import PickledObject, read_checkpoint_file
from tests.engine.checkpoints.pickle_writer import (
    CONTAINERS,
    Called,
    Persistent,
    Raw,
    Writer,
    pickle_of,
    storage_id,
    stream_of,
    tensor,
    zip_of,
)
from tests.generators import DATA

FILES = {
    "nvidia": "sg2-64-nvidia.pkl",
    "tensorflow": "sg2-64-tf.pkl",
    "rosinality": "sg2-64-rosinality.pt",
    "mmagic": "sg2-64-mmagic.pth",
}
MERSENNE = 2**61 - 1  # Python's hashes of numbers are remainders by it
Make = Callable[[], bytes]


@cache
def fixture(layout: str) -> Any:
    return read_checkpoint_file(DATA / FILES[layout], ReadingBudget.for_file(2**30))


def changed(layout: str, change: Callable[[Any], None], container: str = "plain") -> bytes:
    """Return a good checkpoint of a layout with a change."""
    value = copy.deepcopy(fixture(layout), {id(x): x for x in arrays(fixture(layout))})
    if layout == "tensorflow":
        value = list(value)
    change(value)
    return Writer(container, layout).file(tuple(value) if layout == "tensorflow" else value)


def arrays(value: Any) -> Iterator[np.ndarray]:
    """Yield the arrays within a value: a copy may share them."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, PickledObject):
        yield from arrays(value.state)
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays(item)


def module(value: Any, path: str) -> dict[str, Any]:
    """Return the state of a module of NVIDIA's by its dotted path."""
    found = value["G_ema"]
    for name in filter(None, path.split(".")):
        found = found.state["_modules"][name]
    return found.state


def replaced(layout: str, name: str, evil: Any) -> Callable[[Any], None]:
    """Return the change that puts a value where a tensor belongs."""

    def change(value: Any) -> None:
        if layout == "nvidia":
            path, _, last = name.rpartition(".")
            state = module(value, path)
            (state["_buffers"] if last in state["_buffers"] else state["_parameters"])[last] = evil
        elif layout == "tensorflow":
            part, _, rest = name.partition("/")
            state = value[2].state if not rest else value[2].state["components"][part].state
            state["variables"] = [(key, evil if key == (rest or part) else item) for key, item in state["variables"]]
        else:
            value["g_ema" if layout == "rosinality" else "state_dict"][name] = evil

    return change


TENSORS = {
    "nvidia": ["synthesis.b4.const", "synthesis.b8.conv0.weight", "synthesis.b8.conv1.bias", "synthesis.b64.conv1.affine.weight",
               "mapping.fc0.weight", "mapping.w_avg", "synthesis.b16.conv0.noise_const", "synthesis.b4.torgb.weight"],
    "tensorflow": ["synthesis/4x4/Const/const", "synthesis/8x8/Conv0_up/weight", "synthesis/8x8/Conv1/bias",
                   "synthesis/64x64/Conv1/mod_weight", "mapping/Dense0/weight", "dlatent_avg", "synthesis/noise3",
                   "synthesis/4x4/Conv/mod_bias"],
    "rosinality": ["input.input", "convs.0.conv.weight", "convs.1.activate.bias", "convs.7.conv.modulation.weight",
                   "style.1.weight", "noises.noise_3", "to_rgb1.conv.weight", "conv1.conv.weight"],
    "mmagic": ["generator_ema.constant_input.input", "generator_ema.convs.0.conv.weight_orig",
               "generator_ema.convs.1.activate.bias", "generator_ema.convs.7.conv.style_modulation.linear.weight_orig",
               "generator_ema.style_mapping.1.linear.weight_orig", "generator_ema.injected_noise_3",
               "generator_ema.to_rgb1.conv.weight_orig", "generator_ema.conv1.conv.weight_orig"],
}  # fmt: skip
NO_TENSORS: dict[str, Any] = {
    "text": "x", "bytes": b"x", "number": 10**30, "none": None, "table": {"a": 1}, "list": [1.0] * 9,
    "scalar": np.ones((), "f4"), "row": np.zeros(3, "f4"), "empty": np.zeros((0, 4, 4), "f4"),
    "many axes": np.zeros((1,) * 8, "f4"), "huge": np.full((1, 32, 4, 4), 1e300), "object": PickledObject("X", {}),
}  # fmt: skip


def wrong_types() -> Iterator[tuple[str, Make]]:
    """Something else where a tensor belongs."""
    containers = cycle(CONTAINERS)
    for layout, (kind, evil) in product(FILES, NO_TENSORS.items()):
        for name in TENSORS[layout][hash_of(kind) % 3 :: 3]:
            container = next(containers) if layout != "tensorflow" else "plain"
            yield (
                f"{layout} {name} {kind} {container}",
                lambda a=layout, n=name, e=evil, c=container: changed(a, replaced(a, n, e), c),
            )


def hash_of(text: str) -> int:
    return sum(text.encode())


SETTINGS: dict[str, Any] = {
    "bytes": b"abc", "table": {"a": 1}, "array": np.zeros(4), "text": "abc", "huge": 10**400, "large": 10**30,
    "nan": float("nan"), "inf": float("inf"), "negative": -256, "zero": 0, "true": True, "list": [256],
    "long text": "x" * 10**6, "control": "\x1b[2J\x07",
}  # fmt: skip


def wrong_settings() -> Iterator[tuple[str, Make]]:
    """Settings of NVIDIA's modules and of TensorFlow's networks that are none."""
    for (kind, evil), name in product(SETTINGS.items(), ("conv_clamp", "architecture", "label_size")):
        yield (
            f"tensorflow {name} {kind}",
            lambda n=name, e=evil: changed("tensorflow", lambda value: value[2].state["static_kwargs"].update({n: e})),
        )
        if name != "label_size":
            yield f"nvidia {name} {kind}", lambda n=name, e=evil: changed("nvidia", lambda value: set_everywhere(value, n, e))


def set_everywhere(value: Any, name: str, evil: Any) -> None:
    for block in module(value, "synthesis")["_modules"].values():
        for layer in block.state["_modules"].values():
            layer.state[name] = evil


def wrong_structure() -> Iterator[tuple[str, Make]]:
    """Tables, lists and objects that are something else."""
    evils: dict[str, Any] = {"none": None, "number": 7, "text": "abc", "list": [1, 2], "table": {1: 2}, "array": np.zeros(3)}
    for kind, evil in evils.items():
        for key in ("_parameters", "_buffers", "_modules"):
            yield (
                f"nvidia {key} {kind}",
                lambda k=key, e=evil: changed("nvidia", lambda v: module(v, "synthesis.b8").update({k: e})),
            )
        for key in ("variables", "components", "static_kwargs"):
            yield f"tensorflow {key} {kind}", lambda k=key, e=evil: changed("tensorflow", lambda v: v[2].state.update({k: e}))
        yield f"mmagic state_dict {kind}", lambda e=evil: Writer("zip").file({"state_dict": e})
        yield f"rosinality g_ema {kind}", lambda e=evil: Writer("stream").file({"g_ema": e})
        yield f"nvidia meta {kind}", lambda e=evil: Writer("plain").file({"G_ema": persistent(e)})


def persistent(meta: Any) -> Called:
    return Called("torch_utils.persistence", "_reconstruct_persistent_obj", (meta,))


def large_numbers() -> Iterator[tuple[str, Make]]:
    """Layers of impossible numbers, which are exponents of 2 where they are believed."""
    digits = {
        "2^33": str(2**33),
        "5 digits": "99999",
        "400 digits": "9" * 400,
        "5000 digits": "9" * 5000,
        "arabic": "٣٣",
        "17": "17",
    }
    names = {
        "rosinality": ["noises.noise_{}", "convs.{}.conv.weight", "to_rgbs.{}.bias", "style.{}.weight"],
        "mmagic": ["generator_ema.injected_noise_{}", "generator_ema.convs.{}.activate.bias", "generator_ema.to_rgbs.{}.bias"],
    }
    small = np.zeros((1, 1, 4, 4), "f4")
    for layout, (kind, number) in product(names, digits.items()):
        for name in names[layout]:
            change = replaced(layout, name.format(number), small)
            yield f"{layout} {name} {kind}", lambda a=layout, e=change: changed(a, e, "zip")
    for kind, number in digits.items():
        yield f"nvidia block {kind}", lambda n=number: changed("nvidia", lambda v: add_block(v, f"b{n}"))
        for name in ("{0}x{0}/Conv1/weight", "noise{0}"):
            variable = name.format(number)
            yield f"tensorflow {name} {kind}", lambda n=variable: changed("tensorflow", lambda v: add_variable(v, n, small))


def add_block(value: Any, name: str) -> None:
    blocks = module(value, "synthesis")["_modules"]
    blocks[name] = blocks["b8"]


def add_variable(value: Any, name: str, array: np.ndarray) -> None:
    value[2].state["components"]["synthesis"].state["variables"] += [(name, array)]


def module_graphs() -> Iterator[tuple[str, Make]]:
    """Modules that lie in each other again and again: a walk by name visits exponentially many."""

    def graph(depth: int, width: int, container: str, name: str = "m") -> bytes:
        inner = PickledObject("M", {"_modules": {}, "_parameters": {"weight": np.zeros(1, "f4")}})
        for _ in range(depth):
            inner = PickledObject("M", {"_modules": {f"{name}{i}": inner for i in range(width)}})
        return Writer(container).file({"G_ema": inner, "D": inner})

    for depth, width in ((12, 3), (18, 2), (18, 8), (40, 2), (45, 1), (2, 60_000)):
        for container in ("plain", "zip", "stream"):
            yield f"{depth} deep {width} wide {container}", lambda d=depth, w=width, c=container: graph(d, w, c)
    yield "long names", lambda: graph(15, 2, "plain", "x" * 900)

    def endless() -> bytes:
        loop = Called("torch.nn.modules.container", "Sequential", (), {"_modules": Raw(b"h\x00")})
        return pickle_of(b"}\x94X\x04\0\0\0self" + Writer("plain").code(loop) + b"s")

    yield "in itself", endless


def colliding_keys() -> Iterator[tuple[str, Make]]:
    """Keys of tables, sets and memos whose hashes are equal."""
    count = 20_000
    numbers = [k * MERSENNE for k in range(1, count)]
    pieces = b"".join(b"\x8a\x0f" + number.to_bytes(15, "little") for number in numbers)
    pairs = b"".join(b"\x8a\x0f" + number.to_bytes(15, "little") + b"N" for number in numbers)
    yield "table", lambda: pickle_of(b"}(" + pairs + b"u")
    yield "old table", lambda: pickle_of(b"(" + pairs + b"d")
    yield "set", lambda: pickle_of(b"\x8f(" + pieces + b"\x90")
    yield "one by one", lambda: pickle_of(b"}" + pairs.replace(b"N", b"Ns"))
    yield "memo", lambda: pickle_of(b"N" + b"".join(b"p%d\n" % number for number in numbers))
    yield "ordered", lambda: Writer("plain").file(Called("collections", "OrderedDict", ([(number, None) for number in numbers],)))
    yield "call's items", lambda: pickle_of(b"ccollections\nOrderedDict\n)R(" + pairs + b"u")
    for container in ("zip", "stream"):
        yield f"in a layout {container}", lambda c=container: Writer(c).file({"g_ema": Raw(b"}(" + pairs + b"u")})
    yield "floats", lambda: Writer("plain").file({2.0 ** (61 * k): 1 for k in range(16)})
    nested = Raw(b")" + b"2\x86" * 200)
    yield "tuples", lambda: pickle_of(b"}" + nested.code + b"Ns")
    for container in ("zip", "stream"):
        yield (
            f"a storage's key {container}",
            lambda c=container: Writer(c).file(
                {"g_ema": {"input.input": tensor(Persistent(storage_id("FloatStorage", nested, 4)), (4,))}}
            ),
        )
        yield (
            f"the keys of storages {container}",
            lambda c=container: Writer(c).file([Persistent(storage_id("FloatStorage", number, 4)) for number in numbers[:2000]]),
        )


def large_products() -> Iterator[tuple[str, Make]]:
    """Whole numbers of thousands of digits, and products of them."""
    for bits, count in ((64, 8), (64, 2000), (4000, 1000), (800_000, 64), (100, 60)):
        for container in ("zip", "stream"):
            sizes = tuple(2**bits - k - 1 for k in range(count))

            def make(s: tuple[int, ...] = sizes, c: str = container) -> bytes:
                writer = Writer(c)
                storage = writer.storage(np.zeros(8, "f4"))
                return writer.file({"g_ema": {"input.input": tensor(storage, s, s)}})

            yield f"{count} of {bits} bits {container}", make
    yield "long", lambda: pickle_of(b"\x8b" + struct.pack("<i", 8 * 10**6) + b"\x7f" * 8 * 10**6)
    yield "digits", lambda: pickle_of(b"I" + b"9" * 10**6 + b"\n")
    yield "long digits", lambda: pickle_of(b"L" + b"9" * 10**6 + b"L\n")
    yield "float digits", lambda: pickle_of(b"F" + b"9" * 8 * 10**6 + b"\n")
    yield "index digits", lambda: pickle_of(b"Ng" + b"9" * 10**6 + b"\n")


def repeated_work() -> Iterator[tuple[str, Make]]:
    """One value of the memo that is worked on again and again."""
    text, rows = "\xff" * 10**6, [(str(k), None) for k in range(20_000)]
    state = {str(k): None for k in range(20_000)}
    stream = stream_of("FloatStorage", bytes(10**6), 250_000)
    kind = Called("numpy", "dtype", ("f4", False, True))
    calls: dict[str, Callable[[], Called]] = {
        "encode": lambda: Called("_codecs", "encode", (text, "latin1")),
        "ordered": lambda: Called("collections", "OrderedDict", (rows,)),
        "ordered table": lambda: Called("collections", "OrderedDict", (state,)),
        "easy": lambda: Called("dnnlib", "EasyDict", (), state),
        "persistent": lambda: persistent({"class_name": "X", "state": state}),
        "stream": lambda: Called("torch.storage", "_load_from_bytes", (stream,)),
        "scalar": lambda: Called("numpy.core.multiarray", "scalar", (kind, text)),
        "array": lambda: Called("numpy.core.multiarray", "_reconstruct", (), (1, (250_000,), kind, False, text)),
        "module": lambda: Called("torch.nn.modules.linear", "Linear", (), state),
    }
    for name, make in calls.items():
        for count in (400, 20_000):
            yield f"{name} {count}", lambda m=make, n=count: Writer("plain").file([m() for _ in range(n)])
        yield f"{name} in a layout", lambda m=make: Writer("zip").file({"g_ema": {"input.input": [m() for _ in range(3000)]}})
    members = {"data.pkl": b"", "data/0": bytes(8 * 10**6)}
    for kinds in (("FloatStorage",), ("FloatStorage", "IntStorage")):
        members["data.pkl"] = pickle_of(
            Writer("zip").code([Persistent(storage_id(kind, "0", 2 * 10**6)) for _ in range(400) for kind in kinds])
        )
        yield f"member {len(kinds)}", lambda m=dict(members): zip_of(m)
    yield "streams in streams", lambda: nested_streams(300)
    yield "memoized lists", lambda: Writer("plain").file([rows] * 100_000)


def nested_streams(depth: int) -> bytes:
    data = Writer("stream").file(1)
    for _ in range(depth):
        data = Writer("stream").file(Called("torch.storage", "_load_from_bytes", (data,)))
    return data


def large_networks() -> Iterator[tuple[str, Make]]:
    """Networks far larger than their files, by strides of 0 and shared storages."""
    shapes = {
        "z_dim": ("style_mapping.1.linear.weight_orig", (64, 16_000)),
        "w_dim": ("style_mapping.1.linear.weight_orig", (16_000, 64)),
        "width": ("convs.0.conv.weight_orig", (1, 16_000, 32, 1, 1)),
    }
    for kind, (name, shape) in shapes.items():

        def wide(n: str = name, s: tuple[int, ...] = shape) -> bytes:
            writer = Writer("zip")
            storage = writer.storage(np.zeros(1, "f4"))
            state = dict(fixture("mmagic")["state_dict"]) | {f"generator_ema.{n}": tensor(storage, s, (0,) * len(s))}
            return writer.file({"state_dict": state})

        yield kind, wide
    for width, dim, layers, resolution in ((512, 512, 8, 1024), (500, 512, 8, 1024), (64, 1024, 16, 64), (512, 1024, 60, 256)):
        for container in ("zip", "stream"):
            yield (
                f"{width} {dim} {layers} {resolution} {container}",
                lambda a=(width, dim, layers, resolution), c=container: shared(*a, c),
            )


def shared(width: int, dim: int, layers: int, resolution: int, container: str) -> bytes:
    """Return a network of mmagic's whose tensors all lie in one storage."""
    writer = Writer(container)
    storage = writer.storage(np.zeros(width * width * 9 + 1024**2, "f4"))

    def of(*shape: int) -> Called:
        return tensor(storage, shape)

    state = {"constant_input.input": of(1, width, 4, 4)}
    for i in range(1, layers + 1):
        state |= {f"style_mapping.{i}.linear.weight_orig": of(dim, dim), f"style_mapping.{i}.bias": of(dim)}
    count = 2 * resolution.bit_length() - 7
    for i in range(count):
        name, size = "conv1" if i == 0 else f"convs.{i - 1}", 2 ** ((i + 1) // 2 + 2)
        state |= {f"{name}.conv.weight_orig": of(1, width, width, 3, 3), f"{name}.activate.bias": of(width)}
        state |= {f"{name}.conv.style_modulation.linear.weight_orig": of(width, dim), f"{name}.noise_injector.weight": of(1)}
        state |= {f"{name}.conv.style_modulation.bias": of(width), f"injected_noise_{i}": of(1, 1, size, size)}
        if i % 2 == 0:
            rgb = "to_rgb1" if i == 0 else f"to_rgbs.{i // 2 - 1}"
            state |= {f"{rgb}.conv.weight_orig": of(1, 3, width, 1, 1), f"{rgb}.bias": of(1, 3, 1, 1)}
            state |= {f"{rgb}.conv.style_modulation.linear.weight_orig": of(width, dim)}
            state |= {f"{rgb}.conv.style_modulation.bias": of(width)}
    return writer.file({"state_dict": {f"generator_ema.{key}": value for key, value in state.items()}})


def nesting() -> Iterator[tuple[str, Make]]:
    """Values within values."""
    for depth in (90, 1000, 100_000):
        yield f"tuples {depth}", lambda d=depth: pickle_of(b")" + b"\x85" * d)
        yield f"lists {depth}", lambda d=depth: pickle_of(b"]" * d + b"a" * (d - 1))
        yield f"tables {depth}", lambda d=depth: pickle_of(b"}" + b"X\1\0\0\0a}" * d + b"s" * d)
        yield f"calls {depth}", lambda d=depth: pickle_of(b"N" + b"\x85" * d)
        yield f"states {depth}", lambda d=depth: pickle_of(b"cdnnlib\nEasyDict\n)R" * d + b"b" * (d - 1))
        yield f"ids {depth}", lambda d=depth: pickle_of(b"N" + b"Q" * d)
    yield "a list in itself", lambda: pickle_of(b"]\x94h\0a")
    yield "twice", lambda: pickle_of(b")" + b"2\x86" * 5000)
    yield "twice in a layout", lambda: Writer("zip").file({"g_ema": {"input.input": Raw(b")" + b"2\x86" * 5000)}})


def long_files() -> Iterator[tuple[str, Make]]:
    """Millions of opcodes."""
    opcodes = {
        "lists": b"]",
        "marks": b"(",
        "lists popped": b"]0",
        "tables": b"}",
        "memo": b"]\x94",
        "twice": b"2",
        "sets": b"\x8f",
    }
    opcodes |= {
        "calls": b"cdnnlib\nEasyDict\n)R",
        "frames": b"\x95\0\0\0\0\0\0\0\0",
        "symbols": b"ctorch\ndevice\n",
        "ids": b"NQ",
    }
    for name, code in opcodes.items():
        yield name, lambda c=code: pickle_of(b"N" + c * (8 * 10**6 // len(c)))
        yield f"{name} zip", lambda c=code: zip_of({"data.pkl": pickle_of(b"N](" + c * (2 * 10**6 // len(c)) + b"e")})
    yield (
        "streams",
        lambda: Writer("plain").file(
            [Called("torch.storage", "_load_from_bytes", (Writer("stream").file(k),)) for k in range(20_000)]
        ),
    )


def long_names() -> Iterator[tuple[str, Make]]:
    """Names of megabytes and of control characters, which must not reach a terminal."""
    names = {
        "long": "x" * 10**6,
        "control": "\x1b[2J\x07\r\x08",
        "surrogate": "\ud800x",
        "override": "\u202egnp.exe",
        "zero": "a\0b",
    }
    for kind, name in names.items():
        yield f"symbol {kind}", lambda n=name: pickle_of(Writer("plain").code("os") + Writer("plain").code(n) + b"\x93")
        yield f"key {kind}", lambda n=name: changed("rosinality", replaced("rosinality", f"style.{n}.weight", 1), "zip")
        yield f"variable {kind}", lambda n=name: changed("tensorflow", lambda v: add_variable(v, n, np.zeros(1)))
        yield f"module {kind}", lambda n=name: changed("nvidia", lambda v: add_block(v, n))
        yield (
            f"parameter {kind}",
            lambda n=name: changed("nvidia", lambda v: module(v, "synthesis")["_parameters"].update({n: "x"})),
        )
        yield (
            f"storage {kind}",
            lambda n=name: Writer("zip").file({"g_ema": tensor(Persistent(storage_id("FloatStorage", n, 4)), (4,))}),
        )
        yield (
            f"class {kind}",
            lambda n=name: Writer("plain").file({"G_ema": persistent({"class_name": n, "state": {"_modules": 1}})}),
        )
        yield f"type {kind}", lambda n=name: Writer("plain").file(Called("numpy", "dtype", (n,)))
    for name in ("f4," * 10**5, "O", "V1000000000", "(1000000,1000000)f4", "S2000000000", "f16", "M8[ns]", "U"):
        kind = Called("numpy", "dtype", (name, False, True))
        array = Called("numpy.core.multiarray", "_reconstruct", (), (1, (1,), kind, False, b"xxxx"))
        yield f"type {name[:20]}", lambda a=array: Writer("plain").file({"g_ema": {"input.input": a}})


def wrong_archives() -> Iterator[tuple[str, Make]]:
    """Zip files that are none of torch's."""
    good = Writer("zip").file({"g_ema": {}})
    yield "many members", lambda: zip_of({"data.pkl": b"N."} | {str(k): b"" for k in range(50_000)})
    yield (
        "compressed pickle",
        lambda: zip_of({"data.pkl": pickle_of(b"X" + struct.pack("<I", 80 * 2**20) + bytes(80 * 2**20))}, zipfile.ZIP_DEFLATED),
    )
    yield (
        "compressed member",
        lambda: zip_of(
            {
                "data.pkl": pickle_of(Writer("zip").code(Persistent(storage_id("FloatStorage", "0", 25 * 10**6)))),
                "data/0": bytes(10**8),
            },
            zipfile.ZIP_DEFLATED,
        ),
    )
    yield "no pickle", lambda: zip_of({"other": b""})
    yield "no members", lambda: b"PK\5\6" + bytes(18)
    yield "directory cut", lambda: good[:-30]
    for at, number in ((12, 2**32 - 2), (12, 0), (16, 2**32 - 2), (8, 65535), (20, 65535)):
        yield f"directory {at} {number}", lambda a=at, n=number: patched(good, good.rindex(b"PK\5\6") + a, n)
    for at in (20, 24, 42, 28, 8, 10):
        yield f"member {at}", lambda a=at: patched(good, good.index(b"PK\1\2") + a, 2**32 - 2)


def patched(data: bytes, at: int, number: int) -> bytes:
    """Return bytes with four of them (two where they end) set to a number."""
    out = bytearray(data)
    out[at : at + 4] = struct.pack("<I", number)[: len(out[at : at + 4])]
    return bytes(out)


FAMILIES: dict[str, Callable[[], Iterator[tuple[str, Make]]]] = {
    "wrong types": wrong_types, "wrong settings": wrong_settings, "wrong structure": wrong_structure,
    "large numbers": large_numbers, "module graphs": module_graphs, "colliding keys": colliding_keys,
    "large products": large_products, "repeated work": repeated_work, "large networks": large_networks,
    "nesting": nesting, "long files": long_files, "long names": long_names, "wrong archives": wrong_archives,
}  # fmt: skip
HOSTILE: dict[str, Make] = {f"{family}: {name}": make for family, members in FAMILIES.items() for name, make in members()}


if __name__ == "__main__":
    for number, (name, make) in enumerate(HOSTILE.items()):
        (Path(sys.argv[1]) / f"{number:04}").write_bytes(make())
        sys.stdout.write(f"{number} {ascii(name)[:100]}\n")
