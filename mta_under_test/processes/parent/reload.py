"""parent's reload: a new configuration for a running daemon, or none.

What can fail comes first: reading it, binding the ports that are new, and opening its tables (in lookup). Only then
do the others learn of it, and it is never half in force for long. Where one of these fails, nothing has changed.

Owns: the sockets that it binds until smtp has them, and the memory file in which the configuration travels.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

from mta_under_test.config import Config, ConfigError, Listener, load
from mta_under_test.config.codec import encode
from mta_under_test.config.interfaces import interface_addresses
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes.listening import ListenError, bind, keep
from mta_under_test.processes.parent.services import Services
from mta_under_test.processes.process import Refusal
from mta_under_test.processes.tls_settings import differ

logger = logging.getLogger("smtpd")


class ReloadError(Exception):
    """The old configuration stays; the text says why, one line for each mistake."""


async def reload(parent: Services) -> None:
    """Raises ReloadError."""
    if parent.next_config is not None:
        raise ReloadError("a reload is under way")
    interface_addresses.cache_clear()
    try:
        config = load(parent.config.path)
    except ConfigError as error:
        raise ReloadError(str(error)) from error
    if differ(parent.config, config):
        raise ReloadError("certificates, and where TLS is spoken, change only with a restart")
    parent.next_config = config
    try:
        await _take_over(parent, config)
    finally:
        parent.next_config = None


async def _take_over(parent: Services, config: Config) -> None:
    bound: dict[int, socket.socket] = {}
    encoded = os.memfd_create("smtpd.conf", os.MFD_CLOEXEC)
    try:
        _write(encoded, encode(config))
        bound |= _bind_new(parent.config.listeners, config.listeners)
        try:
            await parent.ask("lookup", Kind.CONFIG, descriptor=os.dup(encoded))
        except Refusal as refusal:
            raise ReloadError(str(refusal)) from refusal
        parent.config = config
        while bound:
            index, sock = bound.popitem()
            logger.info("listening on %s port %d", *sock.getsockname()[:2])
            parent.tell("smtp", Kind.LISTENER, index, descriptor=sock.detach())
        for peer in parent.channels:
            if peer != "lookup":
                await parent.ask(peer, Kind.CONFIG, descriptor=os.dup(encoded))
    except Refusal as refusal:
        logger.error("fatal: a process cannot live by the new configuration: %s", refusal)
        parent.stop(1)
    finally:
        os.close(encoded)
        for sock in bound.values():
            sock.close()


def _bind_new(old: Sequence[Listener], new: Sequence[Listener]) -> dict[int, socket.socket]:
    """The sockets of listeners that are new, by their index. Raises ReloadError, and then none is open."""
    bound: dict[int, socket.socket] = {}
    try:
        for index, before in enumerate(keep(old, new)):
            if before is None:
                bound[index] = bind(new[index])
    except ListenError as error:
        for sock in bound.values():
            sock.close()
        raise ReloadError(str(error)) from error
    return bound


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
