"""XMP packets that say in an image's or animation's file, by IPTC's digital source type, that an algorithm made it.

The place of the packet is defined for PNG, GIF and MP4 by the XMP specification, part 3, and for WebP by RFC 9649.
Pillow can write a packet only while it encodes, and neither into GIF nor into MP4; `embed` takes files already encoded.
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
PNG_HEAD_BYTES = 33  # of signature and IHDR, which must come first
GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])  # readers that take the packet's bytes for block lengths land on its end
MP4_UUID = UUID("BE7ACFCB-97A9-42E8-9C71-999491E3AFAC")
WEBP_XMP_FLAG = 0x04  # in the flags of VP8X


class DigitalSourceType(StrEnum):
    """How an image was made, in IPTC's vocabulary: https://cv.iptc.org/newscodes/digitalsourcetype/."""

    GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"  # from a photo


def xmp_packet(source_type: DigitalSourceType, creator_tool: str) -> bytes:
    """Return a packet in UTF-8, which is not made to be changed in place; equal arguments give equal bytes.

    Args:
        creator_tool: a program's name and version.
    """
    return PACKET.format(source_type=source_type, creator_tool=escape(creator_tool)).encode()


def embed(xmp: bytes, data: bytes, suffix: str) -> bytes:
    """Return an encoded image or animation with the packet in it, its pixels untouched.

    Args:
        data: the file's content, which must have no packet yet.
        suffix: the format of the file: .png, .webp, .gif or .mp4.

    Raises:
        ValueError: the suffix is another.
    """
    match suffix:
        case ".png":
            return data[:PNG_HEAD_BYTES] + png_chunk(xmp) + data[PNG_HEAD_BYTES:]
        case ".webp":
            return embed_in_webp(xmp, data)
        case ".gif":
            return data[:-1] + gif_extension(xmp) + data[-1:]  # the last byte ends the file
        case ".mp4":
            return data + mp4_box(xmp)
    raise ValueError(f"a packet goes into png, webp, gif or mp4, got {suffix!r}")


def png_chunk(xmp: bytes) -> bytes:
    """Return an uncompressed iTXt chunk."""
    chunk = b"iTXtXML:com.adobe.xmp" + bytes(5) + xmp
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


def gif_extension(xmp: bytes) -> bytes:
    """Return an application extension."""
    return b"!\xff\x0bXMP DataXMP" + xmp + GIF_TRAILER


def mp4_box(xmp: bytes) -> bytes:
    """Return a uuid box."""
    return struct.pack(">I4s", 24 + len(xmp), b"uuid") + MP4_UUID.bytes + xmp


def embed_in_webp(xmp: bytes, data: bytes) -> bytes:
    """Append the packet to a WebP file; a file of the simple format gets the header of the extended one first."""
    chunks = data[12:]
    if not chunks.startswith(b"VP8X"):
        chunks = webp_header(data) + chunks
    flags = chunks[8] | WEBP_XMP_FLAG
    body = b"WEBP" + chunks[:8] + bytes([flags]) + chunks[9:] + webp_chunk(b"XMP ", xmp)
    return webp_chunk(b"RIFF", body)


def webp_header(data: bytes) -> bytes:
    """Return the VP8X chunk of a WebP file, without any flag."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return webp_chunk(b"VP8X", bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


def webp_chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk, padded to an even length."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
