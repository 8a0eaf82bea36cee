"""Latents as the decoder reads them: w of .npy, .npz and .safetensors files, whose headers are checked before their numbers."""

import io
import json
import math
import zipfile
import zlib
from typing import IO

import numpy as np
from numpy.lib import format as npy

from jobs.storage.picture_files import Refused

NUMBERS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
MAX_NUMBERS = 2**20
MAX_FILE_BYTES = 30 * 10**6
MAX_ARRAY_BYTES = 8 * MAX_NUMBERS + 2**16  # with its header
MAX_HEADER_BYTES = 2**20  # of a .safetensors
MAX_DIRECTORY_BYTES = 2**16  # of an .npz: about a thousand arrays
ZIP_END, ZIP_END_BYTES, ZIP_COMMENT_BYTES = b"PK\x05\x06", 22, 2**16
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may take gigabytes for their tables
ENCRYPTED = 1  # a flag of a zip's member
SHAPE = f"w must be floating-point numbers, one row or one for each layer, at most {MAX_NUMBERS} in all"


def is_latent(head: bytes) -> bool:
    """Return whether a file that begins so is a latent, and no picture."""
    return head[:4] in (b"PK\x03\x04", b"\x93NUM") or head[8:10] == b'{"'


def read_latent(file: IO[bytes]) -> np.ndarray:
    """Return w of shape [D], [L, D] or [1, L, D] as float32 [1, L, D]. Raises Refused."""
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise Refused(f"may have {MAX_FILE_BYTES / 1e6:g} MB as a latent")
    if data[:4] == b"PK\x03\x04":
        array = read_npz(data)
    elif data[:4] == b"\x93NUM":
        array = read_npy(data)
    else:
        array = read_safetensors(data)
    rows = array.reshape(1, -1, array.shape[-1]).astype(np.float32)
    if array.ndim == 3 and array.shape[0] != 1:
        raise Refused(f"w must be of one picture, is of {array.shape[0]}")
    if not np.isfinite(rows).all():
        raise Refused("w must be finite")
    return rows


def read_npz(data: bytes) -> np.ndarray:
    """Return the array w of an .npz. Raises Refused."""
    check_zip_directory(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            name = next((name for name in ("w.npy", "w") if name in members.NameToInfo), None)
            if name is None:
                raise Refused("an .npz must hold an array named w")
            member = members.getinfo(name)
            if member.compress_type not in ZIP_METHODS or member.flag_bits & ENCRYPTED:
                raise Refused("w in an .npz must be stored or deflated, and not encrypted")
            with members.open(member) as content:
                return read_npy(content.read(MAX_ARRAY_BYTES))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Refused("is not an .npz that can be read") from error


def check_zip_directory(data: bytes) -> None:
    """Check that a zip's directory is short before it becomes objects. Raises Refused."""
    at = data.rfind(ZIP_END, max(0, len(data) - ZIP_END_BYTES - ZIP_COMMENT_BYTES))
    if at < 0:
        raise Refused("is not an .npz that can be read")
    if int.from_bytes(data[at + 12 : at + 16], "little") > MAX_DIRECTORY_BYTES:  # of a zip64 it is 2**32 - 1
        raise Refused(f"the directory of an .npz may have {MAX_DIRECTORY_BYTES} bytes")


def read_npy(data: bytes) -> np.ndarray:
    """Return the array of an .npy. Raises Refused."""
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
    except Exception as error:  # numpy reads the header as Python text, whose parser raises many kinds
        raise Refused("is not an .npy of plain numbers") from error
    if dtype.hasobject:
        raise Refused("is not an .npy of plain numbers")
    check_shape(shape, dtype)
    try:
        numbers = np.frombuffer(data, dtype, count=math.prod(shape), offset=file.tell())
    except ValueError as error:
        raise Refused("is not an .npy of plain numbers: it breaks off") from error
    return numbers.reshape(shape, order="F" if fortran_order else "C")


def read_safetensors(data: bytes) -> np.ndarray:
    """Return the tensor w of a .safetensors. Raises Refused."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise Refused(f"the header of a .safetensors may have {MAX_HEADER_BYTES} bytes")
    try:
        tensors = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise Refused("is not a .safetensors that can be read") from error
    w = tensors.get("w")
    if w is None:
        raise Refused("a .safetensors must hold a tensor named w")
    try:
        name, shape, (start, end) = w["dtype"], tuple(map(int, w["shape"])), w["data_offsets"]
        content = data[8 + size + int(start) : 8 + size + int(end)] if 0 <= int(start) <= int(end) else b""
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise Refused("is not a .safetensors that can be read") from error
    if name not in NUMBERS:
        raise Refused(f"w must be {', '.join(NUMBERS)} in a .safetensors, is {str(name)[:20]}")
    dtype = np.dtype(NUMBERS[name]).newbyteorder("<")
    check_shape(shape, dtype)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise Refused("is not a .safetensors that can be read: it breaks off")
    return np.frombuffer(content, dtype).reshape(shape)


def check_shape(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Check what a header promises before it is believed. Raises Refused."""
    sizes_fit = 1 <= len(shape) <= 3 and all(0 < size <= MAX_NUMBERS for size in shape)
    if dtype.kind != "f" or not sizes_fit or math.prod(shape) > MAX_NUMBERS or dtype.itemsize > 8:
        raise Refused(SHAPE)
