"""smtpd: the mail server's command.

    smtpd [-dnv] [-f smtpd.conf] [-T subsystem]... [--spool DIR] [--queue disk|ram|null] [--socket PATH]

-d stay in the foreground and log to standard error · -n check the configuration and exit · -v log more ·
-f the configuration · -T trace a subsystem from the start (to the log) · --spool where the queue lives ·
--socket the control socket.

Exit status: 0 stopped as asked, or the configuration is valid; 1 a process died; 2 usage, configuration, or a port
that is taken. smtpd(8) of OpenSMTPD is the model.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mta_under_test.config import Config, ConfigError, Listener, load
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes import parent
from mta_under_test.processes.control import WATCHED
from mta_under_test.processes.process import Start
from mta_under_test.spool import BACKENDS, SpoolError, open_store

DEFAULT_CONFIG = Path("/etc/smtpd.conf")
DEFAULT_SPOOL = Path("/var/spool/smtpd")
DEFAULT_SOCKET = Path("/var/run/smtpd.sock")
BACKLOG = 128

logger = logging.getLogger("smtpd")


class StartError(Exception):
    """smtpd cannot start; one line says why."""


def main(argv: Sequence[str] | None = None, births: Mapping[str, parent.Birth] = parent.BIRTHS) -> int:
    options = _parser().parse_args(argv)
    try:
        config = load(options.f)
        if options.n:
            print("configuration OK", file=sys.stderr)
            return 0
        open_store(options.queue, options.spool).close()
        start = _bind_all(config, options)
    except (ConfigError, StartError, SpoolError) as error:
        print(error, file=sys.stderr)
        return 2
    _log_to(options)
    for listener, sock in start.smtp:
        logger.info(
            "listening on %s port %d%s", *sock.getsockname()[:2], f" tag {listener.tag}" if listener.tag else ""
        )
    if not options.d:
        _daemonize()
    try:
        return parent.serve(start, births)
    finally:
        options.socket.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="smtpd", description="Seatbelt's embedded mail server")
    parser.add_argument("-d", action="store_true", help="stay in the foreground, log to standard error")
    parser.add_argument("-n", action="store_true", help="check the configuration and exit")
    parser.add_argument("-v", action="store_true", help="log more")
    parser.add_argument("-f", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="configuration [%(default)s]")
    parser.add_argument(
        "-T", action="append", default=[], metavar="SUBSYSTEM", help="trace to the log; may be repeated"
    )
    parser.add_argument("--spool", type=Path, default=DEFAULT_SPOOL, metavar="DIR", help="the queue [%(default)s]")
    parser.add_argument(
        "--queue", choices=BACKENDS, default="disk", help="where mail is kept; all but disk lose it [%(default)s]"
    )
    parser.add_argument("--socket", type=Path, default=DEFAULT_SOCKET, metavar="PATH", help="control [%(default)s]")
    return parser


def _bind_all(config: Config, options: argparse.Namespace) -> Start:
    """Bind everything, or nothing. Raises StartError."""
    known = WATCHED[Kind.TRACE]
    for name in options.T:
        if name not in (*known, "all"):
            raise StartError(f"smtpd: -T {name}: no such subsystem; there is {', '.join(known)} and all")
    traced = frozenset(known if "all" in options.T else options.T)
    bound: list[tuple[Listener, socket.socket]] = []
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    start = Start(config, options.spool, control, bound, options.queue, traced)
    try:
        for listener in config.listeners:
            bound.append((listener, _bind(listener)))
        _bind_control(control, options.socket)
    except StartError:
        start.close_sockets()
        raise
    return start


def _bind(listener: Listener) -> socket.socket:
    family = socket.AF_INET6 if ":" in listener.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((listener.address, listener.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        where = f"{listener.address} port {listener.port}"
        raise StartError(f"smtpd: cannot listen on {where}: {os.strerror(error.errno or 0)}") from error
    sock.setblocking(False)
    return sock


def _bind_control(sock: socket.socket, path: Path) -> None:
    """Bind the control socket; one that a dead smtpd left behind is replaced, a living one's is not."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(os.fspath(path))
    except FileNotFoundError:
        pass  # the usual case
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"smtpd: {path}: {error.strerror or error}") from error
    else:
        raise StartError(f"smtpd: another smtpd answers on {path}; stop it or choose another --socket")
    finally:
        probe.close()
    mask = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
        sock.listen(BACKLOG)
    except OSError as error:
        raise StartError(f"smtpd: {path}: {error.strerror or error}") from error
    finally:
        os.umask(mask)
    sock.setblocking(False)


def _log_to(options: argparse.Namespace) -> None:
    handler: logging.Handler
    if options.d or not Path("/dev/log").exists():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s smtpd[%(process)d]: %(message)s"))
    else:
        handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_MAIL)
        handler.setFormatter(logging.Formatter("smtpd[%(process)d]: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if options.v else logging.INFO)
    logger.propagate = False


def _daemonize() -> None:
    """The classic double fork (daemon(7)): the shell gets its prompt back, the daemon no terminal."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


if __name__ == "__main__":
    sys.exit(main())
