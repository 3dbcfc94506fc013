"""A process that holds one of everything, for tests and benchmarks: ``python holds_everything.py DIRECTORY``.

It prints {name: descriptor} as JSON, then waits until its standard input ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import sys
from pathlib import Path


def main(directory: Path) -> None:
    held: dict[str, int] = {}
    kept: list[object] = []  # sockets and epolls close when they are collected

    def keep(name: str, thing: socket.socket | select.epoll) -> None:
        kept.append(thing)
        held[name] = thing.fileno()

    read_write_create = os.O_RDWR | os.O_CREAT
    held["file"] = os.open(directory / "with space", read_write_create | os.O_APPEND)
    os.write(held["file"], b"seventeen bytes.\n")
    held["newline"] = os.open(directory / "new\nline", read_write_create)
    held["not utf-8"] = os.open(os.fsencode(directory) + b"/caf\xe9", read_write_create)
    held["living"] = os.open(directory / "alive (deleted)", read_write_create)
    held["deleted"] = os.open(directory / "gone", read_write_create)
    (directory / "gone").unlink()
    held["other name"] = os.open(directory / "first name", read_write_create)
    (directory / "second name").hardlink_to(directory / "first name")
    (directory / "first name").unlink()
    held["directory"] = os.open(directory, os.O_RDONLY)
    held["device"] = os.open(os.devnull, os.O_WRONLY)
    held["pipe out"], held["pipe in"] = os.pipe()
    os.mkfifo(directory / "fifo")
    held["fifo"] = os.open(directory / "fifo", os.O_RDWR)
    one, other = socket.socketpair()
    keep("pair one", one)
    keep("pair other", other)
    named = socket.socket(socket.AF_UNIX)
    named.bind(str(directory / "u"))  # short: a path of a unix socket has at most 108 bytes
    named.listen()
    keep("unix listener", named)

    listener = socket.create_server(("127.0.0.1", 0))
    keep("listener", listener)
    keep("client", socket.create_connection(listener.getsockname()))
    keep("accepted", listener.accept()[0])
    leaver = socket.create_connection(listener.getsockname())
    keep("close wait", listener.accept()[0])
    leaver.close()
    keep("udp", bound_udp())
    keep("unbound tcp", socket.socket())
    keep("netlink", socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))

    epoll = select.epoll()
    keep("epoll", epoll)
    epoll.register(named)
    twin = os.dup(held["pipe out"])
    epoll.register(twin)
    os.close(twin)  # it stays watched: its open file is open yet
    libc = ctypes.CDLL(None, use_errno=True)
    held["eventfd"] = libc.eventfd(0, os.O_NONBLOCK)
    held["timerfd"] = libc.timerfd_create(0, 0)
    held["inotify"] = libc.inotify_init()
    assert libc.inotify_add_watch(held["inotify"], os.fsencode(directory), 0x2) >= 0  # IN_MODIFY
    held["signalfd"] = libc.signalfd(-1, ctypes.create_string_buffer(128), 0)
    held["pidfd"] = os.pidfd_open(os.getpid())
    held["memfd"] = os.memfd_create("kept in memory")
    assert all(fd >= 0 for fd in held.values()), held
    print(json.dumps(held), flush=True)
    sys.stdin.read()


def bound_udp() -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    return udp


if __name__ == "__main__":
    main(Path(sys.argv[1]))
