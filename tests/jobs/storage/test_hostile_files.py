"""Files made to take all memory or time: each is refused in a sentence, within the limits of the child."""

import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
from PIL import Image, ImageCms

from jobs.cancellation import Canceled, cancelable
from jobs.errors import InvalidJob
from jobs.storage import decoding
from jobs.storage.decoder import CPU_S, MEMORY_BYTES
from jobs.storage.decoder import REFUSED as REFUSAL
from jobs.storage.decoding import child_environment, decode, decode_stream

MOST_RESIDENT_BYTES = 700 * 10**6


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *chunks, depth=8, color=2, interlace=0, data=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def deflated(size):
    """Zeros, a thousandth of their size."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(size // 2**20)), packer.flush()])


def jpeg_of_scans(count, side=64):
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.effect_noise((side, side), 50).convert("RGB"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def npy(shape, dtype="<f4", data=b""):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(*members, name="w.npy", **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for member in members:
            archive.writestr(name, member)
    return out.getvalue()


def npz_of_many(count):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}", b"")
    return out.getvalue()


def safetensors(header, data=b"", size=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(shape, dtype="F32", end=16):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def webp_saying(width, height):
    canvas = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + b"VP8L" + struct.pack("<I", 5) + b"\x2f\xff\xff\xff\x0f\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def apng(frames):
    pictures = [Image.new("RGB", (8, 8), (k, 0, 0)) for k in range(frames)]
    return encoded(pictures[0], "PNG", save_all=True, append_images=pictures[1:])


def animated_webp(frames):
    pictures = [Image.new("RGB", (8, 8), (k * 99 % 256, 0, 0)) for k in range(frames)]
    return encoded(pictures[0], "WEBP", lossless=True, save_all=True, append_images=pictures[1:])


def with_exif(exif):
    return encoded(Image.new("RGB", (40, 40)), "JPEG", exif=b"Exif\0\0" + exif)


PLAIN = Image.new("RGB", (40, 40), "red")
JPEG, PNG = encoded(PLAIN, "JPEG"), encoded(PLAIN, "PNG")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TEXT = b"Comment\0\0"

REFUSED = {
    "scans, 101": jpeg_of_scans(101),
    "scans, 5,000": jpeg_of_scans(5_000),
    "scans of many pixels": jpeg_of_scans(60, side=64).replace(b"\x08\x00\x40\x00\x40\x03", b"\x08\x1a\xc0\x1a\xc0\x03", 1),
    "segments": JPEG[:2] + b"\xff\xfe\0\2" * 100_000 + JPEG[2:],
    "a JPEG saying it is large": JPEG.replace(b"\x08\x00\x28\x00\x28\x03", b"\x08\xff\xdc\xff\xdc\x03", 1),
    "a JPEG that breaks off": JPEG[: len(JPEG) // 2],
    "a JPEG without an end": b"\xff\xd8" + b"\xff\xe0\xff\xff" * 1000,
    "a JPEG of markers": b"\xff\xd8" + b"\xff\xd8" * 200_000,
    "a PNG saying it is large": png(2**31 - 1, 2**31 - 1),
    "a PNG of 20,000 a side": png(20_000, 20_000),
    "a PNG of one row": png(2**26, 1),
    "a PNG without pixels": png(7_000, 7_000),
    "a PNG that breaks off": PNG[: len(PNG) // 2],
    "a PNG of chunks": png(4, 4, *[chunk(b"tEXt", b"a\0b")] * 200_000),
    "a PNG of empty IDAT": png(4, 4, *[chunk(b"IDAT", b"")] * 200_000),
    "zTXt bombs": png(4, 4, *[chunk(b"zTXt", TEXT + deflated(2**24))] * 200),
    "iTXt bombs": png(4, 4, *[chunk(b"iTXt", b"a\0\1\0\0\0" + deflated(2**24))] * 200),
    "an iCCP bomb": png(4, 4, chunk(b"iCCP", b"icc\0\0" + deflated(2**28))),
    "an APNG": apng(2),
    "an APNG of 200 frames": apng(200),
    "an animated WebP": animated_webp(2),
    "an animated WebP of 200 frames": animated_webp(200),
    "a WebP saying it is large": webp_saying(2**14, 2**14),
    "a WebP with canvas beyond all": webp_saying(2**24, 2**8),
    "a WebP that breaks off": encoded(PLAIN, "WEBP")[:40],
    "a WebP of chunks": b"RIFF" + struct.pack("<I", 80_004) + b"WEBP" + b"JUNK\0\0\0\0" * 10_000,
    "an npy of 2**62 numbers": npy((2**31, 2**31)),
    "an npy of 2**40 numbers": npy((2**40,)),
    "an npy of a negative shape": npy((-1, 8)),
    "an npy of no size": npy((0, 2**60)),
    "an npy of 30 dimensions": npy((2,) * 30),
    "an npy that breaks off": npy((4, 8), data=bytes(8)),
    "an npy of objects": npy((4,), dtype="|O"),
    "an npy of texts": npy((4,), dtype="<U1000000"),
    "an npy of a long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 2**20,
    "an npy of a nested header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 9_000) + b"[" * 9_000,
    "an npy of a far version": b"\x93NUMPY\x09\x00" + b"{}",
    "a zip bomb": npz(deflated(2**20) and bytes(2**28)),
    "an npz of a huge shape": npz(npy((2**40,))),
    "an npz of a huge shape and much data": npz(npy((2**28,)) + bytes(2**28)),
    "an npz of 100,000 members": npz_of_many(100_000),
    "an npz without w": npz(npy((4,)), name="v.npy"),
    "an npz that breaks off": npz(npy((4,), data=bytes(16)))[:-30],
    "an npz of lzma": npz(npy((4,), data=bytes(16))).replace(b"\x08\x00", b"\x0e\x00"),
    "a safetensors of a long header": safetensors(b'{"', size=2**62),
    "a safetensors of a nested header": safetensors(b'{"w":' + b"[" * 500_000),
    "a safetensors of a huge shape": safetensors(tensor([2**31, 2**31]), bytes(16)),
    "a safetensors of a negative shape": safetensors(tensor([-1, -4]), bytes(16)),
    "a safetensors that breaks off": safetensors(tensor([1, 4], end=2**40), bytes(4)),
    "a safetensors of no tensors": safetensors(b'{"w": 3}'),
    "a safetensors of a strange type": safetensors(tensor([4], dtype="X" * 10_000), bytes(16)),
    "nothing": b"",
    "text": b"hello" * 1000,
    "zeros": bytes(10**6),
    "a GIF": encoded(PLAIN, "GIF"),
    "a TIFF": encoded(PLAIN, "TIFF"),
}
# of these the picture is good, and what is wrong with the rest of the file is left out
HARMLESS = {
    "EXIF of nothing": with_exif(b"nonsense"),
    "EXIF with a directory of itself": with_exif(b"II*\0\x08\0\0\0" + b"\x01\0\x69\x87\x04\0\1\0\0\0\x08\0\0\0" + bytes(4)),
    "EXIF that counts to 2**32": with_exif(b"II*\0\x08\0\0\0" + b"\xff\xff\x12\x01\x03\0\xff\xff\xff\xff\x08\0\0\0"),
    "an ICC profile of zeros": encoded(PLAIN, "JPEG", icc_profile=bytes(10**6)),
    "an ICC profile that breaks off": encoded(PLAIN, "JPEG", icc_profile=SRGB[:200]),
    "an ICC profile that counts to 2**32": encoded(PLAIN, "JPEG", icc_profile=SRGB[:128] + b"\xff" * 400),
    "an ICC profile of 4 MB": encoded(PLAIN, "JPEG", icc_profile=SRGB + bytes(4 * 10**6)),
    "bytes after the end": PNG + b"\0" * 10**6 + b"\xff\xda" * 10**5,
}


RUNNER = """
import os, sys
import jobs.storage.decoder as decoder

