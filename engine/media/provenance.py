"""That an algorithm made a picture, said in its file: an XMP packet with IPTC's digital source type.

Where the packet lies in PNG, GIF and MP4: XMP specification, part 3; in WebP: RFC 9649. The same words make the same bytes.
"""

import io
import struct
import zlib
from enum import StrEnum
from html import escape
from uuid import UUID

from PIL import Image

PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 Iptc4xmpExt:DigitalSourceType="{source_type}"
 xmp:CreatorTool="{creator_tool}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""
PNG_HEAD = 33  # bytes of signature and IHDR, which must come first
GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])  # who takes the packet's letters for lengths of blocks comes out at its end
MP4_UUID = UUID("BE7ACFCB-97A9-42E8-9C71-999491E3AFAC")
WEBP_HAS_XMP = 0x04  # of VP8X's flags


class DigitalSourceType(StrEnum):
    """How a picture came about, in IPTC's vocabulary: https://cv.iptc.org/newscodes/digitalsourcetype/."""

    GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"  # from a photo


def xmp_packet(source_type: DigitalSourceType, creator_tool: str) -> bytes:
    """UTF-8, not made to be changed in place; creator_tool is a program's name and version."""
    return PACKET.format(source_type=source_type, creator_tool=escape(creator_tool)).encode()


def embed(xmp: bytes, data: bytes, suffix: str) -> bytes:
    """The file with the packet in it, its pixels untouched; it must hold none yet.

    Args:
        suffix: what the file is: .png, .webp, .gif or .mp4.

    Raises:
        ValueError: the suffix is another.
    """
    match suffix:
        case ".png":
            return data[:PNG_HEAD] + png_chunk(xmp) + data[PNG_HEAD:]
        case ".webp":
            return webp_with(xmp, data)
        case ".gif":
            return data[:-1] + gif_extension(xmp) + data[-1:]  # the last byte ends the file
        case ".mp4":
            return data + mp4_box(xmp)
    raise ValueError(f"a packet goes into png, webp, gif or mp4, got {suffix!r}")


def png_chunk(xmp: bytes) -> bytes:
    """iTXt, not compressed."""
    chunk = b"iTXtXML:com.adobe.xmp" + bytes(5) + xmp
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def gif_extension(xmp: bytes) -> bytes:
    return b"!\xff\x0bXMP DataXMP" + xmp + GIF_TRAILER


def mp4_box(xmp: bytes) -> bytes:
    return struct.pack(">I4s", 24 + len(xmp), b"uuid") + MP4_UUID.bytes + xmp


def webp_with(xmp: bytes, data: bytes) -> bytes:
    """Only the extended format has a place for it; a picture without alpha becomes that."""
    chunks = data[12:]
    if not chunks.startswith(b"VP8X"):
        chunks = webp_header(data) + chunks
    flags = chunks[8] | WEBP_HAS_XMP
    body = b"WEBP" + chunks[:8] + bytes([flags]) + chunks[9:] + webp_chunk(b"XMP ", xmp)
    return webp_chunk(b"RIFF", body)


def webp_header(data: bytes) -> bytes:
    """VP8X without any flag."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return webp_chunk(b"VP8X", bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


def webp_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
