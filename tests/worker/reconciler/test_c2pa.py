"""What signed copies say, read by the C2PA library as anybody would."""

import io
import sys
from importlib.metadata import version

import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import PrivateFormat
from PIL import Image

from engine.media.animation import write_animation
from engine.media.provenance import DigitalSourceType, embed, xmp_packet
from tests.certificates import write_certificate
from worker.reconciler.c2pa import C2paSettingsInvalid, C2paSigner, Origin, Unsignable

GENERATED, EDITED = DigitalSourceType
XMP = xmp_packet(EDITED, "Dragqueue 1.2.3")
MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif", ".mp4": "video/mp4"}


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    return C2paSigner.from_files(*write_certificate(tmp_path_factory.mktemp("credentials")))


def png(gray=90):
    out = io.BytesIO()
    Image.new("L", (40, 30), gray).convert("RGB").save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Of each kind a picture or animation, as jobs leave them."""
    folder, frames = tmp_path_factory.mktemp("drawn"), np.random.default_rng(1).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    files = {".png": png()}
    for suffix in (".webp", ".gif", ".mp4"):
        write_animation(list(frames), folder / f"animation{suffix}")
        files[suffix] = (folder / f"animation{suffix}").read_bytes()
    return {suffix: embed(XMP, data, suffix) for suffix, data in files.items()}


def read(data, suffix):
    with c2pa.Reader(MEDIA_TYPES[suffix], io.BytesIO(data)) as reader:
        failures = reader.get_validation_results()["activeManifest"]["failure"]
        return reader.get_active_manifest(), reader.get_validation_state(), [failure["code"] for failure in failures]


def actions(manifest):
    (assertion,) = (assertion for assertion in manifest["assertions"] if assertion["label"] == "c2pa.actions.v2")
    return [(action["action"], action.get("digitalSourceType")) for action in assertion["data"]["actions"]]


@pytest.mark.parametrize("suffix", MEDIA_TYPES)
def test_what_a_photo_became_names_it_as_its_parent(credentials, drawn, suffix):
    signed = credentials.sign(drawn[suffix], f"x{suffix}", MEDIA_TYPES[suffix], Origin(source_type=EDITED, photo=png(200)))
    manifest, state, failures = read(signed, suffix)
    assert (state, failures) == ("Valid", ["signingCredential.untrusted"])
    assert actions(manifest) == [("c2pa.opened", None), ("c2pa.edited", EDITED)]
    (parent,) = manifest["ingredients"]
    assert (parent["relationship"], parent["format"]) == ("parentOf", "image/png")
    assert "thumbnail" not in manifest
    assert "thumbnail" not in parent


@pytest.mark.parametrize("suffix", MEDIA_TYPES)
def test_what_was_generated_has_no_parent(credentials, drawn, suffix):
    signed = credentials.sign(drawn[suffix], f"x{suffix}", MEDIA_TYPES[suffix], Origin(source_type=GENERATED, photo=None))
    manifest, state, failures = read(signed, suffix)
    assert (state, failures) == ("Valid", ["signingCredential.untrusted"])
    assert (actions(manifest), manifest.get("ingredients", [])) == ([("c2pa.created", GENERATED)], [])
    generator = manifest["claim_generator_info"][0]
    assert (generator["name"], generator["version"], manifest["title"]) == ("Dragqueue", version("dragqueue"), f"x{suffix}")
    assert XMP in signed


@pytest.mark.parametrize("suffix", MEDIA_TYPES)
def test_a_byte_that_was_changed_is_noticed(credentials, drawn, suffix):
    origin = Origin(source_type=GENERATED, photo=None)
    signed = bytearray(credentials.sign(drawn[suffix], f"x{suffix}", MEDIA_TYPES[suffix], origin))
    signed[signed.index(XMP) + len(XMP) // 2] ^= 1
    assert read(bytes(signed), suffix)[1] == "Invalid"


def test_what_is_no_picture_is_unsignable_and_the_next_is_signed_still(credentials):
    origin = Origin(source_type=GENERATED, photo=None)
    with pytest.raises(Unsignable, match=r"x\.png"):
        credentials.sign(b"hello", "x.png", "image/png", origin)
    with pytest.raises(Unsignable):
        credentials.sign(png(), "x.png", "image/png", Origin(source_type=EDITED, photo=b"hello"))
    assert credentials.sign(png(), "x.png", "image/png", origin)


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_keys_of_every_kind_sign(key, tmp_path):
    assert not C2paSigner.from_files(*write_certificate(tmp_path, key)).expired


def test_a_key_as_openssl_used_to_write_it_signs(tmp_path):
    assert C2paSigner.from_files(*write_certificate(tmp_path, form=PrivateFormat.TraditionalOpenSSL))


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        (None, b"", "cannot be read"),
        (b"hello", b"", "no PEM file of certificates"),
        (b"good", b"hello", "no PEM file of a key"),
        (b"good", b"other", "is not the key of the first certificate"),
    ],
)
def test_files_that_cannot_sign_are_refused_at_the_start(certificate, key, reason, tmp_path):
    (tmp_path / "other").mkdir()
    paths, others = write_certificate(tmp_path), write_certificate(tmp_path / "other")
    if certificate is None:
        paths[0].unlink()
    elif certificate != b"good":
        paths[0].write_bytes(certificate)
    paths[1].write_bytes(others[1].read_bytes() if key == b"other" else key)
    with pytest.raises(C2paSettingsInvalid, match=reason):
        C2paSigner.from_files(*paths)


def test_a_certificate_that_has_expired_is_refused_at_the_start(tmp_path):
    with pytest.raises(C2paSettingsInvalid, match=r"DRAGQUEUE_C2PA_CERTIFICATE .*(expired|valid)"):
        C2paSigner.from_files(*write_certificate(tmp_path, days=-1))


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(C2paSettingsInvalid, match=r"pip install 'dragqueue\[c2pa\]'"):
        C2paSigner.from_files(*write_certificate(tmp_path))
