import io
import struct
import zlib
from contextlib import ExitStack

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageCms
from safetensors.numpy import load, save

from jobs.errors import DecoderBusy, InvalidJob, Problem
from jobs.storage.decoding import MAX_BYTES, TURNS, decode, decode_stream
from jobs.storage.picture_files import Refused
from tests.decoding import read


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(read(data).data)))


PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 255, (20, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_is_kept_as_a_png(kind):
    decoded = read(encoded(PICTURE, kind, lossless=True))
    assert (decoded.kind, decoded.width, decoded.height, decoded.media_type) == ("image", 30, 20, "image/png")
    assert (np.asarray(Image.open(io.BytesIO(decoded.data))) == np.asarray(PICTURE)).all()


def test_a_jpeg_is_turned_upright_and_its_metadata_dropped():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    decoded = read(encoded(PICTURE, "JPEG", exif=exif.tobytes(), quality=95))
    assert (decoded.width, decoded.height) == (20, 30)
    assert not Image.open(io.BytesIO(decoded.data)).getexif()


def test_clear_pixels_show_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (pixels_of(encoded(image, "PNG")) == 255).all()


def test_colors_of_another_profile_become_srgb():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = pixels_of(encoded(PICTURE, "PNG", icc_profile=lab))
    assert abs(same.astype(int) - np.asarray(PICTURE)).max() <= 2


def test_sixteen_bits_become_eight():
    image = Image.fromarray((np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4))
    assert pixels_of(encoded(image, "PNG"))[..., 0].flatten().tolist() == [k * 17 for k in range(16)]


def bomb(side=20_000):
    """A PNG that says it is large, and holds nothing."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def animated():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a picture that can be read; known formats: JPEG, PNG, WEBP"),
        (b"hello", "not a picture"),
        (encoded(PICTURE, "GIF"), "not a picture"),
        (encoded(PICTURE, "PNG")[:200], "not a picture"),
        (animated(), "is animated"),
        (b"PK\x03\x04nonsense", "not an .npz"),
        (b"\x93NUMPYnonsense", "not an .npy"),
        (save({"v": np.zeros((1, 4), dtype=np.float32)}), "a tensor named w"),
        (save({"w": np.zeros((2, 3, 4), dtype=np.float32)}), "of one picture, is of 2"),
        (save({"w": np.full((1, 4), np.nan, dtype=np.float32)}), "must be finite"),
        (save({"w": np.zeros((1, 4), dtype=np.int32)}), "w must be F16, F32, F64"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(data, reason):
    with pytest.raises(Refused, match=reason):
        read(data)


def test_the_preview_that_a_phone_puts_beside_its_photo_is_no_animation():
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE.resize((6, 4))])
    assert (read(data).width, read(data).height) == (30, 20)


def test_a_half_precision_latent_is_refused_by_its_type():
    data = safetensors.torch.save({"w": torch.zeros(1, 4, dtype=torch.bfloat16)})
    with pytest.raises(Refused, match=r"w must be F16, F32, F64 in a \.safetensors, is BF16"):
        read(data)


def test_an_object_array_is_not_unpickled():
    out = io.BytesIO()
    np.save(out, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(Refused, match="plain numbers"):
        read(out.getvalue())


@pytest.mark.parametrize("shape", [(8,), (1, 8), (6, 8), (1, 6, 8)])
@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_latents_of_any_layout_become_one(kind, shape):
    w = np.random.RandomState(0).randn(*shape)
    out = io.BytesIO()
    if kind == "npy":
        np.save(out, w)
    elif kind == "npz":
        np.savez(out, w=w)
    data = save({"w": w}) if kind == "safetensors" else out.getvalue()
    decoded = read(data)
    kept = load(decoded.data)["w"]
    assert (decoded.kind, kept.dtype, kept.shape) == ("latent", np.float32, (1, decoded.height, 8))
    np.testing.assert_allclose(kept.reshape(shape), w, rtol=1e-6)


def test_the_child_answers_as_the_reader_does():
    data = encoded(PICTURE, "PNG")
    assert decode(data, "image") == read(data)


def test_the_childs_refusals_name_the_field():
    with pytest.raises(InvalidJob, match="image: may have 50 megapixels, has 20000 x 20000 pixels"):
        decode(bomb(), "image")
    with pytest.raises(InvalidJob, match="image: is animated"):
        decode(animated(), "image")
    with pytest.raises(InvalidJob, match="image: may have 30 MB"):
        decode(b"\0" * (MAX_BYTES + 1), "image")


def test_a_file_in_parts_may_be_larger_than_one_piece():
    data = encoded(PICTURE, "PNG")
    parts = [data[:100], data[100:], bytes(MAX_BYTES)]  # PNG readers stop at its end
    assert decode_stream(parts, None, "file") == read(data)


def test_the_child_of_a_file_that_breaks_off_tells_nothing():
    def parts():
        yield encoded(PICTURE, "PNG")
        raise InvalidJob([Problem(field="sha256", message="must be the file's")])

    with pytest.raises(InvalidJob, match="sha256: must be the file's"):
        decode_stream(parts(), None, "file")


def test_more_pictures_than_there_are_children_wait_their_turn():
    with ExitStack() as held:
        for k in range(TURNS.capacity):
            held.enter_context(TURNS.turn(f"tenant {k}", wait_s=0.01))
        with pytest.raises(DecoderBusy, match=r"no turn within 0\.01 s"):
            decode(encoded(PICTURE, "PNG"), "image", wait_s=0.01)
    assert decode(encoded(PICTURE, "PNG"), "image").width == 30
