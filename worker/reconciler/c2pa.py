"""Content Credentials: the C2PA manifest of a signed copy, and the certificate that signs it."""

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
PHOTO_LABEL = "photo"  # by which the actions name the ingredient
SDK_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False},  # no file may make us fetch a URL
}


class C2paSettingsInvalid(Exception):
    """The settings of the certificate cannot be used. The message is for operators."""


class Unsignable(Exception):
    """A file that cannot be signed."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a picture came about, as its manifest says."""

    source_type: DigitalSourceType
    photo: bytes | None  # the PNG that the edit began with, while it is kept


class C2paSigner:
    """A certificate and its key, ready to sign. It is not safe to share between threads."""

    def __init__(self, context: Any, certificate: "Certificate") -> None:
        self.context = context  # c2pa's
        self.subject = certificate.subject.rfc4514_string()
        self.valid_until = certificate.not_valid_after_utc

    @classmethod
    def from_settings(cls, settings: Settings) -> "C2paSigner | None":
        """Return the signer of the settings; None when they name no certificate. Raises C2paSettingsInvalid."""
        if settings.c2pa_certificate is None or settings.c2pa_key is None:
            return None
        return cls.from_files(settings.c2pa_certificate, settings.c2pa_key)

    @classmethod
    def from_files(cls, certificate: Path, key: Path) -> "C2paSigner":
        """Read PEM files, and try them out by signing a picture. Raises C2paSettingsInvalid."""
        try:
            import c2pa
        except ImportError as error:
            raise C2paSettingsInvalid(
                "DRAGQUEUE_C2PA_CERTIFICATE needs the c2pa library: pip install 'dragqueue[c2pa]'"
            ) from error
        chain = read(certificate, "DRAGQUEUE_C2PA_CERTIFICATE")
        own, private = parse_pair(chain, read(key, "DRAGQUEUE_C2PA_KEY"))
        try:
            signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(signing_algorithm(private), chain, to_pkcs8(private), None))
            credentials = cls(c2pa.Context.from_dict(SDK_SETTINGS, signer=signer), own)
            credentials.sign(blank_png(), "blank.png", "image/png", Origin(source_type=DigitalSourceType.GENERATED, photo=None))
        except (c2pa.C2paError, Unsignable) as error:
            raise C2paSettingsInvalid(f"DRAGQUEUE_C2PA_CERTIFICATE cannot sign: {error}") from error
        return credentials

    @property
    def expired(self) -> bool:
        """Whether the certificate has expired."""
        return datetime.now(UTC) >= self.valid_until

    def sign(self, data: bytes, name: str, media_type: str, origin: Origin) -> bytes:
        """Return the file with a signed manifest in it. Raises Unsignable."""
        import c2pa

        signed = io.BytesIO()
        try:
            with c2pa.Builder(make_manifest(name, media_type, origin), self.context) as builder:
                if origin.photo is not None:
                    parent = {"title": "photo.png", "relationship": "parentOf", "label": PHOTO_LABEL}
                    builder.add_ingredient(parent, "image/png", io.BytesIO(origin.photo))
                builder.sign(media_type, io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise Unsignable(f"{name}: {error}") from error
        return signed.getvalue()


def make_manifest(name: str, media_type: str, origin: Origin) -> dict[str, Any]:
    """Describe a file for the SDK: the program that made it, what it was made from, and how."""
    if origin.photo is None:
        actions: list[dict[str, Any]] = [{"action": "c2pa.created", "digitalSourceType": origin.source_type}]
    else:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [PHOTO_LABEL]}}
        actions = [opened, {"action": "c2pa.edited", "digitalSourceType": origin.source_type}]
    return {
        "claim_generator_info": [{"name": "Dragqueue", "version": version("dragqueue")}],
        "title": name,
        "format": media_type,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


def read(path: Path, setting: str) -> bytes:
    """Read the file that a setting names. Raises C2paSettingsInvalid."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise C2paSettingsInvalid(f"{setting}: {path} cannot be read: {error.strerror}") from error


def parse_pair(chain: bytes, key: bytes) -> "tuple[Certificate, PrivateKeyTypes]":
    """Return the signer's own certificate and its key, after checking that they belong together. Raises C2paSettingsInvalid."""
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


def signing_algorithm(key: "PrivateKeyTypes") -> str:
    """Return C2PA's name of the algorithm that a key signs with. Raises C2paSettingsInvalid."""
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


def to_pkcs8(key: "PrivateKeyTypes") -> bytes:
    """Encode a key as PKCS#8 PEM, the one form that the library reads."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def blank_png() -> bytes:
    """Return a PNG of one pixel."""
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, format="PNG")
    return out.getvalue()
