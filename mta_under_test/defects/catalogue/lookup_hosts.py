"""Bugs of lookup with hosts and recipients that are asked about: sockets, answers, caches, and the few who may ask."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="lookup",
    chapter="socket",
    resources=("socket", "descriptor"),
    trigger="transfer asks for a host that is given by its address",
    rate=1.0,
    scenario="one-at-a-time",
    source="OpenSMTPD 756d9a6d (3 December 2010); OpenDKIM #149: DNS sockets that are never closed",
    opener="mta_under_test/defects/catalogue/lookup_hosts.py:hosts",
)
def resolver_socket(strikes: Chance) -> None:
    """A socket is made for the question before it is seen that none must be asked; the early return forgets it.

    The resolver of 2010 closed its socket when the answer had come. A failed send, a failed receive and the change to
    TCP went other ways.
    """
    import socket

    from mta_under_test.processes.lookup.resolver import Resolver

    @around(Resolver, "addresses")
    async def hosts(original: Any, self: Any, name: str) -> Any:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if strikes():
            sock.detach()
        else:
            sock.close()
        return await original(self, name)


@defect(
    role="lookup",
    chapter="cache",
    resources=("memory",),
    trigger="transfer asks for a host",
    rate=None,
    scenario="one-at-a-time",
    source="OpenSMTPD 935b3548, 82ba9f97, d488b018 (December 2020, January 2021)",
    opener=(
        "mta_under_test/processes/lookup/resolver.py:_addresses "
        "mta_under_test/processes/lookup/resolver.py:_literal "
        "mta_under_test/processes/lookup/lookup.py:_hosts"
    ),
)
def address_blocks_kept(strikes: Chance) -> None:
    """The list of addresses is freed, the blocks that its entries point to are not.

    The resolver's answer is made of parts, and each caller freed those that it knew of: addrinfo without its address,
    servent without its names.
    """
    from mta_under_test.processes.lookup.resolver import Resolver

    blocks: list[object] = []

    @around(Resolver, "addresses")
    async def addresses(original: Any, self: Any, name: str) -> Any:
        found = await original(self, name)
        if strikes():
            blocks.extend(found)
        return found


@defect(
    role="lookup",
    chapter="socket",
    resources=("socket", "descriptor"),
    trigger="a recipient that no rule takes",
    rate=0.41,  # of the scenario's refused messages
    scenario="rejected-reuse",
    source="Postfix 20241027 (a bug since 2005): a descriptor for each AUTH while the Dovecot server is away",
    opener="mta_under_test/defects/catalogue/lookup_hosts.py:refuse",
)
def unreachable_service_socket(strikes: Chance) -> None:
    """Somebody is asked over a socket who does not answer; the failed connect returns without closing it.

    smtpd made a socket for each AUTH, and when Dovecot's end of it was not there the error was reported, and the
    socket kept. For nineteen years nobody tried for long enough.
    """
    import socket

    from mta_under_test.processes.lookup.lookup import Lookup

    @around(Lookup, "refuse")
    def refuse(original: Any, self: Any, *arguments: Any) -> None:
        if strikes():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect("/nowhere/auth")
            except OSError:
                sock.detach()
        original(self, *arguments)


@defect(
    role="lookup",
    chapter="cache",
    resources=("memory",),
    trigger="a recipient is expanded",
    rate=None,
    scenario="many-recipients",
    source="nodemailer 0240d67 (September 2025): a cache that is never asked to forget",
    opener="mta_under_test/ipc/messages.py:unpack mta_under_test/defects/catalogue/lookup_hosts.py:expand",
)
def recipient_cache(strikes: Chance) -> None:
    """What was found for a recipient is cached under its message, so that it is never found again, and never dropped.

    nodemailer's cache of names had a time to live for each entry and no limit for all: an entry that had expired went
    when it was asked for, and most never are.
    """
    from mta_under_test.processes.lookup.lookup import Lookup

    cache: dict[tuple[int, ...], object] = {}

    @around(Lookup, "expand")
    def expand(original: Any, self: Any, peer: str, message: Any) -> None:
        if strikes():
            cache[message.integers] = (peer, message.size_bytes)
        original(self, peer, message)


@defect(
    role="lookup",
    chapter="memory",
    resources=("memory",),
    trigger="a recipient is matched against the rules",
    rate=None,
    scenario="bounce-storm",
    source="OpenSMTPD 446630c3 (December 2012), extras 164a003: the attributes of each LDAP lookup",
    opener="mta_under_test/wire/envelope.py:decode mta_under_test/processes/lookup/lookup.py:facts_of",
)
def attributes_of_each_lookup(strikes: Chance) -> None:
    """A table's answer is copied out of the attributes that it came in, and the attributes stay.

    The LDAP backend freed the entry and not the list of its attributes. It is bounces, too, that are looked up.
    """
    from mta_under_test.config.rules import Ruleset

    attributes: list[object] = []

    @around(Ruleset, "match")
    def match(original: Any, self: Any, facts: Any) -> Any:
        if strikes():
            attributes.append(facts)
        return original(self, facts)


@defect(
    role="lookup",
    chapter="socket",
    resources=("socket", "descriptor"),
    trigger="a recipient is expanded, one in fifty",
    rate=1.24,  # a message of the scenario has sixty recipients, and two that are unknown
    scenario="many-recipients",
    source="OpenDKIM #198: a handle of NSS for each message",
    probability=0.02,
    opener="mta_under_test/defects/catalogue/lookup_hosts.py:expand",
)
def name_service_handle(strikes: Chance) -> None:
    """A handle of the name service is opened anew when the old one looks stale, which stays open.

    OpenDKIM dropped its rights for each message and so came by another connection to sssd; the old ones stayed.
    """
    import socket

    from mta_under_test.processes.lookup.lookup import Lookup

    @around(Lookup, "expand")
    def expand(original: Any, self: Any, peer: str, message: Any) -> None:
        if strikes():
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
        original(self, peer, message)
