import io
import struct
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.media.animation import write_animation
from engine.media.provenance import DigitalSourceType, embed, xmp_packet

XMP = xmp_packet(DigitalSourceType.EDITED, "Dragqueue 1.2.3")
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
BASIC = "{http://ns.adobe.com/xap/1.0/}"
PIXELS = np.random.default_rng(4).integers(0, 255, (48, 33, 3), dtype=np.uint8)


def said(packet: bytes) -> dict[str, str]:
    """The properties of a packet, by an XML parser that has never seen how it was written."""
    begin, *_, end = packet.decode().splitlines()
    assert (begin, end) == ('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>', '<?xpacket end="r"?>')
    (description,) = ElementTree.fromstring(packet).findall(f"{RDF}RDF/{RDF}Description")  # noqa: S314  # our own
    return dict(description.attrib)


def saved(kind: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, format=kind, **options)
    return out.getvalue()


def animated(path: Path, count: int = 12) -> bytes:
    frames = np.zeros((count, 64, 64, 3), dtype=np.uint8)
    for k, frame in enumerate(frames):
        frame[:, 4 * k : 4 * k + 8] = (250, 120, 30)
    write_animation(list(frames), path)
    return path.read_bytes()


def decoded(data: bytes) -> list[np.ndarray]:
    """Every frame of a picture or animation, by FFmpeg."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def frames_of(data: bytes) -> list[np.ndarray]:
    """Every frame of a picture or animation, by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        frames = []
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all((a == b).all() for a, b in zip(left, right, strict=True))


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of the boxes that an .mp4 consists of, to its last byte."""
    found, at = [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        assert 8 <= size <= len(data) - at
        found.append((name, data[at + 8 : at + size]))
        at += size
    return found


@pytest.mark.parametrize(
    ("source_type", "word"),
    [
        (DigitalSourceType.GENERATED, "trainedAlgorithmicMedia"),
        (DigitalSourceType.EDITED, "compositeWithTrainedAlgorithmicMedia"),
    ],
)
def test_a_packet_is_xml_that_says_how_a_picture_came_about_and_what_made_it(source_type, word):
    assert said(xmp_packet(source_type, "Dragqueue 1.2.3")) == {
        f"{RDF}about": "",
        f"{IPTC}DigitalSourceType": f"http://cv.iptc.org/newscodes/digitalsourcetype/{word}",
        f"{BASIC}CreatorTool": "Dragqueue 1.2.3",
    }


def test_a_makers_name_may_hold_what_xml_reserves():
    name = "Paint & \"Draw\" <'2'> ü"
    assert said(xmp_packet(DigitalSourceType.EDITED, name))[f"{BASIC}CreatorTool"] == name


def test_the_same_words_make_the_same_bytes():
    assert xmp_packet(DigitalSourceType.EDITED, "Dragqueue 1.2.3") == XMP
    assert embed(XMP, saved("PNG"), ".png") == embed(XMP, saved("PNG"), ".png")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"quality": 90}), ("WEBP", {"lossless": True})])
def test_a_picture_carries_the_packet_and_keeps_its_pixels(kind, options):
    plain = saved(kind, **options)
    marked = embed(XMP, plain, f".{kind.lower()}")
    with Image.open(io.BytesIO(plain)) as image:
        assert "xmp" not in image.info
    with Image.open(io.BytesIO(marked)) as image:
        assert image.info["xmp"] == XMP
    assert same(frames_of(marked), frames_of(plain))
    assert same(decoded(marked), decoded(plain))


def test_a_png_is_what_pillow_writes_with_a_packet():
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    assert embed(XMP, saved("PNG"), ".png") == saved("PNG", pnginfo=info)


@pytest.mark.parametrize("packet", [XMP, XMP + b"\n"], ids=["odd", "even"])
def test_a_webp_is_what_libwebp_writes_with_a_packet(packet):
    moving = {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1].copy())]}
    for options in ({"quality": 90}, {"lossless": True}, moving):
        assert embed(packet, saved("WEBP", **options), ".webp") == saved("WEBP", xmp=packet, **options)


def test_a_moving_webp_carries_the_packet_and_keeps_its_frames(tmp_path):
    plain = animated(tmp_path / "a.webp")
    marked = embed(XMP, plain, ".webp")
    with Image.open(io.BytesIO(marked)) as image:
        assert (image.info["xmp"], image.n_frames) == (XMP, 12)
    assert same(frames_of(marked), frames_of(plain))


def test_a_gif_carries_the_packet_and_keeps_its_frames(tmp_path):
    plain = animated(tmp_path / "a.gif")
    marked = embed(XMP, plain, ".gif")
    start = marked.index(b"!\xff\x0bXMP DataXMP") + 14
    assert marked[start : marked.index(b'<?xpacket end="r"?>') + 19] == XMP
    assert len(frames_of(marked)) == 12
    assert same(frames_of(marked), frames_of(plain))
    assert same(decoded(marked), decoded(plain))


def test_who_reads_a_gif_by_blocks_skips_the_packet_from_wherever_it_begins(tmp_path):
    plain = animated(tmp_path / "a.gif")
    marked = embed(XMP, plain, ".gif")
    for start in range(len(plain) + 13, len(plain) + 13 + len(XMP)):
        at = start
        while marked[at] != 0:
            at += 1 + marked[at]
        assert marked[at:] == b"\0;"


def test_an_mp4_ends_with_the_packet_and_keeps_its_frames(tmp_path):
    plain = animated(tmp_path / "a.mp4")
    marked = embed(XMP, plain, ".mp4")
    assert [name for name, _ in boxes(marked)] == [*(name for name, _ in boxes(plain)), b"uuid"]
    content = boxes(marked)[-1][1]
    assert UUID(bytes=content[:16]) == UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
    assert content[16:] == XMP
    assert len(decoded(marked)) == 12
    assert same(decoded(marked), decoded(plain))


def test_another_suffix_is_an_error():
    with pytest.raises(ValueError, match=r"png, webp, gif or mp4, got '\.bmp'"):
        embed(XMP, saved("BMP"), ".bmp")
