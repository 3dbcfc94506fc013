"""`listen on`: where connections come in, and what is asked of them."""

from __future__ import annotations

from typing import cast

from lark import Token
from msgspec.structs import replace

from mta_under_test.config import values
from mta_under_test.config.interfaces import addresses_of
from mta_under_test.config.model import Listener, TlsUse
from mta_under_test.config.names import Names, known
from mta_under_test.config.statement import Mistake, Node, first, last, once, strings, tables_of, text, value

MAX_TAG = 31  # SMTPD_TAG_SIZE, less its end
_TLS: dict[str, TlsUse] = {"tls": "offered", "tls_require": "required", "smtps": "implicit"}
_SMTPS_PORT = 465


def listeners(tree: Node, names: Names) -> list[Listener]:
    """One for each address of the interface."""
    interface = cast(Token, tree.children[2])
    pki = [strings(option)[0] for option in tree.find_data("with_pki")]
    options = once(_without(tree, "with_pki"))
    listener = _common(options, names)
    listener = replace(listener, hostname=text(options, "hostname"))
    if tables := _tables(options, "hostnames"):
        listener = replace(listener, hostnames=names.mapping_of(tables))
    if tables := _tables(options, "senders"):
        masquerade = options["senders"].children[-1] is not None
        listener = replace(listener, senders=names.mapping_of(tables), masquerade=masquerade)
    listener = replace(
        listener,
        no_dsn="no_dsn" in options,
        received_auth="received_auth" in options,
        proxy_v2="proxy_v2" in options,
    )
    listener = _tls(listener, options, pki, names)
    if listener.proxy_v2 and listener.tls == "implicit":
        raise Mistake(first(options["proxy_v2"]), '"proxy-v2" and "smtps" exclude each other')
    listener = _auth(listener, options, names)
    if "port" in options:
        listener = replace(listener, port=_port(last(options["port"])))
    elif listener.tls == "implicit":
        listener = replace(listener, port=_SMTPS_PORT)
    return [replace(listener, address=address) for address in _addresses(interface, options)]


def local_socket(tree: Node, names: Names) -> Listener:
    return _common(once(tree), names)


def _common(options: dict[str, Node], names: Names) -> Listener:
    listener = Listener("", mask_src="mask_src" in options)
    if "tag" in options:
        tag = last(options["tag"])
        if len(tag) > MAX_TAG:
            raise Mistake(tag, f'tag "{tag}" has more than {MAX_TAG} characters')
        listener = replace(listener, tag=str(tag))
    if "filtered" in options:
        listener = replace(listener, filter=names.filter_of(options["filtered"]))
    return listener


def _tls(listener: Listener, options: dict[str, Node], pki: list[Token], names: Names) -> Listener:
    modes = [name for name in _TLS if name in options]
    if len(modes) > 1:
        raise Mistake(first(options[modes[1]]), f'"{first(options[modes[0]])}" is said already')
    for name in pki:
        known(name, "pki", names.pkis)
    if modes:
        option = options[modes[0]]
        verify = modes[0] != "tls" and option.children[1] is not None
        listener = replace(listener, tls=_TLS[modes[0]], verify=verify)
    elif pki:
        raise Mistake(pki[0], '"pki" has no meaning without "tls", "tls-require" or "smtps"')
    if "with_ca" in options:
        ca = last(options["with_ca"])
        known(ca, "ca", names.cas)
        listener = replace(listener, ca=str(ca))
    return replace(listener, pki=tuple(str(name) for name in pki))


def _auth(listener: Listener, options: dict[str, Node], names: Names) -> Listener:
    given = [name for name in ("auth", "auth_optional") if name in options]
    if not given:
        return listener
    option = options[given[0]]
    if len(given) > 1:
        raise Mistake(first(options["auth_optional"]), '"auth" is said already')
    if listener.tls == "no":
        raise Mistake(first(option), f'"{first(option)}" needs "tls", "tls-require" or "smtps": passwords stay secret')
    tables = tables_of(option)
    table = names.mapping_of(tables) if tables else ""
    return replace(listener, auth="required" if given[0] == "auth" else "optional", auth_table=table)


def _addresses(interface: Token, options: dict[str, Node]) -> list[str]:
    version = {"": None, "inet4": 4, "inet6": 6}[text(options, "family")]
    try:
        addresses = addresses_of(interface, version)
    except OSError as error:
        reason = f'"{interface}" is neither an interface nor a host that can be found: {error.strerror or error}'
        raise Mistake(interface, reason) from error
    if not addresses:
        raise Mistake(interface, f'"{interface}" has no address{f" of IP version {version}" if version else ""}')
    return [str(address) for address in addresses]


def _port(token: Token) -> int:
    if token.type == "NUMBER":
        return value(token, lambda number: values.port_number(number, lowest=0))
    return value(token, values.service_port)


def _tables(options: dict[str, Node], name: str) -> Node | None:
    return tables_of(options[name]) if name in options else None


def _without(tree: Node, name: str) -> Node:
    """The statement less an option that may be given more than once."""
    kept = [child for child in tree.children if isinstance(child, Token) or child.data != name]
    return Node(tree.data, kept)
