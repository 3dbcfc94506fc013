"""`action`: what is done with an envelope that a rule has accepted."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, cast

from lark import Token

from mta_under_test.config import values
from mta_under_test.config.model import (
    Action,
    ExpandOnlyAction,
    ForwardOnlyAction,
    LmtpAction,
    MaildirAction,
    MboxAction,
    MdaAction,
    RelayAction,
)
from mta_under_test.config.names import Names, known, new
from mta_under_test.config.statement import Mistake, Node, first, last, once, tables_of, text, value
from mta_under_test.tables import Service


def action(tree: Node, names: Names) -> None:
    name, kind = cast(Token, tree.children[1]), cast(Node, tree.children[2])
    new(name, "action", names.actions)
    common: dict[str, Any] = {"name": str(name)}
    # Defined even when the rest is wrong, so that rules which name it are no mistakes of their own.
    names.actions[str(name)] = Action(**common)
    if "ttl" in (ends := once(Node("ends", tree.children[3:]))):
        common["ttl_s"] = value(last(ends["ttl"]), values.duration_s)
    options = once(kind)
    make = _LOCAL.get(str(kind.data))
    if make is None:
        names.actions[str(name)] = RelayAction(**common, **_relay(options, names))
    else:
        names.actions[str(name)] = make(kind, common | _local(kind, options, names))


def _local(kind: Node, options: dict[str, Node], names: Names) -> dict[str, Any]:
    if "alias" in options and "virtual" in options:
        raise Mistake(first(options["virtual"]), '"alias" and "virtual" exclude each other')
    if "user" in options and kind.data in ("mbox", "forward_only", "expand_only"):
        raise Mistake(first(options["user"]), f'"user" has no meaning with "{first(kind)}"')
    if "wrapper" in options:
        known(last(options["wrapper"]), "mda wrapper", names.wrappers)
    chosen: dict[str, Any] = {"user": text(options, "user"), "wrapper": text(options, "wrapper")}
    for option in ("alias", "virtual", "userbase"):
        if option in options:
            chosen[option] = names.mapping_of(cast(Node, tables_of(options[option])))
    return chosen


def _relay(options: dict[str, Node], names: Names) -> dict[str, Any]:
    destinations = [name for name in ("host", "domain", "backup") if name in options]
    if len(destinations) > 1:
        one, other = (first(options[name]) for name in destinations[:2])
        raise Mistake(other, f'"{other}" and "{one}" exclude each other')
    chosen: dict[str, Any] = {"helo": text(options, "helo"), "mail_from": text(options, "mail_from")}
    if "host" in options:
        chosen["host"] = value(_only(options["host"]), values.relay_host)
    if "domain" in options:
        chosen["domain"] = names.mapping_of(cast(Node, tables_of(options["domain"])))
    if "backup" in options:
        chosen |= {"backup": True, "backup_mx": str(options["backup"].children[2] or "")}
    if "helo_src" in options:
        chosen["helo_src"] = names.mapping_of(cast(Node, tables_of(options["helo_src"])))
    if "src" in options:
        tables = cast(Node, tables_of(options["src"]))
        if cast(Token, tables.children[0]).type == "STRING":
            chosen["src"] = value(_only(options["src"]), lambda address: str(ip_address(address)))
        else:
            chosen["src_table"] = names.list_of(tables, Service.NETADDR)
    if "relay_tls" in options:
        chosen |= {"tls": True, "tls_verify": options["relay_tls"].children[1] is None}
        if chosen.get("host") and chosen["host"].scheme == "smtp+notls":
            raise Mistake(first(options["relay_tls"]), '"tls" and a host with smtp+notls:// exclude each other')
    if "with_pki" in options:
        known(last(options["with_pki"]), "pki", names.pkis)
        chosen["pki"] = text(options, "with_pki")
    if "relay_auth" in options:
        if "host" not in options:
            raise Mistake(first(options["relay_auth"]), '"auth" needs "host", whose label is looked up')
        chosen["auth"] = names.mapping_of(cast(Node, tables_of(options["relay_auth"])))
    host = chosen.get("host")
    if host is not None and host.label and "auth" not in chosen:
        raise Mistake(_only(options["host"]), f'label "{host.label}" needs "auth" and a table of credentials')
    return chosen


def command(token: Token) -> str:
    """A command line that can be split into arguments; no shell will ever see it."""
    try:
        arguments = shlex.split(token)
    except ValueError as error:
        raise Mistake(token, f"the command cannot be split into arguments: {error}") from error
    if not arguments:
        raise Mistake(token, "the command is empty")
    return str(token)


def _only(option: Node) -> Token:
    """The string of an option that could also name a table."""
    token = cast(Token, cast(Node, option.children[1]).children[0])
    if token.type != "STRING":
        raise Mistake(token, f'"{first(option)}" with a table is not supported')
    return token


_LOCAL: dict[str, Callable[[Node, dict[str, Any]], Action]] = {
    "mbox": lambda kind, common: MboxAction(**common),
    "maildir": lambda kind, common: MaildirAction(
        path=str(kind.children[1] or "~/Maildir"), junk=kind.children[2] is not None, **common
    ),
    "lmtp": lambda kind, common: LmtpAction(
        destination=str(kind.children[1]), rcpt_to=kind.children[2] is not None, **common
    ),
    "mda": lambda kind, common: MdaAction(command=command(cast(Token, kind.children[1])), **common),
    "forward_only": lambda kind, common: ForwardOnlyAction(**common),
    "expand_only": lambda kind, common: ExpandOnlyAction(**common),
}
