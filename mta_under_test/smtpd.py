"""smtpd: the mail server's command.

    smtpd [-dnv] [-f smtpd.conf] [-T subsystem]... [--spool DIR] [--socket PATH] [--user NAME]
          [--resolv-conf FILE] [--mx-port PORT] [--queue disk|ram|null] [--owners]

-d stay in the foreground and log to standard error · -n check the configuration and exit · -v log more ·
-f the configuration · -T trace a subsystem from the start (to the log) · --spool where the queue lives ·
--socket the control socket · --user whom the processes become that need no rights, when root starts it (root: nobody
else) · --resolv-conf the name servers, as resolv.conf(5); `nameserver [127.0.0.1]:5353` has a port · --mx-port where
mail exchangers listen, when it is not 25 (not in OpenSMTPD; Postfix's smtp_tcp_port) · --owners log what a session,
transaction or delivery still holds when it is over (`processes/owner.py`).

Exit status: 0 stopped as asked, or the configuration is valid; 1 a process died; 2 usage, configuration, a port or a
spool that is taken, too few descriptors. smtpd(8) of OpenSMTPD is the model.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import logging
import logging.handlers
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mta_under_test.config import Config, ConfigError, Listener, load
from mta_under_test.config.values import port_number
from mta_under_test.ipc.messages import Kind
from mta_under_test.processes import privileges
from mta_under_test.processes.control import WATCHED, known_name
from mta_under_test.processes.filter_birth import FilterError
from mta_under_test.processes.listening import BACKLOG, ListenError, bind
from mta_under_test.processes.parent import parent
from mta_under_test.processes.privileges import Drop, PrivilegeError
from mta_under_test.processes.process import DEFAULT_RESOLV_CONF, Start
from mta_under_test.processes.tls_settings import load_secrets
from mta_under_test.spool import BACKENDS, SpoolError, open_store
from mta_under_test.tls import TlsError

DEFAULT_CONFIG = Path("/etc/smtpd.conf")
DEFAULT_SPOOL = Path("/var/spool/smtpd")
DEFAULT_SOCKET = Path("/var/run/smtpd.sock")

logger = logging.getLogger("smtpd")


class StartError(Exception):
    """smtpd cannot start; one line says why."""


def main(argv: Sequence[str] | None = None, births: Mapping[str, parent.Birth] = parent.BIRTHS) -> int:
    options = _parser().parse_args(argv)
    try:
        config = load(options.f)
        secrets = load_secrets(config)
        if options.n:
            print("configuration OK", file=sys.stderr)
            return 0
        open_store("disk", options.spool).close()  # also where no mail is kept: offline/ is there, and queue's root
        lock = None if options.queue != "disk" else _lock(options.spool)
        drop = privileges.plan(options.user)
        if drop is not None:
            privileges.own_spool(options.spool, drop.queue)
        start = replace(_bind_all(config, options, drop), secrets=secrets, lock=lock)
    except (ConfigError, TlsError, StartError, ListenError, SpoolError, PrivilegeError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        print(parent.DescriptorsError(), file=sys.stderr)
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
    except (parent.DescriptorsError, FilterError) as error:
        start.close_sockets()
        logger.error("%s", error)
        return 2
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
    parser.add_argument("--user", metavar="NAME", help="whom processes without rights become [_smtpd, or nobody]")
    parser.add_argument(
        "--resolv-conf", type=Path, default=DEFAULT_RESOLV_CONF, metavar="FILE", help="name servers [%(default)s]"
    )
    parser.add_argument("--mx-port", type=_port, default=25, metavar="PORT", help="of mail exchangers [%(default)s]")
    parser.add_argument("--owners", action="store_true", help="log what sessions and transactions fail to let go of")
    return parser


def _port(text: str) -> int:
    try:
        return port_number(text, lowest=1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _lock(spool: Path) -> int:
    """Claim the spool for as long as the descriptor is open: of the directory itself, so that nothing is added to it.

    Raises StartError.
    """
    try:
        descriptor = os.open(spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StartError(f"smtpd: {spool}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        taken = isinstance(error, BlockingIOError)
        reason = "another smtpd has this spool; stop it or choose another --spool" if taken else error.strerror
        raise StartError(f"smtpd: {spool}: {reason}") from error
    return descriptor


def _bind_all(config: Config, options: argparse.Namespace, drop: Drop | None) -> Start:
    """Bind everything, or nothing. Raises StartError, ListenError."""
    known = WATCHED[Kind.TRACE]
    names = [known_name(name) for name in options.T]
    for name in names:
        if name not in (*known, "all"):
            raise StartError(f"smtpd: -T {name}: no such subsystem; there is {', '.join(known)} and all")
    traced = frozenset(known if "all" in names else names)
    bound: list[tuple[Listener, socket.socket]] = []
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    start = Start(
        config,
        options.spool,
        control,
        bound,
        options.queue,
        traced,
        drop=drop,
        resolv_conf=options.resolv_conf,
        mx_port=options.mx_port,
        owners=options.owners,
    )
    try:
        for listener in config.listeners:
            bound.append((listener, bind(listener)))
        _bind_control(control, options.socket)
    except (StartError, ListenError):
        start.close_sockets()
        raise
    return start


def _bind_control(sock: socket.socket, path: Path) -> None:
    """Bind the control socket; one that a dead smtpd left behind is replaced, a living one's is not."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(os.fspath(path))
    except FileNotFoundError:
        pass  # the usual case
    except ConnectionRefusedError:
        if not path.is_socket() or path.is_symlink():  # connect(2) refuses a file of any other kind as well
            raise StartError(f"smtpd: {path}: is there, and no socket") from None
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
