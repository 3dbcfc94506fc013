"""sockets: state, addresses and queues of every socket in a network namespace, by inode.

Asked of the kernel by NETLINK_SOCK_DIAG (sock_diag(7)); where that is refused, or the process lives in another network
namespace, ``/proc/PID/net/*`` is read instead (proc_pid_net(5)), which does not tell a unix socket's peer.

Sockets that belong to no process (TIME_WAIT, orphans) have no inode and are not listed. Nor are those of TCP that
neither listen nor have connected, or whose connection is over: no table of the kernel holds them, though a process may.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Set
from functools import lru_cache

import msgspec

from harness.probes.processes import read_file, text

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port; netlink(7)
_REPLY_HEADER = struct.Struct("=IH10x")  # the same, of which only these matter
_INET_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states, socket id
# struct inet_diag_msg: state, ports (in network order), addresses, receive queue, send queue, inode.
_INET_REPLY = struct.Struct("=xBxxHH16s16s16xII4xI")
_UNIX_REQUEST = struct.Struct("=BBxxIIII4x")  # struct unix_diag_req: family, protocol, states, inode, show, cookie
_UNIX_REPLY = struct.Struct("=xxBxI8x")  # struct unix_diag_msg: state, inode
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_U32, _TWO_U32 = struct.Struct("=I"), struct.Struct("=II")

_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_UDIAG_SHOW_NAME_PEER_RQLEN = 0x1 | 0x4 | 0x10
_UNIX_DIAG_NAME, _UNIX_DIAG_PEER, _UNIX_DIAG_RQLEN = 0, 2, 4
_NETLINK_SOCK_DIAG = 4
_RECEIVE_BYTES = 1 << 16

TCP_STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "NEW_SYN_RECV",
}
_OWNED_STATES = sum(1 << number for number, name in TCP_STATES.items() if name not in ("TIME_WAIT", "NEW_SYN_RECV"))
_LISTEN = 10
_UNIX_STATES = {1: "CONNECTED", 7: "UNCONNECTED", _LISTEN: "LISTEN"}  # unix(7) sockets borrow TCP's numbers
_ACCEPTS = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix


class Socket(msgspec.Struct, frozen=True, gc=False):
    kind: str  # tcp udp unix
    state: str  # of TCP, or CONNECTED UNCONNECTED LISTEN of a unix socket; empty for udp
    local: str = ""  # address:port, or a unix socket's path (@ for the abstract namespace)
    peer: str = ""  # the same; a nameless unix peer is socket:[inode]; empty when not connected
    receive_queue: int = 0  # bytes that the process has not read; of a listener, connections it has not accepted
    send_queue: int = 0  # bytes that the peer has not acknowledged


Table = Mapping[int, Socket]  # by inode


class SocketTables:
    """The tables of as many network namespaces as the asked-for processes live in, each read when first needed.

    The walk in C has its own of our own namespace, and `of` is asked for what these do not tell.
    """

    def __init__(self) -> None:
        self._tables: dict[int, dict[int, Socket]] = {}
        self._own_namespace = os.stat("/proc/self/ns/net").st_ino

    def of(self, pid: int, inodes: Set[int]) -> Table:
        """The table for a process that holds these socket inodes. Empty when the process is gone.

        What a table lacks is asked for anew: the socket may be younger than the table. What a process of another
        namespace holds may be of ours, handed down or passed to it; the inodes of all are of one counter. Raises
        PermissionError.
        """
        try:
            namespace = os.stat(f"/proc/{pid}/ns/net").st_ino
        except (FileNotFoundError, ProcessLookupError):
            return {}
        table = self._tables.setdefault(namespace, {})
        if not inodes <= table.keys():
            table.update(by_netlink(pid, inodes) if namespace == self._own_namespace else by_proc(pid))
        if namespace != self._own_namespace and (missing := inodes - table.keys()):
            return {**self.of(os.getpid(), missing), **table}
        return table


def by_netlink(fallback_pid: int, wanted: Set[int] | None = None) -> Table:
    """The sockets of our own namespace. A family that the kernel refuses to dump is read from ``/proc`` instead.

    Where the `wanted` inodes are found before the last family, the others are not asked for.
    """
    found: dict[int, Socket] = {}
    try:
        diag = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError:
        return by_proc(fallback_pid)
    with diag:
        try:
            found.update(_dump_unix(diag))
        except OSError:
            found.update(_proc_unix(fallback_pid))
        for family, protocol, name in _INET:
            if wanted is not None and wanted <= found.keys():
                break
            try:
                found.update(_dump_inet(diag, family, protocol))
            except OSError:
                found.update(_proc_inet(fallback_pid, family, protocol, name))
    return found


def by_proc(pid: int) -> Table:
    """The sockets of the namespace of `pid`, as ``/proc/PID/net`` tells them."""
    found: dict[int, Socket] = {}
    for family, protocol, name in _INET:
        found.update(_proc_inet(pid, family, protocol, name))
    found.update(_proc_unix(pid))
    return found


_INET = (
    (socket.AF_INET, socket.IPPROTO_TCP, "tcp"),
    (socket.AF_INET6, socket.IPPROTO_TCP, "tcp6"),
    (socket.AF_INET, socket.IPPROTO_UDP, "udp"),
    (socket.AF_INET6, socket.IPPROTO_UDP, "udp6"),
)


# ---- netlink


def _dump(diag: socket.socket, request: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Every answer, as bytes that hold it, and where in them its payload begins and ends.

    Raises OSError with the kernel's error number.
    """
    diag.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + request)
    while True:
        data, at = diag.recv(_RECEIVE_BYTES), 0
        while at < len(data):
            length, kind = _REPLY_HEADER.unpack_from(data, at)
            if kind == _NLMSG_DONE:
                return
            payload = at + _HEADER.size
            if kind == _NLMSG_ERROR:
                number = -int.from_bytes(data[payload : payload + 4], sys.byteorder, signed=True)
                raise OSError(number, os.strerror(number))
            yield data, payload, at + length
            at += _aligned(length)


