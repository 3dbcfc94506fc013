"""TLS for any daemon: certificates, contexts, and what a connection came to. Imports nothing of the mail server.

Whoever may read keys (`load_identity`, `load_authorities`) hands bytes to whoever speaks (`server_context`,
`client_context`); no path is needed after that, and no right.
"""

from __future__ import annotations

from mta_under_test.tls.contexts import client_context, describe, server_context
from mta_under_test.tls.identity import Authorities, Identity, TlsError, load_authorities, load_identity

__all__ = [
    "Authorities",
    "Identity",
    "TlsError",
    "client_context",
    "describe",
    "load_authorities",
    "load_identity",
    "server_context",
]
