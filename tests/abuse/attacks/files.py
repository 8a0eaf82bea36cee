"""Uploads: pictures, masks and latents that are small to send and large to read; uploads that break off or never come."""

import hashlib
import io
import itertools
import json
import zipfile
import zlib

import numpy as np

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker, Request
from tests.abuse.documents import BODY_BYTES, JOB, MEGAPIXELS_50, as_json, many_scans, noise, picture, png_with_chunk

BINARY = "application/octet-stream"
MASKED: dict[str, object] = {"model": "idle", "points": [], "inversion": {"steps": 1, "tuning_steps": 0}}


def uploads(attacker: Attacker, *files: bytes, query: str = "") -> list[Request]:
    """Return uploads of the files, by one key after the other."""
    return [r for data in files for r in attacker.with_each_key("POST", f"/v1/uploads{query}", data, kind=BINARY)]


def job_with_large_mask(attacker: Attacker) -> dict[str, object]:
    """Upload a photo and a mask of 50 megapixels, a few kB each, and return a job that names them."""
    photo = attacker.call("POST", "/v1/uploads", content=picture(MEGAPIXELS_50))["sha256"]
    mask = attacker.call("POST", "/v1/uploads?kind=mask", content=picture(MEGAPIXELS_50, "1"))["sha256"]
    return MASKED | {"source": {"upload": photo}, "movable": {"upload": mask}}


@attack("5", connections=12, at_least_s=6)
def validations_of_masks_of_50_megapixels(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs:validate", as_json(job_with_large_mask(attacker))))


@attack("5")
def submissions_of_masks_of_50_megapixels(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs", as_json(job_with_large_mask(attacker))))


@attack("5", connections=4, at_least_s=10)
def batches_that_name_one_large_mask(attacker: Attacker) -> Strike:
    """Send 2,000 lines of 275 bytes that name a mask of 50 megapixels, and go away."""
    line = as_json(job_with_large_mask(attacker))
    body = b"".join(b'{"custom_id":"%d","job":%s}\n' % (number, line) for number in range(2000))
    requests = attacker.with_each_key("POST", "/v1/batches", body, kind="application/jsonl")
    return attacker.aborted(*requests, keep=1.0)


@attack("5")
def different_crops_of_one_large_mask(attacker: Attacker) -> Strike:
    """Each crop needs the mask in another way, so that what was kept for one helps no other."""
    job = job_with_large_mask(attacker)
    boxes = [{"box": [n, n, n + 4000.5, n + 4000.5]} for n in range(0, 2000, 20)]
    jobs = [as_json(job | {"source": {**job["source"], "crop": box}}) for box in boxes]  # type: ignore[dict-item]
    return attacker.flood(*(attacker.request("POST", "/v1/jobs:validate", body) for body in jobs))


@attack("5")
def many_large_masks(attacker: Attacker) -> Strike:
    """Upload masks of 50 megapixels, each another one."""
    sizes = [(7071 - n, 7071) for n in range(20)]
    return attacker.flood(*uploads(attacker, *(picture(size, "1") for size in sizes), query="?kind=mask"))


@attack("6", connections=4, at_least_s=12)
def progressive_jpegs_of_thousands_of_scans(attacker: Attacker) -> Strike:
    return attacker.flood(*uploads(attacker, many_scans()))


@attack("6")
def progressive_jpegs_by_sixty(attacker: Attacker) -> Strike:
    return attacker.flood(*uploads(attacker, many_scans(1000), many_scans(20_000, (1000, 1000))))


@attack("6", connections=4, small=True)
def pictures_of_50_megapixels(attacker: Attacker) -> Strike:
    return attacker.flood(*uploads(attacker, picture(MEGAPIXELS_50), picture(MEGAPIXELS_50, "RGB", "JPEG")))


@attack()
def pictures_of_50_megapixels_by_sixty(attacker: Attacker) -> Strike:
    return attacker.flood(*uploads(attacker, picture(MEGAPIXELS_50), picture(MEGAPIXELS_50, "1"), picture((5000, 9999), "RGB")))


@attack()
def large_pictures_of_noise(attacker: Attacker) -> Strike:
    """Pictures that are 20 MB to send, and slow to compress again."""
    return attacker.flood(*uploads(attacker, noise((2600, 2600))))


@attack()
def uploads_of_garbage(attacker: Attacker) -> Strike:
    """Each costs a decoder's start."""
    files = (
        b"x",
        b"\x89PNG\r\n\x1a\n" + b"a" * 100,
        b"\xff\xd8\xff" + bytes(1000),
        b"RIFF\xff\xff\xff\x7fWEBP",
        b"GIF89a" + bytes(50),
    )
    return attacker.flood(*uploads(attacker, *files))


@attack()
def uploads_of_29_mb_of_nothing(attacker: Attacker) -> Strike:
    return attacker.flood(*uploads(attacker, bytes(BODY_BYTES)))


@attack()
def uploads_that_break_off(attacker: Attacker) -> Strike:
    return attacker.aborted(*uploads(attacker, bytes(BODY_BYTES)), keep=0.5)


@attack()
def uploads_whose_client_goes_away(attacker: Attacker) -> Strike:
    """Send a picture whole and do not wait for its decoder."""
    return attacker.aborted(*uploads(attacker, picture(MEGAPIXELS_50)), keep=1.0)


@attack()
def uploads_by_drops(attacker: Attacker) -> Strike:
    return attacker.trickle(uploads(attacker, picture((64, 64)))[0])


@attack()
def bombs_in_chunks_of_pngs(attacker: Attacker) -> Strike:
    """Texts and profiles of a PNG are compressed too."""
    packed = zlib.compress(bytes(10**9), 9)
    files = [png_with_chunk(name, b"a\0\0" + packed) for name in (b"zTXt", b"iCCP")]
    files += [png_with_chunk(b"iTXt", b"a\0\1\0\0\0" + packed), png_with_chunk(b"tEXt", b"a\0" * 10**6)]
    return attacker.flood(*uploads(attacker, *files))


@attack()
def headers_that_promise_too_much(attacker: Attacker) -> Strike:
    """Sizes of 2^31 pixels, no pixels, palettes without colors."""
    plain = picture((16, 16))

    def sized(width: int, height: int, depth: bytes = b"\x08\x00\x00\x00\x00") -> bytes:
        head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + depth
        return plain[:12] + head + zlib.crc32(head).to_bytes(4, "big") + plain[33:]

    sizes = [(2**31 - 1, 2**31 - 1), (0, 0), (50 * 10**6, 1), (1, 50 * 10**6), (7071, 7071), (65535, 760)]
    return attacker.flood(*uploads(attacker, *(sized(*size) for size in sizes), sized(7000, 7000, b"\x10\x06\x00\x00\x01")))


@attack()
def animations_of_thousands_of_frames(attacker: Attacker) -> Strike:
    from PIL import Image

    out = io.BytesIO()
    frames = [Image.new("L", (64, 64), n % 256) for n in range(2000)]
    frames[0].save(out, format="PNG", save_all=True, append_images=frames[1:])
    return attacker.flood(*uploads(attacker, out.getvalue()))


@attack()
def latents_that_are_bombs(attacker: Attacker) -> Strike:
    """Zips whose members unpack to gigabytes, headers that promise them, the same name again and again."""
    return attacker.flood(*uploads(attacker, zip_bomb(), zip_of_one_name(), promised_array(), promised_tensors()))


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**8,)})
        with archive.open("w.npy", "w") as member:
            member.write(head.getvalue())
            for _ in range(800):
                member.write(bytes(10**6))
    return out.getvalue()