def _dump_inet(diag: socket.socket, family: int, protocol: int) -> Iterator[tuple[int, Socket]]:
    for data, at, _ in _dump(diag, _INET_REQUEST.pack(family, protocol, 0, _OWNED_STATES)):
        state, local_port, peer_port, local, peer, receive_queue, send_queue, inode = _INET_REPLY.unpack_from(data, at)
        if inode:
            ends = _address(family, local, socket.ntohs(local_port)), _address(family, peer, socket.ntohs(peer_port))
            yield inode, _inet_socket(protocol, state, *ends, receive_queue, send_queue)


def _dump_unix(diag: socket.socket) -> dict[int, Socket]:
    listed: list[tuple[int, int, str, int, int, int]] = []
    names: dict[int, str] = {}
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0xFFFFFFFF, 0, _UDIAG_SHOW_NAME_PEER_RQLEN, 0)
    for data, start, end in _dump(diag, request):
        state, inode = _UNIX_REPLY.unpack_from(data, start)
        peer = receive_queue = send_queue = 0
        name = ""
        at = start + _UNIX_REPLY.size
        while at < end:
            length, kind = _ATTRIBUTE.unpack_from(data, at)
            value = at + _ATTRIBUTE.size
            if kind == _UNIX_DIAG_PEER:
                (peer,) = _U32.unpack_from(data, value)
            elif kind == _UNIX_DIAG_RQLEN:
                receive_queue, send_queue = _TWO_U32.unpack_from(data, value)
            elif kind == _UNIX_DIAG_NAME:
                names[inode] = name = _unix_name(data[value : at + length])
            at += _aligned(length)
        listed.append((inode, state, name, peer, receive_queue, 0 if state == _LISTEN else send_queue))
    return {
        inode: Socket(
            "unix",
            _UNIX_STATES.get(state) or str(state),
            name,
            (names.get(peer) or f"socket:[{peer}]") if peer else "",
            receive_queue,
            send_queue,
        )
        for inode, state, name, peer, receive_queue, send_queue in listed
    }


def _aligned(length: int) -> int:
    return (length + 3) & ~3  # NLMSG_ALIGN, NLA_ALIGN


# ---- /proc/PID/net


def _proc_inet(pid: int, family: int, protocol: int, name: str) -> Iterator[tuple[int, Socket]]:
    """``/proc/PID/net/{tcp,tcp6,udp,udp6}``; no such file where the kernel has no IPv6."""
    for line in (read_file(f"/proc/{pid}/net/{name}") or b"").splitlines()[1:]:
        _, local, peer, state, queues, _, _, _, _, inode, *_ = line.split()
        if int(inode):
            send_queue, _, receive_queue = queues.partition(b":")
            ends = _address(family, *_proc_address(local)), _address(family, *_proc_address(peer))
            yield int(inode), _inet_socket(protocol, int(state, 16), *ends, int(receive_queue, 16), int(send_queue, 16))


def _proc_address(field: bytes) -> tuple[bytes, int]:
    """``0100007F:0019``: 32-bit words in the machine's byte order, then the port."""
    address, _, port = field.partition(b":")
    packed = bytes.fromhex(address.decode())
    if sys.byteorder == "little":
        packed = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
    return packed, int(port, 16)


def _proc_unix(pid: int) -> Iterator[tuple[int, Socket]]:
    for line in (read_file(f"/proc/{pid}/net/unix") or b"").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) < 7 or not fields[6].isdigit():
            continue  # the rest of a path with a newline in it
        listens = int(fields[3], 16) & _ACCEPTS
        state = "LISTEN" if listens else {3: "CONNECTED"}.get(int(fields[5], 16), "UNCONNECTED")
        yield int(fields[6]), Socket("unix", state, text(fields[7]) if len(fields) > 7 else "")


# ---- both


def _inet_socket(protocol: int, state: int, local: str, peer: str, receive_queue: int, send_queue: int) -> Socket:
    if protocol == socket.IPPROTO_UDP:
        return Socket("udp", "", local, peer, receive_queue, send_queue)
    if state == _LISTEN:
        send_queue = 0  # netlink tells listen(2)'s backlog there
    return Socket("tcp", TCP_STATES.get(state) or str(state), local, peer, receive_queue, send_queue)


@lru_cache(maxsize=4096)  # a connection's two ends name each other, and many its listener
def _address(family: int, packed: bytes, port: int) -> str:
    """``127.0.0.1:25`` or ``[::1]:25``; empty for an end that has neither address nor port."""
    if port == 0 and not any(packed):
        return ""
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(family, packed[:4])}:{port}"
    return f"[{socket.inet_ntop(family, packed)}]:{port}"


def _unix_name(name: bytes) -> str:
    if name.startswith(b"\0"):
        return "@" + text(name[1:])
    return text(name.rstrip(b"\0"))
