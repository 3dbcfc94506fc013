from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probed import until

from harness.probes import descriptors, sockets

ME = os.getpid()
FOREIGN = """
import socket, sys
s = socket.create_server(("", 0))
print(s.fileno(), s.getsockname()[1], flush=True)
sys.stdin.read()
"""


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


def filled(connection: socket.socket) -> int:
    """How many bytes it took until it took no more."""
    sent = 0
    while True:
        try:
            sent += connection.send(bytes(1 << 16))
        except BlockingIOError:
            return sent


def loopbacks() -> Iterator[tuple[socket.AddressFamily, str]]:
    yield socket.AF_INET, "127.0.0.1"
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            yield socket.AF_INET6, "::1"
    except OSError:
        return  # a machine without IPv6


@pytest.mark.parametrize(("family", "host"), list(loopbacks()))
def test_netlink_and_proc_tell_the_same(family: socket.AddressFamily, host: str, tmp_path: Path) -> None:
    with ExitStack() as open_sockets:
        keep = open_sockets.enter_context
        listener = keep(socket.create_server((host, 0), family=family))
        client = keep(socket.create_connection(listener.getsockname()[:2]))
        accepted = keep(listener.accept()[0])
        waiting = keep(socket.create_connection(listener.getsockname()[:2]))  # in the accept queue
        client.sendall(b"unread")
        udp, talker = keep(socket.socket(family, socket.SOCK_DGRAM)), keep(socket.socket(family, socket.SOCK_DGRAM))
        udp.bind((host, 0))
        talker.connect(udp.getsockname())
        server = keep(socket.socket(socket.AF_UNIX))
        server.bind(str(tmp_path / "a name"))
        server.listen()
        caller = keep(socket.socket(socket.AF_UNIX))
        caller.connect(str(tmp_path / "a name"))
        keep(server.accept()[0])
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours = [listener, client, accepted, waiting, udp, talker, server, caller, keep(one), keep(other)]

        until(lambda: sockets.by_netlink(ME)[inode(accepted)].receive_queue == 6, "the bytes have arrived")
        netlink, proc = sockets.by_netlink(ME), sockets.by_proc(ME)
        for each in ours:
            found = netlink[inode(each)]
            if found.kind == "unix":  # of which /proc/net tells neither peer nor queues
                found = msgspec.structs.replace(found, peer="", receive_queue=0, send_queue=0)
            assert found == proc[inode(each)]
        assert netlink[inode(listener)].receive_queue == 1
        assert netlink[inode(client)].peer == netlink[inode(listener)].local
        assert netlink[inode(talker)].peer == netlink[inode(udp)].local
        assert netlink[inode(caller)].peer == netlink[inode(server)].local == str(tmp_path / "a name")
        assert netlink[inode(one)].peer == f"socket:[{inode(other)}]"


def test_the_kernel_is_asked_until_all_that_is_wanted_is_found() -> None:
    one, other = socket.socketpair()
    with one, other, socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        unix = sockets.by_netlink(ME, {inode(one), inode(other)})
        assert inode(one) in unix
        assert inode(listener) not in unix
        assert {inode(one), inode(listener), inode(udp)} <= sockets.by_netlink(ME, {inode(udp)}).keys()
        tables = sockets.SocketTables()
        assert tables.of(ME, {inode(one)})[inode(one)].kind == "unix"
        assert tables.of(ME, {inode(udp)})[inode(udp)].kind == "udp"
        assert tables.of(ME, {inode(one), inode(listener)})[inode(listener)].state == "LISTEN"


def test_unread_and_unsent_bytes_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with client, accepted:
            client.setblocking(False)
            sent = filled(client)
            table = sockets.by_netlink(ME)
            queued = table[inode(client)].send_queue, table[inode(accepted)].receive_queue
            assert all(size > 0 for size in queued)
            assert sum(queued) >= sent


def test_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"\0seatbelt test {ME}")
        assert sockets.by_netlink(ME)[inode(one)].local == f"@seatbelt test {ME}"
        assert sockets.by_proc(ME)[inode(one)].local == f"@seatbelt test {ME}"


def test_a_socket_that_is_younger_than_the_tables_is_found() -> None:
    tables = sockets.SocketTables()
    with socket.create_server(("127.0.0.1", 0)):
        descriptors.read(os.getpid(), tables, positions=False)
        with socket.create_server(("127.0.0.1", 0)) as younger:
            states = {each.fd: each.state for each in descriptors.read(os.getpid(), tables, positions=False)}
            assert states[younger.fileno()] == "LISTEN"


def test_when_netlink_is_refused_proc_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # 57 is no netlink protocol of any kernel: the kernel's own refusal.
    monkeypatch.setattr(sockets, "_NETLINK_SOCK_DIAG", 57)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert sockets.by_netlink(ME)[inode(listener)].state == "LISTEN"


def test_when_the_kernel_dumps_no_family_proc_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_SOCK_DIAG_BY_FAMILY", 999)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one, other = socket.socketpair()
        with one, other:
            table = sockets.by_netlink(ME)
            assert table[inode(listener)].state == "LISTEN"
            assert table[inode(one)].state == "CONNECTED"


@pytest.fixture
def inherited() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        yield ours


def test_a_process_in_another_network_namespace(inherited: socket.socket) -> None:
    command = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no permission to make a network namespace")
    process = subprocess.Popen(
        [*command, "python3", "-c", FOREIGN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[inherited.fileno()],
    )
    try:
        assert process.stdout is not None
        fd, port = map(int, process.stdout.readline().split())
        looked = descriptors.read(process.pid, positions=False)
        (found,) = [each for each in looked if each.fd == fd]
        assert (found.kind, found.state, found.local) == ("tcp", "LISTEN", f"0.0.0.0:{port}")
        assert found.inode not in sockets.by_netlink(ME)
        (handed_down,) = [each for each in looked if each.fd == inherited.fileno()]
        assert (handed_down.state, handed_down.local) == ("LISTEN", f"127.0.0.1:{inherited.getsockname()[1]}")
        for seen in descriptors.first_sight([process.pid]).values():  # the tables that C has are not of there
            assert descriptors.read(process.pid, seen=seen) == looked
    finally:
        process.kill()
        process.communicate()


@settings(deadline=None)
@given(st.binary(min_size=4, max_size=4), st.integers(1, 65535))
def test_addresses_in_the_notation_of_proc(packed: bytes, port: int) -> None:
    field = f"{int.from_bytes(packed, sys.byteorder):08X}:{port:04X}".encode()
    assert sockets._address(socket.AF_INET, *sockets._proc_address(field)) == f"{socket.inet_ntoa(packed)}:{port}"
