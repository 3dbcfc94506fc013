"""classes: what kind of thing is this, in words that stay the same from dose to dose.

Owns: the naming of descriptors, sockets and spool files by class. Never: counts.

A leak shows only when its instances share a name: ephemeral ports, message ids and the names of temporary files are
masked. A class that is too wide costs nothing but sharpness; one that is too narrow hides a leak.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from reports.record import Descriptor, Resource, Snapshot

FIRST_HIGH_PORT = 32768  # ip_local_port_range(7): from here on a port is nobody's name
SOCKETS = frozenset({"tcp", "udp", "unix"})
WORDS = {"eventpoll": "epoll"}
DELETED = " (deleted)"  # as the end of a label, and of a link in /proc
WORKING_ROOMS = frozenset({"incoming", "temporary", "purge"})  # of the spool: empty at rest

# In a spool of OpenSMTPD's layout …/MSGID/message; the embedded target also lends …/MSGID.message out of its journal.
_MESSAGE = re.compile(r"/[0-9a-f]{8}[/.]message$")
_ENVELOPE = re.compile(r"/[0-9a-f]{8}/[0-9a-f]{16}$")  # …/MSGID/EVPID
_QUEUED = re.compile(r"^(queue/(?:[0-9a-f]{2}/)?[0-9a-f]{8})(?:/(.*))?$")
_EVPID = re.compile(r"^[0-9a-f]{16}$")
_TOKEN = re.compile(r"[0-9A-Za-z]+")
_HEXADECIMAL = re.compile(r"^(?:(?=.*\d)[0-9a-fA-F]+|[0-9a-fA-F]{8,})$")
_SUFFIX = re.compile(r"\.[A-Za-z]{1,8}$")


class Class(NamedTuple):
    resource: Resource
    kind: str
    label: str


def listening_ports(snapshot: Snapshot) -> frozenset[str]:
    """The ports that any process of the target listens on: they tell an inbound connection from an outbound one."""
    return frozenset(
        _port(descriptor.local)
        for process in snapshot.processes
        for descriptor in process.descriptors
        if descriptor.kind == "tcp" and descriptor.state == "LISTEN"
    )


def descriptor_class(descriptor: Descriptor, listening: Collection[str]) -> Class:
    """The class of one open descriptor, given the target's own `listening` ports."""
    if descriptor.kind in SOCKETS:
        return Class("socket", descriptor.kind, _socket_label(descriptor, listening))
    return Class("descriptor", descriptor.kind, _open_label(descriptor.kind, descriptor.target, descriptor.deleted))


def example(descriptor: Descriptor) -> str:
    """One instance, as a person would look it up: ``local -> peer`` for a connection, else the link's text."""
    if descriptor.peer:
        return f"{descriptor.local} -> {descriptor.peer}"
    if descriptor.local:
        return descriptor.local
    return descriptor.target + (DELETED if descriptor.deleted else "")


def unexplained_files(snapshot: Snapshot) -> dict[str, Class]:
    """Files in the spool that no live envelope explains, by name.

    A message directory with an envelope in it is owed, whole. In another spool layout the names do not tell: nothing is
    unexplained there as long as the daemon owes mail that the known layout does not account for.
    """
    owed: set[str] = set()
    envelopes = 0
    for name in snapshot.files:
        match = _QUEUED.match(name)
        if match and match[2] and _EVPID.match(match[2]):
            owed.add(match[1])
            envelopes += 1
    unexplained: dict[str, Class] = {}
    for name in snapshot.files:
        room = name.partition("/")[0]
        match = _QUEUED.match(name)
        if match:
            if match[1] not in owed:
                unexplained[name] = Class("file", "orphan", "message in the queue that no envelope owes")
        elif room in WORKING_ROOMS and room != name:
            unexplained[name] = Class("file", room, f"file in {room}/")
        elif snapshot.backlog <= envelopes:
            unexplained[name] = Class("file", "spool", f"spool file {_file_class(name)}")
    return unexplained


def masked(text: str) -> str:
    """Digits and hexadecimal numbers as ``*``: ``job-17/a3f9`` is ``job-*/*``."""
    return _TOKEN.sub(lambda token: "*" if _HEXADECIMAL.match(token[0]) else re.sub(r"\d+", "*", token[0]), text)


def _socket_label(descriptor: Descriptor, listening: Collection[str]) -> str:
    state = f"/{descriptor.state}" if descriptor.state else ""
    if descriptor.kind == "unix":
        return "unix/LISTEN" if descriptor.state == "LISTEN" else "unix"
    if descriptor.kind == "udp":
        return f"udp to {_peer_class(descriptor.peer)}" if descriptor.peer else "udp"
    if descriptor.state != "ESTABLISHED":
        return f"tcp{state}"
    if _port(descriptor.local) in listening:
        return "tcp/ESTABLISHED from *"
    return f"tcp/ESTABLISHED to {_peer_class(descriptor.peer)}"


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _peer_class(address: str) -> str:
    port = _port(address)
    return f"*:{port}" if port.isdecimal() and int(port) < FIRST_HIGH_PORT else "*:high"


@lru_cache(maxsize=65536)
def _open_label(kind: str, target: str, deleted: bool) -> str:
    gone = DELETED if deleted else ""
    if kind == "file":
        if _MESSAGE.search(target):
            return "message file" + gone
        if _ENVELOPE.search(target):
            return "envelope file" + gone
        # A spool may lie anywhere, and in a directory of each run: its files are named from there, as on disk.
        _, found, inside = target.rpartition("/spool/")
        return f"spool file {_file_class(inside)}{gone}" if found else f"file {_file_class(target)}{gone}"
    if kind == "directory":
        return f"directory {masked(target)}{gone}"
    if kind == "device":
        return f"device {target}"
    if kind in ("memfd", "other"):
        return f"{kind} {masked(target)}{gone}"
    return WORDS.get(kind, kind)


def _file_class(path: str) -> str:
    """The directory and the suffix: names that mkstemp(3) makes differ in letters too, which no mask can tell."""
    directory, slash, name = path.rpartition("/")
    suffix = _SUFFIX.search(name)
    return f"{masked(directory)}{slash}*{suffix[0] if suffix else ''}"
