"""What a configuration says, as types. Nothing here reads a file or decides anything.

Times are seconds, sizes bytes. Tables are named, also those that were written in place (`<dynamic:1>`, as OpenSMTPD
calls them); every name that stands in a Config has been checked. Tagged classes say in their encoded form (`codec`)
which they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec


class ConfigError(Exception):
    """What is wrong with a configuration: one line for each mistake, `file:line:column: what`."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = tuple(errors)


TlsUse = Literal["no", "offered", "required", "implicit"]  # implicit: from the first byte (smtps)


class Listener(msgspec.Struct, frozen=True):
    address: str  # of one interface; a name that has several makes several listeners
    port: int = 25  # 0: the kernel picks a free one (not in OpenSMTPD)
    tag: str = ""
    hostname: str = ""  # "" is the server's
    hostnames: str = ""  # table: our name by the address that was connected to
    mask_src: bool = False
    no_dsn: bool = False
    received_auth: bool = False  # the Received header names the authenticated user
    proxy_v2: bool = False  # a PROXY header (version 2) comes before anything else
    filter: str = ""  # name of a filter or chain
    tls: TlsUse = "no"
    verify: bool = False  # a client certificate is required, and must be good
    pki: tuple[str, ...] = ()  # names; more than one are chosen among by SNI
    ca: str = ""
    auth: Literal["no", "optional", "required"] = "no"
    auth_table: str = ""  # credentials; "" is the system's users
    senders: str = ""  # table: which addresses an authenticated user may send from
    masquerade: bool = False  # … and the From header is rewritten


TableBackend = Literal["static", "file", "sqlite", "passwd"]


class TableSpec(msgspec.Struct, frozen=True):
    name: str
    entries: Mapping[str, str | None] = msgspec.field(default_factory=dict)  # of a static table; a list has no values
    path: Path | None = None  # of a table in a file (for sqlite: its configuration)
    backend: TableBackend = "static"


class Pki(msgspec.Struct, frozen=True):
    """A certificate and its key, both PEM files that only the parent reads."""

    name: str  # "*" stands for any
    cert: Path
    key: Path
    dhe: Literal["none", "auto", "legacy"] = "none"


class Ca(msgspec.Struct, frozen=True):
    name: str
    cert: Path


FilterPhase = Literal["connect", "helo", "ehlo", "auth", "mail-from", "rcpt-to", "data", "commit"]
Decision = Literal["bypass", "disconnect", "junk", "reject", "rewrite", "report"]


class FilterCondition(msgspec.Struct, frozen=True):
    fact: Literal["fcrdns", "rdns", "src", "helo", "auth", "mail-from", "rcpt-to"]
    table: str = ""  # "" asks only whether there is one
    regex: bool = False
    negated: bool = False


class BuiltinFilter(msgspec.Struct, frozen=True, tag=True):
    name: str
    phase: FilterPhase
    condition: FilterCondition
    decision: Decision
    argument: str = ""  # the reply of reject and disconnect ("550 go away"), the value of rewrite and report


class ProcFilter(msgspec.Struct, frozen=True, tag=True):
    """A program that speaks smtpd-filters(7) on its standard input and output."""

    name: str
    command: str
    user: str = ""
    group: str = ""
    chroot: str = ""


class FilterChain(msgspec.Struct, frozen=True, tag=True):
    name: str
    filters: tuple[str, ...]


Filter = BuiltinFilter | ProcFilter | FilterChain

RelayScheme = Literal["smtp", "smtp+notls", "smtp+tls", "smtps", "lmtp"]


class RelayLimits(msgspec.Struct, frozen=True):
    """`mta limit`: how many connections, how far apart (seconds), how much in one; the names are those of 6.8.

    Where nothing is said this server does as OpenSMTPD of February 2013 did, as every measurement of it assumes: a
    peer that refuses everything is not given up, and a session ends with its relay's last task. What 6.8 would do is
    noted.
    """

    max_conn_per_host: int = 10
    max_conn_per_route: int = 5
    max_conn_per_source: int = 100
    max_conn_per_connector: int = 20
    max_conn_per_relay: int = 100
    max_conn_per_domain: int = 100
    conn_delay_host: int = 0
    conn_delay_route: int = 0  # 6.8: 5
    conn_delay_source: int = 0
    conn_delay_connector: int = 0
    conn_delay_relay: int = 0  # 6.8: 2
    conn_delay_domain: int = 0
    reconn_delay_route: int = 0  # between a session's end and the route's next connection; 6.8: 3
    session_mail_max: int = 100  # accepted ones
    max_failures_per_session: int = 0  # refused messages; 0: any number. 6.8: 25
    session_transaction_delay: int = 0
    session_keepalive: int = 0  # an idle session waits so long for its relay's next message; 6.8: 10
    task_hiwat: int = 50
    task_lowat: int = 30
    task_release: int = 10
    family: Literal["", "inet4", "inet6"] = ""