for path in sys.argv[2:]:
    pid = os.fork()
    if pid == 0:
        sys.argv[1:] = sys.argv[1:2]
        for number, name in enumerate((path, path + ".out", path + ".said")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        code = 1
        try:
            decoder.main()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status, used = os.wait4(pid, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
"""


@dataclass(frozen=True)
class Ending:
    """How a child ended that decoded a file."""

    code: int
    cpu_s: float
    resident_bytes: int
    said: str


def decode_all(folder, files, command):
    """Decode each file in a child of its own, forked from one that has loaded the decoder."""
    paths = {name: folder / f"{number}" for number, name in enumerate(files)}
    for name, path in paths.items():
        path.write_bytes(files[name])
    arguments = [sys.executable, "-c", RUNNER, command, *map(str, paths.values())]
    environment = child_environment() | {"PYTHONPATH": os.getcwd()}
    lines = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
    return {
        name: Ending(int(code), float(cpu_s), int(resident), Path(f"{path}.said").read_text(errors="replace"))
        for (name, path), (code, cpu_s, resident) in zip(paths.items(), map(str.split, lines), strict=True)
    }


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """How the decoder ended with each file, by the command that it had."""
    return {command: decode_all(tmp_path_factory.mktemp(command), REFUSED | HARMLESS, command) for command in ("picture", "mask")}


@pytest.mark.parametrize("command", ["picture", "mask"])
def test_no_file_takes_more_memory_or_time_than_a_child_may(endings, command):
    assert {name: ended for name, ended in endings[command].items() if ended.resident_bytes > MOST_RESIDENT_BYTES} == {}
    assert {name: ended for name, ended in endings[command].items() if ended.cpu_s > CPU_S} == {}


def test_a_hostile_file_is_refused_in_a_sentence(endings):
    passed = {name: ended for name, ended in endings["picture"].items() if ended.code != REFUSAL and name in REFUSED}
    assert passed == {}
    assert max(len(ended.said) for name, ended in endings["picture"].items() if name in REFUSED) < 200


def test_a_hostile_file_is_no_mask_either(endings):
    assert {name for name, ended in endings["mask"].items() if ended.code != REFUSAL} == {"bytes after the end"}


def test_what_is_wrong_beside_a_good_picture_is_left_out(endings):
    assert {name: endings["picture"][name].code for name in HARMLESS} == dict.fromkeys(HARMLESS, 0)


def test_what_the_child_says_names_the_field():
    with pytest.raises(InvalidJob, match=r"image: may have 100 scans with 0\.0 megapixels"):
        decode(REFUSED["scans, 5,000"], "image")


GREEDY = "import jobs.storage.decoder as d; d.limit_process(); {}"


def run_limited(body):
    """Run code with the child's limits, and return how it ended."""
    command = [sys.executable, "-c", GREEDY.format(body)]
    environment = child_environment() | {"PYTHONPATH": os.getcwd()}
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


def test_the_child_cannot_take_more_memory_than_its_limit():
    assert run_limited(f"print(len(bytearray({MEMORY_BYTES})))") == 1


def test_the_child_cannot_take_more_cpu_than_its_limit():
    limits = "import resource; print(); exit(resource.getrlimit(resource.RLIMIT_CPU)[1])"
    assert run_limited(limits) == CPU_S


def test_the_limits_follow_the_size_of_the_picture():
    limits = "d.limit_picture({}, 0); import resource; exit(resource.getrlimit(resource.RLIMIT_{})[0] // {})"
    small, large = (run_limited(limits.format(pixels, "CPU", 1)) for pixels in (10**5, 50 * 10**6))
    assert (small < 5, large) == (True, CPU_S)
    small, large = (run_limited(limits.format(pixels, "AS", 2**20 * 10)) for pixels in (10**5, 50 * 10**6))
    assert (small < 30, large) == (True, MEMORY_BYTES // 2**20 // 10)


def test_a_photo_of_50_megapixels_passes():
    data = encoded(Image.new("RGB", (8660, 5773), "navy"), "JPEG", progressive=True, quality=50)
    decoded = decode(data, "image")
    assert (decoded.width, decoded.height) == (8660, 5773)


def test_a_child_ends_with_its_client(monkeypatch):
    gone, started = Event(), []
    wait = decoding.wait

    def leave(child):
        started.append(child)
        gone.set()
        return wait(child)

    monkeypatch.setattr(decoding, "wait", leave)
    monkeypatch.setattr(decoding, "POLL_S", 0.001)
    with cancelable(gone), pytest.raises(Canceled):
        decode(PNG, "image")
    assert started[0].returncode < 0
    assert not decoding.TURNS.held


def test_a_file_that_arrives_while_its_client_leaves_starts_no_child(monkeypatch):
    monkeypatch.setattr(decoding, "answer_of", None)
    gone = Event()

    def parts():
        yield PNG
        gone.set()
        yield PNG

    with cancelable(gone), pytest.raises(Canceled):
        decode_stream(parts(), None, "file")


def test_no_file_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    decoded = decode(PNG, "image")
    assert decoded.data
    assert not list(tmp_path.iterdir())