def zip_of_one_name() -> bytes:
    """Return a zip whose directory names one member thousands of times."""
    out = io.BytesIO()
    np.savez_compressed(out, w=np.zeros((1, 512), np.float32))
    data = out.getvalue()
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = data[begin:end] * 60_000
    tail = bytearray(data[end:])
    tail[8:12] = (60_000).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    return data[:begin] + entries + bytes(tail)


def promised_array() -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**20)})
    return out.getvalue() + bytes(1000)


def promised_tensors() -> bytes:
    tensors = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(200_000)}
    head = json.dumps(tensors).encode()
    return len(head).to_bytes(8, "little") + head


@attack()
def thousands_of_announced_files(attacker: Attacker) -> Strike:
    """Announce files that never come."""
    numbers = itertools.count()

    def strike() -> None:
        sha256 = hashlib.sha256(f"{attacker.key}{next(numbers)}".encode()).hexdigest()
        attacker.exchange(attacker.request("POST", "/v1/uploads/presigned", as_json({"sha256": sha256, "size_bytes": 1})))

    return strike


@attack()
def completions_of_files_that_never_came(attacker: Attacker) -> Strike:
    announced = [
        attacker.call("POST", "/v1/uploads/presigned", json={"sha256": f"{n:064x}", "size_bytes": 10**8}) for n in range(20)
    ]
    return attacker.flood(*(attacker.request("POST", f"/v1/uploads/presigned/{row['id']}/complete") for row in announced))


@attack()
def completions_of_one_large_file(attacker: Attacker) -> Strike:
    """Complete one file from all sides: each may read it from the store and decode it."""
    data = picture(MEGAPIXELS_50)
    announced = attacker.call(
        "POST", "/v1/uploads/presigned", json={"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    )
    import httpx2

    httpx2.put(announced["url"], content=data, headers=announced["headers"]).raise_for_status()
    return attacker.flood(*attacker.with_each_key("POST", f"/v1/uploads/presigned/{announced['id']}/complete"))


@attack()
def jobs_that_name_uploads_that_are_none(attacker: Attacker) -> Strike:
    jobs = [JOB | {"source": {"upload": f"{n:064x}"}, "movable": {"upload": f"{n:064x}"}} for n in range(100)]
    return attacker.flood(
        *(attacker.request("POST", path, as_json(job)) for job in jobs for path in ("/v1/jobs", "/v1/jobs:validate"))
    )