class MdaLimits(msgspec.Struct, frozen=True):
    """`mda limit`: local deliveries at once, and envelopes that may wait for them."""

    max_session: int = 50
    max_session_per_user: int = 7
    task_hiwat: int = 50
    task_lowat: int = 30
    task_release: int = 10


class SchedulerLimits(msgspec.Struct, frozen=True):
    max_inflight: int = 5000
    max_evp_batch_size: int = 256
    max_msg_batch_size: int = 1024
    max_schedule: int = 10


class RelayHost(msgspec.Struct, frozen=True):
    host: str
    port: int = 25
    scheme: RelayScheme = "smtp"
    label: str = ""  # of credentials


class Action(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    name: str
    ttl_s: int | None = None  # None: the queue's


class RelayAction(Action, frozen=True, kw_only=True):
    host: RelayHost | None = None  # None: the recipient domain's mail exchangers
    helo: str = ""  # "" is the server's name
    src: str = ""  # address to connect from; "" is the kernel's choice
    src_table: str = ""  # … or a table of them
    helo_src: str = ""  # table: the name to greet with, by source address
    mail_from: str = ""  # sender in the place of the envelope's
    domain: str = ""  # table: hosts (relay URLs) by recipient domain, in the place of its mail exchangers
    pki: str = ""  # the certificate that proves who we are
    tls: bool = False  # required; verified unless `tls_verify` is off
    tls_verify: bool = True
    auth: str = ""  # table: credentials by the label of `host`
    backup: bool = False
    backup_mx: str = ""  # the name in MX records that is ours; "" is the server's


class LocalAction(Action, frozen=True, kw_only=True):
    user: str = ""  # deliver as this one, whoever the recipient
    alias: str = ""  # names of tables
    virtual: str = ""
    userbase: str = ""
    wrapper: str = ""  # name of an `mda wrapper`


class MboxAction(LocalAction, frozen=True, kw_only=True):
    pass


class MaildirAction(LocalAction, frozen=True, kw_only=True):
    path: str = "~/Maildir"  # may hold format specifiers
    junk: bool = False  # spam goes into the Junk folder


class LmtpAction(LocalAction, frozen=True, kw_only=True):
    destination: str  # host:port, or the path of a socket
    rcpt_to: bool = False  # name recipients by address, not by user


class MdaAction(LocalAction, frozen=True, kw_only=True):
    command: str


class ForwardOnlyAction(LocalAction, frozen=True, kw_only=True):
    pass


class ExpandOnlyAction(LocalAction, frozen=True, kw_only=True):
    pass


class Criterion(msgspec.Struct, frozen=True):
    """One thing that a rule asks of an envelope."""

    fact: Literal["from", "for", "tag", "helo", "mail-from", "rcpt-to", "auth", "tls", "rdns"]
    value: Literal["any", "local", "socket", "yes", "table"] = "table"  # "yes": there is one at all
    table: str = ""
    regex: bool = False  # the table holds regular expressions
    negated: bool = False


class Match(msgspec.Struct, frozen=True):
    """A rule: when all its criteria hold, `action` is the action's name, None to reject."""

    criteria: tuple[Criterion, ...]
    action: str | None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    hostname: str  # of this machine
    listeners: tuple[Listener, ...]
    socket: Listener = Listener("")  # mail that is made on this machine comes through the control socket
    tables: Mapping[str, TableSpec] = msgspec.field(default_factory=dict)
    actions: Mapping[str, Action] = msgspec.field(default_factory=dict)
    matches: tuple[Match, ...] = ()
    pkis: Mapping[str, Pki] = msgspec.field(default_factory=dict)
    cas: Mapping[str, Ca] = msgspec.field(default_factory=dict)
    filters: Mapping[str, Filter] = msgspec.field(default_factory=dict)
    wrappers: Mapping[str, str] = msgspec.field(default_factory=dict)  # `mda wrapper`: commands by name
    relay_limits: RelayLimits = RelayLimits()
    domain_limits: Mapping[str, RelayLimits] = msgspec.field(default_factory=dict)  # `mta limit for domain`
    mda_limits: MdaLimits = MdaLimits()
    scheduler_limits: SchedulerLimits = SchedulerLimits()
    max_deferred: int = 100  # envelopes held for destinations that do not answer
    admd: str = ""  # in Authentication-Results
    subaddress_delimiter: str = "+"
    queue_compression: bool = False
    queue_ttl_s: int = 345600
    bounce_warn_s: tuple[int, ...] = (14400,)
    max_message_bytes: int = 35 * 1024 * 1024
    ciphers: str = ""
    max_mails: int = 100  # in a session
    max_rcpt: int = 1000  # in a message
