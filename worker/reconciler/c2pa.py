"""Content C2paSigner: what a copy's C2PA manifest says, and the certificate that vouches for it."""

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from engine.media.provenance import DigitalSourceType
from jobs.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
PARENT = "photo"  # the ingredient, as the actions call it
SDK = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False},  # no file may send us anywhere
}


class C2paSettingsInvalid(Exception):
    """Nothing can be signed as the settings are; the message is for operators."""


class Unsignable(Exception):
    """A file that cannot be signed."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a picture came about."""

    source_type: DigitalSourceType
    photo: bytes | None  # PNG that the edit began with, where it is still kept


class C2paSigner:
    """A certificate and its key, ready to sign. Not safe to share between threads."""

    def __init__(self, context: Any, certificate: "Certificate") -> None:
        self.context = context  # c2pa's
        self.subject = certificate.subject.rfc4514_string()
        self.valid_until = certificate.not_valid_after_utc

    @classmethod
    def from_settings(cls, settings: Settings) -> "C2paSigner | None":
        """None when none are configured. Raises C2paSettingsInvalid."""
        if settings.c2pa_certificate is None or settings.c2pa_key is None:
            return None
        return cls.from_files(settings.c2pa_certificate, settings.c2pa_key)

    @classmethod
    def from_files(cls, certificate: Path, key: Path) -> "C2paSigner":
        """Of PEM files, tried out by signing a picture. Raises C2paSettingsInvalid."""
        try:
            import c2pa
        except ImportError as error:
            raise C2paSettingsInvalid(
                "DRAGQUEUE_C2PA_CERTIFICATE needs the c2pa library: pip install 'dragqueue[c2pa]'"
            ) from error
        chain = read(certificate, "DRAGQUEUE_C2PA_CERTIFICATE")
        own, private = parsed(chain, read(key, "DRAGQUEUE_C2PA_KEY"))
        try:
            signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm(private), chain, as_pkcs8(private), None))
            credentials = cls(c2pa.Context.from_dict(SDK, signer=signer), own)
            credentials.sign(blank_png(), "blank.png", "image/png", Origin(source_type=DigitalSourceType.GENERATED, photo=None))
        except (c2pa.C2paError, Unsignable) as error:
            raise C2paSettingsInvalid(f"DRAGQUEUE_C2PA_CERTIFICATE cannot sign: {error}") from error
        return credentials

    @property
    def expired(self) -> bool:
        return datetime.now(UTC) >= self.valid_until

    def sign(self, data: bytes, name: str, media_type: str, origin: Origin) -> bytes:
        """The file with a signed manifest in it. Raises Unsignable."""
        import c2pa

        signed = io.BytesIO()
        try:
            with c2pa.Builder(manifest(name, media_type, origin), self.context) as builder:
                if origin.photo is not None:
                    parent = {"title": "photo.png", "relationship": "parentOf", "label": PARENT}
                    builder.add_ingredient(parent, "image/png", io.BytesIO(origin.photo))
                builder.sign(media_type, io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise Unsignable(f"{name}: {error}") from error
        return signed.getvalue()


def manifest(name: str, media_type: str, origin: Origin) -> dict[str, Any]:
    """What is claimed of a file: which program made it, out of what, and how."""
    if origin.photo is None:
        actions: list[dict[str, Any]] = [{"action": "c2pa.created", "digitalSourceType": origin.source_type}]
    else:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}}
        actions = [opened, {"action": "c2pa.edited", "digitalSourceType": origin.source_type}]
    return {
        "claim_generator_info": [{"name": "Dragqueue", "version": version("dragqueue")}],
        "title": name,
        "format": media_type,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise C2paSettingsInvalid(f"{setting}: {path} cannot be read: {error.strerror}") from error


def parsed(chain: bytes, key: bytes) -> "tuple[Certificate, PrivateKeyTypes]":
    """The signer's own certificate and its key. Raises C2paSettingsInvalid."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    try:
        own = load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise C2paSettingsInvalid(f"DRAGQUEUE_C2PA_CERTIFICATE is no PEM file of certificates: {error}") from error
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:  # the latter when it is encrypted
        raise C2paSettingsInvalid(f"DRAGQUEUE_C2PA_KEY is no PEM file of a key without a password: {error}") from error
    if private.public_key() != own.public_key():
        raise C2paSettingsInvalid("DRAGQUEUE_C2PA_KEY is not the key of the first certificate in DRAGQUEUE_C2PA_CERTIFICATE")
    return own, private


def algorithm(key: "PrivateKeyTypes") -> str:
    """C2PA's name of how a key signs. Raises C2paSettingsInvalid."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, RSAPrivateKey):
        return "ps256"
    raise C2paSettingsInvalid("DRAGQUEUE_C2PA_KEY must be of P-256, P-384, P-521, Ed25519 or RSA")


def as_pkcs8(key: "PrivateKeyTypes") -> bytes:
    """PEM, in the one form that the library reads."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def blank_png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, format="PNG")
    return out.getvalue()
