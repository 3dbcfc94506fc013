"""What an embedded server is set up with beside relaying: certificates, a login, mailboxes. Everything is made anew.

Owns: the files, in directories that the target's owner removes. Never: starts anything.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.scenario import DNS_DOMAINS, LOGIN, PASSWORD

HOST = "load.test"
LOCAL_USER = "user"
NOBODY = 65534
# Of each domain in `harness.scenario.LOCAL_DOMAINS`, what it is delivered by.
DELIVERIES = {
    "maildir.test": "maildir",
    "flood.test": 'mda "/bin/cat"',
    "fails.test": 'mda "/bin/false"',
    "deaf.test": 'mda "/bin/true"',
    "slow.test": 'mda "/bin/sleep 0.1"',
}

HERE = {"MX": ["10 mx.test."]}
ZONE = {
    "mx.test": {"A": ["127.0.0.1"]},
    "known.test": HERE,
    "servfail.test": "SERVFAIL/2",
    "answered.servfail.test": HERE,
    "timeout.test": {"MX": "TIMEOUT/2"},
    "answered.timeout.test": HERE,
    "truncated.test": {"truncate": True, **HERE},
    "null.test": {"MX": ["0 ."]},
}


@dataclass
class Facilities:
    """Pieces of a configuration."""

    head: str = ""  # tables and certificates
    listen: str = ""  # words of the listener
    rules: str = ""  # actions and matches
    mailboxes: Path | None = None
    zone: dict[str, Any] = field(default_factory=dict)  # of the DNS server that is needed; empty: none


def facilities(needs: Collection[str], private: Path, public: Path) -> Facilities:
    """`private`: where keys are put. `public`: where every user may go, for homes. Raises OSError."""
    made = Facilities()
    if "tls" in needs or "auth" in needs:
        certificate, key = _certificate()
        for name, text in (("cert", certificate), ("key", key)):
            path = private / f"{HOST}.{name}"
            path.write_bytes(text)
            path.chmod(0o600)
            made.head += f'pki {HOST} {name} "{path}"\n'
        made.listen = f" tls pki {HOST}"
    if "auth" in needs:
        from mta_under_test.tables.password import encrypt

        made.head += f'table logins {{ "{LOGIN}" = "{encrypt(PASSWORD)}" }}\n'
        made.listen += " auth-optional <logins>"
    if "local" in needs:
        made.mailboxes = home = public / LOCAL_USER
        home.mkdir()
        user = group = NOBODY  # mail is never delivered as root
        if os.geteuid() == 0:
            os.chown(home, user, group)
        else:
            user, group = os.geteuid(), os.getegid()
        made.head += f'table locals {{ "{LOCAL_USER}" = "{user}:{group}:{home}" }}\n'
        for domain, method in DELIVERIES.items():
            made.rules += f'action "{domain}" {method} userbase <locals>\n'
        for domain in DELIVERIES:
            made.rules += f'match from any for domain "{domain}" action "{domain}"\n'
    if "dns" in needs:
        made.zone = ZONE
        domains = ", ".join(f'"{domain}"' for domain in DNS_DOMAINS)
        made.rules += f'action "by-name" relay\nmatch from any for domain {{ {domains} }} action "by-name"\n'
    return made


def _certificate() -> tuple[bytes, bytes]:
    """Signed by itself and good for a day: certificate and key, PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private
