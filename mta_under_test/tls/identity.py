"""Certificates and keys: read once by whoever may, checked, and kept as bytes."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

LEAST_RSA_BITS = 2048
LEAST_EC_BITS = 224


class TlsError(Exception):
    """A certificate, key or authority that cannot be used; says which file and why."""


@dataclass(frozen=True)
class Identity:
    """Who a server or client is. `names` are those in the certificate, in lower case."""

    name: str  # that the configuration calls it by; "*" stands for any
    certificate: bytes  # PEM, with its chain
    key: bytes = field(repr=False)  # PEM
    names: tuple[str, ...] = ()
    dhe: str = "none"  # none, or auto: groups of RFC 7919, never below 2048 bits

    def answers_to(self, host: str) -> bool:
        """Whether the certificate is for `host` (RFC 6125 §6.4: a wildcard stands for one whole label)."""
        host = host.lower().rstrip(".")
        return any(
            name == host or (name.startswith("*.") and host.partition(".")[2] == name[2:]) for name in self.names
        )


@dataclass(frozen=True)
class Authorities:
    """Certificates that others are verified by."""

    name: str
    certificates: bytes  # PEM


def load_identity(name: str, certificate_path: Path, key_path: Path, dhe: str = "none") -> Identity:
    """Read a certificate with its chain, and its key. Raises TlsError."""
    certificate, key = _read(certificate_path), _read(key_path)
    found = _certificates(certificate_path, certificate)[0]
    now = datetime.datetime.now(datetime.UTC)
    if found.not_valid_after_utc < now:
        raise TlsError(f"{certificate_path}: the certificate expired on {found.not_valid_after_utc:%Y-%m-%d}")
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsError(f"{key_path}: no usable private key in PEM without a password: {error}") from error
    spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*spki) != found.public_key().public_bytes(*spki):
        raise TlsError(f"{key_path}: not the key of the certificate in {certificate_path}")
    bits = getattr(private, "key_size", LEAST_RSA_BITS)
    if bits < (LEAST_RSA_BITS if hasattr(private, "private_numbers") and bits > 600 else LEAST_EC_BITS):
        raise TlsError(f"{key_path}: a key of {bits} bits is too weak; make one of {LEAST_RSA_BITS} or more")
    return Identity(name, certificate, key, _names(found), dhe)


def load_authorities(name: str, path: Path) -> Authorities:
    """Raises TlsError."""
    certificates = _read(path)
    _certificates(path, certificates)
    return Authorities(name, certificates)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}") from error


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise TlsError(f"{path}: no certificate in PEM: {error}") from error


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = alternative.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        names = [str(attribute.value) for attribute in common]
    return tuple(name.lower() for name in names)
