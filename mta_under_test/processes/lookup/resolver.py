"""lookup's resolver: the mail exchangers of a domain and the addresses of a name, through dnspython.

Owns: what resolv.conf(5) says, read again when the file has changed.
Never: keeps an answer (a busy server asks a resolver that does), blocks, waits longer than LOOKUP_TIMEOUT_S for all the
questions that one destination takes, or hands on more than MAX_EXCHANGES addresses, whatever a zone holds.

Trouble with the DNS is temporary; what the DNS says is final: a domain that does not exist, has no address or accepts
no mail (RFC 5321 §5.1, RFC 7505), or whose mail is already where it goes (this server).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import ipaddress
import logging
import os
import random
import re
from pathlib import Path

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.reversename

from mta_under_test.wire.exchange import Exchange

QUESTION_TIMEOUT_S = 20.0
CLIENT_NAME_TIMEOUT_S = 5.0  # for both questions; a client waits for its greeting meanwhile
LOOKUP_TIMEOUT_S = 60.0  # for everything that one destination needs
MAX_EXCHANGES = 40  # hosts of a domain, and addresses of all of them; what is less preferred is left out
DNS_PORT = 53

# What dnspython imports when it first meets it: now, since a process in an empty root can import nothing later, and
# what is loaded before the fork is shared.
for _module in ("ANY.CNAME", "ANY.DNAME", "ANY.MX", "ANY.OPT", "ANY.RRSIG", "ANY.SOA", "ANY.TXT", "IN.A", "IN.AAAA"):
    importlib.import_module(f"dns.rdtypes.{_module}")
dns.asyncbackend.get_backend("asyncio")

_NAMESERVER = re.compile(r"nameserver\s+(?:\[(?P<host>[0-9A-Fa-f:.]+)\]:(?P<port>\d{1,5})|(?P<plain>\S+))")
_ATTEMPTS = re.compile(r"options\s.*\battempts:(\d{1,2})\b")

logger = logging.getLogger("smtpd")


class Unresolved(Exception):
    """A destination that leads nowhere. The text is a status line: `451 4.4.3 …` when waiting may help, else 5xx."""

    @property
    def permanent(self) -> bool:
        return str(self).startswith("5")


class Resolver:
    def __init__(self, resolv_conf: Path) -> None:
        self._path = resolv_conf
        self._read: tuple[int, int] | None = None  # inode and mtime of what `_resolver` was made of
        self._resolver: dns.asyncresolver.Resolver | None = None
        # Now, while this process may still read everything; later, what it read first has to do.
        with contextlib.suppress(OSError, Unresolved):
            self._configured()

    async def exchanges(self, domain: str, ours: str = "", *, backup: bool = False) -> list[Exchange]:
        """Where mail for `domain` goes, best first, hosts of equal preference in random order. Raises Unresolved.

        `ours`: a name that means this server; only hosts better than it are good, or mail would come back to us (RFC
        5321 §5.1). With `backup` this server is meant to be in the list, and that nobody better is there may change.
        """
        deadline = asyncio.get_running_loop().time() + LOOKUP_TIMEOUT_S
        if _is_literal(domain) or _is_localhost(domain):
            return await self._addresses(domain, 0, deadline)
        try:
            answer = await self._ask(domain, dns.rdatatype.MX, deadline)
        except dns.resolver.NoAnswer:
            hosts = [(0, _name(domain))]  # implicit MX: the domain itself, as if of preference 0
        else:
            hosts = [(record.preference, record.exchange) for record in answer]
            if len(hosts) == 1 and hosts[0][1] == dns.name.root:
                raise Unresolved(f"556 5.1.10 {domain} does not accept mail (null MX)")
            random.shuffle(hosts)
            hosts.sort(key=lambda host: host[0])
        hosts = _better_than(ours, hosts, domain, backup=backup) if ours else hosts
        found: dict[str, Exchange] = {}
        failures: list[Unresolved] = []
        for preference, host in hosts[:MAX_EXCHANGES]:
            if host == dns.name.root:
                continue
            try:
                for exchange in await self._addresses(host.to_text(omit_final_dot=True), preference, deadline):
                    found.setdefault(exchange.address, exchange)
            except Unresolved as failure:
                failures.append(failure)
        if not found:
            failures.append(Unresolved(f"550 5.4.4 no mail exchanger of {domain} has an address"))
            raise next((failure for failure in failures if not failure.permanent), failures[0])
        return list(found.values())[:MAX_EXCHANGES]

    async def addresses(self, name: str) -> list[Exchange]:
        """The addresses of one host, or of a literal in brackets. Raises Unresolved."""
        deadline = asyncio.get_running_loop().time() + LOOKUP_TIMEOUT_S
        return (await self._addresses(name, 0, deadline))[:MAX_EXCHANGES]

    async def name_of(self, address: str) -> tuple[str, bool]:
        """The name of an address, "" when none can be had, and whether the name leads back (FCrDNS, RFC 1912 §2.1)."""
        if ipaddress.ip_address(address).is_loopback:
            return "localhost", True  # RFC 6761 §6.3: known without asking
        deadline = asyncio.get_running_loop().time() + CLIENT_NAME_TIMEOUT_S
        try:
            pointers = await self._ask(dns.reversename.from_address(address).to_text(), dns.rdatatype.PTR, deadline)
            name: str = pointers[0].target.to_text(omit_final_dot=True)
        except (Unresolved, dns.resolver.NoAnswer):
            return "", False
        try:
            found = await self._addresses(name, 0, deadline)
        except Unresolved:
            return name, False
        wanted = ipaddress.ip_address(address)
        return name, any(ipaddress.ip_address(exchange.address) == wanted for exchange in found)

    async def _addresses(self, name: str, preference: int, deadline: float) -> list[Exchange]:
        if _is_literal(name):
            return [Exchange(preference, _literal(name), name)]
        if _is_localhost(name):  # RFC 6761 §6.3: never asked of a server
            return [Exchange(preference, "127.0.0.1", name)]
        found: list[Exchange] = []
        trouble: Unresolved | None = None
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            try:
                answer = await self._ask(name, kind, deadline)
            except dns.resolver.NoAnswer:
                continue
            except Unresolved as failure:
                if failure.permanent:
                    raise  # there is no such name, whatever type is asked for
                trouble = failure
            else:
                found += [Exchange(preference, record.address, name) for record in answer]
        if not found:
            raise trouble or Unresolved(f"550 5.1.2 {name} has no address")
        return found

    async def _ask(self, name: str, kind: dns.rdatatype.RdataType, deadline: float) -> dns.resolver.Answer:
        """Raises Unresolved; NoAnswer when the name is there but nothing of this kind."""
        wait_s = min(QUESTION_TIMEOUT_S, deadline - asyncio.get_running_loop().time())
        try:
            if wait_s <= 0:
                raise dns.exception.Timeout
            resolver = self._configured()
            return await resolver.resolve(_name(name), kind, lifetime=min(wait_s, resolver.lifetime), search=False)
        except dns.resolver.NXDOMAIN as error:
            raise Unresolved(f"550 5.1.2 no such domain: {name}") from error
        except dns.resolver.NoAnswer:
            raise
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise Unresolved(f"451 4.4.3 cannot resolve {name} now: {_told(error)}") from error

    def _configured(self) -> dns.asyncresolver.Resolver:
        """Raises Unresolved, OSError."""
        try:
            status = self._path.stat()
            state = (status.st_ino, status.st_mtime_ns)
            if self._resolver is None or state != self._read:
                self._resolver = read_resolv_conf(self._path.read_text(errors="replace"))
                self._read = state
        except OSError:
            if self._resolver is None:
                raise
        return self._resolver


def read_resolv_conf(text: str) -> dns.asyncresolver.Resolver:
    """A resolver as resolv.conf(5) says, OpenBSD's `nameserver [address]:port` included.

    Raises Unresolved when it names no server.
    """
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.lifetime = QUESTION_TIMEOUT_S
    servers: list[str | dns.nameserver.Nameserver] = []
    rest: list[str] = []
    for line in text.splitlines():
        found = _NAMESERVER.match(line)
        if found is None:
            rest.append(line)
            continue
        address, port = found["host"] or found["plain"], int(found["port"] or DNS_PORT)
        try:
            if not 0 < port < 1 << 16:
                raise ValueError
            servers.append(dns.nameserver.Do53Nameserver(str(ipaddress.ip_address(address)), port))
        except ValueError:
            logger.warning("resolv.conf: %r names no server", line)
    if not servers:
        raise Unresolved("451 4.4.3 no name server in resolv.conf")
    # dnspython reads the options, but it wants a server there, and knows no ports.
    resolver.read_resolv_conf(io.StringIO("\n".join([*rest, "nameserver 127.0.0.1", ""])))
    resolver.nameservers = servers
    if attempts := next((found for line in rest if (found := _ATTEMPTS.match(line))), None):
        resolver.lifetime = min(QUESTION_TIMEOUT_S, resolver.timeout * int(attempts[1]) * len(servers))
    return resolver


def _better_than(
    ours: str, hosts: list[tuple[int, dns.name.Name]], domain: str, *, backup: bool
) -> list[tuple[int, dns.name.Name]]:
    """The hosts that mail may go to when the one called `ours` is this server."""
    our_name = _name(ours)
    our_preference = min((preference for preference, host in hosts if host == our_name), default=None)
    if our_preference is None:
        return hosts
    better = [host for host in hosts if host[0] < our_preference]
    if not better and backup:
        raise Unresolved(f"451 4.4.4 no mail exchanger of {domain} is better than {ours}")
    if not better:
        raise Unresolved(f"554 5.4.6 mail for {domain} loops back to this server ({ours})")
    return better


def _name(name: str) -> dns.name.Name:
    try:
        return dns.name.from_text(name)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise Unresolved(f"550 5.1.2 {name} is not a domain name") from error


def _told(error: BaseException) -> str:
    if isinstance(error, dns.exception.Timeout):
        return "no name server answers"
    if isinstance(error, dns.resolver.NoNameservers):
        return "every name server fails"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_localhost(name: str) -> bool:
    return name.rstrip(".").lower() == "localhost"


def _is_literal(name: str) -> bool:
    if name.startswith("["):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _literal(text: str) -> str:
    address = text.strip("[]")
    if address[:5].lower() == "ipv6:":
        address = address[5:]
    try:
        return str(ipaddress.ip_address(address))
    except ValueError as error:
        raise Unresolved(f"550 5.1.2 {text} is not an address literal") from error
