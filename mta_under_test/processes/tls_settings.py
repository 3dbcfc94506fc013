"""Which certificate speaks where: from the configuration's names to the contexts of listeners and relays.

Owns: the identities that parent read before it forked. Contexts are made in a process's birth, while it may still see
/proc; after that no process reads a certificate, so a reload cannot bring new ones.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from mta_under_test.config import Config, Listener, RelayAction
from mta_under_test.tls import (
    Authorities,
    Identity,
    TlsError,
    client_context,
    load_authorities,
    load_identity,
    server_context,
)

VERIFIED_SCHEMES = ("smtps", "smtp+tls")


@dataclass(frozen=True)
class Secrets:
    """What only parent may read."""

    identities: Mapping[str, Identity] = field(default_factory=dict)
    authorities: Mapping[str, Authorities] = field(default_factory=dict)


def load_secrets(config: Config) -> Secrets:
    """Read every certificate, and see that each listener has one. Raises TlsError."""
    secrets = Secrets(
        {pki.name: load_identity(pki.name, pki.cert, pki.key, pki.dhe) for pki in config.pkis.values()},
        {ca.name: load_authorities(ca.name, ca.cert) for ca in config.cas.values()},
    )
    for listener in config.listeners:
        if listener.tls != "no":
            listener_context(config, secrets, listener)
    return secrets


def listener_context(config: Config, secrets: Secrets, listener: Listener) -> ssl.SSLContext:
    """The listener's certificates: those it names, or the one of its host's name, or `*`. Raises TlsError."""
    hostname = (listener.hostname or config.hostname).lower()
    names = listener.pki or tuple(name for name in (hostname, "*") if name in secrets.identities)[:1]
    if not names:
        raise TlsError(
            f"listener on {listener.address} port {listener.port}: TLS needs a certificate; "
            f'write pki {hostname} cert and key, or name one with "pki"'
        )
    return server_context(
        [secrets.identities[name] for name in names],
        ciphers=config.ciphers,
        authorities=secrets.authorities.get(listener.ca),
        verify=listener.verify,
    )


def relay_context(secrets: Secrets, pki: str, *, verify: bool) -> ssl.SSLContext:
    """For sessions to a relay's hosts. Raises TlsError."""
    return client_context(verify=verify, identity=secrets.identities.get(pki))


def verifies(action: RelayAction, scheme: str) -> bool:
    """Whether the other side's certificate must be good: where TLS is asked for, unless `no-verify` takes it back."""
    return action.tls_verify and (action.tls or scheme in VERIFIED_SCHEMES)


def requires(action: RelayAction, scheme: str) -> bool:
    """Whether mail may not go without TLS."""
    return action.tls or scheme in VERIFIED_SCHEMES


def relay_contexts(config: Config) -> set[tuple[str, bool]]:
    """(certificate, verify) of the contexts that the relays of a configuration may need."""
    needed: set[tuple[str, bool]] = set()
    for action in config.actions.values():
        if isinstance(action, RelayAction):
            schemes: list[str] = ["smtp" if action.host is None else action.host.scheme]
            if action.domain:
                schemes += VERIFIED_SCHEMES  # its table may say so
            needed |= {(action.pki, verifies(action, scheme)) for scheme in schemes}
    return needed


def differ(old: Config, new: Config) -> bool:
    """Whether the new configuration wants certificates or TLS where the old had none of the kind."""

    def wanted(config: Config) -> set[object]:
        return {(one.tls, one.pki, one.ca, one.verify, one.hostname) for one in config.listeners if one.tls != "no"}

    same = (old.pkis, old.cas, old.ciphers) == (new.pkis, new.cas, new.ciphers)
    return not (same and wanted(new) <= wanted(old) and relay_contexts(new) <= relay_contexts(old))
