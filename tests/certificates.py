"""Certificates as C2PA wants them, from an authority of the test's own that nobody trusts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USES = (
    "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign", "encipher_only",
    "decipher_only",
)  # fmt: skip


def write_certificate(folder: Path, key=None, days: float = 9, form=PrivateFormat.PKCS8) -> tuple[Path, Path]:
    """A certificate that signs, with its authority's behind it, and its key; valid for so many days."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), key or ec.generate_private_key(ec.SECP256R1())
    chain = certificate("a signer", key, authority, days), certificate("an authority", authority, authority, days)
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    return paths


def certificate(subject: str, key, authority, days: float) -> x509.Certificate:
    now, of_authority = datetime.now(UTC), key is authority
    builder = x509.CertificateBuilder(
        named("an authority"), named(subject), key.public_key(), x509.random_serial_number(), now - timedelta(days=2),
        now + timedelta(days=days),
    )  # fmt: skip
    usage = {use: of_authority and use in ("key_cert_sign", "crl_sign") for use in USES}
    builder = builder.add_extension(x509.BasicConstraints(ca=of_authority, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    builder = builder.add_extension(identifier, critical=False)
    if not of_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(authority, SHA256())


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests")])
